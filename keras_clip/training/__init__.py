"""How a model learns: the paper's optimizer and schedule."""

from keras_clip.training.lora import enable_lora
from keras_clip.training.optimizer import AdamW, adamw
