"""Checkpoints written by the peers give the peers' embeddings, and the peers read the checkpoints that we write."""

import json
import shutil

import keras
import numpy as np
import pytest
import torch
from presets import checkpoints

from keras_clip import CLIPModel, ImageEmbedder, TextEmbedder, presets

TEXTS = ["a", "a photo of a cat", "two red circles and a blue square on a table", "Sign: 42%!"]
# The architectures that are tested with every batch size, and outside of the slow tests.
USUAL = ("rn50", "vit_b32")
NINE = [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in checkpoints.TINY]


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def random_pixels(count, size):
    return np.random.default_rng(count).normal(size=(count, size, size, 3)).astype(np.float32)


def of_open_clip(peer, pixels, token_ids):
    with torch.no_grad():
        images = peer.encode_image(torch.tensor(pixels).permute(0, 3, 1, 2).contiguous(), normalize=True)
        return images.numpy(), peer.encode_text(torch.tensor(token_ids), normalize=True).numpy()


def of_hugging_face(peer, pixels, token_ids):
    with torch.no_grad():
        out = peer(input_ids=torch.tensor(token_ids).long(), pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2))
    return out.image_embeds.numpy(), out.text_embeds.numpy()


def assert_same(clip, peer, embed, count, size):
    pixels, token_ids = random_pixels(count, size), clip.tokenizer(TEXTS[:count])
    images, texts = embed(peer, pixels, token_ids)
    np.testing.assert_allclose(clip.image_embedder.predict(pixels, verbose=0), images, rtol=0, atol=2e-5)
    np.testing.assert_allclose(clip.text_embedder.predict(token_ids, verbose=0), texts, rtol=0, atol=2e-5)
    assert images.std(axis=0).mean() > 2e-4 or count == 1, "embeddings of different images must differ"


@pytest.mark.parametrize("name", NINE)
def test_open_clip_gives_the_peers_embeddings(name, written):
    vision = checkpoints.TINY[name]
    folder, peer = written("open_clip", name, quick_gelu=name != "vit_b16")
    clip = presets.load(folder)
    assert type(clip) is CLIPModel
    for count in (1, 2, 3) if name in USUAL else (3,):
        assert_same(clip, peer, of_open_clip, count, vision["image_size"])
    pixels = clip.image_preprocessor
    assert {key: getattr(pixels, key) for key in checkpoints.PIXELS} == checkpoints.PIXELS
    assert pixels.image_size == vision["image_size"] and clip.tokenizer.context_length == 12


@pytest.mark.parametrize("name", NINE[-4:])
def test_hugging_face_gives_the_peers_embeddings(name, written):
    vision = checkpoints.TINY[name]
    activation = "gelu" if name == "vit_b16" else "quick_gelu"
    # The tensors are split over several files, as those of large models are.
    folder, peer = written("hugging_face", name, activation=activation, max_shard_size="2MB")
    assert (folder / "model.safetensors.index.json").exists()
    clip = presets.load(folder)
    for count in (1, 2, 3) if name in USUAL else (3,):
        assert_same(clip, peer, of_hugging_face, count, vision["image_size"])
    assert clip.image_preprocessor.resize_mode == "shortest" and clip.image_preprocessor.interpolation == "bicubic"


@pytest.mark.slow
@pytest.mark.parametrize("layout, name", [("open_clip", "vit_b32"), ("open_clip", "rn50"), ("hugging_face", "vit_b32")])
def test_full_size(layout, name, tmp_path):
    size = {"vit_b32": 512, "rn50": 1024}[name]
    make = getattr(checkpoints, f"save_{layout}")
    peer = make(tmp_path, checkpoints.FULL[name], checkpoints.FULL_TEXT, embed_dim=size)
    clip = presets.load(tmp_path)
    trained = sum(int(np.prod(weight.shape)) for weight in clip.trainable_weights)
    assert trained == {"vit_b32": 151_277_313, "rn50": 102_007_137}[name]
    # One batch size is enough: small models test the others.
    assert_same(clip, peer, {"open_clip": of_open_clip, "hugging_face": of_hugging_face}[layout], 2, 224)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b32", "rn50"])
