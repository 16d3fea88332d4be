"""Damaged and malicious files: a clear error or the unchanged tensors, but never a crash or an execution of code."""

import json
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from keras_clip.presets.tensor_files import TensorFiles, read_json

pytestmark = pytest.mark.backend_free

TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.weight": np.arange(6, dtype=np.float16),
    "c": np.array(2.5, np.float32),
    "d": np.arange(4).astype(ml_dtypes.bfloat16),
}
FILE = save(TENSORS)
HEADER = struct.unpack("<Q", FILE[:8])[0]


def read(path):
    checkpoint = TensorFiles([path])
    return {key: checkpoint.read(key) for key in checkpoint.shapes}


def header_of(change):
    """Returns the file with a changed header."""
    header = json.loads(FILE[8 : 8 + HEADER])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + FILE[8 + HEADER :]


def test_whole_file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(FILE)
    assert TensorFiles([path]).shapes == {key: value.shape for key, value in TENSORS.items()}
    for key, value in read(path).items():
        np.testing.assert_array_equal(value, TENSORS[key], strict=True)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(FILE) - 1))
def test_truncated_anywhere(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("cut") / "x.safetensors"
    path.write_bytes(FILE[:length])
    with pytest.raises(ValueError, match="Not a whole safetensors file.*Fetch it again"):
        read(path)


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 8 + HEADER - 1), st.integers(1, 255))
def test_any_byte_of_the_header(tmp_path_factory, place, change):
    path = tmp_path_factory.mktemp("byte") / "x.safetensors"
    path.write_bytes(FILE[:place] + bytes([FILE[place] ^ change]) + FILE[place + 1 :])
    try:
        found = read(path)
    except ValueError:
        return
    # The loader refuses a changed name of a tensor, and a changed shape of the same size.
    assert len(found) == len(TENSORS)
    renamed = [key for key in TENSORS if key not in found]
    assert len(renamed) <= 1
    for key in found.keys() & TENSORS.keys():
        same_bytes = found[key].tobytes() == TENSORS[key].tobytes()
        assert same_bytes and found[key].dtype == TENSORS[key].dtype or found[key].shape != TENSORS[key].shape


WRONG_HEADERS = {
    "end beyond the file": lambda header: header["a"].update(data_offsets=[0, 10**12]),
    "negative offset": lambda header: header["a"].update(data_offsets=[-8, 40]),
    "overlap of two tensors": lambda header: header["a"].update(data_offsets=header["b.weight"]["data_offsets"]),
    "larger dtype": lambda header: header["a"].update(dtype="F64"),
    "unknown dtype": lambda header: header["a"].update(dtype="Q7"),
    "larger shape": lambda header: header["a"].update(shape=[3, 5]),
    "overflowing shape": lambda header: header["a"].update(shape=[2**62, 2**62]),
    "no shape": lambda header: header["a"].pop("shape"),
    "bytes without a tensor": lambda header: header.pop("a"),
}


@pytest.mark.parametrize("change", WRONG_HEADERS.values(), ids=WRONG_HEADERS)
def test_headers_that_do_not_fit(change, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(header_of(change))
    with pytest.raises(ValueError, match="Not a whole safetensors file"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 100, struct.pack("<Q", 2**60) + b"{}", b"version https://git-lfs"],
    ids=["empty", "not text", "huge header", "Git LFS pointer"],
)
def test_other_files(content, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Not a whole safetensors file"):
        TensorFiles([path])


def test_integers_are_no_weights(tmp_path):
    save_file({"a": np.arange(3), "b": np.ones(3)}, tmp_path / "x.safetensors")
    torch.save({"a": torch.arange(3), "b": torch.ones(3)}, tmp_path / "x.pt")
    for name, dtype in (("x.safetensors", "I64"), ("x.pt", "int64")):
        checkpoint = TensorFiles([tmp_path / name])
        checkpoint.require_floats(["b"])
        with pytest.raises(ValueError, match=f"'a' as {dtype}"):
            checkpoint.require_floats(["b", "a"])


def test_a_tensor_in_two_files(tmp_path):
    for name in "xy":
        save_file({"a": np.ones(3)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="must be in one file"):
        TensorFiles([tmp_path / "x.safetensors", tmp_path / "y.safetensors"])


def test_torch_files(tmp_path):
    path = tmp_path / "x.bin"
    torch.save({"a": torch.ones(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}, path)
    found = read(path)
    assert found["a"].shape == (2, 3) and found["b"].dtype == np.float32
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="must hold tensors and nothing else"):
        read(path)
    torch.save([torch.ones(2)], path)
    with pytest.raises(ValueError, match="must hold a dict of tensors"):
        read(path)


class Bomb:
    """An object that writes a file when it is unpickled."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return (open, (str(self.victim), "w"))


def test_pickles_are_not_executed(tmp_path):
    victim = tmp_path / "was_here"
    torch.save({"a": Bomb(victim)}, tmp_path / "x.pt")
    (tmp_path / "y.pt").write_bytes(pickle.dumps(Bomb(victim)))
    for name in "xy":
        with pytest.raises(ValueError, match="must hold tensors and nothing else"):
            read(tmp_path / f"{name}.pt")
    assert not victim.exists()
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert victim.exists(), "unpickling must write the file, or the test proves nothing"


def test_torchscript_is_opened_for_published_digests_only(tmp_path, monkeypatch):
    from keras_clip.presets import tensor_files

    path = tmp_path / "ViT.pt"
    torch.jit.script(torch.nn.Linear(2, 3)).save(path)
    with pytest.raises(ValueError, match="must hold tensors and nothing else"):
        read(path)
    monkeypatch.setitem(tensor_files.OPENAI_SHA256, tensor_files.sha256(path), "vit_b32")
    assert {key: value.shape for key, value in read(path).items()} == {"weight": (3, 2), "bias": (3,)}


@pytest.mark.parametrize(
    "content", ["", "[1]", "{", '{"a": NaN', "\xff"], ids=["empty", "a list", "truncated", "truncated NaN", "not UTF-8"]
)
def test_configurations(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="A configuration must be.*JSON"):
        read_json(path)
    path.write_text(" " * 2**21)
    with pytest.raises(ValueError, match="less than a megabyte"):
        read_json(path)
