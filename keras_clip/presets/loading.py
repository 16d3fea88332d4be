"""`load`: loads a model by name, with published, fine-tuned or your own weights."""

import functools
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_clip.layers.initialisation import skip_initialization
from keras_clip.model import CLIPModel, ImageEmbedder, TextEmbedder
from keras_clip.presets.architectures import ARCHITECTURES, PRESETS, Architecture
from keras_clip.presets.configs import VOCABULARY_SIZE, from_hugging_face, from_open_clip
from keras_clip.presets.in_place import assign_in_place
from keras_clip.presets.layouts import Slot, by_key, hugging_face_slots, open_clip_slots
from keras_clip.presets.locations import Folder, HubRepository
from keras_clip.presets.tensor_files import OPENAI_SHA256, TORCH_SUFFIXES, TensorFiles, read_json, sha256

KERAS_FILE = "clip.keras"
OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
HUGGING_FACE_CONFIG, HUGGING_FACE_WEIGHTS = "config.json", "model.safetensors"
HUGGING_FACE_PIXELS = "preprocessor_config.json"
# Stored tensors that are not weights: counters, and sizes that follow from the shapes of the weights.
_NO_WEIGHTS = re.compile(r"(.*\.)?(position_ids|num_batches_tracked)|input_resolution|context_length|vocab_size")


def names() -> tuple[str, ...]:
    """Returns the names of the published models."""
    return tuple(PRESETS)


def load(
    name: str | Path,
    weights: str | Path | None = "default",
    encoder: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    context_length: int | None = None,
    dtype: str | None = None,
    activation: str | None = None,
) -> CLIPModel | ImageEmbedder | TextEmbedder:
    """Loads a model with its weights, and the tokenizer and image preprocessing that they were trained with.

    Tensors are read one by one from safetensors files; nothing in a file is executed. Files of the hub are kept in the
    hub's cache and verified at each load.

    Args:
        name: a published model (`presets.names()`); "hf://organisation/repository", optionally with "@revision"; a
            directory in the layout of open_clip, of Hugging Face's `CLIPModel` or of `presets.save`; or one file, if
            its digest is that of a file of OpenAI, if its configuration is in the same directory, or if it ends in
            ".keras".
        weights: "default": the weights of the name. None: the paper's initialisation, for a published model only. A
            file: its tensors, in either layout, for the published architecture of the name.
        encoder: "image" or "text": only this tower is built and read. None: both.
        image_size: int or (height, width), pixels, if it differs from that of the weights: position embeddings are
            resized (see `resize_positions`).
        context_length: int, tokens, if it differs from that of the weights: position embeddings are truncated or
            interpolated.
        dtype: dtype policy, such as "bfloat16" or "mixed_bfloat16"; None: the default policy of Keras.
        activation: "quick_gelu" or "gelu": the activation with which the `weights` of a file were trained. Their shapes
            do not determine it.

    Returns:
        `CLIPModel`; for one tower, `ImageEmbedder` or `TextEmbedder`.

    Raises:
        ValueError: an unknown name, another family of models, a damaged file, a missing or unexpected key, a wrong
            shape.
        FileNotFoundError: no such file, repository or revision.
        ConnectionError: the hub cannot be reached, and its cache has no such file.
    """
    if encoder not in (None, "image", "text"):
        raise ValueError(f'`encoder` must be "image", "text" or None. Received: encoder={encoder!r}.')
    options = {"encoder": encoder, "image_size": image_size, "context_length": context_length, "dtype": dtype}
    if name in ARCHITECTURES:
        return _load_preset(name, weights, activation, options)
    if weights != "default" or activation is not None:
        raise ValueError(
            "`weights` and `activation` can only be passed with the name of a published model. "
            f"Received: name={str(name)!r}, weights={weights!r}, activation={activation!r}. "
            f"The names: {', '.join(names())}."
        )
    if str(name).startswith("hf://"):
        repo, _, revision = str(name).removeprefix("hf://").partition("@")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
            raise ValueError(f'A repository is "hf://organisation/name". Received: {name!r}.')
        return _load_folder(HubRepository(repo, revision or None), options)
    path = Path(name)
    if path.is_dir():
        return _load_folder(Folder(path), options)
    if not path.is_file():
        raise ValueError(
            f"`name` must be one of {', '.join(names())}, a repository of the hub as hf://organisation/name, or a "
            f"directory or file that exists. Received: {str(name)!r}."
        )
    return _load_file(path, options)


