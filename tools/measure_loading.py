"""Measures the memory of `presets.load` on each backend: the peak above the memory after the imports.

    python tools/measure_loading.py vit_l14_336
    python tools/measure_loading.py vit_b32 rn50 --backends jax

First, a checkpoint of random numbers in float16 is written; a new process loads it as a float32 model. The measure is
Linux's anonymous memory (RssAnon), since pages of the file itself can be dropped at any time.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The scripts of both folders use `terminal`, which is in examples/.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import terminal

REPOSITORY = Path(__file__).resolve().parents[1]
BACKENDS = ("tensorflow", "jax", "torch")
# The script that writes the checkpoint, and the script that is measured.
WRITE = """
import json, sys
import numpy as np
from safetensors.numpy import save_file
from keras_clip import presets
from keras_clip.presets.layouts import by_key, open_clip_slots
name, path = sys.argv[1:]
groups = by_key(open_clip_slots(presets.load(name, weights=None)))
random = np.random.default_rng(0)
tensors = {
    key: np.asarray(0.02 * random.standard_normal(group[0].stored_shape, np.float32), np.float16)
    for key, group in groups.items()
}
save_file(tensors, path)
print(json.dumps({
    "model": 4 * sum(tensor.size for tensor in tensors.values()),
    "largest": 4 * max(tensor.size for tensor in tensors.values()),
}))
"""
LOAD = """
import sys
import keras
import numpy as np
from keras_clip import presets
import huggingface_hub, safetensors
keras.ops.convert_to_numpy(keras.ops.matmul(keras.Variable(np.ones((8, 8))), np.ones((8, 8), "float32")))
name, path = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
model = presets.load(name, path, activation="quick_gelu")
print("loaded", flush=True)
sys.stdin.readline()
"""


def parse_args(argv):
    parser = terminal.Parser(__doc__)
    parser.add_argument("names", nargs="+", help="published models, from presets.names()")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    columns = (
        "model | backend | float32 model, MiB | largest tensor, MiB | peak, MiB | peak / (model + largest) | time, s"
    )
    print(f"| {columns} |")
    print("|---|---|---|---|---|---|---|")
    for name in args.names:
        for row in measure(name, args.backends):
            ratio = row["peak"] / (row["model"] + row["largest"])
            sizes = " | ".join(f"{row[key] / 2**20:,.0f}" for key in ("model", "largest", "peak"))
            print(f"| `{name}` | {row['backend']} | {sizes} | {ratio:.3f} | {row['seconds']:.1f} |", flush=True)


def measure(name, backends):
    """Yields, for each backend, the bytes of the model, of its largest tensor and of the peak, and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "weights.safetensors")
        sizes = json.loads(subprocess.check_output([sys.executable, "-c", WRITE, name, path], env=environment("torch")))
        for backend in backends:
            yield {"backend": backend, **sizes, **load(name, path, backend)}


def load(name, path, backend):
    command = [sys.executable, "-c", LOAD, name, path]
    with subprocess.Popen(
        command, env=environment(backend), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        expect(process, "ready")
        before, start = anonymous(process.pid), time.perf_counter()
        os.set_blocking(process.stdout.fileno(), False)
        process.stdin.write("\n")
        process.stdin.flush()
        peak, line = before, ""
        while not line and process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.002)
            line = process.stdout.readline()
        seconds = time.perf_counter() - start
        process.stdin.close()
    if line.strip() != "loaded":
        raise RuntimeError(f"{name} must load on {backend}. Received: exit status {process.returncode}.")
    return {"peak": peak - before, "seconds": seconds}


def expect(process, word):
    if process.stdout.readline().strip() != word:
        process.kill()
        raise RuntimeError(f"The process must print {word!r}. Received: it ended.")


def anonymous(pid):
    """Returns the bytes of anonymous memory of a process; 0 if it has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    return 0


def environment(backend):
    return {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(REPOSITORY)}


if __name__ == "__main__":
    terminal.start(parse_args)
    terminal.run(main)
