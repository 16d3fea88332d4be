"""Records the token ids of open_clip's tokenizer for difficult texts, for tests on machines without it.

    python tools/make_golden_tokens.py

Writes tests/data/golden_tokens.json: the version of the peer, the texts, and their ids without start and end tokens.
"""

import importlib.metadata
import json
import sys
from pathlib import Path

# The scripts of both folders use `terminal`, which is in examples/.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import terminal

TESTS = Path(__file__).resolve().parents[1] / "tests"


def main(argv=None):
    terminal.Parser(__doc__).parse_args(argv)
    sys.path.insert(0, str(TESTS))
    import torchvision_shim  # noqa: F401
    from hard_texts import HARD_TEXTS
    from open_clip.tokenizer import SimpleTokenizer

    peer = SimpleTokenizer()
    golden = {
        "open_clip": importlib.metadata.version("open-clip-torch"),
        "tokens": [[text, peer.encode(text)] for text in HARD_TEXTS],
    }
    path = TESTS / "data" / "golden_tokens.json"
    path.write_text(json.dumps(golden, indent=0) + "\n")
    print(f"{path.name}: {len(HARD_TEXTS)} texts by open_clip {golden['open_clip']}")


if __name__ == "__main__":
    terminal.run(main)
