"""The same weights in every form in which checkpoints hold them give the same model, and errors name what was found."""

import json

import keras
import numpy as np
import pytest
import torch
from presets import checkpoints
from safetensors.torch import save_file

from keras_clip import ImageEmbedder, TextEmbedder, presets

# Which keys are read does not depend on the backend.
pytestmark = pytest.mark.backend_free


@pytest.fixture(scope="module")
def model(written):
    """A function that gives a model for the weights of a layout, the state dict of the peer, and the right weights."""
    made = {}

    def of(layout):
        if layout not in made:
            folder, peer = written(layout, "vit_b32")
            clip = presets.load(folder)
            made[layout] = clip, {key: value.clone() for key, value in peer.state_dict().items()}, values(clip)
        return made[layout]

    return of


def values(clip):
    return [keras.ops.convert_to_numpy(weight).copy() for weight in clip.weights]


def prefixed(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


def with_vectors(state):
    return {**state, "logit_scale": state["logit_scale"].reshape(1)}


FORMS = {
    "module. in safetensors": ("x.safetensors", prefixed("module.")),
    "two wrappers": ("x.safetensors", prefixed("module._orig_mod.")),
    "any other prefix": ("x.pt", prefixed("student.clip.")),
    "a scale of one element": ("x.safetensors", with_vectors),
    ".ckpt": ("x.ckpt", lambda state: {"state_dict": prefixed("model.")(state), "epoch": 3}),
    "model": ("x.pth", lambda state: {"model": state, "optimizer": {"state": {}}, "step": 1}),
    "model_state_dict": ("x.pt", lambda state: {"model_state_dict": state}),
    "module of a training": ("x.pt", lambda state: {"module": prefixed("module.")(state)}),
    "a dict in a dict": ("x.pt", lambda state: {"model": {"state_dict": with_vectors(state)}}),
    "a file without suffix": ("weights", lambda state: state),
    "safetensors by another name": ("x.bin.safetensors.bak", lambda state: state),
    "before torch 1.6": ("x.pt", lambda state: state),
}


@pytest.mark.parametrize("layout", ["open_clip", "hugging_face"])
@pytest.mark.parametrize("form", FORMS)
def test_form(form, layout, model, tmp_path):
    clip, state, wanted = model(layout)
    filename, change = FORMS[form]
    path, content = tmp_path / filename, change(state)
    if "safetensors" in filename:
        save_file({key: value.contiguous() for key, value in content.items()}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "before torch 1.6")
    for weight in clip.weights:
        weight.assign(keras.ops.zeros(weight.shape))
    presets.load_weights(clip, path)
    for value, expected in zip(values(clip), wanted, strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_parts(form, copied, model, tmp_path):
    folder, _ = copied("hugging_face", "vit_b32")
    _, state, wanted = model("hugging_face")
    for path in folder.glob("model*"):
        path.unlink()
    name = {"bin": "pytorch_model", "safetensors": "model"}[form]
    files = {key: f"{name}-0000{i % 2 + 1}-of-00002.{form}" for i, key in enumerate(state)}
    for filename in set(files.values()):
        part = {key: value.contiguous() for key, value in state.items() if files[key] == filename}
        save_file(part, folder / filename) if form == "safetensors" else torch.save(part, folder / filename)
    (folder / f"{name}.{form}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    clip = presets.load(folder)
    for value, expected in zip(values(clip), wanted, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_what_open_clip_calls_them(copied):
    folder, _ = copied("open_clip", "vit_b32")
    path = folder / "open_clip_model.safetensors"
    for name in ("open_clip_pytorch_model.safetensors", "model.safetensors"):
        path = path.rename(folder / name)
        assert presets.load(folder, encoder="text").embed_dim == 24


def test_encoders_alone(written, tmp_path):
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    folder, peer = written("hugging_face", "vit_b32")
    texts = np.array([[49406, 320, 49407, 0], [49406, 49407, 0, 0]])
    pixels = np.random.default_rng(0).normal(size=(2, 96, 96, 3)).astype(np.float32)
    for kind, half in ((CLIPTextModelWithProjection, "text"), (CLIPVisionModelWithProjection, "image")):
        alone = kind.from_pretrained(folder)
        alone.save_pretrained(tmp_path / half)
        embedder = presets.load(tmp_path / half)
        assert type(embedder) is (TextEmbedder if half == "text" else ImageEmbedder)
        with torch.no_grad():
            if half == "text":
                theirs, ours = alone(torch.tensor(texts)).text_embeds, embedder.encode_text(texts)
            else:
                theirs = alone(torch.tensor(pixels).permute(0, 3, 1, 2)).image_embeds
                ours = embedder.encode_image(pixels)
        theirs = theirs / theirs.norm(dim=-1, keepdim=True)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(ours), theirs.numpy(), atol=2e-5)
        other = {"text": "image", "image": "text"}[half]
        with pytest.raises(ValueError, match=f"Received: encoder='{other}'.* a {half} encoder alone"):
            presets.load(tmp_path / half, encoder=other)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: {**prefixed("model.")(state), "loss.margin": torch.ones(1)}, "prefix 'model.' in it"),
        (lambda state: {**prefixed("a.b.")(state), "c.queue": torch.ones(1)}, "prefix 'a.b.' in it"),
        (lambda state: {**state, "extra": torch.ones(1)}, "unknown 'extra'"),
        (lambda state: {**state, "logit_scale": torch.ones(2)}, r"shape \(\). Received: \(2,\)"),
        (lambda state: {"weights": state, "epoch": 3}, "no tensor in 'weights', 'epoch'"),
        (lambda state: {"model": {}}, "holds a dict"),
    ],
)
def test_what_is_refused(change, message, model, tmp_path):
    clip, state, _ = model("open_clip")
    torch.save(change(state), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=f"Received.*{message}|{message}"):
        presets.load_weights(clip, tmp_path / "x.pt")


