"""The model of an index: which are taken, which are refused, where it is loaded; damaged indexes, later formats."""

import io
import sqlite3

import keras
import numpy as np
import pytest
from picture_folders import SIDE, build_embedder, draw
from PIL import Image
from scripts import load_script

import keras_clip
from keras_clip import engines
from keras_clip.search import PictureIndex, update_index
from keras_clip.search.pictures import indexed_model

pytestmark = pytest.mark.backend_free


def build_clip(loss="contrastive"):
    keras.utils.set_random_seed(1)
    image_encoder = keras.Sequential([keras.Input((SIDE, SIDE, 3)), keras.layers.GlobalAveragePooling2D()])
    text_encoder = keras_clip.encoders.TextTransformer(8, 1, 1, context_length=8)
    return keras_clip.CLIPModel(image_encoder, text_encoder, 4, loss=loss)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "clip.keras"
    build_clip("sigmoid").save(path)
    return path


@pytest.fixture
def pictures(tmp_path):
    for number in range(5):
        draw(tmp_path / "pictures" / f"{number}.png", number)
    return tmp_path / "pictures"


def update(tmp_path, *arguments, **options):
    return update_index(tmp_path / "index", *arguments, progress=False, **options)


def test_a_saved_model_of_a_sigmoid_loss(tmp_path, pictures, saved, monkeypatch):
    update(tmp_path, pictures, saved)
    index = PictureIndex.open(tmp_path / "index")
    assert (index.model, index.loss, index.embed_dim) == (str(saved), "sigmoid", 4)
    assert index.logit_bias == pytest.approx(-10)
    assert index.logit_scale == pytest.approx(np.log(10))
    clip = keras_clip.presets.load(index.model)
    index.require_model(clip)
    index.require_model(clip.image_embedder)
    # It is loaded only if there is something to encode.
    with monkeypatch.context() as patch:
        patch.setattr(indexed_model, "load_model", None)
        assert update(tmp_path).unchanged == 5
        assert update(tmp_path, None, saved).unchanged == 5
    draw(pictures / "new.png", 20)
    assert update(tmp_path).encoded == 1


def test_a_model_in_memory_has_to_be_passed_again(tmp_path, pictures):
    clip = build_clip()
    update(tmp_path, pictures, clip)
    index = PictureIndex.open(tmp_path / "index")
    assert (index.model, index.loss, index.logit_bias) == (None, "contrastive", None)
    assert update(tmp_path).unchanged == 5
    draw(pictures / "new.png", 20)
    with pytest.raises(ValueError, match="made by a model in memory.*Pass the model"):
        update(tmp_path)
    # The image half encodes pictures as the whole does.
    assert update(tmp_path, None, clip.image_embedder).encoded == 1


def test_another_model_is_refused(tmp_path, pictures, saved):
    update(tmp_path, pictures, build_embedder(0))
    for other in (build_embedder(1), saved):
        with pytest.raises(ValueError, match="must be of this model.*differs in.*another folder.*delete"):
            update(tmp_path, pictures, other)
    with pytest.raises(ValueError, match="differs in weights"):
        PictureIndex.open(tmp_path / "index").require_model(build_embedder(1))
    assert update(tmp_path, pictures, build_embedder(0)).unchanged == 5


def test_another_model_at_the_same_path_is_refused_when_it_is_loaded(tmp_path, pictures, saved):
    path = tmp_path / "model.keras"
    path.write_bytes(saved.read_bytes())
    update(tmp_path, pictures, path)
    build_clip().save(path)
    other = keras.saving.load_model(path)
    other.image_embedder.projection.set_weights([w + 1 for w in other.image_embedder.projection.get_weights()])
    other.save(path)
    draw(pictures / "new.png", 20)
    with pytest.raises(ValueError, match="must be of this model"):
        update(tmp_path, pictures, path)


