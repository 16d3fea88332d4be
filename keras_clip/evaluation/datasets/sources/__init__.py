"""Labelled images from where they are stored: tensorflow-datasets, folders, tables, WebDataset tars, scikit-learn.

Labels are names. A source may number its classes as it likes: what is looked up is the name, never the number.
"""

from keras_clip.evaluation.datasets.sources.folder import folder_per_class
from keras_clip.evaluation.datasets.sources.scikit_learn import digits
from keras_clip.evaluation.datasets.sources.table import csv
from keras_clip.evaluation.datasets.sources.tar import tars
from keras_clip.evaluation.datasets.sources.tensorflow_datasets import tfds
