"""Training: optimizers, recipes, callbacks, checkpoints and strategies."""

from keras_clip.optimizers.adam import AdamW, adamw
from keras_clip.optimizers.decay import decay_mask
from keras_clip.optimizers.orthogonal import Muon, muon
from keras_clip.optimizers.schedules import schedule
from keras_clip.training.checkpoints import Checkpoints, DifferentTrainingError
from keras_clip.training.lora import enable_lora, merge_lora
from keras_clip.training.recipes import Recipe, recipe
from keras_clip.training.sharding import layout_map
from keras_clip.training.skipped_steps import StopOnSkippedSteps
from keras_clip.training.strategies import Part, own_part, strategy
from keras_clip.training.telemetry import Telemetry
from keras_clip.training.unmasking import Unmask
