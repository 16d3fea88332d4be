"""Trains a small CLIP on synthetic scenes, then classifies scenes of unseen classes.

    make demo
    python examples/demo.py --epochs 20 --out runs/demo

The training data have 409 classes of scenes, such as "two small red circles", in natural captions. Then images of 103
other classes are classified among these 103 classes by an ensemble of prompts. Prints the accuracies with 95 %
intervals, and writes the model, a loss curve, a similarity matrix and a contact sheet to runs/demo.
"""

from pathlib import Path

import terminal

IMAGE_SIZE = 64
CONTEXT_LENGTH = 20
BATCH_SIZE = 128
TEMPLATES = ("a photo of {}", "a picture of {}", "a sketch of {}", "a drawing of {}", "{}")


def parse_args(argv):
    parser = terminal.Parser(__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=64 * BATCH_SIZE, help="training pairs; a multiple of 128")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    terminal.start(parse_args)

import keras
import numpy as np

import keras_clip
from keras_clip.data import synthetic
from keras_clip.evaluation import blaker_interval


def build_model():
    return keras_clip.CLIPModel(
        # In minutes, a small ResNet learns more of shapes than a Vision Transformer does.
        image_encoder=keras_clip.encoders.ModifiedResNet(IMAGE_SIZE, (1, 1, 1, 1), width=16),
        text_encoder=keras_clip.encoders.TextTransformer(128, 2, 4, context_length=CONTEXT_LENGTH),
        embed_dim=128,
    )


def draw_pairs(clip, count, seed, held_out=False):
    """Draws pairs once, as arrays."""
    images, captions = [], []
    progress = keras.utils.Progbar(count, unit_name="scene")
    for index in range(count):
        image, caption = synthetic.sample(index, IMAGE_SIZE, seed, held_out)
        images.append(image)
        captions.append(caption)
        if index % 100 == 99 or index + 1 == count:
            progress.update(index + 1)
    return {"images": np.stack(images), "token_ids": clip.tokenizer(captions)}


def measure(probabilities, labels):
    """Returns top-1 and top-5 accuracy with intervals, for all images and for each rendition."""
    # Ties count against the true class, so that a model with constant probabilities is always wrong.
    right = probabilities[np.arange(len(labels)), labels][:, None]
    ranks = (~(probabilities < right)).sum(axis=1) - 1
    groups = {"all": ranks, "photos": ranks[::2], "sketches": ranks[1::2]}
    return {
        group: {f"top_{k}": (int((r < k).sum()), len(r), *blaker_interval(int((r < k).sum()), len(r))) for k in (1, 5)}
        for group, r in groups.items()
    }


def plot_loss(history, path):
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    epochs = np.arange(1, len(history["loss"]) + 1)
    axis.plot(epochs, history["loss"], label="training")
    axis.plot(epochs, history["val_loss"], label="unseen kinds")
    axis.axhline(np.log(BATCH_SIZE), color="grey", linestyle=":", label=f"chance, ln {BATCH_SIZE}")
    axis.set(xlabel="epoch", ylabel="contrastive loss", ylim=(0, None), title="Loss of a batch of 128 pairs")
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_similarities(clip, scenes, path):
    import matplotlib.pyplot as plt

    captions = [synthetic.caption(scene) for scene in scenes]
    images = np.stack([synthetic.draw(scene, IMAGE_SIZE) for scene in scenes])
    image_embeddings = keras.ops.convert_to_numpy(clip.encode_image(images))
    text_embeddings = keras.ops.convert_to_numpy(clip.encode_text(clip.tokenizer(captions)))
    figure, axis = plt.subplots(figsize=(8, 7))
    shown = axis.imshow(text_embeddings @ image_embeddings.T, cmap="viridis")
    axis.set_yticks(range(len(captions)), captions, fontsize=8)
    axis.set_xticks([])
    for column, image in enumerate(images):
        inset = axis.inset_axes((column - 0.5, -1.6, 1, 1), transform=axis.transData)
        inset.imshow(image)
        inset.set_axis_off()
    figure.colorbar(shown, label="cosine similarity", shrink=0.8)
    axis.set_title("Captions and pictures of one batch", pad=50)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def plot_contact_sheet(images, labels, probabilities, names, path):
    import matplotlib.pyplot as plt

    chosen = np.random.default_rng(0).choice(len(images), 20, replace=False)
    figure, axes = plt.subplots(4, 5, figsize=(13, 11), layout="constrained")
    for axis, index in zip(axes.flat, chosen, strict=True):
        guess, truth = int(probabilities[index].argmax()), int(labels[index])
        axis.imshow(images[index])
        axis.set_axis_off()
        text = f"{names[guess]}\n{probabilities[index, guess]:.0%}"
        text += "" if guess == truth else f"\ntrue: {names[truth]}"
        axis.set_title(text, fontsize=9, color="darkgreen" if guess == truth else "firebrick")
    figure.suptitle("Unseen classes: green is correct")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(argv=None):
    args = parse_args(argv)
    keras.utils.set_random_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    clip = build_model()
    steps = args.pairs // BATCH_SIZE
    print(f"Drawing {steps * BATCH_SIZE:,} scenes")
    pairs = draw_pairs(clip, steps * BATCH_SIZE, args.seed)
    unseen_pairs = draw_pairs(clip, 4 * BATCH_SIZE, args.seed, held_out=True)
    clip.compile(keras_clip.training.adamw(clip, 2e-3, warmup_steps=steps, total_steps=(args.epochs + 1) * steps))
    history = clip.fit(
        pairs, batch_size=BATCH_SIZE, epochs=args.epochs, validation_data=(unseen_pairs,), verbose=1
    ).history

    images, labels, names = synthetic.held_out_set(image_size=IMAGE_SIZE)
    classifier = keras_clip.ZeroShotClassifier(clip, names, TEMPLATES)
    probabilities = classifier.predict(images, batch_size=BATCH_SIZE, verbose=0)
    accuracies = measure(probabilities, labels)
    print(f"\nPictures of {len(names)} unseen classes, classified among these {len(names)}:")
    for group, of_group in accuracies.items():
        for k, (correct, total, low, high) in of_group.items():
            print(f"{group:9} {k.replace('_', '-')}  {correct / total:6.1%}  [{low:.1%}, {high:.1%}]  of {total}")

    clip.save(args.out / "clip.keras")
    keras_clip.files.write_json(args.out / "summary.json", {"candidates": len(names), "accuracies": accuracies})
    plot_loss(history, args.out / "loss_curve.png")
    plot_similarities(clip, [synthetic.sample_scene(i, seed=2) for i in range(12)], args.out / "similarity_matrix.png")
    plot_contact_sheet(images, labels, probabilities, names, args.out / "contact_sheet.png")
    print(f"\nWritten to {args.out}: {', '.join(sorted(path.name for path in args.out.iterdir()))}")
    return accuracies


if __name__ == "__main__":
    terminal.run(main)
