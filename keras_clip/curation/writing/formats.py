"""The files of new shards: WebDataset tars, and TFRecords with the names of img2dataset."""

import hashlib
import json
import math
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from keras_clip import files
from keras_clip.data.readers.elements.image_formats import IMAGE_EXTENSIONS

# The usual extensions of Pillow's formats.
EXTENSIONS = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tiff",
    "AVIF": "avif",
    "PPM": "ppm",
}
_BLOCK = 512


class StoredSample(NamedTuple):
    """A sample of a new shard.

    Attributes:
        image: bytes of the image file; empty if there is none.
        extension: its extension, without a dot.
        captions: the captions as bytes.
        metadata: other values, JSON data.
    """

    image: bytes
    extension: str
    captions: Sequence[bytes]
    metadata: Mapping[str, Any]


@contextmanager
def tar_shard(path: Path) -> Iterator["TarShard"]:
    """Writes a WebDataset tar, whole or not at all: a context manager, which gives a `TarShard`.

    Args:
        path: the file.

    Returns:
        A context manager.
    """
    with files.replacing(path) as temporary, open(temporary, "wb") as file:
        shard = TarShard(file)
        yield shard
        # The end of a tar.
        shard.put(bytes(2 * _BLOCK))
        shard.put(bytes(-shard.bytes % tarfile.RECORDSIZE))


class TarShard:
    """A WebDataset tar: `<key>.<extension>`, `<key>.txt` for a single caption, and `<key>.json`.

    Several captions are a list in the `.json`, because a text is one caption, whatever its lines. The headers hold
    neither times nor users, so that equal samples give equal bytes.

    Args:
        file: a file that is open for writing.
    """

    extension = "tar"

    def __init__(self, file: Any):
        self._file, self._sha256 = file, hashlib.sha256()
        self.bytes = self.samples = self.pairs = 0

    def add(self, key: str, sample: StoredSample) -> None:
        """Appends a sample.

        Args:
            key: its key, without dots.
            sample: the sample.
        """
        if sample.image:
            self._member(f"{key}.{sample.extension}", sample.image)
        if len(sample.captions) == 1:
            self._member(f"{key}.txt", sample.captions[0])
        # Invalid UTF-8 stays invalid.
        texts = [caption.decode(errors="surrogateescape") for caption in sample.captions]
        captions = {"caption": texts[0] if len(texts) == 1 else texts} if texts else {}
        self._member(f"{key}.json", json.dumps({**sample.metadata, "key": key, **captions}).encode())
        self.samples += 1
        self.pairs += len(texts)

    def _member(self, name: str, content: bytes) -> None:
        header = tarfile.TarInfo(name)
        header.size = len(content)
        self.put(header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % _BLOCK))

    def put(self, data: bytes) -> None:
        """Writes bytes."""
        self._file.write(data)
        self._sha256.update(data)
        self.bytes += len(data)

    def entry(self) -> dict[str, Any]:
        """Returns what the manifest has of the shard: {"samples", "pairs", "bytes", "sha256"}."""
        return {
            "samples": self.samples,
            "pairs": self.pairs,
            "bytes": self.bytes,
            "sha256": self._sha256.hexdigest(),
        }


@contextmanager
def record_shard(path: Path) -> Iterator["RecordShard"]:
    """Writes a file of TFRecords, whole or not at all: a context manager, which gives a `RecordShard`.

    Args:
        path: the file.

    Returns:
        A context manager.

    Raises:
        ImportError: TensorFlow is not installed.
    """
    tensorflow = require_tensorflow()
    with files.replacing(path) as temporary:
        with tensorflow.io.TFRecordWriter(str(temporary)) as writer:
            shard = RecordShard(writer)
            yield shard
        shard.finish(temporary)


class RecordShard:
    """A file of TFRecords with the features `key`, `<extension>`, `txt` with all captions, and the metadata.

    Args:
        writer: `tf.io.TFRecordWriter`.
    """

    extension = "tfrecord"

    def __init__(self, writer: Any):
        self._writer, self.samples, self.pairs = writer, 0, 0
        self._content: dict[str, Any] = {}

    def add(self, key: str, sample: StoredSample) -> None:
        """Appends a sample; arguments as of `TarShard.add`."""
        tensorflow = require_tensorflow()
        example = tensorflow.train.Example()
        metadata = {name: value for name, value in sample.metadata.items() if name not in IMAGE_EXTENSIONS}
        features = _features(metadata) | {"key": [key.encode()], "txt": list(sample.captions)}
        if sample.image:
            features[sample.extension] = [sample.image]
        for name in sorted(features):
            kind = {bytes: "bytes_list", int: "int64_list", float: "float_list"}[type((features[name] or [b""])[0])]
            getattr(example.features.feature[name], kind).value.extend(features[name])
        self._writer.write(example.SerializeToString(deterministic=True))
        self.samples += 1
        self.pairs += len(sample.captions)

    def finish(self, path: Path) -> None:
        """Computes the digest of the closed file; arguments as of `record_shard`."""
        with open(path, "rb") as file:
            self._content = {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    def entry(self) -> dict[str, Any]:
        """Returns what the manifest has of the shard, once it is finished: see `TarShard.entry`."""
        return {"samples": self.samples, "pairs": self.pairs} | self._content


# The function that opens a new shard, by the name of the format, which is also the extension of its files.
FORMATS = {"tar": tar_shard, "tfrecord": record_shard}


def require_tensorflow() -> Any:
    """Returns the module `tensorflow`.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import tensorflow
    except ImportError as error:
        raise ImportError(
            'TFRecords are written by TensorFlow, which is not installed. pip install "keras_clip[tensorflow]", or '
            "write tars."
        ) from error
    return tensorflow


def check_limit(name: str, value: Any) -> None:
    """Raises a ValueError unless a limit is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}.")


def as_json(value: Any) -> Any:
    """Returns a value as JSON data. What is none becomes None, as do infinite numbers, which strict parsers refuse.

    Args:
        value: any value.

    Returns:
        dict, list, str, int, float, bool or None.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): as_json(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float)) else None


def _features(metadata: Mapping[str, Any], prefix: str = "") -> dict[str, list]:
    """Returns metadata as features: those in a dict by "name/name", lists as JSON, without None."""
    features: dict[str, list] = {}
    for name, value in metadata.items():
        if isinstance(value, Mapping):
            features |= _features(value, f"{prefix}{name}/")
        elif isinstance(value, (bool, int)) and -(2**63) <= value < 2**63:
            features[prefix + name] = [int(value)]
        elif isinstance(value, float):
            features[prefix + name] = [value]
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            features[prefix + name] = [text.encode(errors="surrogatepass")]
    return features
