"""Every entry of a configuration is honoured, or refused: architectures and tokenizers of the two layouts."""

import pytest

from keras_clip.data.tokenizer import vocabulary
from keras_clip.presets.configs import check_tokenizer, from_hugging_face, from_open_clip

pytestmark = pytest.mark.backend_free

VISION = {"hidden_size": 64, "intermediate_size": 200, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "max_position_embeddings": 12}
CLIP = {"model_type": "clip", "vision_config": VISION, "text_config": TEXT, "projection_dim": 24}


def of(**changes):
    return from_hugging_face({**CLIP, **changes}, None, "a file")


@pytest.mark.parametrize("hidden", [1, 63, 100, 193, 1000, 3073])
def test_any_hidden_size(hidden):
    """The encoders take it as a ratio, whose product with the width they round down."""
    for width in (48, 64, 768, 1000):
        ratio = of(vision_config={**VISION, "hidden_size": width, "intermediate_size": hidden})[0].image_encoder[
            "mlp_ratio"
        ]
        assert int(width * ratio) == hidden


def test_a_second_copy_of_a_half_replaces_the_first():
    """As in transformers: what it does not say is the default, not what the first copy says."""
    from transformers import CLIPConfig

    copies = {"text_config": {**TEXT, "hidden_act": "gelu"}, "text_config_dict": {"hidden_size": 64}}
    peer = CLIPConfig(**copies).text_config
    ours = of(**copies)[0].text_encoder
    assert (ours["width"], ours["activation"], ours["context_length"]) == (64, "quick_gelu", 77)
    assert (peer.hidden_size, peer.hidden_act, peer.max_position_embeddings) == (64, "quick_gelu", 77)
    assert of(text_config_dict=None)[0].text_encoder["width"] == 32


@pytest.mark.parametrize("end, expected", [(2, None), (49407, 49407), ([49407], 49407), (5, 5)])
def test_end_tokens(end, expected):
    assert of(text_config={**TEXT, "eos_token_id": end})[0].text_encoder["end_token_id"] == expected


@pytest.mark.parametrize("key, half", [("attention_dropout", "vision_config"), ("dropout", "text_config")])
def test_dropout_is_left_out_with_a_warning(key, half):
    with pytest.warns(UserWarning, match=f"Received: a file with {key}=0.1"):
        of(**{half: {**CLIP[half], key: 0.1}})


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"model_type": "clip_vision_model", **VISION, "projection_dim": 24}, ("image", 64)),
        ({"model_type": "clip_text_model", **TEXT, "architectures": ["CLIPTextModelWithProjection"]}, ("text", 32)),
    ],
)
def test_encoders_alone(config, expected):
    architecture, preprocessor = from_hugging_face(config, None, "a file")
    encoder = architecture.image_encoder or architecture.text_encoder
    assert (architecture.encoder, encoder["width"]) == expected
    assert (preprocessor is None) == (expected[0] == "text")


@pytest.mark.parametrize(
    "config, message",
    [
        ({"model_type": "clip_text_model", "architectures": ["CLIPTextModel"]}, "CLIPTextModelWithProjection"),
        ({"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"]}, "projection head"),
        ({"model_type": "siglip"}, "'siglip'"),
        ({**CLIP, "vision_config": {**VISION, "layer_norm_eps": 1e-6}}, "layer_norm_eps=1e-06"),
        ({**CLIP, "vision_config": {**VISION, "num_channels": 4}}, "num_channels=4"),
        ({**CLIP, "vision_config": {**VISION, "patch_size": [8, 4]}}, r"\[8, 4\]"),
        ({**CLIP, "text_config": {**TEXT, "hidden_act": "relu"}}, "'relu'"),
        ({**CLIP, "text_config": {**TEXT, "eos_token_id": [1, 2]}}, r"eos_token_id=\[1, 2\]"),
    ],
)
def test_what_is_refused(config, message):
    with pytest.raises(ValueError, match=f"Received.*{message}|{message}.*Received"):
        from_hugging_face(config, None, "a file")


def test_a_scale_of_one_element_in_open_clip():
    config = {"model_cfg": {"embed_dim": 8, "nonscalar_logit_scale": True, "text_cfg": {"tokenizer_kwargs": {}}}}
    assert from_open_clip(config, "a file")[0].embed_dim == 8
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    with pytest.raises(ValueError, match="Received.*tokenizer_kwargs"):
        from_open_clip(config, "a file")


IDS = {token: i for i, token in enumerate(vocabulary()[0])}


@pytest.mark.parametrize(
    "config, ids",
    [
        ({}, None),
        ({"tokenizer_class": "CLIPTokenizerFast", "model_max_length": 12}, IDS),
        ({"model_max_length": 10**30, "eos_token": {"content": "<|endoftext|>"}, "pad_token": "!"}, IDS),
    ],
)
def test_tokenizers_of_clip(config, ids):
    check_tokenizer(config, ids, 12, "a folder")


@pytest.mark.parametrize(
    "config, ids, message",
    [
        ({"tokenizer_class": "BertTokenizer"}, None, "tokenizer_class='BertTokenizer'"),
        ({"do_lower_case": False}, None, "do_lower_case=False"),
        ({"eos_token": "</s>"}, None, "eos_token='</s>'"),
        ({"bos_token": {"content": "[CLS]"}}, None, r"bos_token='\[CLS\]'"),
        ({}, {**IDS, "a": IDS["b"], "b": IDS["a"]}, "vocab.json"),
        ({}, {"<|startoftext|>": 0}, "vocab.json with 1 tokens"),
        ({"model_max_length": 10}, None, "Pass `context_length=10`"),
    ],
)
def test_other_tokenizers(config, ids, message):
    with pytest.raises(ValueError, match=f"Received.*{message}"):
        check_tokenizer(config, ids, 12, "a folder")
