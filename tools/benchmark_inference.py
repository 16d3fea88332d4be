"""Tasks of `tools/benchmark.py` for inference: images and texts of ViT-B/32 at batch sizes of 1 and 32."""

import functools
import tempfile
from pathlib import Path

from benchmark_tasks import Entry, Task, captions, import_open_clip

# Items that a run encodes, in batches of one size.
ITEMS = 32
# The time of open_clip that every backend may take at most, and that the fastest one may take.
EVERY, BEST = 1.05, {1: 1.0, 32: 0.8}
TASKS = {f"encode_{what}_{size}": Task(f"{what}/s", 5, 1 / BEST[size]) for what in ("images", "texts") for size in BEST}


def embedder(what):
    import keras_clip

    return keras_clip.presets.load("vit_b32", weights=None, encoder=what.removesuffix("s"))


def pixels(size):
    import numpy as np

    return (
        np.random.default_rng(0).integers(0, 256, (ITEMS, 224, 224, 3)).astype("uint8").reshape(-1, size, 224, 224, 3)
    )


def token_ids(tokenizer, arguments, size):
    return tokenizer(captions(arguments, ITEMS), truncate=True).reshape(ITEMS // size, size, -1)


def batches(what, model, arguments, size):
    return pixels(size) if what == "images" else token_ids(model.tokenizer, arguments, size)


def run_of(call, inputs):
    def run():
        for batch in inputs:
            call(batch)
        return ITEMS

    return run


def our_encode(what, size, arguments):
    import keras

    model = embedder(what)
    encode = model.encode_image if what == "images" else model.encode_text
    # Reading the result waits for the backend.
    return run_of(lambda batch: keras.ops.convert_to_numpy(encode(batch)), batches(what, model, arguments, size))


def our_predict(what, size, arguments):
    model = embedder(what)
    return run_of(model.predict_on_batch, batches(what, model, arguments, size))


def our_onnx(what, size, arguments, quantized=False):
    import onnxruntime

    model = embedder(what)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        model.export(path, format="onnx")
        if quantized:
            from onnxruntime.quantization import quantize_dynamic

            quantize_dynamic(path, path.with_name("int8.onnx"))
            path = path.with_name("int8.onnx")
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    return run_of(lambda batch: session.run(None, {name: batch}), batches(what, model, arguments, size))


def peer_inputs(what, size, arguments):
    import torch

    if what == "images":
        return [torch.rand(size, 3, 224, 224) for _ in range(ITEMS // size)]
    from keras_clip.data import CLIPTokenizer

    return [torch.from_numpy(batch).long() for batch in token_ids(CLIPTokenizer(), arguments, size)]


def run_of_torch(call, inputs):
    import torch

    def without_gradients(batch):
        with torch.inference_mode():
            return call(batch)

    return run_of(without_gradients, inputs)


def open_clip_encode(what, size, arguments):
    model = import_open_clip().create_model("ViT-B-32-quickgelu").eval()
    call = model.encode_image if what == "images" else model.encode_text
    return run_of_torch(functools.partial(call, normalize=True), peer_inputs(what, size, arguments))


def transformers_encode(what, size, arguments):
    import transformers

    model = transformers.CLIPModel(transformers.CLIPConfig()).eval()
    call = model.get_image_features if what == "images" else model.get_text_features
    return run_of_torch(call, peer_inputs(what, size, arguments))


def contenders(task, arguments):
    """Returns our entries on every backend, exported graphs, and the peers."""
    _, what, size = task.split("_")
    size = int(size)
    peer, entries = "open_clip", []
    for backend in arguments.backends:
        for name, factory in ((f"encode_{what.removesuffix('s')}", our_encode), ("predict_on_batch", our_predict)):
            make = functools.partial(factory, what, size)
            entries.append(Entry(f"keras_clip, {backend}, {name}", backend, make, peer, 1 / EVERY))
    if "tensorflow" in arguments.backends:
        entries.append(Entry("keras_clip, ONNX, float32", "tensorflow", functools.partial(our_onnx, what, size), peer))
        quantized = functools.partial(our_onnx, what, size, quantized=True)
        entries.append(Entry("keras_clip, ONNX, int8 by onnxruntime", "tensorflow", quantized, peer))
    if arguments.peers:
        entries.append(Entry(peer, "torch", functools.partial(open_clip_encode, what, size)))
        entries.append(Entry("transformers", "torch", functools.partial(transformers_encode, what, size), peer))
    return entries