def test_other_sizes(name, written):
    """Positions are resized as open_clip does it. It cannot resize the attention pool of a ResNet."""
    from open_clip.model import CLIP, resize_pos_embed, resize_text_pos_embed

    vision = checkpoints.TINY[name]
    folder, small = written("open_clip", name)
    state, size = small.state_dict(), 2 * vision["image_size"]
    clip = presets.load(folder, image_size=size, context_length=30)
    assert clip.image_preprocessor.image_size == size and clip.tokenizer.context_length == 30
    peer = CLIP(24, {**vision, "image_size": size}, {**checkpoints.TEXT, "context_length": 30}, quick_gelu=True).eval()
    resize_pos_embed(state, peer)
    resize_text_pos_embed(state, peer)
    if name == "rn50":
        # An independent implementation of the same resizing.
        table = state["visual.attnpool.positional_embedding"]
        grid = table[1:].T.reshape(1, -1, 2, 2)
        grid = torch.nn.functional.interpolate(grid, size=(4, 4), mode="bicubic", antialias=True)
        state["visual.attnpool.positional_embedding"] = torch.cat([table[:1], grid.reshape(-1, 16).T])
    peer.load_state_dict(state)
    assert_same(clip, peer, of_open_clip, 3, size)


@pytest.mark.slow
def test_shorter_texts_keep_their_embeddings(written):
    folder, _ = written("open_clip", "vit_b32")
    whole = presets.load(folder, encoder="text")
    cut = presets.load(folder, encoder="text", context_length=7)
    np.testing.assert_allclose(
        numpy(cut.encode_text(cut.tokenizer(TEXTS[:2]))),
        numpy(whole.encode_text(whole.tokenizer(TEXTS[:2]))),
        atol=1e-6,
    )


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["open_clip", "hugging_face"])
def test_one_tower(layout, written):
    folder, _ = written(layout, "vit_b32")
    clip = presets.load(folder)
    image, text = presets.load(folder, encoder="image"), presets.load(folder, encoder="text")
    assert type(image) is ImageEmbedder and type(text) is TextEmbedder
    pixels, token_ids = random_pixels(2, 96), clip.tokenizer(TEXTS)
    np.testing.assert_array_equal(numpy(image.encode_image(pixels)), numpy(clip.encode_image(pixels)))
    np.testing.assert_array_equal(numpy(text.encode_text(token_ids)), numpy(clip.encode_text(token_ids)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rn50", "vit_b16"])
def test_open_clip_reads_saved_checkpoints(name, written, tmp_path):
    import open_clip

    folder, _ = written("open_clip", name)
    clip = presets.load(folder)
    presets.save(clip, tmp_path / "ours", layout="open_clip")
    theirs, ours = (tensors(path / "open_clip_model.safetensors") for path in (folder, tmp_path / "ours"))
    assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)
    peer, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'ours'}")
    assert_same(clip, peer.eval(), of_open_clip, 3, checkpoints.TINY[name]["image_size"])
    normalize = preprocess.transforms[-1]
    assert (tuple(normalize.mean), tuple(normalize.std)) == (clip.image_preprocessor.mean, clip.image_preprocessor.std)


