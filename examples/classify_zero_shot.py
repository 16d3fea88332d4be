"""Predicts the most probable class of each image, without training on the classes.

    python examples/classify_zero_shot.py cat.jpg dog.png --model runs/mine/clip.keras --classes cat dog "pick-up truck"
    python examples/classify_zero_shot.py *.jpg --model runs/mine/clip.keras --classes-file classes.json \
        --templates-file templates.txt

Prints one line per image: its path, the class and its probability, separated by tabs. A template has one {} for the
class; the embeddings of all templates are averaged (Radford et al., 2021, section 3.1.4).
"""

import argparse
import json
from pathlib import Path

import terminal


def parse_args(argv=None) -> argparse.Namespace:
    parser = terminal.Parser(__doc__)
    parser.add_argument("images", nargs="+", help="files: JPEG, PNG, WebP, GIF, BMP")
    parser.add_argument("--model", required=True, help="a .keras file, as examples/train.py writes it")
    classes = parser.add_mutually_exclusive_group(required=True)
    classes.add_argument("--classes", nargs="+", help="names of the classes")
    classes.add_argument("--classes-file", type=Path, help="a JSON list of names")
    templates = parser.add_mutually_exclusive_group()
    templates.add_argument("--templates", nargs="+", default=["a photo of a {}."])
    templates.add_argument("--templates-file", help="one template per line, or a JSON list")
    return parser.parse_args(argv)


if __name__ == "__main__":
    terminal.start(parse_args)

import keras

import keras_clip
from keras_clip import prompts


def main(argv=None) -> None:
    args = parse_args(argv)
    class_names = args.classes or json.loads(args.classes_file.read_text(encoding="utf-8"))
    templates = prompts.read(args.templates_file) if args.templates_file else args.templates
    clip = keras.saving.load_model(args.model)
    classifier = keras_clip.ZeroShotClassifier(clip, class_names, templates)
    probabilities = classifier.predict(clip.image_preprocessor(args.images), verbose=0)
    for path, row in zip(args.images, probabilities, strict=True):
        print(f"{path}\t{classifier.class_names[row.argmax()]}\t{row.max():.1%}")


if __name__ == "__main__":
    terminal.run(main)
