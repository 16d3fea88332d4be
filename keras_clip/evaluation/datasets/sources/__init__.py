"""Labelled images from where they are stored: folders, tables, WebDataset tars, tensorflow-datasets, scikit-learn;
and images that are drawn on request.

Files are read by `keras_clip.data.readers`, as in training. Labels are names: classes are looked up by their names,
never by the numbers that a source assigns to them.
"""

from keras_clip.evaluation.datasets.sources.drawn import counting_scenes, rendered_text
from keras_clip.evaluation.datasets.sources.files import from_files
from keras_clip.evaluation.datasets.sources.folder import folder_per_class
from keras_clip.evaluation.datasets.sources.reader import captions_of, from_reader
from keras_clip.evaluation.datasets.sources.scikit_learn import digits
from keras_clip.evaluation.datasets.sources.table import csv
from keras_clip.evaluation.datasets.sources.tar import tars
from keras_clip.evaluation.datasets.sources.tensorflow_datasets import tfds
