"""Synthetic scenes: reproducible, true captions, no held-out kinds in training, shapes drawn at the right place."""

import numpy as np
import pytest
from scipy import ndimage

from keras_clip.data import synthetic
from keras_clip.data.synthetic import BACKGROUNDS, COLOURS, Kind, Scene

pytestmark = pytest.mark.backend_free


def scene(count=1, size="large", colour="red", shape="circle", position="in the middle", rendition="photo", seed=5):
    return Scene(Kind(count, size, colour, shape), position, "white", rendition, seed)


def body(image, colour):
    """Returns which pixels have about the hue of a colour."""
    wanted = np.asarray(COLOURS[colour], float)
    pixels = image.astype(float)
    cosine = (pixels * wanted).sum(2) / np.linalg.norm(pixels, axis=2).clip(1) / np.linalg.norm(wanted)
    return cosine > 0.98


def test_same_arguments_same_sample():
    image, caption = synthetic.sample(7, 48, seed=3)
    again, other_caption = synthetic.sample(7, 48, seed=3)
    np.testing.assert_array_equal(image, again)
    assert caption == other_caption
    assert not np.array_equal(image, synthetic.sample(8, 48, seed=3)[0])
    assert not np.array_equal(image, synthetic.sample(7, 48, seed=4)[0])


def test_order_does_not_matter():
    forward = [synthetic.sample_scene(i) for i in range(20)]
    assert forward == [synthetic.sample_scene(i) for i in reversed(range(20))][::-1]


def test_kinds_are_split():
    seen, unseen, every = (synthetic.kinds(held_out) for held_out in (False, True, None))
    assert len(every) == len(set(every)) == 4 * 2 * 8 * 8
    assert set(seen) | set(unseen) == set(every) and not set(seen) & set(unseen)
    assert len(unseen) >= 50
    # Only combinations are unseen: each word occurs in training.
    for part in ("count", "size", "colour", "shape"):
        assert {getattr(kind, part) for kind in seen} == {getattr(kind, part) for kind in every}


def test_training_never_shows_a_held_out_kind():
    unseen = set(synthetic.kinds(held_out=True))
    scenes = [synthetic.sample_scene(i) for i in range(3_000)]
    assert not unseen & {scene.kind for scene in scenes}
    assert all(synthetic.sample_scene(i, held_out=True).kind in unseen for i in range(100))
    names = {kind.name for kind in unseen}
    assert not any(name in caption for caption in synthetic.captions(1_000) for name in names)


def test_names():
    assert Kind(1, "small", "red", "circle").name == "one small red circle"
    assert Kind(3, "large", "blue", "cross").name == "three large blue crosses"


def test_captions_are_true_and_varied():
    captions = []
    for index in range(300):
        drawn = synthetic.sample_scene(index)
        caption = synthetic.caption(drawn)
        captions.append(caption)
        assert drawn.kind.name in caption
        for words, actual in ((synthetic.POSITIONS, drawn.position), (BACKGROUNDS, drawn.background)):
            assert all(word == actual for word in words if f"{word}" in caption.replace("in the middle of", ""))
        if "sketch" in caption or "drawing" in caption:
            assert drawn.rendition == "sketch"
        if "photo" in caption or "picture" in caption:
            assert drawn.rendition == "photo"
    assert len({caption.split(" ")[0] for caption in captions}) >= 5


@pytest.mark.parametrize("shape", synthetic.SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_as_many_shapes_as_named(count, shape):
    for seed in range(3):
        image = synthetic.draw(scene(count, shape=shape, seed=seed), 128)
        labels, found = ndimage.label(ndimage.binary_closing(body(image, "red")))
        areas = ndimage.sum_labels(np.ones_like(labels), labels, range(1, found + 1))
        assert (areas > 100).sum() == count


@pytest.mark.parametrize("colour", COLOURS)
def test_colour_and_size(colour):
    large = body(synthetic.draw(scene(colour=colour), 96), colour).mean()
    small = body(synthetic.draw(scene(colour=colour, size="small"), 96), colour).mean()
    assert large > 2 * small > 0.01


@pytest.mark.parametrize("position", synthetic.POSITIONS)
def test_position(position):
    rows, columns = np.nonzero(body(synthetic.draw(scene(position=position), 96), "red"))
    row, column = rows.mean() / 96, columns.mean() / 96
    expected = {
        "in the middle": abs(row - 0.5) < 0.1 and abs(column - 0.5) < 0.1,
        "at the top": row < 0.4,
        "at the bottom": row > 0.6,
        "on the left": column < 0.4,
        "on the right": column > 0.6,
    }
    assert expected[position]


def test_nothing_is_cut_off():
    for index in range(200):
        drawn = synthetic.sample_scene(index)
        image = synthetic.draw(drawn, 64)
        edges = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])[None]
        if drawn.rendition == "photo" and drawn.kind.colour in ("red", "green", "blue", "purple"):
            assert body(edges, drawn.kind.colour).mean() < 0.03, drawn


def test_a_sketch_is_no_photo():
    photo, sketch = (synthetic.draw(scene(rendition=rendition)) for rendition in synthetic.RENDITIONS)
    assert sketch.min() < 60 and np.abs(photo.astype(int) - sketch).mean() > 5


def test_held_out_set():
    images, labels, names = synthetic.held_out_set(per_kind=1, image_size=16)
    assert images.shape == (2 * len(names), 16, 16, 3) and images.dtype == np.uint8
    assert labels.tolist() == [label for label in range(len(names)) for _ in range(2)]
    assert names == [kind.name for kind in synthetic.kinds(held_out=True)]


def test_too_small_is_refused():
    with pytest.raises(ValueError, match="image_size=8"):
        synthetic.draw(scene(), 8)


class Model:
    def __init__(self):
        from keras_clip.data import CLIPTokenizer, ImagePreprocessor

        self.tokenizer, self.image_preprocessor = CLIPTokenizer(24), ImagePreprocessor(16)


def test_pairs_are_the_samples_and_epochs_differ():
    model = Model()
    dataset = synthetic.pairs(model, batch_size=4, steps=2)
    first, second = (list(dataset.as_numpy_iterator()) for _ in range(2))
    assert len(dataset) == len(first) == 2
    for i, batch in enumerate([*first, *second]):
        for j in range(4):
            image, caption = synthetic.sample(4 * i + j, 16)
            np.testing.assert_array_equal(batch["images"][j], image)
            np.testing.assert_array_equal(batch["token_ids"][j], model.tokenizer(caption)[0])
