"""Downloads from a local server with the protocol of the Hugging Face hub, which HF_ENDPOINT selects."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from presets.hub_server import COMMIT, serve

from keras_clip import presets

pytestmark = pytest.mark.backend_free

# Loads the named models in turn, and prints the embedding of the same image, or the error, for each.
SCRIPT = """
import json, sys
import keras, numpy as np
from keras_clip import presets

for name in sys.argv[1:]:
    try:
        clip = presets.load(name, encoder="image")
        pixels = np.ones((1, 96, 96, 3), np.float32)
        result = keras.ops.convert_to_numpy(clip.encode_image(pixels))[0].tolist()
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    print("RESULT " + json.dumps(result))
"""


@pytest.fixture(scope="module")
def directory(written):
    return written("open_clip", "vit_b32")[0]


@pytest.fixture(scope="module")
def expected(directory):
    clip = presets.load(directory, encoder="image")
    return keras.ops.convert_to_numpy(clip.encode_image(np.ones((1, 96, 96, 3), np.float32)))[0]


@pytest.fixture
def hub(directory):
    with serve() as hub:
        hub.add("org/tiny", directory)
        yield hub


def load(names, url, home, **environment):
    """Returns the results of `presets.load` for each name, in a new process, and its standard error."""
    environment = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment}
    # Without this, tqdm shows a progress bar on terminals only.
    environment["TQDM_POSITION"] = "-1"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return [json.loads(line) for line in lines], done.stderr


def test_download_then_cache_then_offline(hub, expected, tmp_path):
    (first, again), progress = load(["hf://org/tiny", "hf://org/tiny"], hub.url, tmp_path)
    np.testing.assert_array_equal(np.float32(first), expected)
    np.testing.assert_array_equal(np.float32(again), expected)
    assert "open_clip_model.safetensors" in progress and "100%" in progress
    stored = [line for line in hub.log if line.startswith("GET /stored/")]
    assert len(stored) == 1, "the second load must use the cache"
    asked = len(hub.log)
    (offline, pinned), _ = load(["hf://org/tiny", f"hf://org/tiny@{COMMIT}"], hub.url, tmp_path, HF_HUB_OFFLINE="1")
    np.testing.assert_array_equal(np.float32(offline), expected)
    np.testing.assert_array_equal(np.float32(pinned), expected)
    assert len(hub.log) == asked


@pytest.mark.slow
def test_interrupted_and_failing_downloads_resume(hub, expected, tmp_path):
    hub.cut = hub.failing = 1
    (result,), _ = load(["hf://org/tiny"], hub.url, tmp_path)
    np.testing.assert_array_equal(np.float32(result), expected)
    assert any("bytes=" in line for line in hub.log), "the client must request only the missing range"


def test_missing_repositories_and_files_are_reported(hub, tmp_path):
    hub.files["org/empty", "README.md"] = b"nothing here"
    hub.files["org/bare", "open_clip_config.json"] = hub.files["org/tiny", "open_clip_config.json"]
    hub.gated.add("org/gated")
    names = ["hf://org/none", "hf://org/tiny@v9", "hf://org/empty", "hf://org/bare", "hf://org/gated"]
    results, _ = load(names, hub.url, tmp_path)
    for result, message in zip(
        results,
        [
            "FileNotFoundError: The repository must exist and be accessible. Received: hf://org/none.",
            "FileNotFoundError: The repository must have this revision. Received: hf://org/tiny@v9.",
            "FileNotFoundError: A repository of weights must have open_clip_config.json",
            "FileNotFoundError: A repository of weights must have open_clip_model.safetensors",
            "FileNotFoundError: The repository must exist and be accessible. Received: hf://org/gated.",
        ],
        strict=True,
    ):
        assert result.startswith(message), result


@pytest.mark.slow
def test_a_server_that_fails(hub, tmp_path):
    hub.failing, hub.status = 1000, 500
    (result,), _ = load(["hf://org/tiny"], hub.url, tmp_path)
    assert result.startswith("ConnectionError: The hub must "), result


@pytest.mark.slow
def test_no_network(tmp_path):
    (result,), _ = load(["vit_b32"], "http://127.0.0.1:9", tmp_path)
    assert result.startswith("ConnectionError: The hub must be reachable, or its cache must have the file"), result
    assert "open_clip_model.safetensors of hf://timm/vit_base_patch32_clip_224.openai" in result


@pytest.mark.slow
def test_a_wrong_byte_is_noticed(hub, tmp_path):
    hub.spoilt = True
    (result,), _ = load(["hf://org/tiny"], hub.url, tmp_path)
    assert result.startswith("ValueError: The file must have the digest"), result


@pytest.mark.slow
def test_a_file_spoilt_in_the_cache_is_noticed(hub, tmp_path):
    load(["hf://org/tiny"], hub.url, tmp_path)
    (blob,) = (path for path in tmp_path.rglob("blobs/*") if path.stat().st_size > 10_000)
    content = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (result,), _ = load(["hf://org/tiny"], hub.url, tmp_path, HF_HUB_OFFLINE="1")
    assert result.startswith(f"ValueError: The file must have the digest {blob.name}"), result
