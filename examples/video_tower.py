"""Trains a CLIP whose image tower takes video frames (B, T, H, W, 3), on short synthetic clips with captions.

    python examples/video_tower.py --epochs 20

Any Keras model with features (B, D) is an encoder. This one encodes each frame with the library's Vision Transformer
and pools over time with a small GRU, so that it can see in which direction a shape moves. Prints the fraction of unseen
clips whose direction the model classifies correctly, by prompts.
"""

import terminal

FRAMES, SIZE = 4, 32
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 220), "yellow": (240, 210, 40)}


def parse_args(argv=None):
    parser = terminal.Parser(__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    terminal.start(parse_args)

import keras
import numpy as np

import keras_clip


def video_encoder(width=32):
    """Returns a Keras model from video (B, T, H, W, 3) to features (B, D)."""
    frame_encoder = keras_clip.encoders.VisionTransformer(SIZE, patch_size=8, width=width, num_layers=1, num_heads=2)
    video = keras.Input((FRAMES, SIZE, SIZE, 3), name="video")
    frames = keras.layers.TimeDistributed(frame_encoder)(video)
    return keras.Model(video, keras.layers.GRU(width)(frames), name="video_encoder")


def draw_clip(rng):
    """Draws a moving square: frames uint8 (T, H, W, 3), its caption and its direction."""
    direction, colour = rng.choice(list(DIRECTIONS)), rng.choice(list(COLOURS))
    step, place = np.array(DIRECTIONS[direction]) * 4, rng.integers(10, 14, size=2)
    place = place - step * (FRAMES - 1) // 2
    frames = np.full((FRAMES, SIZE, SIZE, 3), 255, np.uint8)
    for frame in frames:
        row, column = place
        frame[row : row + 8, column : column + 8] = COLOURS[colour]
        place = place + step
    return frames, f"a {colour} square moving {direction}", direction


def draw_clips(count, seed):
    rng = np.random.default_rng(seed)
    frames, captions, directions = zip(*(draw_clip(rng) for _ in range(count)), strict=True)
    return np.stack(frames), list(captions), list(directions)


def build():
    """Returns a `CLIPModel` of the video encoder and a small text encoder."""
    text_encoder = keras_clip.encoders.TextTransformer(32, 1, 2, context_length=16)
    return keras_clip.CLIPModel(video_encoder(), text_encoder, embed_dim=32)


def main(argv=None):
    args = parse_args(argv)
    keras.utils.set_random_seed(args.seed)
    clip = build()
    frames, captions, _ = draw_clips(args.clips, args.seed)
    steps = args.epochs * -(-args.clips // 32)
    clip.compile(keras_clip.training.adamw(clip, 1e-3, warmup_steps=steps // 10, total_steps=steps + 1))
    # The input of the model is named "images" for any axes; the model normalises uint8.
    history = clip.fit(
        {"images": frames, "token_ids": clip.tokenizer(captions)}, batch_size=32, epochs=args.epochs, verbose=0
    )
    frames, _, directions = draw_clips(128, args.seed + 1)
    classifier = keras_clip.ZeroShotClassifier(clip, list(DIRECTIONS), [f"a {c} square moving {{}}" for c in COLOURS])
    accuracy = classifier.evaluate((frames, directions), verbose=0)["top_1_accuracy"]
    print(f"loss {history.history['loss'][-1]:.3f}; direction of unseen clips: {accuracy:.1%} of 128, chance 25 %")
    return accuracy


if __name__ == "__main__":
    terminal.run(main)
