"""Compares CLIP with two baselines: zero-shot accuracy against images seen (Radford et al., 2021, figure 2).

    python examples/efficiency.py --epochs 8 --out runs/efficiency/scenes
    python examples/efficiency.py "train/*.tar" --val "val/*.tar" --classes-file classes.json --templates "{}." \\
        --crop random_resized --crop-scale 0.3 --image-size 32 --epochs 4 --out runs/efficiency/mine

Three models with the same image encoder and the same initial weights train on the same pairs in the same order: a
language model that predicts the caption, a bag-of-words predictor, and CLIP. After 1, 2, 4, 8, ... epochs each model
classifies the test images. Without a source, the pairs are synthetic scenes, all of them different, and the test images
are scenes of unseen classes. With a source, the true class is the (longest) class name with which the caption begins.

Writes efficiency.png, .json and .csv into the folder `--out`, and prints how many images each model needed for the
accuracy that all of them reach.
"""

import csv
import json
import math
import time
from pathlib import Path

import terminal

OBJECTIVES = {
    "language_model": "caption language model",
    "bag_of_words": "bag of words prediction",
    "contrastive": "CLIP, contrastive",
}
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 64, 2, 2


def parse_args(argv=None):
    parser = terminal.Parser(__doc__)
    parser.add_argument("source", nargs="*", help="training pairs, as for examples/train.py; none: synthetic scenes")
    parser.add_argument("--val", nargs="+", help="test images with captions")
    parser.add_argument("--classes-file", type=Path, help="a JSON list of the names of the test images' classes")
    parser.add_argument("--templates", nargs="+", default=["{}"])
    parser.add_argument("--crop", choices=("paper", "random_resized"), default="paper", help="random crop of training")
    parser.add_argument("--crop-scale", type=float, help="smallest fraction of an image in a random resized crop; 0.9")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=8, help="width of the image encoder, a small ResNet")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=32, help="batches per epoch of synthetic scenes")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/efficiency"))
    args = parser.parse_args(argv)
    if args.source and not (args.val and args.classes_file):
        parser.error("a source needs --val and --classes-file, to measure the accuracy")
    if args.crop_scale is not None and args.crop != "random_resized":
        parser.error("--crop-scale needs --crop random_resized: the paper's crop keeps the shorter side whole")
    return args


if __name__ == "__main__":
    terminal.start(parse_args)

import keras
import numpy as np
from evaluate_zero_shot import class_of, read

import keras_clip
from keras_clip import files
from keras_clip.data import synthetic
from keras_clip.evaluation import blaker_interval


class Parts:
    """The parts that all three models share, under the names that the pipeline uses."""

    def __init__(self, args):
        self.tokenizer = keras_clip.data.CLIPTokenizer(32 if args.source else 20)
        self.image_preprocessor = keras_clip.data.ImagePreprocessor(args.image_size)

    def pairs(self, args):
        """Returns batches for `fit`, which are the same in every call, in the same order."""
        if not args.source:
            return synthetic.pairs(self, args.batch_size, args.steps, args.seed)
        scale = None if args.crop_scale is None else (args.crop_scale, 1.0)
        options = {"crop": args.crop, "crop_scale": scale, "seed": args.seed}
        return keras_clip.data.image_text_pairs(args.source, self, args.batch_size, **options)

    def vocabulary(self, args):
        """Returns the tokens of the training captions."""
        if not args.source:
            return keras_clip.baselines.vocabulary_of([self.tokenizer(list(synthetic.captions(2000, args.seed)))])
        pairs = keras_clip.data.image_text_pairs(args.source, self, 256, training=False)
        return keras_clip.baselines.vocabulary_of(batch["token_ids"] for batch in pairs)

    def test_set(self, args):
        """Returns images (B, H, W, 3), labels (B,) and class names."""
        if not args.source:
            return synthetic.held_out_set(image_size=args.image_size)
        names = json.loads(args.classes_file.read_text(encoding="utf-8"))
        spelled = {self.tokenizer.decode(self.tokenizer.encode(name)): name for name in names}
        batches = [(images, [class_of(text, spelled) for text in texts]) for images, texts in read(args.val, self)]
        labels = [names.index(name) for _, of_batch in batches for name in of_batch]
        return np.concatenate([images for images, _ in batches]), np.array(labels), names


def build(objective, parts, vocabulary, args):
    keras.utils.set_random_seed(args.seed)
    encoder = keras_clip.encoders.ModifiedResNet(args.image_size, (1, 1, 1, 1), args.width)
    if objective == "bag_of_words":
        return keras_clip.baselines.BagOfWordsPredictor(encoder, parts.tokenizer, vocabulary)
    if objective == "language_model":
        return keras_clip.baselines.CaptionLanguageModel(
            encoder, parts.tokenizer, TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS, vocabulary=vocabulary
        )
    length = parts.tokenizer.context_length
    text_encoder = keras_clip.encoders.TextTransformer(TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS, context_length=length)
    return keras_clip.CLIPModel(encoder, text_encoder, embed_dim=128)


