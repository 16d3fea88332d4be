"""Measures a checkpoint of `training.Checkpoints`: its bytes, and the seconds to write and to restore it.

    python tools/measure_checkpoint.py --preset vit_b32

The model has random weights and the optimizer of the paper; the file is written to the temporary directory. Prints one
line.
"""

import sys
import tempfile
import time
from pathlib import Path

# The scripts of both folders use `terminal`, which is in examples/.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import terminal


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def duration(start: tuple[float, float], end: tuple[float, float]) -> str:
    return f"{end[0] - start[0]:.1f} s ({end[1] - start[1]:.1f} s of the processor)"


def parse_args(argv):
    parser = terminal.Parser(__doc__)
    parser.add_argument("--preset", default="vit_b32")
    parser.add_argument("--moments-dtype", choices=["bfloat16"], help="argument of `adamw`")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse_args(argv)
    import keras

    import keras_clip
    from keras_clip.training import checkpoint_file, state

    clip = keras_clip.presets.load(args.preset, weights=None)
    clip.compile(keras_clip.training.adamw(clip, moments_dtype=args.moments_dtype))
    clip.optimizer.build(clip.trainable_variables)
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder) / "step-000000001.safetensors", now()
        checkpoint_file.write(path, state.entries(clip), state.values(clip), {})
        written = now()
        checkpoint_file.check(path)
        _, _, arrays = checkpoint_file.read(path)
        state.assign(state.variables(clip), arrays)
        end = now()
        print(
            f"{args.preset} on {keras.backend.backend()}: {path.stat().st_size / 1e9:.2f} GB, "
            f"written in {duration(start, written)}, read in {duration(written, end)}"
        )


if __name__ == "__main__":
    terminal.start(parse_args)
    terminal.run(main)
