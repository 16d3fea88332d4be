"""Trains a CLIP on your own image-caption pairs.

    python examples/train.py "shards/*.tar" --val "val/*.tar" --epochs 30 --out runs/mine

Pairs are read from WebDataset tars, TFRecords or Parquet files of img2dataset, tables of paths and captions (.csv,
.tsv, .jsonl), folders of images and .txt files, or several of these (see `keras_clip.data.image_text_pairs`). If the
images and captions have unusual names in them, pass `--image`, `--caption` and `--delimiter`. Keras shows the progress;
the environment variable KERAS_BACKEND selects the backend. Writes into the folder `--out`: clip.keras (load it with
`keras.saving.load_model`), history.csv (one row per epoch), steps.csv (throughput, wait for data, loss and more every
ten steps), loss.png (the curve of the loss) and command.json (the arguments and the duration of the run).

To resume an interrupted run, run the same command again: it continues from the newest checkpoint in `--out`/checkpoints
exactly as an uninterrupted run. With other pairs, another augmentation, model or recipe it refuses and names the
difference; `--restart` begins anew, and moves the earlier run into `--out`/before_1.

With `--strategy`, several devices share the batch, and each process reads its own part of the pairs:

    python examples/train.py ... --strategy mirrored                            all GPUs of a host, TensorFlow
    python examples/train.py ... --strategy jax_data_parallel                   all devices, JAX
    torchrun --nproc-per-node=8 examples/train.py ... --strategy torch_ddp      torch

With `--microbatch-size`, a batch that does not fit on a device is encoded in parts, as one exact step.

`--recipe` selects a training of the paper: `--recipe vit_l14` has its architecture, optimizer, batch size and epochs
(`--batch-size` and `--epochs` can reduce these), and its last epoch at 336 pixels starts from the trained model:

    python examples/train.py "shards/*.tar" --recipe vit_l14_336 --start runs/vit_l14/clip.keras --out runs/vit_l14_336
"""

import argparse
import csv
import itertools
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import terminal

# These sizes are for images of 32 to 224 pixels and up to some million pairs; for more, see the published models.
MODELS = {
    "resnet_tiny": {"blocks": (1, 1, 1, 1), "width": 32, "text_width": 128, "text_layers": 2, "embed_dim": 128},
    "resnet_small": {"blocks": (2, 2, 2, 2), "width": 48, "text_width": 256, "text_layers": 4, "embed_dim": 256},
    "vit_tiny": {"layers": 6, "width": 192, "text_width": 128, "text_layers": 2, "embed_dim": 128},
    "vit_small": {"layers": 12, "width": 384, "text_width": 256, "text_layers": 4, "embed_dim": 256},
}
STRATEGIES = ("mirrored", "multi_worker", "jax_data_parallel", "torch_ddp")
HEAD_WIDTH = 64
PATCHES_PER_SIDE = 8
# What a run writes into its folder.
WRITTEN = ("checkpoints", "clip.keras", "command.json", "history.csv", "steps.csv", "loss.png")
# Options that a run keeps when it goes on.
KEPT = ("model", "recipe", "image_size", "context_length", "epochs", "flip", "color_jitter", "dtype")