def load_weights(model: CLIPModel | ImageEmbedder | TextEmbedder, path: str | Path) -> None:
    """Loads the weights of a file, in either layout, into a model that you have built.

    Args:
        model: model of a `VisionTransformer` or `ModifiedResNet`, and a `TextTransformer`; or one tower of it.
        path: safetensors file, or torch file if torch is installed.

    Raises:
        ValueError: a missing or unexpected key, a wrong shape or dtype, a damaged file. The model is unchanged then.
        FileNotFoundError: no such file.
    """
    _assign(model, TensorFiles([_existing(path)]), ())


def _existing(path):
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The file of weights must exist. Received: {path}.")
    return path


def _load_preset(name, weights, activation, options):
    architecture = ARCHITECTURES[name]
    if weights is None:
        return _build(architecture, None, options, activation)
    if weights == "default":
        folder = HubRepository(PRESETS[name].repository)
        path = folder.find(OPEN_CLIP_WEIGHTS)
        if path is None:
            raise folder.missing(OPEN_CLIP_WEIGHTS)
    else:
        path = _existing(weights)
        known = OPENAI_SHA256.get(sha256(path))
        if known not in (None, name):
            raise ValueError(f"The weights must be those of {name}. Received: {path}, which is OpenAI's {known}.")
        if known is None and activation is None:
            raise ValueError(
                '`activation` must be "quick_gelu" (OpenAI\'s) or "gelu" (most weights trained since): the tensors of '
                f"a file do not say it. Received: weights={str(path)!r} of unknown digest, activation=None."
            )
    return _read(architecture, None, TensorFiles([path]), options, activation)


def _load_file(path, options):
    if path.suffix == ".keras":
        return _load_keras(path, options)
    folder = Folder(path.parent)
    if folder.find(OPEN_CLIP_CONFIG) or folder.find(HUGGING_FACE_CONFIG):
        return _read(*_described(folder), TensorFiles([path]), options)
    known = OPENAI_SHA256.get(sha256(path)) if path.suffix in TORCH_SUFFIXES else None
    if known is None:
        raise ValueError(
            "The tensors of a file do not say their activation, nor the width of heads. Received: "
            f"{path}, of unknown digest and without a configuration beside it. Name the published architecture: "
            f'`presets.load("vit_b32", weights="{path.name}", activation="gelu")`. For another one, build the '
            "`CLIPModel` and call `presets.load_weights(model, path)`."
        )
    return _read(ARCHITECTURES[known], None, TensorFiles([path]), options)


def _load_folder(folder, options):
    if isinstance(folder, Folder) and (path := folder.find(KERAS_FILE)):
        return _load_keras(path, options)
    architecture, preprocessor = _described(folder)
    return _read(architecture, preprocessor, TensorFiles(_weight_files(folder)), options)


def _described(folder):
    if path := folder.find(OPEN_CLIP_CONFIG):
        return from_open_clip(read_json(path), str(path))
    if path := folder.find(HUGGING_FACE_CONFIG):
        pixels = folder.find(HUGGING_FACE_PIXELS)
        pixels = read_json(pixels) if pixels else None
        if pixels is None and (processor := folder.find("processor_config.json")):
            pixels = read_json(processor).get("image_processor")
        return from_hugging_face(read_json(path), pixels, str(path))
    raise folder.missing(f"{OPEN_CLIP_CONFIG}, {HUGGING_FACE_CONFIG} or {KERAS_FILE}")


def _weight_files(folder) -> list[Path]:
    wanted = [HUGGING_FACE_WEIGHTS, f"{HUGGING_FACE_WEIGHTS}.index.json", "pytorch_model.bin"]
    if folder.find(OPEN_CLIP_CONFIG):
        # A repository may hold both layouts.
        wanted = [OPEN_CLIP_WEIGHTS, "open_clip_pytorch_model.bin"]
    for filename in wanted:
        path = folder.find(filename)
        if path is not None:
            return _parts(folder, path) if path.suffix == ".json" else [path]
    raise folder.missing(" or ".join(wanted))


def _parts(folder, index) -> list[Path]:
    filenames = sorted(set(read_json(index).get("weight_map", {}).values()))
    paths = []
    for filename in filenames:
        if filename != Path(filename).name:
            raise ValueError(
                f"The parts of a checkpoint must be in the directory of their index. Received: {filename!r} in {index}."
            )
        path = folder.find(filename)
        if path is None:
            raise folder.missing(filename)
        paths.append(path)
    if not paths:
        raise ValueError(f'An index of parts must name them in "weight_map". Received: {index} without any.')
    return paths


