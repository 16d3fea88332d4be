"""The training step under Keras' own `fit`: one exact step of the global batch, however the batch is divided."""

from keras_clip.step.trainer import Branch, GlobalBatchTrainer