def scores_of(model, images, names, templates):
    if isinstance(model, keras_clip.CLIPModel):
        classifier = keras_clip.ZeroShotClassifier(model, names, templates)
        return classifier.predict(images, batch_size=64, verbose=0)
    return model.zero_shot_scores(images, names, templates)


class Measure(keras.callbacks.Callback):
    """Classifies the test images after 1, 2, 4, 8, ... epochs and after the last."""

    def __init__(self, test_set, templates, images_per_epoch, epochs):
        super().__init__()
        self.test_set, self.templates = test_set, templates
        self.images_per_epoch, self.epochs = images_per_epoch, epochs
        self.points = []

    def on_epoch_end(self, epoch, logs=None):
        done = epoch + 1
        if done & (done - 1) and done != self.epochs:
            return
        images, labels, names = self.test_set
        scores = scores_of(self.model, images, names, self.templates)
        # A correct answer must score above all others, so that a model with constant scores is always wrong.
        correct = int(((scores >= scores[np.arange(len(labels)), labels][:, None]).sum(axis=1) == 1).sum())
        low, high = blaker_interval(correct, len(labels))
        point = {"images": done * self.images_per_epoch, "correct": correct, "n": len(labels)}
        self.points.append({**point, "accuracy": correct / len(labels), "low": low, "high": high})
        print(f"  after {point['images']:,} images {correct / len(labels):.1%} [{low:.1%}, {high:.1%}]", flush=True)


def train(objective, parts, vocabulary, test_set, args):
    """Trains one model and returns its curve, a list of points."""
    model, pairs = build(objective, parts, vocabulary, args), parts.pairs(args)
    steps = args.epochs * len(pairs)
    model.compile(keras_clip.training.adamw(model, args.learning_rate, warmup_steps=steps // 20, total_steps=steps + 1))
    print(f"{OBJECTIVES[objective]}: {model.count_params():,} weights, {steps} steps of {args.batch_size}", flush=True)
    measure = Measure(test_set, args.templates, len(pairs) * args.batch_size, args.epochs)
    start = time.perf_counter()
    model.fit(pairs, epochs=args.epochs, callbacks=[measure], verbose=0)
    return measure.points, round((time.perf_counter() - start) / 60, 2)


def images_to_reach(points, accuracy):
    """Returns the number of images at which the curve, linear in its logarithm, reaches an accuracy; None: never."""
    if points[0]["accuracy"] >= accuracy:
        return points[0]["images"]
    for one, next_ in zip(points, points[1:], strict=False):
        if next_["accuracy"] >= accuracy:
            part = (accuracy - one["accuracy"]) / (next_["accuracy"] - one["accuracy"])
            return round(math.exp((1 - part) * math.log(one["images"]) + part * math.log(next_["images"])))
    return None


def draw(curves, chance, path):
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4.5), layout="constrained")
    for objective, points in curves.items():
        x = [point["images"] for point in points]
        y, low, high = (np.array([100 * point[key] for point in points]) for key in ("accuracy", "low", "high"))
        axis.errorbar(x, y, [y - low, high - y], marker="o", capsize=3, label=OBJECTIVES[objective])
    axis.axhline(100 * chance, color="grey", linestyle=":", label="chance")
    axis.set_xscale("log", base=2)
    axis.set_xticks(x, [f"{value:,}" for value in x], rotation=30)
    axis.set(xlabel="images seen", ylabel="zero-shot accuracy, %", ylim=(0, None))
    axis.set_title(f"{points[0]['n']} test images, {round(1 / chance)} classes; bars: 95 %", fontsize=10)
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv=None):
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    parts = Parts(args)
    vocabulary, test_set = parts.vocabulary(args), parts.test_set(args)
    labels, names = test_set[1:]
    print(f"{len(vocabulary)} words to predict, {len(labels)} test images of {len(names)} classes", flush=True)
    curves, minutes = {}, {}
    for objective in OBJECTIVES:
        curves[objective], minutes[objective] = train(objective, parts, vocabulary, test_set, args)
    # The highest accuracy that all models reach.
    common = min(max(point["accuracy"] for point in points) for points in curves.values())
    reached = {objective: images_to_reach(points, common) for objective, points in curves.items()}
    for objective, images in reached.items():
        print(f"{OBJECTIVES[objective]}: {common:.1%} after {images:,} images")
    options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    record = {"arguments": options, "words": len(vocabulary), "classes": len(names), "curves": curves}
    record |= {"minutes": minutes, "common_accuracy": common, "images_to_common_accuracy": reached}
    files.write_json(args.out / "efficiency.json", record)
    with open(args.out / "efficiency.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["objective", *curves["contrastive"][0]])
        writer.writerows([objective, *point.values()] for objective, points in curves.items() for point in points)
    draw(curves, 1 / len(names), args.out / "efficiency.png")
    print(f"Written to {args.out}: efficiency.csv, efficiency.json, efficiency.png")
    return record


if __name__ == "__main__":
    terminal.run(main)
