"""Files that are whole or absent: an interrupted write leaves the file of before, and no other."""

import json
import os

import keras
import pytest

import keras_clip
from keras_clip import files, presets

pytestmark = pytest.mark.backend_free


@pytest.fixture(scope="module")
def clip():
    image_encoder = keras_clip.encoders.VisionTransformer(16, 8, 16, 1, 1)
    text_encoder = keras_clip.encoders.TextTransformer(64, 1, 1, context_length=8, vocabulary_size=49408)
    return keras_clip.CLIPModel(image_encoder, text_encoder, 16)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left"), ValueError], ids=str)
def test_an_interrupted_write_leaves_the_file_of_before(tmp_path, error):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(error if isinstance(error, type) else type(error)), files.replacing(path) as temporary:
        temporary.write_text('{"a"')
        raise error
    assert json.loads(path.read_text()) == {"a": 1} and names(tmp_path) == ["a.json"]


def test_the_file_appears_at_the_end_and_keeps_its_mode(tmp_path):
    path = tmp_path / "a.keras"
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists() and temporary.suffix == ".keras" and temporary.parent == tmp_path
    plain = tmp_path / "plain"
    plain.write_text("")
    # That of any new file, not that of a temporary one.
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o640)
    files.write_text(path, "newer")
    assert path.read_text() == "newer" and path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "name",
    ["x" * 255, "x" * 250 + ".json", "é" * 120 + ".json", "a." + "b" * 250, ".hidden" + "y" * 240, "日" * 84 + ".a"],
    ids=["255 bytes", "an extension", "two bytes a letter", "a long extension", "hidden", "cut within a letter"],
)
def test_names_as_long_as_a_file_system_allows(tmp_path, name):
    """The name of the temporary file is not longer, and has the extension by which writers choose a format."""
    path = tmp_path / name
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == (path.suffix if 0 < len(path.suffix) < 100 else files.PART)
    assert path.read_text() == "new" and names(tmp_path) == [name]


def test_links_and_devices_stay_what_they_are(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    files.write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    files.write_text(os.devnull, "nothing")
    assert not os.path.isfile(os.devnull)


def models(clip):
    return {
        "clip": clip,
        "image embedder": clip.image_embedder,
        "text embedder": clip.text_embedder,
        "image encoder": clip.image_encoder,
        "text encoder": clip.text_encoder,
    }


@pytest.mark.parametrize("name", ["clip", "image embedder", "text embedder", "image encoder", "text encoder"])
def test_an_interrupted_save_leaves_the_model_of_before(clip, tmp_path, monkeypatch, name):
    model, path = models(clip)[name], tmp_path / "model.keras"
    model.save(path)
    before = path.read_bytes()

    def interrupted(model, filepath, *args, **kwargs):
        with open(filepath, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("keras.src.saving.saving_lib.save_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.save(path)
    assert path.read_bytes() == before and names(tmp_path) == ["model.keras"]


def test_what_is_saved_loads(clip, tmp_path):
    clip.save(str(tmp_path / "clip.keras"))
    loaded = keras.saving.load_model(tmp_path / "clip.keras")
    assert isinstance(loaded, keras_clip.CLIPModel)
    with pytest.raises(ValueError, match="extension"):
        clip.save(tmp_path / "clip.other")


@pytest.mark.parametrize("layout", presets.saving.LAYOUTS)
def test_an_interrupted_preset_leaves_the_weights_of_before(clip, tmp_path, monkeypatch, layout):
    presets.save(clip, tmp_path, layout)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(files.os, "replace", _raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        presets.save(clip, tmp_path, layout)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def _raise_interrupt(*_):
    raise KeyboardInterrupt