@pytest.mark.slow
def test_hugging_face_reads_saved_checkpoints(written, tmp_path):
    from transformers import CLIPImageProcessor
    from transformers import CLIPModel as Peer

    folder, _ = written("hugging_face", "vit_b16", activation="gelu")
    clip = presets.load(folder)
    presets.save(clip, tmp_path / "ours", layout="hugging_face")
    theirs, ours = (tensors(path / "model.safetensors") for path in (folder, tmp_path / "ours"))
    assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)
    peer, loading = Peer.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(loading.values())
    assert_same(clip, peer.eval(), of_hugging_face, 3, 64)
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    processed = CLIPImageProcessor.from_pretrained(tmp_path / "ours")(picture, return_tensors="np")["pixel_values"]
    ours = clip.image_preprocessor([picture]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(processed, ours, atol=1.01 / 255 / min(clip.image_preprocessor.std))


@pytest.mark.slow
def test_keras_layout_and_its_towers(written, tmp_path):
    clip = presets.load(written("open_clip", "vit_b32")[0])
    presets.save(clip, tmp_path / "ours")
    pixels = random_pixels(2, 96)
    for again in (presets.load(tmp_path / "ours"), presets.load(tmp_path / "ours" / "clip.keras", encoder="image")):
        np.testing.assert_array_equal(numpy(again.encode_image(pixels)), numpy(clip.encode_image(pixels)))
    with pytest.raises(ValueError, match="loaded as it was saved. Received: image_size"):
        presets.load(tmp_path / "ours", image_size=64)


def tensors(path):
    from safetensors.numpy import load_file

    return load_file(path)


@pytest.mark.slow
def test_bfloat16_and_mixed_policies(written):
    folder, _ = written("open_clip", "vit_b32")
    exact = numpy(presets.load(folder).encode_image(random_pixels(2, 96)))
    for dtype in ("bfloat16", "mixed_bfloat16"):
        clip = presets.load(folder, dtype=dtype)
        stored = "bfloat16" if dtype == "bfloat16" else "float32"
        assert keras.backend.standardize_dtype(clip.image_projection.dense.kernel.dtype) == stored
        assert keras.backend.standardize_dtype(clip.logit_scale.dtype) == "float32"
        embeddings = numpy(clip.encode_image(random_pixels(2, 96)))
        assert embeddings.dtype == np.float32 and (embeddings * exact).sum(axis=-1).min() > 0.999


def test_weights_of_a_file_for_a_named_architecture(written, tmp_path, monkeypatch):
    from keras_clip.presets import architectures, loading

    tiny = architectures.Architecture(
        {"image_size": 96, "patch_size": 32, "width": 128, "num_layers": 2, "num_heads": 2},
        {"width": 64, "num_layers": 2, "num_heads": 2, "context_length": 12},
        24,
    )
    monkeypatch.setitem(loading.ARCHITECTURES, "vit_b32", tiny)
    for activation in ("gelu", "quick_gelu"):
        folder, peer = written("open_clip", "vit_b32", quick_gelu=activation == "quick_gelu")
        file = folder / "open_clip_model.safetensors"
        clip = presets.load("vit_b32", weights=file, activation=activation)
        assert_same(clip, peer, of_open_clip, 2, 96)
    with pytest.raises(ValueError, match="`activation` must be.*Received.*activation=None"):
        presets.load("vit_b32", weights=file)
    # Training checkpoints of open_clip.
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in peer.state_dict().items()}},
        tmp_path / "epoch_3.pt",
    )
    assert_same(presets.load("vit_b32", tmp_path / "epoch_3.pt", activation="quick_gelu"), peer, of_open_clip, 2, 96)
    file = shutil.copy(file, tmp_path)
    with pytest.raises(ValueError, match="do not say their activation.*Received.*presets.load_weights"):
        presets.load(file)
    clip = presets.load("vit_b32", weights=None)
    presets.load_weights(clip, file)
    assert_same(clip, peer, of_open_clip, 2, 96)


def test_paper_initialisation_without_weights(monkeypatch):
    from keras_clip.presets import architectures, loading

    tiny = architectures.ARCHITECTURES["rn50"]
    tiny = architectures.replace(tiny, image_encoder={"image_size": 64, "blocks": (1, 1, 1, 1), "width": 8})
    monkeypatch.setitem(loading.ARCHITECTURES, "rn50", tiny)
    clip = presets.load("rn50", weights=None, encoder="image", image_size=96)
    assert clip.encoder.image_size == 96
    assert np.all(numpy(clip.encoder.stages[-1].norm_3.gamma) == 0)
    assert numpy(clip.encoder.stages[-1].convolution_3.kernel).std() > 0, "weights must be initialised"


def edited(directory, change):
    path = directory / "open_clip_config.json"
    config = json.loads(path.read_text())
    change(config["model_cfg"])
    path.write_text(json.dumps(config))