def _load_keras(path, options):
    given = [key for key in ("image_size", "context_length", "dtype") if options[key] is not None]
    if given:
        raise ValueError(
            f"A .keras file is loaded as it was saved. Received: {', '.join(given)} for {path}. Save it with "
            '`presets.save(model, directory, layout="open_clip")` and load that.'
        )
    model = keras.saving.load_model(path)
    half = {"image": ImageEmbedder, "text": TextEmbedder}.get(options["encoder"])
    if isinstance(model, CLIPModel) and half is not None:
        return getattr(model, f"{options['encoder']}_embedder")
    wanted = half or CLIPModel | ImageEmbedder | TextEmbedder
    if not isinstance(model, wanted):
        raise ValueError(f"A CLIPModel must be in the file. Received: {path} with a {type(model).__name__}.")
    return model


def _build(architecture: Architecture, preprocessor, options, activation=None):
    if activation is not None:
        both = {"activation": activation}
        image = architecture.image_encoder | (both if "patch_size" in architecture.image_encoder else {})
        architecture = replace(architecture, image_encoder=image, text_encoder=architecture.text_encoder | both)
    size = options["image_size"]
    architecture = architecture.resized(size, options["context_length"])
    if preprocessor is not None and size is not None:
        preprocessor = type(preprocessor).from_config({**preprocessor.get_config(), "image_size": size})
    vocabulary = architecture.text_encoder.get("vocabulary_size", VOCABULARY_SIZE)
    if options["encoder"] != "image" and vocabulary != VOCABULARY_SIZE:
        raise ValueError(
            f"Weights come with CLIP's tokenizer of {VOCABULARY_SIZE} tokens. Received: a vocabulary of {vocabulary}. "
            'Load the image tower only (`encoder="image"`), or build a `CLIPModel` with `tokenizer=` and call '
            "`presets.load_weights(model, path)`."
        )
    return architecture.build(preprocessor, options["encoder"], options["dtype"])


def _read(architecture, preprocessor, checkpoint, options, activation=None):
    with skip_initialization():
        model = _build(architecture, preprocessor, options, activation)
    _assign(model, checkpoint, (architecture.grid, (architecture.context_length,)), is_new=True)
    return model


def _assign(model, checkpoint: TensorFiles, trained_sides: Iterable[tuple[int, ...]], is_new: bool = False) -> None:
    """Checks all keys and shapes, then reads tensor by tensor.

    Args:
        trained_sides: the sides of the position embeddings in the checkpoint; by default those of the model.
        is_new: whether the model was just built, so that nothing else holds the values of its weights.
    """
    slots_of = hugging_face_slots if any(".embeddings." in key for key in checkpoint.shapes) else open_clip_slots
    trained = {len(sides): sides for sides in trained_sides}
    slots = [_trained_at(slot, trained) for slot in slots_of(model)]
    wanted = {slot.key: slot.stored_shape for slot in slots}
    there = {key: shape for key, shape in checkpoint.shapes.items() if not _NO_WEIGHTS.fullmatch(key)}
    if not isinstance(model, CLIPModel):
        there = {key: shape for key, shape in there.items() if _is_of(key, isinstance(model, ImageEmbedder))}
    _compare(wanted, there, checkpoint.name)
    checkpoint.require_floats(wanted)
    for key, group in by_key(slots).items():
        if is_new and group[0].is_stored_as_it_is:
            assign_in_place(group[0].variable, functools.partial(checkpoint.read, key))
            continue
        tensor = checkpoint.read(key)
        for slot in group:
            # Converted in NumPy, because backends would hold the stored tensor, a copy and the converted one together.
            slot.variable.assign(np.asarray(slot.from_stored(tensor), np.float32, order="C"))


def _is_of(key, image_half):
    return not key.startswith("logit_") and key.startswith(("visual", "vision_model")) == image_half


def _trained_at(slot: Slot, trained) -> Slot:
    sides = trained.get(len(slot.sides or ()), slot.sides)
    return slot if sides == slot.sides else replace(slot, trained_sides=sides)


def _compare(wanted: dict[str, Any], there: dict[str, Any], where: str) -> None:
    faults = [
        ("without", sorted(wanted.keys() - there.keys())),
        ("with the unknown", sorted(there.keys() - wanted.keys())),
    ]
    for what, keys in faults:
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ValueError(
                f"A checkpoint must have each weight of the model and no other. Received: {where} {what} "
                f"{', '.join(map(repr, keys[:3]))}{more}. Its architecture, or that of one tower, differs."
            )
    for key, shape in wanted.items():
        if there[key] != shape:
            raise ValueError(
                f"{key!r} must have the shape {shape}. Received: {there[key]} in {where}. Its architecture or image "
                "size differs from its configuration or name."
            )
