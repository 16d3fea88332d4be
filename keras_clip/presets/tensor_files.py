"""Reads tensors from safetensors and torch files, one at a time. Nothing in a file is ever executed."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

# OpenAI's own files are TorchScript, which contains code: only the nine files of these digests are opened.
OPENAI_SHA256 = {
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762": "rn50",
    "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599": "rn101",
    "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd": "rn50x4",
    "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa": "rn50x16",
    "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c": "rn50x64",
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "vit_b32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "vit_b16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "vit_l14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "vit_l14_336",
}
TORCH_SUFFIXES = (".bin", ".pt", ".pth")
# Names of float dtypes in safetensors and in torch.
_FLOATS = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")


class TensorFiles:
    """The tensors of one or more safetensors files, or of a torch file.

    Args:
        paths: safetensors files without a common key; or one torch file (".bin", ".pt", ".pth"), which is read with
            `weights_only=True` unless it is one of the nine that OpenAI published.

    Attributes:
        shapes: {key: shape}, known without reading a tensor.
        dtypes: {key: name of the stored dtype}.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a torch file, if torch is not installed.
        ValueError: a damaged file, a file that contains code, or a key in two files.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = [Path(path) for path in paths]
        self.shapes, self.dtypes, self._readers = {}, {}, {}
        for path in self.paths:
            open_ = _torch_tensors if path.suffix in TORCH_SUFFIXES else _safetensors
            for key, shape, dtype, read in open_(path):
                if key in self.shapes:
                    raise ValueError(f"A tensor must be in one file. Received: {key!r} in {path.name} and another.")
                self.shapes[key], self.dtypes[key], self._readers[key] = shape, dtype, read

    @property
    def name(self) -> str:
        """The path of the first file, for error messages."""
        return str(self.paths[0])

    def require_floats(self, keys: Iterable[str]) -> None:
        """Raises a ValueError if one of these tensors is not stored as floats."""
        for key in keys:
            if (dtype := self.dtypes[key]) not in _FLOATS:
                raise ValueError(
                    f"Weights are stored as one of {_FLOATS[:4]}. Received: {key!r} as {dtype} in {self.name}."
                )

    def read(self, key: str, first: int | None = None, last: int | None = None) -> np.ndarray:
        """Reads one tensor, or its rows from `first` to before `last`."""
        return self._readers[key](slice(first, last))


def sha256(path: Path) -> str:
    """Returns the SHA-256 digest of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _safetensors(path):
    import safetensors

    try:
        file = safetensors.safe_open(path, framework="numpy")
        # `read` keeps the memory-mapped file open.
        for key in file.keys():
            tensor = file.get_slice(key)

            def read(rows, key=key):
                return file.get_tensor(key) if rows == slice(None) else file.get_slice(key)[rows]

            yield key, tuple(tensor.get_shape()), tensor.get_dtype(), read
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"Not a whole safetensors file: {error}. Received: {path} of {path.stat().st_size:,} bytes. Fetch it again."
        ) from error


def _torch_tensors(path):
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"torch reads files of torch only. Received: {path}. Install it, or convert the file where it is "
            "installed: python tools/convert_checkpoint.py --help"
        ) from None
    if sha256(path) in OPENAI_SHA256:
        state = torch.jit.load(path, map_location="cpu").state_dict()
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # zip, pickle and torch raise many types of exceptions for damaged files
            raise ValueError(
                f"A torch file must hold tensors and nothing else. Received: {path}. torch says: "
                f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ) from error
    # Training checkpoints of open_clip hold the weights under "state_dict", often with the prefix "module.".
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"A torch file must hold a dict of tensors. Received: {path}, which holds something else.")
    for key, tensor in state.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        yield (
            key.removeprefix("module."),
            tuple(tensor.shape),
            dtype,
            lambda rows, tensor=tensor: _to_numpy(tensor, rows),
        )


def _to_numpy(tensor, rows):
    import torch

    tensor = tensor[rows] if tensor.ndim else tensor

    # numpy has no bfloat16; float32 holds all of its values.
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def read_json(path: Path) -> dict:
    """Reads a JSON object of at most a megabyte.

    Raises:
        ValueError: the file is larger, or not a JSON object.
    """
    if path.stat().st_size > 2**20:
        raise ValueError(
            f"A configuration has less than a megabyte. Received: {path} of {path.stat().st_size:,} bytes."
        )
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"A configuration must be JSON. Received: {path}, where {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"A configuration must be a JSON object. Received: {path} with a {type(value).__name__}.")
    return value
