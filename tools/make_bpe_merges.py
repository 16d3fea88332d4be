"""Copies CLIP's table of merges from the installed open-clip-torch wheel, which contains OpenAI's file unchanged.

    python tools/make_bpe_merges.py

Writes keras_clip/data/bpe_simple_vocab_16e6.txt.gz, after checking that it is the published file.
"""

import hashlib
import importlib.metadata
import sys
from pathlib import Path

# The scripts of both folders use `terminal`, which is in examples/.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import terminal

SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
NAME = "bpe_simple_vocab_16e6.txt.gz"
TARGET = Path(__file__).resolve().parents[1] / "keras_clip" / "data" / NAME


def main(argv=None):
    terminal.Parser(__doc__).parse_args(argv)
    wheel = importlib.metadata.distribution("open-clip-torch")
    file = next(file for file in wheel.files if file.name == NAME)
    content = Path(file.locate()).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"open-clip-torch {wheel.version} has another table. Expected {SHA256}. Received: {digest}.")
    TARGET.write_bytes(content)
    print(f"{TARGET.name}: {len(content):,} bytes from open-clip-torch {wheel.version}")


if __name__ == "__main__":
    terminal.run(main)
