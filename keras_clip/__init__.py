"""CLIP for Keras 3: components to build, train and use contrastive image-text models."""
