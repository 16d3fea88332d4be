"""Checkpoints give the recorded embeddings of the peers, also where no peer is installed."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from presets.seeded_weights import seeded, seeded_tensor
from safetensors.numpy import save_file

from keras_clip import presets

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((Path(__file__).parent / "golden_embeddings.json").read_text())


def write_checkpoint(directory, case):
    for name, content in case["files"].items():
        (directory / name).write_text(json.dumps(content))
    tensors = {key: seeded_tensor(key, shape) for key, shape in case["shapes"].items()}
    save_file(tensors, directory / case["tensors"])


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_embeddings(name, tmp_path):
    case = GOLDEN["cases"][name]
    write_checkpoint(tmp_path, case)
    clip = presets.load(tmp_path)
    pixels = seeded("pixels", (3, case["image_size"], case["image_size"], 3))
    images = clip.image_embedder.predict(pixels, verbose=0)
    texts = clip.text_embedder.predict(np.array(case["token_ids"], np.int32), verbose=0)
    np.testing.assert_allclose(images, case["image_embeddings"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(texts, case["text_embeddings"], rtol=0, atol=2e-5)


def test_golden_embeddings_of_different_inputs_differ():
    """They differ by at least fifty times the tolerance."""
    for case in GOLDEN["cases"].values():
        for kind in ("image_embeddings", "text_embeddings"):
            assert np.array(case[kind]).std(axis=0).mean() > 50 * 2e-5


@pytest.mark.slow
@pytest.mark.backend_free
@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_the_peers_still_give_the_golden_embeddings(name):
    script = runpy.run_path(str(REPOSITORY / "tools" / "make_golden_embeddings.py"))
    case, again = GOLDEN["cases"][name], script["make_case"](*script["CASES"][name])
    assert again["shapes"] == case["shapes"] and again["token_ids"] == case["token_ids"]
    for kind in ("image_embeddings", "text_embeddings"):
        np.testing.assert_allclose(again[kind], case[kind], rtol=0, atol=1e-5)
