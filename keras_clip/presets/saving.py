"""`save`: writes a model in the layout of Keras, of open_clip or of Hugging Face."""

from pathlib import Path

import numpy as np

from keras_clip import files
from keras_clip.data.tokenizer import CLIPTokenizer
from keras_clip.model import CLIPModel, ImageEmbedder, TextEmbedder
from keras_clip.presets import loading
from keras_clip.presets.configs import to_hugging_face, to_open_clip
from keras_clip.presets.layouts import by_key, hugging_face_slots, open_clip_slots

LAYOUTS = ("keras", "open_clip", "hugging_face")


def save(model: CLIPModel | ImageEmbedder | TextEmbedder, directory: str | Path, layout: str = "keras") -> None:
    """Writes a model into a directory, for `presets.load` and for the library of the layout.

    Args:
        model: any model for "keras"; for the other layouts a `CLIPModel` of `VisionTransformer` or `ModifiedResNet`
            (open_clip only), and `TextTransformer`.
        directory: output directory, which is created if necessary; existing files are overwritten.
        layout: "keras": the whole model with its optimizer in one .keras file. "open_clip": for
            `open_clip.create_model_from_pretrained("local-dir:...")`. "hugging_face": for `CLIPModel.from_pretrained`.

    Raises:
        ValueError: an unknown layout, or a property of the model that the layout cannot represent.
        TypeError: an encoder that the layout does not cover.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be one of {LAYOUTS}. Received: layout={layout!r}.")
    directory = Path(directory)
    if layout == "keras":
        directory.mkdir(parents=True, exist_ok=True)
        model.save(directory / loading.KERAS_FILE)
        return
    if not isinstance(model, CLIPModel):
        raise TypeError(
            f'The layout {layout!r} is for a whole CLIPModel. Received: a {type(model).__name__}. Save it in "keras".'
        )
    if type(model.tokenizer) is not CLIPTokenizer:
        raise TypeError(
            f"The layout {layout!r} implies CLIP's tokenizer. Received: a {type(model.tokenizer).__name__}. "
            'Save in "keras".'
        )
    if model.image_embedder.quantization or model.text_embedder.quantization:
        raise TypeError(
            f"The layout {layout!r} stores floats. Received: a quantised model. "
            'Save it in "keras", or before it is quantised.'
        )
    if layout == "open_clip":
        slots, configs = open_clip_slots(model), {loading.OPEN_CLIP_CONFIG: to_open_clip(model)}
        weights = loading.OPEN_CLIP_WEIGHTS
    else:
        slots = hugging_face_slots(model)
        names = loading.HUGGING_FACE_CONFIG, loading.HUGGING_FACE_PIXELS
        configs = dict(zip(names, to_hugging_face(model), strict=True))
        weights = loading.HUGGING_FACE_WEIGHTS
    from safetensors.numpy import save_file

    tensors = {}
    for key, group in by_key(slots).items():
        parts = [slot.to_stored() for slot in group]
        tensors[key] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if key.endswith("running_var"):
            tensors[key.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    directory.mkdir(parents=True, exist_ok=True)
    # transformers reads this entry to know the order of the axes.
    with files.replacing(directory / weights) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    for filename, config in configs.items():
        files.write_json(directory / filename, config)
