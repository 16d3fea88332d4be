"""Records the embeddings of open_clip and transformers for checkpoints in both layouts, for tests without them.

    python tools/make_golden_embeddings.py

Writes tests/presets/golden_embeddings.json: the versions of the peers, and for each checkpoint its small files, the
shapes of its tensors, and the unit-length embeddings of three images and four texts. The tensors and the inputs are
generated from their keys (tests/presets/seeded_weights.py).
"""

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

# The scripts of both folders use `terminal`, which is in examples/.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import terminal

TESTS = Path(__file__).resolve().parents[1] / "tests"
PATH = TESTS / "presets" / "golden_embeddings.json"
TEXTS = ["a", "a photo of a cat", "two red circles and a blue square on a table", "Sign: 42%!"]
CASES = {
    "rn50 in open_clip's layout": ("open_clip", "rn50"),
    "vit_b32 in open_clip's layout": ("open_clip", "vit_b32"),
    "vit_b32 in Hugging Face's layout": ("hugging_face", "vit_b32"),
}


def main(argv=None):
    terminal.Parser(__doc__).parse_args(argv)
    sys.path.insert(0, str(TESTS))
    golden = {
        "versions": {name: importlib.metadata.version(name) for name in ("open-clip-torch", "transformers", "torch")},
        "cases": {name: make_case(*case) for name, case in CASES.items()},
    }
    PATH.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"{PATH.name}: {', '.join(CASES)}")


def make_case(layout, name):
    import torch
    import torchvision_shim  # noqa: F401  (before open_clip)
    from open_clip.tokenizer import SimpleTokenizer
    from presets import checkpoints
    from presets.seeded_weights import seeded, seeded_tensor

    vision = checkpoints.TINY[name]
    with tempfile.TemporaryDirectory() as folder:
        peer = getattr(checkpoints, f"save_{layout}")(Path(folder), vision)
        files = {path.name: json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))}
    shapes = {key: list(value.shape) for key, value in peer.state_dict().items()}
    peer.load_state_dict({key: torch.from_numpy(seeded_tensor(key, shape)) for key, shape in shapes.items()})
    size = vision["image_size"]
    pixels = torch.from_numpy(seeded("pixels", (3, size, size, 3))).permute(0, 3, 1, 2).contiguous()
    token_ids = SimpleTokenizer(context_length=checkpoints.TEXT["context_length"])(TEXTS)
    with torch.no_grad():
        if layout == "open_clip":
            images, texts = peer.encode_image(pixels, normalize=True), peer.encode_text(token_ids, normalize=True)
        else:
            out = peer(input_ids=token_ids, pixel_values=pixels)
            images, texts = out.image_embeds, out.text_embeds
    return {
        "files": files,
        "tensors": "open_clip_model.safetensors" if layout == "open_clip" else "model.safetensors",
        "shapes": shapes,
        "image_size": size,
        "token_ids": token_ids.tolist(),
        "image_embeddings": rounded(images),
        "text_embeddings": rounded(texts),
    }


def rounded(embeddings):
    return [[round(value, 7) for value in row] for row in embeddings.tolist()]


if __name__ == "__main__":
    terminal.run(main)
