"""`import keras_clip` needs no framework except the backend, and takes little time beyond `import keras`."""

import pytest
from subprocesses import run_python

pytestmark = pytest.mark.backend_free

OTHERS = {
    "tensorflow": "torch jax keras_hub tensorflow_text",
    "jax": "tensorflow tensorflow_text keras_hub torch",
    "torch": "tensorflow tensorflow_text keras_hub jax",
}
LIMIT = 1.0  # seconds of processor time, which depends less on the load of the machine than wall time

# Hides packages as if they were not installed. A finder that raises would break packages that only test for others.
HIDE = """
import sys
from importlib.machinery import PathFinder

hidden = set(sys.argv[1].split())

class HidingFinder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = HidingFinder
"""
IMPORT = """
import time
import keras

start = time.process_time()
import keras_clip

print(time.process_time() - start)
assert not hidden & set(sys.modules), hidden & set(sys.modules)
"""
# Uses every component that needs no file. The images are arrays, since other tests decode files.
USE = """
import keras
import numpy as np
import keras_clip

model = keras_clip.CLIPModel(
    keras_clip.encoders.VisionTransformer(image_size=16, patch_size=8, width=16, num_layers=1, num_heads=2),
    keras_clip.encoders.TextTransformer(width=16, num_layers=1, num_heads=2, context_length=12),
    embed_dim=8,
)
images = model.image_preprocessor([np.full((20, 30, 3), 128, "uint8"), np.zeros((16, 16, 3), "uint8")])
token_ids = model.tokenizer(["a red circle", "deux carr\\u00e9s bleus"])
for embeddings in (model.encode_image(images), model.encode_text(token_ids)):
    norms = np.linalg.norm(keras.ops.convert_to_numpy(embeddings), axis=-1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)
assert not hidden & set(sys.modules), hidden & set(sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", OTHERS)
def test_import_is_light(backend):
    times = []
    # Takes the best of three, because the first run compiles bytecode and reads files that are not cached.
    while len(times) < 3 and min(times, default=LIMIT) >= LIMIT:
        times.append(float(run_python(HIDE + IMPORT, OTHERS[backend], backend=backend).split()[-1]))
    assert min(times) < LIMIT, times


@pytest.mark.slow
@pytest.mark.parametrize("backend", OTHERS)
def test_a_model_runs_without_the_other_frameworks(backend):
    run_python(HIDE + USE, OTHERS[backend], backend=backend)


def test_hidden_packages_are_hidden():
    with pytest.raises(AssertionError, match="No module named 'torch'"):
        run_python(HIDE + "import torch", OTHERS["jax"])