def test_a_model_that_returns_nan(tmp_path, pictures):
    embedder = build_embedder()
    embedder.projection.set_weights([w * np.nan for w in embedder.projection.get_weights()])
    with pytest.raises(ValueError, match="finite embeddings.*0.png"):
        update(tmp_path, pictures, embedder)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"max_pixels_in_flight": 0}, "max_pixels_in_flight"),
        ({"clip": None}, "new index needs a model"),
        ({"roots": None}, "needs at least one folder"),
        ({"roots": []}, "needs at least one folder"),
        ({"engine": "cloud"}, "engine must be"),
    ],
    ids=str,
)
def test_arguments_are_checked(tmp_path, pictures, options, message):
    arguments = {"roots": pictures, "clip": "nothing", **options}
    if "engine" in options:
        arguments["clip"] = build_embedder()
    with pytest.raises(ValueError, match=message):
        update(tmp_path, **arguments)


@pytest.mark.slow
def test_processes_give_the_same_index(tmp_path, pictures, saved):
    (pictures / "broken.jpg").write_bytes(b"broken")
    (pictures / "0.txt").write_text("caption")
    update(tmp_path, pictures, saved)
    changes = update_index(
        tmp_path / "other", pictures, saved, engine=engines.Processes(1), batch_size=2, progress=False
    )
    assert (changes.added, changes.broken) == (5, 1)
    one, other = PictureIndex.open(tmp_path / "index"), PictureIndex.open(tmp_path / "other")
    names = ["name", "sha256", "width", "taken", "caption", "perceptual_hash"]
    for name, column in one.columns(names).items():
        np.testing.assert_array_equal(column, other.columns(names)[name])
    np.testing.assert_allclose(one.embeddings[one.rows], other.embeddings[other.rows], atol=1e-5)
    assert one.thumbnail(0) == other.thumbnail(0)


def test_processes_refuse_a_model_in_memory(tmp_path, pictures):
    with pytest.raises(TypeError, match="Save it by.*presets.save"):
        update(tmp_path, pictures, build_embedder(), engine=engines.Processes(1))
    assert update(tmp_path, pictures, build_embedder(), engine="auto").added == 5


@pytest.mark.parametrize("number, cure", [(1, "Delete the folder, but keep labels.sqlite"), (99, "Upgrade keras_clip")])
def test_an_index_of_another_format(tmp_path, pictures, number, cure):
    update(tmp_path, pictures, build_embedder())
    connection = sqlite3.connect(tmp_path / "index" / "index.sqlite")
    connection.execute("UPDATE meta SET value = ? WHERE key = 'format'", (str(number),))
    connection.commit()
    connection.close()
    for call in (lambda: PictureIndex.open(tmp_path / "index"), lambda: update(tmp_path)):
        with pytest.raises(ValueError, match=f"Received.*of format {number}. {cure}.*, or give another"):
            call()


def test_damaged_indexes(tmp_path, pictures):
    with pytest.raises(FileNotFoundError, match="has none.*search.py index"):
        PictureIndex.open(tmp_path / "index")
    update(tmp_path, pictures, build_embedder())
    place = tmp_path / "index"
    data = (place / "embeddings-0.f32").read_bytes()
    (place / "embeddings-0.f32").write_bytes(data[:-8])
    with pytest.raises(
        ValueError, match="must be complete.*fewer than its 5 rows.*keep labels.sqlite.*build the index again"
    ):
        PictureIndex.open(place)
    (place / "embeddings-0.f32").unlink()
    with pytest.raises(ValueError, match="must be complete.*missing"):
        PictureIndex.open(place)
    (place / "embeddings-0.f32").write_bytes(data)
    for content in (b"no database" * 100, (place / "index.sqlite").read_bytes()[:5000] + b"\xff" * 9000):
        for path in place.glob("index.sqlite*"):
            path.unlink()
        (place / "index.sqlite").write_bytes(content)
        with pytest.raises(ValueError, match="database of an index must be whole"):
            len(PictureIndex.open(place).columns(["name"]))
        with pytest.raises(ValueError, match="database of an index must be whole"):
            update(tmp_path, pictures, build_embedder())