def test_another_image_size_keeps_the_margin(copied):
    """What is resized to more than the image size grows with it."""
    folder, _ = copied("hugging_face", "vit_b32")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": {"shortest_edge": 108}}))
    pixels = presets.load(folder, encoder="image").image_preprocessor
    assert (pixels.image_size, pixels.resize_sides) == (96, (108, 108))
    pixels = presets.load(folder, encoder="image", image_size=192).image_preprocessor
    assert (pixels.image_size, pixels.resize_sides) == (192, (216, 216))


def test_the_file_that_transformers_prefers(copied):
    folder, _ = copied("hugging_face", "vit_b32")
    processor = {**json.loads((folder / "preprocessor_config.json").read_text()), "image_mean": [0.1, 0.2, 0.3]}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": processor}))
    assert presets.load(folder, encoder="image").image_preprocessor.mean == (0.1, 0.2, 0.3)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert presets.load(folder, encoder="image").image_preprocessor.mean != (0.1, 0.2, 0.3)


def test_a_tokenizer_is_looked_at(copied):
    folder, _ = copied("hugging_face", "vit_b32")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 8}))
    with pytest.raises(ValueError, match="Received.*model_max_length=8"):
        presets.load(folder)
    assert presets.load(folder, encoder="text", context_length=8).tokenizer.context_length == 8
    (folder / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(ValueError, match="Received.*vocab.json"):
        presets.load(folder, encoder="text", context_length=8)
    assert presets.load(folder, encoder="image").embed_dim == checkpoints.TEXT["heads"] * 12


def test_saved_as_a_file_or_into_a_directory(written, tmp_path):
    half = presets.load(written("open_clip", "vit_b32")[0], encoder="image")
    presets.save(half, tmp_path / "new" / "half.keras")
    assert (tmp_path / "new" / "half.keras").is_file()
    # A directory of this name was made by earlier versions.
    (tmp_path / "old.keras").mkdir()
    presets.save(half, tmp_path / "old.keras")
    pixels = np.zeros((1, 96, 96, 3), np.uint8)
    for path in (tmp_path / "new" / "half.keras", tmp_path / "old.keras"):
        again = presets.load(path)
        np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(x.encode_image(pixels)) for x in (half, again)))
    keras.saving.load_model(tmp_path / "new" / "half.keras")


@pytest.mark.parametrize(
    "name, layout",
    [("x.safetensors", "open_clip"), ("x.keras", "hugging_face"), ("x.h5", "keras"), ("x.pt", "keras")],
)
def test_names_of_files_are_no_directories(name, layout, tmp_path):
    with pytest.raises(ValueError, match=f"Received: .*{name}. Leave out the suffix"):
        presets.save(None, tmp_path / name, layout=layout)
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "there").write_text("something else")
    with pytest.raises(ValueError, match="Received: .*there"):
        presets.save(None, tmp_path / "there")
