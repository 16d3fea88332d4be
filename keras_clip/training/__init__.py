"""How a model learns: the paper's optimizer and schedule."""

from keras_clip.training.optimizer import AdamW, adamw
