"""Models of images as files that run without Keras: SavedModel and ONNX.

TensorFlow does the export, whichever backend runs: the others cannot give a graph with an open batch size. Under JAX
and torch the model travels to a TensorFlow process of its own. Only models of one image input are exported here.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras

# What each format needs beside Keras.
FORMATS = {"tf_saved_model": ("tensorflow",), "onnx": ("tensorflow", "tf2onnx", "onnx")}
IMAGE_DTYPES = ("uint8", "float32")


def export_image_model(
    model: keras.Model,
    filepath: str | os.PathLike,
    format: str,
    image_size: tuple[int, int],
    output_name: str,
    dtype: str = "uint8",
) -> None:
    """Writes a graph from "images" (B, H, W, 3) with any B to one output. What is there already is overwritten.

    Args:
        model: Keras model of images. It is not changed.
        filepath: folder of a SavedModel, or file of an ONNX graph.
        format: "tf_saved_model" (with the model's dtype policy) or "onnx" (always float32).
        image_size: (height, width), pixels.
        output_name: str. The output's name in the graph.
        dtype: "uint8" or "float32": that of the images.

    Raises:
        ValueError: an unknown format or dtype.
        ImportError: TensorFlow or the converter is not installed.
        RuntimeError: the TensorFlow process failed.
    """
    if format not in FORMATS or dtype not in IMAGE_DTYPES:
        raise ValueError(
            f"`format` must be one of {tuple(FORMATS)}, `dtype` one of {IMAGE_DTYPES}. "
            f"Received: format={format!r}, dtype={dtype!r}."
        )
    if missing := [name for name in FORMATS[format] if importlib.util.find_spec(name) is None]:
        raise ImportError(
            f"Exporting needs {' and '.join(missing)}. Received: format={format!r}, and no such package. "
            'Install them: pip install "keras_clip[export,tensorflow]".'
        )
    options = {
        "filepath": os.fspath(filepath),
        "format": format,
        "image_size": list(image_size),
        "output_name": output_name,
        "dtype": dtype,
    }
    if keras.backend.backend() == "tensorflow":
        _export(model, **options)
    else:
        _export_elsewhere(model, options)


def _export(model, filepath, format, image_size, output_name, dtype):
    Path(filepath).parent.mkdir(parents=True, exist_ok=True)
    shape = (None, *image_size, 3)
    if format == "onnx":
        _write_onnx(_in_float32(model), filepath, shape, output_name, dtype)
    else:
        _write_saved_model(model, filepath, shape, output_name, dtype)


def _write_saved_model(model, filepath, shape, output_name, dtype):
    import tensorflow as tf

    # Keras' own `export` writes every variable twice.
    module = tf.Module()
    module.serve = tf.function(
        lambda images: {output_name: model(images, training=False)},
        input_signature=[tf.TensorSpec(shape, dtype, name="images")],
    )
    graph = module.serve.get_concrete_function()
    module.weights = list(graph.variables)
    tf.saved_model.save(module, filepath, signatures=module.serve)


def _write_onnx(model, filepath, shape, output_name, dtype):
    images = keras.Input(shape[1:], dtype=dtype, name="images")
    graph = keras.Model(images, {output_name: model(images, training=False)})
    signature = [keras.InputSpec(dtype, shape, name="images")]
    graph.export(filepath, format="onnx", verbose=False, input_signature=signature)


def _in_float32(model):
    """The model, or a copy that computes in float32: ONNX Runtime has no bfloat16 on a CPU."""

    def exact(config):
        if isinstance(config, dict):
            if config.get("class_name") == "DTypePolicy":
                return {**config, "config": {"name": "float32"}}
            return {key: exact(value) for key, value in config.items()}
        return [exact(value) for value in config] if isinstance(config, list | tuple) else config

    config = model.get_config()
    if exact(config) == config:
        return model
    copy = type(model).from_config(exact(config))
    copy.set_weights(model.get_weights())
    return copy


def _export_elsewhere(model, options):
    """Exports in a process that runs TensorFlow, on the CPU: this one may hold the memory of the accelerator."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # The modules of the user's own layers must be found there too.
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
    """The message of the last traceback, without the lines of source."""
    lines = stderr.rpartition("Traceback (most recent call last):")[2].strip().splitlines()
    return "\n".join(line for line in lines if not line.startswith("  "))[-2000:] or "no message."


def _main():
    saved, options = sys.argv[1:]
    # The caller has just saved its own model: nothing here comes from elsewhere.
    _export(keras.saving.load_model(saved, compile=False, safe_mode=False), **json.loads(options))
