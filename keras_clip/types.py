"""The tensor alias and the shape letters that every docstring of this library uses.

| letter | meaning |
|---|---|
| B | batch: images, texts or pairs |
| H, W | height and width of an image in pixels |
| P | patch size in pixels |
| N | patches of an image |
| L | tokens of a text |
| D | width of a transformer, or dimension of the features of an encoder |
| E | `embed_dim`, the dimension of the space that images and texts share |
| K | classes |
| T | templates |
| V | vocabulary |
| R | replicas |
"""

from typing import Any

# A tensor of the current backend, or a value that it accepts as one (a NumPy array, a list of numbers).
Tensor = Any
