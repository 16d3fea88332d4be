"""Downloads from a local server with the protocol of the Hugging Face hub, which HF_ENDPOINT selects."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from presets.hub_server import COMMIT, serve

from keras_clip import presets

pytestmark = pytest.mark.backend_free

# Loads models in a new process for each line of its input, which has the names, the environment and the files for
# the output. It prints the status of each. The hub's client reads the environment when it is imported, which these
# processes do; the other imports take seconds, and are done once.
SCRIPT = """
import json, os, signal, sys
import keras, numpy as np
from keras_clip import presets

def run(names):
    for name in names:
        try:
            clip = presets.load(name, encoder="image")
            pixels = np.ones((1, 96, 96, 3), np.float32)
            result = keras.ops.convert_to_numpy(clip.encode_image(pixels))[0].tolist()
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        print("RESULT " + json.dumps(result), flush=True)

assert "huggingface_hub.constants" not in sys.modules
for line in sys.stdin:
    names, environment, *files = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(300)
        os.environ.update(environment)
        for descriptor, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
        run(names)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
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


@pytest.fixture(scope="module")
def process():
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        yield running
        running.stdin.close()


@pytest.fixture
def load(process, tmp_path_factory):
    def load(names, url, home, **environment):
        """Returns the results of `presets.load` for each name, in a new process, and its standard error."""
        environment = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment}
        # Without this, tqdm shows a progress bar on terminals only.
        environment["TQDM_POSITION"] = "-1"
        folder = tmp_path_factory.mktemp("output")
        files = folder / "stdout", folder / "stderr"
        process.stdin.write(json.dumps([names, environment, *map(str, files)]) + "\n")
        process.stdin.flush()
        status = process.stdout.readline()
        output, errors = (file.read_text(errors="replace") for file in files)
        assert status == "0\n", errors
        lines = [line.removeprefix("RESULT ") for line in output.splitlines() if line.startswith("RESULT ")]
        return [json.loads(line) for line in lines], errors

    return load


@pytest.mark.slow
def test_download_then_cache_then_offline(hub, load, expected, tmp_path):
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
def test_interrupted_and_failing_downloads_resume(hub, load, expected, tmp_path):
    hub.cut = hub.failing = 1
    (result,), _ = load(["hf://org/tiny"], hub.url, tmp_path)
    np.testing.assert_array_equal(np.float32(result), expected)
    assert any("bytes=" in line for line in hub.log), "the client must request only the missing range"


def test_missing_repositories_and_files_are_reported(hub, load, tmp_path):
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
def test_a_server_that_fails(hub, load, tmp_path):
    hub.failing, hub.status = 1000, 500
    (result,), _ = load(["hf://org/tiny"], hub.url, tmp_path)
    assert result.startswith("ConnectionError: The hub must "), result


@pytest.mark.slow
def test_no_network(load, tmp_path):
    (result,), _ = load(["vit_b32"], "http://127.0.0.1:9", tmp_path)
    assert result.startswith("ConnectionError: The hub must be reachable, or its cache must have the file"), result
    assert "open_clip_model.safetensors of hf://timm/vit_base_patch32_clip_224.openai" in result


@pytest.mark.slow
def test_a_wrong_byte_is_noticed(hub, load, tmp_path):
    hub.spoilt = True
    (result,), _ = load(["hf://org/tiny"], hub.url, tmp_path)
    assert result.startswith("ValueError: The file must have the digest"), result


@pytest.mark.slow
def test_a_file_spoilt_in_the_cache_is_noticed(hub, load, tmp_path):
    load(["hf://org/tiny"], hub.url, tmp_path)
    (blob,) = (path for path in tmp_path.rglob("blobs/*") if path.stat().st_size > 10_000)
    content = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (result,), _ = load(["hf://org/tiny"], hub.url, tmp_path, HF_HUB_OFFLINE="1")
    assert result.startswith(f"ValueError: The file must have the digest {blob.name}"), result
