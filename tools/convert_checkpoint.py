"""Converts a CLIP checkpoint from any layout that `keras_clip.presets.load` reads into another.

    python tools/convert_checkpoint.py hf://laion/CLIP-ViT-B-32-laion2B-s34B-b79K runs/b32 --layout keras
    python tools/convert_checkpoint.py runs/b32 runs/b32_hf --layout hugging_face
    python tools/convert_checkpoint.py vit_b32 runs/mine --weights epoch_32.pt --activation gelu --layout open_clip

The result is loaded again and compared with the source: embeddings of random images and a few texts must be equal.
"""

import sys
from pathlib import Path

# The scripts of both folders use `terminal`, which is in examples/.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import terminal

LAYOUTS = ("keras", "open_clip", "hugging_face")
TEXTS = ("a photo of a cat.", "two red circles above a blue square", "the", "Sign: 42% off, today only!")
# Largest difference of components of unit vectors in float32.
TOLERANCE = 1e-6


def parse_args(argv):
    parser = terminal.Parser(__doc__)
    parser.add_argument("source", help="a published model's name, hf://organisation/name, a directory or a file")
    parser.add_argument("directory", type=Path, help="output directory, which is created if necessary")
    parser.add_argument("--layout", choices=LAYOUTS, required=True)
    parser.add_argument("--weights", type=Path, help="file with tensors for the published model that source names")
    parser.add_argument("--activation", choices=("quick_gelu", "gelu"), help="activation of the --weights")
    parser.add_argument("--image-size", type=int, help="pixels; positions are resized")
    parser.add_argument("--context-length", type=int, help="tokens; positions are truncated or interpolated")
    return parser.parse_args(argv)


def largest_difference(clip, again) -> float:
    """Returns the largest difference of the embeddings of random images and of `TEXTS`, over all components."""
    import keras
    import numpy as np

    pixels = np.random.default_rng(0).normal(size=(2, *clip.image_preprocessor.sides, 3)).astype(np.float32)
    token_ids = clip.tokenizer(TEXTS, truncate=True)
    pairs = [
        (clip.encode_image(pixels), again.encode_image(pixels)),
        (clip.encode_text(token_ids), again.encode_text(token_ids)),
    ]
    return max(float(np.abs(np.subtract(*map(keras.ops.convert_to_numpy, pair))).max()) for pair in pairs)


def main(argv=None):
    args = parse_args(argv)
    from keras_clip import presets

    sizes = {"image_size": args.image_size, "context_length": args.context_length}
    clip = presets.load(args.source, weights=args.weights or "default", activation=args.activation, **sizes)
    presets.save(clip, args.directory, layout=args.layout)
    difference = largest_difference(clip, presets.load(args.directory))
    size = sum(path.stat().st_size for path in args.directory.iterdir())
    print(
        f"{args.directory}: {clip.count_params():,} parameters, {size / 2**20:,.0f} MiB in the layout {args.layout}; "
        f"loaded again, embeddings differ by {difference:.1e} at most."
    )
    if difference > TOLERANCE:
        raise SystemExit(f"The embeddings must be equal to {TOLERANCE}. Received: a difference of {difference:.1e}.")


if __name__ == "__main__":
    terminal.start(parse_args)
    terminal.run(main)
