"""Measures the accuracy of a CLIP in predicting the caption, or the class, of images with captions.

    python examples/evaluate_zero_shot.py "val/*.tar" --model runs/mine/clip.keras --candidates "train/*.tar"
    python examples/evaluate_zero_shot.py "val/*.tar" --model runs/mine/clip.keras --classes-file classes.json \
        --templates "a photo of a {}." "{}, on a table."

The first form predicts one of all distinct captions of the source and of `--candidates`; the exact caption of the image
is correct. The second form predicts a class; the (longest) class name with which the caption begins is correct. Prints
the fraction of correct predictions with its 95 % interval (exact; Blaker, 2000).
"""

import argparse
import json
import warnings
from pathlib import Path

import terminal

LONGEST_CAPTION = 4096


def parse_args(argv=None) -> argparse.Namespace:
    parser = terminal.Parser(__doc__)
    parser.add_argument("source", nargs="+", help="images with captions, as for examples/train.py")
    terminal.add_source_arguments(parser)
    terminal.add_max_broken_argument(parser)
    parser.add_argument("--model", required=True, help="a .keras file, as examples/train.py writes it")
    parser.add_argument("--candidates", nargs="+", default=[], help="more pairs whose captions are candidates")
    parser.add_argument("--classes-file", type=Path, help="a JSON list of names to choose from, instead of captions")
    templates = parser.add_mutually_exclusive_group()
    templates.add_argument("--templates", nargs="+", default=["{}"])
    templates.add_argument("--templates-file", help="one template per line, or a JSON list")
    return parser.parse_args(argv)


if __name__ == "__main__":
    terminal.start(parse_args)

import keras

import keras_clip
from keras_clip import prompts
from keras_clip.evaluation import blaker_interval


def read(source: list[str], clip: keras_clip.CLIPModel, options: dict | None = None):
    """Yields batches of images, and of captions as the tokenizer decodes them: lower case, spaces between words."""
    # Captions are not truncated to the context of the model, since different captions could then become equal.
    tokenizer = keras_clip.data.CLIPTokenizer(LONGEST_CAPTION)
    pairs = keras_clip.data.image_text_pairs(
        source, clip, batch_size=128, tokenizer=tokenizer, training=False, **(options or {})
    )
    for batch in pairs:
        yield batch["images"].numpy(), [tokenizer.decode(row) for row in batch["token_ids"].numpy().tolist()]


def class_of(caption: str, classes: dict[str, str]) -> str:
    """Returns the class with whose name the caption begins; of several ("orange", "orange juice"), the longest."""
    fitting = [name for name in classes if f"{caption} ".startswith(f"{name} ")]
    if not fitting:
        raise ValueError(f"Each caption must begin with the name of a class. Received: caption={caption!r}.")
    return classes[max(fitting, key=len)]


def main(argv=None) -> dict[str, float]:
    args = parse_args(argv)
    clip = keras.saving.load_model(args.model)
    options = {**terminal.source_options(args), "max_broken": args.max_broken}
    if args.classes_file:
        class_names = json.loads(args.classes_file.read_text(encoding="utf-8"))
        classes = {clip.tokenizer.decode(clip.tokenizer.encode(name)): name for name in class_names}
    else:
        sources = [args.source, args.candidates] if args.candidates else [args.source]
        class_names = sorted(
            {caption for source in sources for _, captions in read(source, clip, options) for caption in captions}
        )
        classes = dict(zip(class_names, class_names, strict=True))
    templates = prompts.read(args.templates_file) if args.templates_file else args.templates
    classifier = keras_clip.ZeroShotClassifier(clip, class_names, templates)

    labelled = [
        (images, [class_of(caption, classes) for caption in captions])
        for images, captions in read(args.source, clip, options)
    ]
    total = sum(len(labels) for _, labels in labelled)
    # Many candidates have no image, so the mean per class, which is not printed, is undefined.
    warnings.filterwarnings("ignore", message="The mean per class is defined")
    result = classifier.evaluate(labelled, verbose=0)
    low, high = blaker_interval(round(result["top_1_accuracy"] * total), total)
    print(
        f"right: {result['top_1_accuracy']:.1%} [{low:.1%}, {high:.1%}], among the first five: "
        f"{result['top_5_accuracy']:.1%}, of {total} images, among {len(class_names)} names"
    )
    return result


if __name__ == "__main__":
    terminal.run(main)
