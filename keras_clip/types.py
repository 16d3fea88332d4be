"""The tensor alias, and the shape letters of docstrings as the glossary in `docs/architecture.md` defines them.

| letter | meaning |
|---|---|
| B | batch size: images, texts or image-text pairs |
| H, W | height and width of an image, in pixels |
| P | patch size, in pixels |
| N | number of patches of an image; in the loss and the evaluation, number of pairs, images or samples |
| L | length of a text, in tokens |
| D | width of a transformer; dimension of the features that an encoder returns |
| E | `embed_dim`: dimension of the embedding space that images and texts share |
| K | number of classes |
| T | number of prompt templates |
| V | vocabulary size |
| R | number of replicas |
"""

from typing import Any

# A tensor of the current backend, or a value that it accepts as one (a NumPy array, a list of numbers).
Tensor = Any
