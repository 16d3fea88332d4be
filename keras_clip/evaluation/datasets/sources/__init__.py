"""Labelled images from where they are stored: tensorflow-datasets, folders, tables, WebDataset tars, scikit-learn.

Labels are names. A source may number its classes as it likes: what is looked up is the name, never the number.
"""

from keras_clip.evaluation.datasets.sources.folder import csv, digits, folder_per_class, tars, tfds