def test_thumbnails_are_bounded_and_made_again(tmp_path, pictures):
    draw(pictures / "wide.jpg", 8, (1000, 100))
    draw(pictures / "line.png", 9, (2000, 1))
    update(tmp_path, pictures, build_embedder())
    index = PictureIndex.open(tmp_path / "index")
    columns = index.columns(["name"])["name"].tolist()
    for name, size in {"wide.jpg": (256, 26), "line.png": (256, 1), "0.png": (40, 30)}.items():
        id = int(index.ids[columns.index(name)])
        thumbnail = index.thumbnail(id)
        with Image.open(io.BytesIO(thumbnail)) as image:
            assert (image.size, image.format) == (size, "WEBP")
        path = next((tmp_path / "index" / "thumbnails").glob(f"*/{index.picture(id).sha256}.webp"))
        path.write_bytes(b"")
        assert index.thumbnail(id) == thumbnail
        path.unlink()
        assert index.thumbnail(id) == thumbnail


def test_large_jpegs_may_be_decoded_smaller(tmp_path, pictures):
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(pictures / "turned.jpg", 8, (1282, 962), exif=exif, quality=95)
    draw(pictures / "large.jpg", 9, (1600, 1201), quality=95)
    embedder = build_embedder()
    update(tmp_path, pictures, embedder)
    update_index(tmp_path / "fast", pictures, embedder, fast_jpeg=True, progress=False)
    exact, fast = PictureIndex.open(tmp_path / "index"), PictureIndex.open(tmp_path / "fast")
    for name, column in exact.columns(["name", "width", "height"]).items():
        np.testing.assert_array_equal(fast.columns([name])[name], column)
    assert {(962, 1282), (1600, 1201)} <= set(zip(*exact.columns(["width", "height"]).values(), strict=True))
    np.testing.assert_allclose(fast.embeddings, exact.embeddings, atol=0.01)
    names = exact.columns(["name"])["name"]
    large = (names == "turned.jpg") | (names == "large.jpg")
    np.testing.assert_array_equal(fast.embeddings[~large], exact.embeddings[~large])
    assert (fast.embeddings[large] != exact.embeddings[large]).any()


def test_a_store_of_labelled_pictures(tmp_path, pictures):
    update(tmp_path, pictures, build_embedder())
    index = PictureIndex.open(tmp_path / "index")
    store = index.store([1, 3, 4], np.array([0, 1, 0]), ["cat", "dog"])
    np.testing.assert_array_equal(store.embeddings, index.embeddings[index.rows_of([1, 3, 4])])
    assert store.features.shape == (3, 13)
    assert store.ids.tolist() == ["1", "3", "4"]
    with pytest.raises(KeyError, match="id=9"):
        index.store([1, 9], np.array([0, 1]))
    with pytest.raises(ValueError, match="names.*Received.*colour"):
        index.columns(["colour"])


def test_commands_of_the_script(tmp_path, pictures, saved, capsys):
    script = load_script("examples/search.py")
    (pictures / "broken.jpg").write_bytes(b"broken")
    (pictures / "film.mov").touch()
    place = ["--index", str(tmp_path / "index")]
    script.main(["index", str(pictures), "--model", str(saved), *place])
    output = capsys.readouterr().out
    assert "5 added" in output and "passed over: 1 mov" in output and "pictures/broken.jpg: undecodable image" in output
    script.main(["index", *place])
    assert "5 unchanged" in capsys.readouterr().out
    script.main(["broken", "--json", *place])
    assert '"path": "pictures/broken.jpg"' in capsys.readouterr().out
    script.main(["draw", str(tmp_path / "drawn"), "--pictures", "3", "--size", "32", *place])
    assert len(list((tmp_path / "drawn").rglob("*.jpg"))) == 3
    assert all(path.with_suffix(".txt").read_text() for path in (tmp_path / "drawn").rglob("*.jpg"))
    with pytest.raises(SystemExit, match="--workers goes with"):
        script.main(["index", "--workers", "2", *place])
    for arguments in (["find", "x", "--limit", "0"], ["draw", "x", "--pictures", "-1"]):
        with pytest.raises(SystemExit, match="2"):
            script.main([*arguments, *place])
        assert "at least 1. Received" in capsys.readouterr().err