OTHER_CONFIGURATIONS = {
    "timm image encoder": (
        lambda config: config["vision_cfg"].update(timm_model_name="resnet50"),
        "image encoder of timm",
    ),
    "transformers text encoder": (
        lambda config: config["text_cfg"].update(hf_model_name="roberta-base"),
        "text encoder of transformers",
    ),
    "another tokenizer": (lambda config: config["text_cfg"].update(hf_tokenizer_name="t5"), "another tokenizer"),
    "no causal mask": (lambda config: config["text_cfg"].update(no_causal_mask=True), "no_causal_mask=True"),
    "layer scale": (lambda config: config["vision_cfg"].update(ls_init_value=1e-5), "ls_init_value=1e-05"),
    "average pooling": (lambda config: config["vision_cfg"].update(pool_type="avg"), "pool_type='avg'"),
    "unknown option": (lambda config: config["vision_cfg"].update(new_thing=0), "new_thing=0"),
    "custom text encoder": (lambda config: config.update(custom_text=True), "custom_text=True"),
    "no embed_dim": (lambda config: config.pop("embed_dim"), "must say 'embed_dim'"),
    "another vocabulary": (
        lambda config: config["text_cfg"].update(vocab_size=1000),
        "49408 tokens. Received: a vocabulary of 1000",
    ),
    "too many layers": (
        lambda config: config["vision_cfg"].update(layers=3),
        r"without 'visual.transformer.resblocks.2",
    ),
    "too few layers": (
        lambda config: config["vision_cfg"].update(layers=1),
        r"unknown 'visual.transformer.resblocks.1",
    ),
    "another image size": (
        lambda config: config["vision_cfg"].update(image_size=64),
        r"'visual.positional_embedding' must have the shape",
    ),
    "another embed_dim": (
        lambda config: config.update(embed_dim=25),
        r"must have the shape \(128, 25\). Received: \(128, 24\)",
    ),
}


@pytest.mark.parametrize("change, message", OTHER_CONFIGURATIONS.values(), ids=OTHER_CONFIGURATIONS)
def test_other_families_and_architectures_are_refused(change, message, copied):
    folder, _ = copied("open_clip", "vit_b32")
    edited(folder, change)
    with pytest.raises(ValueError, match=message):
        presets.load(folder)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (("vit_b33",), ValueError, "must be one of rn50, .*Received: 'vit_b33'"),
        (("hf://nowhere",), ValueError, "hf://organisation/name"),
        (("vit_b32", "/nowhere/x.safetensors"), FileNotFoundError, "Received: /nowhere"),
        (("vit_b32", None, "both"), ValueError, "Received: encoder='both'"),
        (("hf://a/b", None), ValueError, "with the name of a published model"),
    ],
    ids=["unknown preset", "incomplete repository", "missing file", "unknown encoder", "no weights of a repository"],
)
def test_invalid_names_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        presets.load(*arguments)


def test_a_file_of_integers_changes_nothing(written, tmp_path):
    from safetensors.numpy import save_file

    folder, _ = written("open_clip", "vit_b32")
    clip, path = presets.load(folder), tmp_path / "quantised.safetensors"
    stored = tensors(folder / "open_clip_model.safetensors")
    # All tensors but one have other values and the correct dtype.
    changed = {key: np.asarray(value + 1) for key, value in stored.items()}
    changed["text_projection"] = changed["text_projection"].astype(np.int8)
    save_file(changed, path)
    before = [numpy(weight) for weight in clip.weights]
    with pytest.raises(ValueError, match="stored as one of.*'text_projection' as I8"):
        presets.load_weights(clip, path)
    for weight, value in zip(clip.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(weight), value)


def test_a_model_that_shares_its_weights_does_not_change_the_other(written):
    folder, _ = written("open_clip", "vit_b32")
    first, second = presets.load(folder, encoder="text"), presets.load(folder, encoder="text")
    for mine, other in zip(first.weights, second.weights, strict=True):
        mine.assign(other.value + 1)
        other.assign(mine.value)
    before = [numpy(weight).copy() for weight in second.weights]
    presets.load_weights(first, folder / "open_clip_model.safetensors")
    for weight, value in zip(second.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(weight), value)


def test_empty_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="open_clip_config.json, config.json or clip.keras"):
        presets.load(tmp_path)
