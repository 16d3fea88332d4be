"""With equal weights, embeddings, loss and gradients equal open_clip's."""

import functools

import keras
import numpy as np
import pytest
import torch
import torchvision_shim  # noqa: F401  (before open_clip)
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from peers import copy_open_clip

from keras_clip import CLIPModel
from keras_clip.encoders import ModifiedResNet, TextTransformer, VisionTransformer

VISION = {
    "vit": dict(image_size=32, patch_size=8, width=64, layers=3, head_width=32),
    "vit at another size": dict(image_size=48, patch_size=16, width=64, layers=2, head_width=32),
    # The attention pool of the peer has 32 * width / head_width heads.
    "resnet": dict(image_size=64, layers=(1, 2, 1, 1), width=8, head_width=64),
}


class SmallVocabulary:
    end_token_id = 99


def make_pair(name, quick_gelu=True):
    torch.manual_seed(0)
    text = dict(context_length=12, vocab_size=100, width=64, heads=2, layers=2)
    peer = CLIP(embed_dim=48, vision_cfg=VISION[name], text_cfg=text, quick_gelu=quick_gelu).eval()
    with torch.no_grad():
        for parameter in peer.parameters():  # because initial zeros and ones would hide errors
            parameter.add_(0.05 * torch.randn_like(parameter))
        for key, buffer in peer.named_buffers():
            if "running" in key:
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    config = VISION[name]
    activation = "quick_gelu" if quick_gelu else "gelu"
    if "patch_size" in config:
        image = VisionTransformer(
            config["image_size"], config["patch_size"], 64, config["layers"], 2, activation=activation
        )
    else:
        image = ModifiedResNet(config["image_size"], config["layers"], config["width"], num_heads=4)
    text = TextTransformer(64, 2, 2, 12, 100, activation=activation)
    clip = CLIPModel(image, text, embed_dim=48, tokenizer=SmallVocabulary())
    copy_open_clip(peer, clip)
    return peer, clip


# For tests that do not change either model.
shared_pair = functools.cache(make_pair)


def make_batch(name, size, rng):
    side = VISION[name]["image_size"]
    images = rng.normal(size=(size, side, side, 3)).astype("float32")
    token_ids = rng.integers(1, 98, size=(size, 12)).astype("int32")
    ends = rng.integers(2, 12, size=size)
    token_ids[np.arange(size), ends] = 99
    token_ids[np.arange(12) > ends[:, None]] = 0
    return images, token_ids


def to_torch(images, token_ids):
    return torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(token_ids, dtype=torch.long)


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize("name", VISION)
def test_embeddings(name, size, rng):
    peer, clip = shared_pair(name)
    images, token_ids = make_batch(name, size, rng)
    with torch.no_grad():
        torch_images, torch_tokens = to_torch(images, token_ids)
        expected = peer.encode_image(torch_images, normalize=True), peer.encode_text(torch_tokens, normalize=True)
    ours = clip.encode_image(images), clip.encode_text(token_ids)
    for mine, theirs in zip(ours, expected, strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(mine), theirs.numpy(), atol=2e-5)


def test_exact_gelu(rng):
    peer, clip = make_pair("vit", quick_gelu=False)
    images, token_ids = make_batch("vit", 2, rng)
    with torch.no_grad():
        expected = peer.encode_image(to_torch(images, token_ids)[0], normalize=True).numpy()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(clip.encode_image(images)), expected, atol=2e-5)
    _, other = shared_pair("vit")
    assert np.abs(keras.ops.convert_to_numpy(other.encode_image(images)) - expected).max() > 1e-4


def test_one_step_of_sgd_moves_every_weight_alike(rng):
    """Tests loss and gradients together: after a step of SGD, both models must have equal weights."""
    peer, clip = make_pair("vit")
    images, token_ids = make_batch("vit", 6, rng)
    optimizer = torch.optim.SGD(peer.parameters(), lr=0.1)
    torch_images, torch_tokens = to_torch(images, token_ids)
    loss = ClipLoss()(
        peer.encode_image(torch_images, normalize=True),
        peer.encode_text(torch_tokens, normalize=True),
        peer.logit_scale.exp(),
    )
    loss.backward()
    optimizer.step()
    clip.compile(keras.optimizers.SGD(0.1))
    logs = clip.train_on_batch({"images": images, "token_ids": token_ids}, return_dict=True)
    assert float(logs["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    stepped = [np.array(keras.ops.convert_to_numpy(variable)) for variable in clip.trainable_variables]
    copy_open_clip(peer, clip)
    for mine, variable in zip(stepped, clip.trainable_variables, strict=True):
        np.testing.assert_allclose(
            mine, keras.ops.convert_to_numpy(variable), atol=5e-6, rtol=1e-5, err_msg=variable.path
        )
