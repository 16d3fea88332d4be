"""Every weight has its place in a checkpoint: keys, shapes and values equal those of the peers."""

import keras
import numpy as np
import pytest
import torch
import torchvision_shim  # noqa: F401  (before open_clip)
from open_clip.model import CLIP

from keras_clip import CLIPModel
from keras_clip.encoders import ModifiedResNet, TextTransformer, VisionTransformer
from keras_clip.presets.layouts import by_key, hugging_face_slots, open_clip_slots

WIDTH, LAYERS, CONTEXT, EMBED_DIM = 64, 2, 12, 24


class SmallVocabulary:
    end_token_id = 99


def make_clip(image_encoder, **arguments):
    text_encoder = TextTransformer(WIDTH, LAYERS, 1, CONTEXT, 100)
    return CLIPModel(image_encoder, text_encoder, EMBED_DIM, tokenizer=SmallVocabulary(), **arguments)


def vision_transformer():
    return VisionTransformer(32, 8, 2 * WIDTH, LAYERS, 2)


def resnet():
    return ModifiedResNet(64, (1, 2, 1, 1), 16, num_heads=8)


def open_clip_state(vision):
    torch.manual_seed(0)
    text = dict(context_length=CONTEXT, vocab_size=100, width=WIDTH, heads=1, layers=LAYERS)
    peer = CLIP(EMBED_DIM, vision_cfg=vision, text_cfg=text)
    state = {key: value.detach().numpy().copy() for key, value in peer.state_dict().items()}
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def hugging_face_state():
    from transformers import CLIPConfig
    from transformers import CLIPModel as Peer

    torch.manual_seed(0)
    sizes = dict(num_hidden_layers=LAYERS, projection_dim=EMBED_DIM)
    text = dict(hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_attention_heads=1, vocab_size=100)
    vision = dict(hidden_size=2 * WIDTH, intermediate_size=8 * WIDTH, num_attention_heads=2, image_size=32)
    config = CLIPConfig(
        text_config={**text, **sizes, "max_position_embeddings": CONTEXT, "eos_token_id": 99},
        vision_config={**vision, **sizes, "patch_size": 8},
        projection_dim=EMBED_DIM,
    )
    state = Peer(config).state_dict()
    return {key: value.detach().numpy().copy() for key, value in state.items() if not key.endswith("position_ids")}


LAYOUTS = {
    "ViT in open_clip's": (
        vision_transformer,
        open_clip_slots,
        lambda: open_clip_state(dict(image_size=32, patch_size=8, width=2 * WIDTH, layers=LAYERS, head_width=64)),
    ),
    "ResNet in open_clip's": (
        resnet,
        open_clip_slots,
        lambda: open_clip_state(dict(image_size=64, layers=(1, 2, 1, 1), width=16, head_width=64)),
    ),
    "ViT in Hugging Face's": (vision_transformer, hugging_face_slots, hugging_face_state),
}


@pytest.mark.parametrize("encoder, slots_of, state_of", LAYOUTS.values(), ids=LAYOUTS)
def test_tensors_are_read_and_written_bit_for_bit(encoder, slots_of, state_of):
    clip, state = make_clip(encoder()), state_of()
    slots = slots_of(clip)
    # Each weight occurs once; each stored tensor occurs once, or three times if it is fused.
    assert {id(slot.variable) for slot in slots} == {id(variable) for variable in clip.weights}
    assert len(slots) == len(clip.weights)
    assert {slot.key: slot.stored_shape for slot in slots} == {key: value.shape for key, value in state.items()}
    for slot in slots:
        slot.variable.assign(slot.from_stored(state[slot.key]))
    for key, group in by_key(slots).items():
        assert len(group) == (3 if "in_proj" in key else 1)
        parts = [slot.to_stored() for slot in group]
        back = np.concatenate(parts) if len(parts) > 1 else parts[0]
        np.testing.assert_array_equal(back, state[key], err_msg=key, strict=True)


@pytest.mark.parametrize("slots_of", [open_clip_slots, hugging_face_slots])
def test_towers(slots_of):
    clip = make_clip(vision_transformer(), loss="sigmoid")
    keys = [slot.key for tower in (clip.image_embedder, clip.text_embedder) for slot in slots_of(tower)]
    assert keys + ["logit_scale", "logit_bias"] == [slot.key for slot in slots_of(clip)]


def test_encoders_without_names_are_refused():
    pixels = keras.Input((8, 8, 3))
    other = keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(pixels))
    with pytest.raises(TypeError, match="VisionTransformer and ModifiedResNet only. Received"):
        open_clip_slots(make_clip(other))
    with pytest.raises(TypeError, match="VisionTransformer only. Received.*ModifiedResNet"):
        hugging_face_slots(make_clip(resnet()))