def parse_args(argv=None) -> argparse.Namespace:
    parser = terminal.Parser(__doc__)
    parser.add_argument("source", nargs="+", help="shards, tables or folders; globs and braces are expanded")
    terminal.add_source_arguments(parser)
    terminal.add_max_broken_argument(parser)
    parser.add_argument("--val", nargs="+", help="pairs on which the loss is measured after each epoch")
    parser.add_argument("--model", choices=MODELS, default="resnet_tiny")
    parser.add_argument("--recipe", help="a model and training of the paper, such as vit_b32")
    parser.add_argument("--start", help="a trained model to continue from, as presets.load takes it")
    parser.add_argument(
        "--image-size", type=int, help="pixels, a multiple of 32; default: 64, or that of the recipe or --start"
    )
    parser.add_argument(
        "--context-length", type=int, help="tokens; longer captions are truncated; default: 32, or as --image-size"
    )
    parser.add_argument("--epochs", type=int, help="default: 30, or that of the recipe")
    parser.add_argument(
        "--batch-size", type=int, help="pairs per step, over all devices; default: 128, or that of the recipe"
    )
    parser.add_argument("--microbatch-size", type=int, help="pairs that a device encodes at a time; default: all")
    parser.add_argument("--strategy", choices=STRATEGIES, help="train on several devices or processes; see above")
    parser.add_argument(
        "--learning-rate", type=float, help="peak of the schedule; default: 1e-3, or that of the recipe"
    )
    parser.add_argument(
        "--flip", action="store_true", help="mirror images at random; unsuitable if left and right matter"
    )
    parser.add_argument(
        "--crop",
        choices=("paper", "random_resized"),
        help="random crop, the paper's or open_clip's; default: the paper's",
    )
    parser.add_argument(
        "--crop-scale", type=float, help="smallest fraction of the area of an image in a random resized crop; 0.9"
    )
    parser.add_argument(
        "--color-jitter",
        type=float,
        default=0.0,
        help="largest change of brightness, contrast and saturation, such as 0.4",
    )
    parser.add_argument("--dtype", default="float32", help="mixed_bfloat16 is faster on recent processors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=1000, help="steps; also at the end of each epoch")
    parser.add_argument("--keep", type=int, default=3, help="number of checkpoints to keep, the newest")
    parser.add_argument(
        "--restart", action="store_true", help="begin anew; the earlier run is moved into --out/before_1"
    )
    parser.add_argument("--peak-flops", type=float, help="peak FLOP/s of one device, such as 989e12, to report the MFU")
    parser.add_argument("--out", type=Path, default=Path("runs/train"))
    args = parser.parse_args(argv)
    if args.crop_scale is not None and args.crop != "random_resized":
        parser.error("--crop-scale needs --crop random_resized: the paper's crop keeps the shorter side whole")
    return args


if __name__ == "__main__":
    terminal.start(parse_args)

import keras
import matplotlib

import keras_clip
from keras_clip import files
from keras_clip.presets.architectures import ARCHITECTURES

matplotlib.use("agg")
from matplotlib import pyplot


def complete(args: argparse.Namespace) -> None:
    """Completes the arguments with the values of the recipe, or else with those of a small training."""
    recipe = args.recipe and keras_clip.training.recipe(args.recipe)
    if recipe and recipe.starts_from and not args.start:
        raise SystemExit(
            f"The recipe {args.recipe} continues from a trained {recipe.starts_from}. Received: no --start. "
            "Name its .keras file or folder there."
        )
    if recipe:
        image_size = args.image_size or ARCHITECTURES[args.recipe].image_size
        defaults = {**asdict(recipe), "image_size": image_size}
    else:
        sizes = {} if args.start else {"image_size": 64, "context_length": 32}
        defaults = {"epochs": 30, "batch_size": 128, "learning_rate": 1e-3, "crop": "paper", **sizes}
    if args.crop == "random_resized":
        defaults["crop_scale"] = 0.9
    for name in ("image_size", "context_length", "epochs", "batch_size", "learning_rate", "crop", "crop_scale"):
        if getattr(args, name) is None:
            setattr(args, name, defaults.get(name))


def make_model(args: argparse.Namespace) -> keras_clip.CLIPModel:
    """Returns the model to train, with its initial weights."""
    sizes = {"image_size": args.image_size, "context_length": args.context_length}
    if args.start:
        with tempfile.TemporaryDirectory() as folder:
            start = args.start
            if start.endswith(".keras") and any(sizes.values()):
                # Saved in a layout whose position embeddings can be resized when they are loaded.
                keras_clip.presets.save(keras_clip.presets.load(start), folder, layout="open_clip")
                start = folder
            return keras_clip.presets.load(start, **sizes)
    if args.recipe:
        return keras_clip.presets.load(args.recipe, weights=None, **sizes)
    return build_model(args.model, **sizes)


def make_optimizer(args: argparse.Namespace, clip: keras_clip.CLIPModel, steps: int) -> keras.optimizers.Optimizer:
    """Returns the optimizer and schedule of the paper for this number of steps."""
    numbers = {"warmup_steps": steps // 20, "total_steps": steps}
    if args.recipe:
        pairs = steps * args.batch_size // args.epochs
        numbers = keras_clip.training.recipe(args.recipe, pairs, args.batch_size, args.epochs).optimizer
    return keras_clip.training.adamw(clip, **{**numbers, "learning_rate": args.learning_rate})


def build_model(name: str, image_size: int, context_length: int) -> keras_clip.CLIPModel:
    sizes = MODELS[name]
    if name.startswith("resnet"):
        image_encoder = keras_clip.encoders.ModifiedResNet(image_size, sizes["blocks"], sizes["width"])
    else:
        image_encoder = keras_clip.encoders.VisionTransformer(
            image_size, image_size // PATCHES_PER_SIDE, sizes["width"], sizes["layers"], sizes["width"] // HEAD_WIDTH
        )
    width = sizes["text_width"]
    text_encoder = keras_clip.encoders.TextTransformer(
        width, sizes["text_layers"], width // HEAD_WIDTH, context_length=context_length
    )
    return keras_clip.CLIPModel(image_encoder, text_encoder, sizes["embed_dim"])


def augment(pairs, flip: bool, color_jitter: float, seed: int):
    """Mirrors half of the images, and changes brightness, contrast and saturation of each by up to `color_jitter`.

    The changes of a batch depend on its place in the epoch, so that a resumed run makes the same changes.
    """
    import tensorflow as tf

    def change(place, batch):
        epoch, step = place
        images = batch["images"]
        numbers = tf.random.fold_in(tf.random.fold_in((seed, 0), epoch), step)
        if flip:
            images = tf.image.stateless_random_flip_left_right(images, numbers)
        if color_jitter:
            shape = (3, tf.shape(images)[0], 1, 1, 1)
            brightness, contrast, saturation = tf.unstack(
                tf.random.stateless_uniform(shape, tf.random.fold_in(numbers, 1), 1 - color_jitter, 1 + color_jitter)
            )
            colors = tf.cast(images, "float32") * brightness
            grey = tf.reduce_mean(colors, axis=3, keepdims=True)
            mean = tf.reduce_mean(grey, axis=(1, 2), keepdims=True)
            colors = mean + contrast * (grey - mean + saturation * (colors - grey))
            images = tf.cast(tf.clip_by_value(tf.round(colors), 0, 255), "uint8")
        return {**batch, "images": images}

    return pairs.numbered.map(change).prefetch(2)


def write_history(history: keras.callbacks.History, path: Path) -> None:
    """Writes a row per epoch of the whole run; after a resumption, the file of `CSVLogger` may have an epoch twice."""
    columns = ["epoch", *sorted(history.history)]
    with files.replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(zip(history.epoch, *(history.history[name] for name in columns[1:]), strict=True))


def draw_loss(history: dict[str, list[float]], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    epochs = range(1, len(history["loss"]) + 1)
    axes.plot(epochs, history["loss"], label="training")
    if "val_loss" in history:
        axes.plot(epochs, history["val_loss"], label="validation")
        axes.legend()
    axes.set(xlabel="epoch", ylabel="contrastive loss (nats)", ylim=(0, None))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def read_pairs(args: argparse.Namespace, clip: keras_clip.CLIPModel, part: keras_clip.training.Part):
    """Returns this process's part of the pairs, the dataset for `fit`, and the validation pairs."""
    scale = None if args.crop_scale is None else (args.crop_scale, 1.0)
    options = {"crop": args.crop, "crop_scale": scale, "seed": args.seed, "shard": part}
    if args.strategy == "jax_data_parallel" and part.count > 1:
        # All processes run the same program, so their texts must have one length.
        options["text_lengths"] = (clip.tokenizer.context_length,)
    source = {**terminal.source_options(args), "max_broken": args.max_broken}
    pairs = keras_clip.data.image_text_pairs(args.source, clip, args.batch_size // part.count, **source, **options)
    is_changed = args.flip or args.color_jitter
    batches = augment(pairs, args.flip, args.color_jitter, args.seed) if is_changed else pairs
    validation = args.val and keras_clip.data.image_text_pairs(
        args.val, clip, args.batch_size, training=False, **source
    )
    return pairs, batches, validation


def move_away(out: Path) -> None:
    """Moves what a run has written into a folder of its own beside it."""
    written = [out / name for name in WRITTEN if (out / name).exists()]
    if written:
        number = next(n for n in itertools.count(1) if not (out / f"before_{n}").exists())
        (out / f"before_{number}").mkdir()
        for path in written:
            path.rename(out / f"before_{number}" / path.name)
        print(f"Moved the run of before into {out / f'before_{number}'}.")


def kept_options(args: argparse.Namespace) -> dict:
    """The options that a run keeps when it goes on, beside what checkpoints compare by themselves."""
    options = {f"--{name.replace('_', '-')}": getattr(args, name) for name in KEPT}
    # Its place may have another name on another day.
    return {**options, "--start": args.start and Path(args.start).name}


def check_out(out: Path) -> None:
    """Refuses to replace a model that no checkpoints belong to."""
    if (out / "clip.keras").exists() and not list((out / "checkpoints").glob("step-*")):
        raise SystemExit(
            f"There is a trained model without checkpoints to go on from. Received: --out {out} with clip.keras. Pass "
            "--restart to begin anew (it is moved, not removed), or another --out."
        )


def train(args: argparse.Namespace, part: keras_clip.training.Part) -> None:
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.dtype)
    clip = make_model(args)
    pairs, batches, validation = read_pairs(args, clip, part)
    steps = args.epochs * len(pairs)
    clip.compile(make_optimizer(args, clip, steps), microbatch_size=args.microbatch_size)
    is_first = part.index == 0
    checkpoints = keras_clip.training.Checkpoints(
        args.out / "checkpoints", pairs, args.checkpoint_every, args.keep, identity=kept_options(args)
    )
    callbacks = [checkpoints, keras_clip.training.StopOnSkippedSteps()]
    if is_first:
        # It must come before the callbacks that store logs.
        callbacks.insert(0, keras_clip.training.Telemetry(args.out / "steps.csv", peak_flops=args.peak_flops))
        callbacks.append(keras.callbacks.CSVLogger(str(args.out / "history.csv"), append=True))
    is_saved = (args.out / "clip.keras").exists()
    wall, cpu = time.perf_counter(), time.process_time()
    is_multi_worker = args.strategy == "multi_worker"
    try:
        history = clip.fit(
            keras_clip.training.own_part(batches) if is_multi_worker else batches,
            epochs=args.epochs,
            steps_per_epoch=len(pairs) if is_multi_worker else None,
            validation_data=validation,
            callbacks=callbacks,
            verbose="auto" if is_first else 0,
        )
    except keras_clip.training.DifferentTrainingError as error:
        raise SystemExit(f"{error} --restart begins anew, and moves the run of before.") from error
    if is_saved and checkpoints.first_step >= steps:
        if is_first:
            print(f"Nothing left to do: {args.out} has all {steps} steps. --restart begins anew.")
        return
    if not is_first:
        # Saving creates variables, which all workers of TensorFlow must create together.
        with tempfile.TemporaryDirectory() as folder:
            clip.save(Path(folder) / "clip.keras")
        return
    minutes = {
        "wall_minutes": round((time.perf_counter() - wall) / 60, 2),
        "cpu_minutes": round((time.process_time() - cpu) / 60, 2),
    }
    clip.save(args.out / "clip.keras")
    write_history(history, args.out / "history.csv")
    # The minutes are those of the steps from `first_step` on.
    record = {**vars(args), "out": str(args.out), "backend": keras.backend.backend(), "steps": steps}
    files.write_json(args.out / "command.json", {**record, "first_step": checkpoints.first_step, **minutes})
    draw_loss(history.history, args.out / "loss.png")
    done = steps - checkpoints.first_step
    of = f" of {steps}" if checkpoints.first_step else ""
    print(f"{done} steps{of} in {minutes['wall_minutes']} minutes ({minutes['cpu_minutes']} CPU minutes): {args.out}")


def main(argv=None) -> None:
    args = parse_args(argv)
    complete(args)
    args.out.mkdir(parents=True, exist_ok=True)
    with keras_clip.training.strategy(args.strategy) as part:
        if args.val and part.count > 1 and args.strategy != "torch_ddp":
            raise SystemExit(
                f"--val works in one process, or with torch_ddp. Received: --strategy {args.strategy} with "
                f"{part.count} processes. Measure the saved model afterwards, with examples/evaluate_zero_shot.py."
            )
        if args.restart:
            # The others wait for this process before they look for checkpoints.
            if part.index == 0:
                move_away(args.out)
        else:
            check_out(args.out)
        train(args, part)


if __name__ == "__main__":
    terminal.run(main)
