"""Optimizers, their schedule and their weight decay; `keras_clip.training` exports them."""
