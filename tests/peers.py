"""Copies the weights of an open_clip model into ours, so that both can be asked the same question."""

import keras
import numpy as np


def _set(layer, **arrays):
    for name, array in arrays.items():
        variable = getattr(layer, name)
        assert tuple(variable.shape) == array.shape, (layer.name, name, variable.shape, array.shape)
        variable.assign(array)


def _dense(layer, state, prefix):
    _set(layer, kernel=state[f"{prefix}.weight"].T, bias=state[f"{prefix}.bias"])


def _norm(layer, state, prefix):
    _set(layer, gamma=state[f"{prefix}.weight"], beta=state[f"{prefix}.bias"])
    if isinstance(layer, keras.layers.BatchNormalization):
        _set(layer, moving_mean=state[f"{prefix}.running_mean"], moving_variance=state[f"{prefix}.running_var"])


def _convolution(layer, state, prefix):
    _set(layer, kernel=state[f"{prefix}.weight"].transpose(2, 3, 1, 0))


def _blocks(blocks, state, prefix):
    for i, block in enumerate(blocks):
        key = f"{prefix}.{i}"
        _norm(block.norm_1, state, f"{key}.ln_1")
        _norm(block.norm_2, state, f"{key}.ln_2")
        kernels = np.split(state[f"{key}.attn.in_proj_weight"], 3)
        biases = np.split(state[f"{key}.attn.in_proj_bias"], 3)
        parts = (block.attention.query, block.attention.key, block.attention.value)
        for part, kernel, bias in zip(parts, kernels, biases, strict=True):
            _set(part, kernel=kernel.T, bias=bias)
        _dense(block.attention.output_projection, state, f"{key}.attn.out_proj")
        _dense(block.expand, state, f"{key}.mlp.c_fc")
        _dense(block.contract, state, f"{key}.mlp.c_proj")


def _vision_transformer(embedder, state):
    encoder = embedder.encoder
    _convolution(encoder.patch_embedding.projection, state, "visual.conv1")
    _set(
        encoder.patch_embedding,
        class_embedding=state["visual.class_embedding"],
        positions=state["visual.positional_embedding"],
    )
    _norm(encoder.norm_pre, state, "visual.ln_pre")
    _norm(encoder.norm_post, state, "visual.ln_post")
    _blocks(encoder.blocks, state, "visual.transformer.resblocks")
    _set(embedder.projection.dense, kernel=state["visual.proj"])


def _resnet(embedder, state):
    encoder = embedder.encoder
    for i in range(3):
        _convolution(encoder.stem[2 * i], state, f"visual.conv{i + 1}")
        _norm(encoder.stem[2 * i + 1], state, f"visual.bn{i + 1}")
    keys = [f"visual.layer{s + 1}.{i}" for s, count in enumerate(encoder.block_counts) for i in range(count)]
    for block, key in zip(encoder.stages, keys, strict=True):
        for i in (1, 2, 3):
            _convolution(getattr(block, f"convolution_{i}"), state, f"{key}.conv{i}")
            _norm(getattr(block, f"norm_{i}"), state, f"{key}.bn{i}")
        if block.shortcut is not None:
            _convolution(block.shortcut, state, f"{key}.downsample.0")
            _norm(block.shortcut_norm, state, f"{key}.downsample.1")
    _set(encoder.pool, positions=state["visual.attnpool.positional_embedding"])
    for name in "query", "key", "value":
        _dense(getattr(encoder.pool, name), state, f"visual.attnpool.{name[0]}_proj")
    _dense(embedder.projection.dense, state, "visual.attnpool.c_proj")


def copy_open_clip(peer, clip):
    """Gives `clip` (a `CLIPModel` of the same architecture) the weights of `peer` (an `open_clip.CLIP`)."""
    # A copy: JAX may take over the memory of an array, and the peer is trained in place.
    state = {key: value.detach().numpy().copy() for key, value in peer.state_dict().items()}
    (_vision_transformer if "visual.proj" in state else _resnet)(clip.image_embedder, state)
    encoder = clip.text_encoder
    _set(encoder.token_embedding.tokens, embeddings=state["token_embedding.weight"])
    _set(encoder.token_embedding, positions=state["positional_embedding"])
    _blocks(encoder.blocks, state, "transformer.resblocks")
    _norm(encoder.norm_final, state, "ln_final")
    _set(clip.text_projection.dense, kernel=state["text_projection"])
    clip.logit_scale.assign(state["logit_scale"])
