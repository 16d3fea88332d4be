"""Published models, and CLIP checkpoints in the layouts of open_clip and Hugging Face, read and written."""

from keras_clip.presets.keras_hub import from_keras_hub, to_keras_hub
from keras_clip.presets.loading import load, load_weights, names
from keras_clip.presets.saving import save
