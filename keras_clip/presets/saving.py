"""`save`: writes a model in the layout of Keras, of open_clip or of Hugging Face."""

from pathlib import Path

import numpy as np

from keras_clip import files
from keras_clip.data.tokenizer import CLIPTokenizer
from keras_clip.model import CLIPModel, ImageEmbedder, TextEmbedder
from keras_clip.presets import loading
from keras_clip.presets.configs import to_hugging_face, to_open_clip
from keras_clip.presets.layouts import by_key, hugging_face_slots, open_clip_slots

# Suffixes of weight files, for which `save` would otherwise create directories.
_FILE_SUFFIXES = (".bin", ".ckpt", ".h5", ".keras", ".onnx", ".pt", ".pth", ".safetensors")
LAYOUTS = ("keras", "open_clip", "hugging_face")


def save(model: CLIPModel | ImageEmbedder | TextEmbedder, directory: str | Path, layout: str = "keras") -> None:
    """Writes a model, for `presets.load` and for the library of the layout.

    Args:
        model: any model for "keras"; for the other layouts a `CLIPModel` of `VisionTransformer` or `ModifiedResNet`
            (open_clip only), and `TextTransformer`.
        directory: made if it does not exist; existing files are overwritten. In the layout "keras" it may also be the
            name of a file that ends in ".keras".
        layout: "keras": everything, with optimizer, in one .keras file, "clip.keras" of the directory. "open_clip": for
            `open_clip.create_model_from_pretrained("local-dir:...")`. "hugging_face": for `CLIPModel.from_pretrained`.

    Raises:
        ValueError: an unknown layout, the name of a file, or a property of the model that the layout cannot represent.
        TypeError: an encoder that the layout does not cover.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be one of {LAYOUTS}. Received: layout={layout!r}.")
    directory = Path(directory)
    if layout == "keras":
        is_file = directory.suffix == ".keras" and not directory.is_dir()
        path = directory if is_file else _checked(directory) / loading.KERAS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
        return
    _checked(directory)
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


def _checked(directory):
    """The directory, unless it is the name of a file."""
    if directory.is_file() or (directory.suffix in _FILE_SUFFIXES and not directory.is_dir()):
        raise ValueError(
            f"A model is saved into a directory, or in the layout 'keras' as a .keras file. Received: {directory}. "
            f"Leave out the suffix {directory.suffix!r}."
        )
    return directory
