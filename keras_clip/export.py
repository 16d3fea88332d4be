"""Exports models to files that run without Keras: SavedModel, ONNX and LiteRT.

TensorFlow writes them on every backend, since the others cannot write a graph of any batch size. On JAX and torch the
model is saved, and a TensorFlow process loads and exports it.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras

from keras_clip import compat
from keras_clip.data.tokenizer import CLIPTokenizer
from keras_clip.graph_tokenizer import GraphTokenizer

# The packages that each format needs beside Keras.
FORMATS = {"tf_saved_model": ("tensorflow",), "onnx": ("tensorflow", "tf2onnx", "onnx"), "litert": ("tensorflow",)}
IMAGE_DTYPES = ("uint8", "float32")


def export_image_model(
    model: keras.Model,
    filepath: str | os.PathLike,
    format: str,
    image_size: tuple[int, ...],
    output_name: str,
    dtype: str = "uint8",
) -> None:
    """Writes a graph from "images" (B, H, W, 3) with any B to one output. An existing file is overwritten.

    Args:
        model: Keras model of images. It is not changed.
        filepath: folder of a SavedModel, or file of an ONNX or LiteRT graph.
        format: "tf_saved_model" (with the model's dtype policy), "onnx" or "litert" (always float32).
        image_size: (height, width) in pixels, with the axes before them if there are any, such as frames.
        output_name: str. Name of the output in the graph.
        dtype: "uint8" or "float32": dtype of the images.

    Raises:
        ValueError: an unknown format or dtype.
        ImportError: TensorFlow or the converter is not installed.
        RuntimeError: the TensorFlow process failed.
    """
    _check_image_dtype(dtype)
    _export_from_any_backend(model, filepath, format, {"images": ([*image_size, 3], dtype)}, output_name)


def _check_image_dtype(dtype):
    if dtype not in IMAGE_DTYPES:
        raise ValueError(f"`dtype` must be one of {IMAGE_DTYPES}. Received: dtype={dtype!r}.")


def export_pair_model(
    model: keras.Model,
    filepath: str | os.PathLike,
    format: str,
    image_size: tuple[int, ...],
    context_length: int,
    output_name: str | None = None,
    dtype: str = "uint8",
) -> None:
    """Writes a graph from "images" (B, H, W, 3) and "token_ids" (B, L), of any number of rows each.

    Args:
        model: Keras model of a dict of both. It is not changed.
        filepath, format, image_size, dtype: as of `export_image_model`.
        context_length: L.
        output_name: str. The output's name in the graph; None: the model returns a dict of named outputs.

    Raises:
        As `export_image_model`.
    """
    _check_image_dtype(dtype)
    inputs = {"images": ([*image_size, 3], dtype), "token_ids": ([context_length], "int32")}
    _export_from_any_backend(model, filepath, format, inputs, output_name)


def export_text_model(
    model: keras.Model,
    filepath: str | os.PathLike,
    format: str,
    context_length: int,
    strings: bool = False,
    output_name: str = "text_embeddings",
) -> None:
    """Writes a graph from "token_ids" (B, context_length), int32, or "texts" (B,) to one output.

    Args:
        model: Keras model of token ids, with a `tokenizer`. It is not changed.
        filepath: as of `export_image_model`.
        format: as of `export_image_model`; "tf_saved_model" for strings.
        context_length: L.
        strings: whether the graph takes texts, and contains the tokenizer.
        output_name: str. The output's name in the graph.

    Raises:
        As `export_image_model`.
    """
    if strings and format != "tf_saved_model":
        raise ValueError(f'Only "tf_saved_model" takes strings. Received: format={format!r}, strings=True.')
    if strings and type(model.tokenizer) is not CLIPTokenizer:
        raise TypeError(
            f"Only a CLIPTokenizer can be in the graph. Received: a {type(model.tokenizer).__name__}, strings=True. "
            "Export for token ids."
        )
    inputs = {"texts": ([], "string")} if strings else {"token_ids": ([context_length], "int32")}
    _export_from_any_backend(model, filepath, format, inputs, output_name)


def _export_from_any_backend(model, filepath, format, inputs, output_name):
    """`inputs`: (shape without B, dtype) by name; a model of several takes a dict."""
    if format not in FORMATS:
        raise ValueError(f"`format` must be one of {tuple(FORMATS)}. Received: format={format!r}.")
    policies = (layer.dtype_policy for layer in compat.all_layers(model))
    if format == "litert" and any(isinstance(it, keras.dtype_policies.QuantizedDTypePolicy) for it in policies):
        raise ValueError(
            "LiteRT does not support these integer products. Received: format='litert', a quantised model. "
            'Export it as "tf_saved_model" or "onnx", or before it is quantised.'
        )
    if missing := [name for name in FORMATS[format] if importlib.util.find_spec(name) is None]:
        raise ImportError(
            f"Exporting needs {' and '.join(missing)}. Received: format={format!r}, without that package. "
            'Install them: pip install "keras_clip[export,tensorflow]".'
        )
    options = {
        "filepath": os.fspath(filepath),
        "format": format,
        "inputs": inputs,
        "output_name": output_name,
    }
    if keras.backend.backend() == "tensorflow":
        _export(model, **options)
    else:
        _export_elsewhere(model, options)


def _export(model, filepath, format, inputs, output_name):
    Path(filepath).parent.mkdir(parents=True, exist_ok=True)
    write = {"tf_saved_model": _write_saved_model, "onnx": _write_onnx, "litert": _write_litert}[format]
    model = model if format == "tf_saved_model" else _in_float32(model)
    write(model, filepath, {name: ((None, *shape), dtype) for name, (shape, dtype) in inputs.items()}, output_name)


def _write_saved_model(model, filepath, inputs, output_name):
    import tensorflow as tf

    module = _graph_module(model, inputs, output_name)
    tf.saved_model.save(module, filepath, signatures=module.serve)


def _write_litert(model, filepath, inputs, output_name):
    import tensorflow as tf

    module = _graph_module(model, inputs, output_name)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.serve.get_concrete_function()], module)
    Path(filepath).write_bytes(converter.convert())


def _call(model, inputs, output_name):
    """The outputs by name, of a dict of inputs by name."""
    outputs = model(inputs if len(inputs) > 1 else next(iter(inputs.values())), training=False)
    return outputs if output_name is None else {output_name: outputs}


def _graph_module(model, inputs, output_name):
    """The model as a `tf.Module` with one function. Keras' own `export` writes every variable twice."""
    import tensorflow as tf

    module = tf.Module()
    prepare = tf.identity
    if "texts" in inputs:
        prepare = GraphTokenizer(model.tokenizer)
        module.tables = prepare.tables
    module.serve = tf.function(
        lambda *tensors: _call(model, dict(zip(inputs, map(prepare, tensors), strict=True)), output_name),
        input_signature=[tf.TensorSpec(shape, dtype, name=name) for name, (shape, dtype) in inputs.items()],
    )
    module.weights = list(module.serve.get_concrete_function().variables)
    return module


def _write_onnx(model, filepath, inputs, output_name):
    tensors = {name: keras.Input(shape[1:], dtype=dtype, name=name) for name, (shape, dtype) in inputs.items()}
    signature = {name: keras.InputSpec(dtype, shape, name=name) for name, (shape, dtype) in inputs.items()}
    outputs = _call(model, tensors, output_name)
    if len(inputs) == 1:
        (tensors,), (signature,) = tensors.values(), signature.values()
    keras.Model(tensors, outputs).export(filepath, format="onnx", verbose=False, input_signature=[signature])


def _in_float32(model):
    """Returns the model, or a copy that computes in float32: ONNX Runtime has no bfloat16 on a CPU."""

    def exact(config):
        if isinstance(config, dict):
            if config.get("class_name") == "DTypePolicy":
                return {**config, "config": {"name": "float32"}}
            return {key: exact(value) for key, value in config.items()}
        return type(config)(map(exact, config)) if isinstance(config, list | tuple) else config

    config = model.get_config()
    if exact(config) == config:
        return model
    copy = type(model).from_config(exact(config))
    with tempfile.TemporaryDirectory() as folder:
        weights = os.path.join(folder, "model.weights.h5")
        model.save_weights(weights)
        copy.load_weights(weights)
    return copy


def _export_elsewhere(model, options):
    """Exports in a TensorFlow process, on the CPU: this process may hold the memory of the accelerator."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # The process must find the modules of the user's own layers.
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)]),
    }
    with tempfile.TemporaryDirectory() as folder:
        saved = os.path.join(folder, "model.keras")
        model.save(saved)
        command = [sys.executable, "-c", "from keras_clip.export import _main; _main()", saved, json.dumps(options)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise RuntimeError(
            f"The model could not be exported by a TensorFlow process: {_last_error(done.stderr)} "
            f"Received: model={model.name!r}, format={options['format']!r}, exit status {done.returncode}. Layers of "
            "your own must be registered (`keras.saving.register_keras_serializable`), run on TensorFlow, and live in "
            "a module that can be imported, not in a notebook."
        )


def _last_error(stderr: str) -> str:
    """Returns the message of the last traceback, without the source lines."""
    lines = stderr.rpartition("Traceback (most recent call last):")[2].strip().splitlines()
    return "\n".join(line for line in lines if not line.startswith("  "))[-2000:] or "no message."


def _main():
    saved, options = sys.argv[1:]
    # `safe_mode=False` is safe: the file was just saved by the parent process.
    _export(keras.saving.load_model(saved, compile=False, safe_mode=False), **json.loads(options))
