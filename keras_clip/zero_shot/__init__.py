"""Zero-shot classifiers, whose weights are the embeddings of class prompts (Radford et al., 2021, section 3.1)."""

from keras_clip.zero_shot.class_embeddings import embed_classes, tokenize_prompts, unit_length
from keras_clip.zero_shot.classifier import ZeroShotClassifier
