"""Input pipelines: readers, image decoding, preprocessing and tokenization."""

from keras_clip.data import prompts, synthetic
from keras_clip.data.images import OPENAI_MEAN, OPENAI_STD, ImagePreprocessor
from keras_clip.data.pairs import image_text_pairs
from keras_clip.data.readers.reader import Reader
from keras_clip.data.readers.storage.manifest import check_manifests
from keras_clip.data.tokenizer import CLIPTokenizer
