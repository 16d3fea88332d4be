"""A baseline that ignores shapes: supervised logistic regression on the colour histograms of images.

    python tools/histogram_probe.py --train "train/*.tar" --val "val/*.tar" --classes-file class_names.json

The 512 features of an image are the square roots of the fractions of its pixels in 8 x 8 x 8 bins of red, green and
blue. C is selected on a fifth of the training images; the final fit uses all of them. Prints the accuracy on the
validation images with its 95 % interval; the class of an image is the longest class name with which its caption begins.
Requires scikit-learn.
"""

import argparse
import json
import sys
from pathlib import Path

# The scripts of both folders use `terminal`, which is in examples/.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import terminal

BINS = 8
IMAGE_SIZE = 224
CHOICES_OF_C = tuple(10.0**exponent for exponent in range(-2, 5))


def parse_args(argv=None) -> argparse.Namespace:
    parser = terminal.Parser(__doc__)
    parser.add_argument("--train", nargs="+", required=True)
    parser.add_argument("--val", nargs="+", required=True)
    parser.add_argument("--classes-file", type=Path, required=True, help="a JSON list of names")
    return parser.parse_args(argv)


if __name__ == "__main__":
    terminal.start(parse_args)

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

import keras_clip
from keras_clip.evaluation import blaker_interval


def colour_histogram(image: np.ndarray) -> np.ndarray:
    """Converts an image, uint8 (H, W, 3), to features, float (BINS ** 3,)."""
    red, green, blue = np.moveaxis(image.astype(np.int64) * BINS // 256, -1, 0)
    counts = np.bincount((red * BINS * BINS + green * BINS + blue).ravel(), minlength=BINS**3)
    return np.sqrt(counts / counts.sum())


def read(source: list[str], class_names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns histograms (B, BINS ** 3) and labels (B,)."""
    tokenizer = keras_clip.data.CLIPTokenizer()
    preprocessor = keras_clip.data.ImagePreprocessor(IMAGE_SIZE)
    pairs = keras_clip.data.image_text_pairs(
        source, tokenizer=tokenizer, image_preprocessor=preprocessor, batch_size=64, training=False
    )
    names = [tokenizer.decode(tokenizer.encode(name)) for name in class_names]
    histograms, labels = [], []
    for batch in pairs:
        histograms += [colour_histogram(image) for image in batch["images"].numpy()]
        for row in batch["token_ids"].numpy().tolist():
            caption = f"{tokenizer.decode(row)} "
            fitting = [label for label, name in enumerate(names) if caption.startswith(f"{name} ")]
            labels.append(max(fitting, key=lambda label: len(names[label])))
    return np.stack(histograms), np.array(labels)


def fit(histograms: np.ndarray, labels: np.ndarray, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=2000).fit(histograms, labels)


def main(argv=None) -> float:
    args = parse_args(argv)
    class_names = json.loads(args.classes_file.read_text(encoding="utf-8"))
    histograms, labels = read(args.train, class_names)
    for_fit, for_choice, labels_for_fit, labels_for_choice = train_test_split(
        histograms, labels, test_size=0.2, random_state=0
    )
    scores = {c: fit(for_fit, labels_for_fit, c).score(for_choice, labels_for_choice) for c in CHOICES_OF_C}
    best = max(scores, key=scores.get)
    val_histograms, val_labels = read(args.val, class_names)
    right = fit(histograms, labels, best).predict(val_histograms) == val_labels
    low, high = blaker_interval(int(right.sum()), len(right))
    print(f"right: {right.mean():.1%} [{low:.1%}, {high:.1%}] of {len(right)} images, C={best:g}")
    return float(right.mean())


if __name__ == "__main__":
    terminal.run(main)
