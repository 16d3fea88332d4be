"""Image and text encoders, which map images or token ids to features (B, D)."""

from keras_clip.encoders.resnet import ModifiedResNet
from keras_clip.encoders.text import TextTransformer
from keras_clip.encoders.vit import VisionTransformer
from keras_clip.encoders.wrapped import wrap
