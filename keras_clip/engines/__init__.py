"""Runs a task on each of many items: in this process, in several processes, or on a cluster."""

from keras_clip.engines.auto import Auto
from keras_clip.engines.choice import engine_named
from keras_clip.engines.cluster import Ray
from keras_clip.engines.engine import Engine, Task
from keras_clip.engines.processes import Processes
from keras_clip.engines.serial import Serial
