"""Labels of pictures: saved classes that the model assigns and a person corrects, their exports, and a probe."""

from keras_clip.search.labels.assigning import ClassCounts, LabelledPicture, Labelling, class_encoder
from keras_clip.search.labels.classes import Classes, ClassExists, SavedClass
from keras_clip.search.labels.exports import FORMATS, export
from keras_clip.search.labels.probe import Probe, Suggestion, train_probe
