"""Feature stores that an engine builds have the bytes of those of one process, whatever is killed on the way."""

import functools
import io
import json
import pickle
import tarfile

import keras
import numpy as np
import pytest
from PIL import Image

import keras_clip
from keras_clip import encoders
from keras_clip.engines import Processes, Serial
from keras_clip.evaluation import FeatureStore, sources
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.features import encoding
from keras_clip.evaluation.features.draft import DRAFT_SUFFIX

SIZE, BATCH = 21, 4


def png(number):
    if number in (5, 14):
        return b"" if number == 5 else b"<html>"
    pixels = np.random.default_rng(number).integers(0, 256, size=(20 + number % 3, 24, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


FILES = [png(number) for number in range(SIZE)]


def read(files, start):
    return iter(files[start:])


def make(files=FILES, size=SIZE):
    labels = [("cat", "dog", "cow")[number % 3] for number in range(size)]
    ids = [f"image {number}" for number in range(size)]
    return LabelledImages(functools.partial(read, files), labels, ids, ["cat", "dog", "cow"], name="animals")


def new_clip():
    keras.utils.set_random_seed(0)
    image_encoder, text_encoder = encoders.VisionTransformer(32, 16, 32, 1, 2), encoders.TextTransformer(32, 1, 2)
    return keras_clip.CLIPModel(image_encoder, text_encoder, 16)


build = functools.partial(FeatureStore.build, batch_size=BATCH, max_broken=0.2)


@pytest.fixture(scope="module")
def clip():
    return new_clip()


@pytest.fixture(scope="module")
def serial(clip, tmp_path_factory):
    """The folder of the store of one process. No test writes into it."""
    folder = tmp_path_factory.mktemp("serial") / "store"
    build(clip, make(), folder)
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(encoding, "_IMAGES_OF_BLOCK", 2 * BATCH)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(clip, serial, tmp_path):
    clip.save(tmp_path / "clip.keras")
    store = build(tmp_path / "clip.keras", make(), tmp_path / "store", engine=Processes(2))
    assert contents(tmp_path / "store") == contents(serial)
    assert store.skipped.counts == {"no image": 1, "undecodable image": 1} and len(store) == SIZE - 2
    store.require_model(clip)


class Killed(BaseException):
    """An exception that no code catches, as no code can catch a SIGKILL."""


class KilledEngine(Serial):
    """Is killed after some blocks, which it does in another order than that of the images."""

    def __init__(self, after):
        self.after, self.done = after, []

    def map(self, task, items):
        state = task.start()
        for number in reversed(range(len(items))):
            if len(self.done) >= self.after:
                raise Killed
            task.run(state, items[number])
            self.done.append(items[number])
            yield number, None


def test_finished_blocks_survive_a_kill(clip, serial, tmp_path):
    folder, engines = tmp_path / "store", [KilledEngine(1), KilledEngine(1), KilledEngine(SIZE)]
    for engine in engines[:2]:
        with pytest.raises(Killed):
            build(clip, make(), folder, engine=engine)
    assert json.loads((tmp_path / f"store{DRAFT_SUFFIX}" / "progress.json").read_text())["done"] == 0
    build(clip, make(), folder, engine=engines[2])
    assert [engine.done for engine in engines] == [[(16, 21)], [(8, 16)], [(0, 8)]]
    assert contents(folder) == contents(serial)


@pytest.mark.parametrize("then", [None, Serial(), "auto"])
def test_another_engine_goes_on(clip, serial, tmp_path, then):
    with pytest.raises(Killed):
        build(clip, make(), tmp_path / "store", engine=KilledEngine(2))
    build(clip, make(), tmp_path / "store", engine=then)
    assert contents(tmp_path / "store") == contents(serial)


def test_blocks_of_another_model_are_not_taken(clip, tmp_path):
    with pytest.raises(Killed):
        build(clip, make(), tmp_path / "store", engine=KilledEngine(1))
    other = new_clip()
    other.image_projection.weights[0].assign(other.image_projection.weights[0] * 2)
    with pytest.raises(ValueError, match="differs in weights"):
        build(other, make(), tmp_path / "store", engine="serial")


def test_a_worker_with_another_model_is_refused(clip, tmp_path, monkeypatch):
    scaled = new_clip()
    scaled.logit_scale.assign(2.0)
    models = iter([clip, scaled])
    monkeypatch.setattr(encoding.presets, "load", lambda name: next(models))
    with pytest.raises(ValueError, match="must have the same model.*'some-name'.*logit scale"):
        monkeypatch.setattr("keras_clip.evaluation.features.store.load_model", encoding.load_model)
        build("some-name", make(), tmp_path / "store", engine="serial")


def test_too_many_broken_images_end_the_build(clip, tmp_path):
    with pytest.raises(ValueError, match="At most 5% .* Received: animals/test"):
        build(clip, make(), tmp_path / "store", engine="serial", max_broken=0.05)


@pytest.mark.parametrize("size", [7, 8, 20])
def test_a_source_with_too_few_images_is_refused(clip, tmp_path, size):
    with pytest.raises(ValueError, match=f"the 21 images that it has labels for. Received: {size} of"):
        build(clip, make(FILES[:size]), tmp_path / "store", engine="serial")


def picture(folder, name):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(FILES[0])


def tar(folder):
    with tarfile.open(folder / "a.tar", "w") as opened:
        for number, label in enumerate("ab"):
            for name, data in ((f"{number}.png", FILES[number]), (f"{number}.json", f'{{"name": "{label}"}}'.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                opened.addfile(member, io.BytesIO(data))
    return sources.tars(folder / "a.tar")


def folders(folder):
    for label in "ab":
        picture(folder, f"{label}/0.png")
    return sources.folder_per_class(folder)


def table(folder):
    for label in "ab":
        picture(folder, f"{label}.png")
    (folder / "a.csv").write_text("path,label\na.png,a\nb.png,b\n")
    return sources.csv(folder / "a.csv")


SOURCES = {
    "tar": tar,
    "folder": folders,
    "table": table,
    "digits": lambda folder: sources.digits(),
    "scenes": lambda folder: sources.counting_scenes(2),
    "words": lambda folder: sources.rendered_text(["a", "b"], 2),
}


@pytest.mark.backend_free
@pytest.mark.parametrize("make_source", SOURCES.values(), ids=SOURCES)
def test_images_of_sources_can_be_sent(make_source, tmp_path):
    images = make_source(tmp_path)
    first, size = images.digest(), len(images)
    sent = pickle.loads(pickle.dumps(images))
    sent._content = None
    assert (sent.digest(), len(sent), len(list(sent.read(1)))) == (first, size, size - 1)


@pytest.mark.backend_free
@pytest.mark.parametrize("engine", ["processes", Processes(2)])
def test_models_and_images_that_cannot_be_sent_are_refused(engine, tmp_path):
    images = make()
    with pytest.raises(TypeError, match="Received: clip of type object. Save it by `keras_clip.presets.save"):
        build(object(), images, tmp_path / "store", engine=engine)
    images.read = lambda start: iter(FILES[start:])
    with pytest.raises(TypeError, match="animals/test, which cannot be pickled.*top level of a module"):
        build("ViT-B-32", images, tmp_path / "store", engine=engine)
    with pytest.raises(ValueError, match='"ray" or an Engine'):
        build("ViT-B-32", images, tmp_path / "store", engine="cluster")
    assert not list(tmp_path.iterdir())
