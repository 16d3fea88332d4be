"""Parquet files, as img2dataset and Hugging Face write them: an image, its captions and other columns in each row."""

import bisect
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from keras_clip.data.readers.brief import brief
from keras_clip.data.readers.elements import hugging_face
from keras_clip.data.readers.elements.image_formats import IMAGE_EXTENSIONS
from keras_clip.data.readers.elements.images import as_image_file
from keras_clip.data.readers.elements.mapping import CAPTION_NAMES, PATH_NAMES, Mapping, names_of
from keras_clip.data.readers.reader import Captions, as_captions
from keras_clip.data.readers.storage.copies import copy_of, size_limit
from keras_clip.data.readers.storage.remote import open_binary
from keras_clip.data.readers.storage.shards import SamplesOfSeveral
from keras_clip.data.readers.storage.urls import is_remote

if TYPE_CHECKING:
    import pyarrow

_IMAGES = (*IMAGE_EXTENSIONS, *PATH_NAMES)
_CAPTIONS = ("txt", *CAPTION_NAMES)
_KEYS = ("key", "__key__")
# Rows per batch of the copy, which is the unit of conversion and of access.
_ROWS = 64


class ParquetReader(SamplesOfSeveral):
    """The rows of Parquet files, whose images are bytes, Hugging Face's records of bytes and path, or paths.

    Rows are compressed in groups, so that a single one cannot be read. Each file is therefore copied to the user's
    cache folder at its first use, as an Arrow file, which takes as much space as the images. The metadata are all
    columns but the image, with the names of classes instead of Hugging Face's numbers.

    Args:
        paths: paths of the files.
        mapping: the names of the columns of images and of captions. None: the usual ones.
        captions: whether samples are pairs. If False, no column of captions is needed.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: a file that is damaged; no such column, or one twice; a mapping by function.
    """

    def __init__(self, paths: Sequence[str], mapping: Mapping | None = None, captions: bool = True):
        names = names_of(mapping, _IMAGES, _CAPTIONS)
        self._tables = [_Table(path, *names, captions) for path in paths]
        super().__init__(paths, list(map(len, self._tables)))

    def keys_in_shard(self, ids: np.ndarray) -> list[str]:
        """Returns the column `key`, or the row numbers if there is none."""
        rows = super().keys_in_shard(ids)
        keys = self._values(ids, "key")
        return [row if key is None else str(key) for row, key in zip(rows, keys, strict=True)]

    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        """The images as the bytes of files, and the captions."""
        folders = [os.path.dirname(self.paths[shard]) for shard in self._shards(ids).tolist()]
        images = [
            as_image_file(value, f"row {index}", folder)
            for value, folder, index in zip(self._values(ids, "image"), folders, ids.tolist(), strict=True)
        ]
        return images, self.captions(ids)

    def captions(self, ids: np.ndarray) -> list[Captions]:
        """The caption or captions of each row."""
        return list(map(as_captions, self._values(ids, "caption")))

    def metadata(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """All columns but the image."""
        places = zip(self._shards(ids).tolist(), self._rows_in_shard(ids).tolist(), strict=True)
        return [self._tables[shard].metadata(row) for shard, row in places]

    def _values(self, ids: np.ndarray, what: str) -> list[Any]:
        places = zip(self._shards(ids).tolist(), self._rows_in_shard(ids).tolist(), strict=True)
        return [self._tables[shard].value(row, what) for shard, row in places]


class _Table:
    """One Parquet file, read from its copy."""

    def __init__(self, path: str, images: Sequence[str], captions: Sequence[str], needs_captions: bool):
        pyarrow = _require_pyarrow(path)
        copy = copy_of(path, ".arrow", lambda file: _convert(path, file))
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(copy))
        schema = reader.schema
        if len(set(schema.names)) < len(schema.names):
            raise ValueError(f"Names of columns must differ. Received: {path} with {brief(schema.names)}.")
        self._class_names = hugging_face.class_names_of_schema(schema)
        columns = {
            "image": _image_column(schema, images),
            "caption": next((name for name in captions if name in schema.names), None),
            "key": next((name for name in _KEYS if name in schema.names), None),
        }
        needed = {"image": images, "caption": captions} if needs_captions else {"image": images}
        for what, names in needed.items():
            if columns[what] is None:
                raise ValueError(
                    f"A Parquet file must have a column of {what}s, named {' or '.join(map(repr, names))}. "
                    f"Received: {path} with the columns {brief(schema.names)}. "
                    'Name yours: mapping=("<image>", "<caption>"). '
                    "Of img2dataset's tars and TFRecords give these: the .parquet beside them has no images."
                )
        self._image = columns["image"]
        self._names = schema.names
        self._places = {what: schema.names.index(name) for what, name in columns.items() if name is not None}
        self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _find(self, row: int) -> tuple["pyarrow.RecordBatch", int]:
        number = bisect.bisect_right(self._ends, row)
        return self._batches[number], row - (self._ends[number - 1] if number else 0)

    def value(self, row: int, what: str) -> Any:
        """Returns the image, the caption or the key of a row; None if there is no such column."""
        if what not in self._places:
            return None
        batch, place = self._find(row)
        return batch.column(self._places[what])[place].as_py()

    def metadata(self, row: int) -> dict[str, Any]:
        """All columns of a row but the image."""
        batch, place = self._find(row)
        values = {
            name: batch.column(number)[place].as_py() for number, name in enumerate(self._names) if name != self._image
        }
        return hugging_face.with_names(values, self._class_names)


def image_paths(path: str, mapping: Mapping | None = None) -> list[str]:
    """Returns the paths of the images that a Parquet file names instead of holding them.

    Args:
        path: path of the file.
        mapping: as of `ParquetReader`.

    Returns:
        Paths, relative ones from the folder of the file; none of a damaged file. Only these columns are read.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: a mapping by function.
    """
    pyarrow = _require_pyarrow(path)
    from pyarrow import parquet

    images, _ = names_of(mapping, _IMAGES, _CAPTIONS)
    try:
        file = parquet.ParquetFile(path)
        schema = file.schema_arrow
        name = _image_column(schema, images)
        if name is None or len(set(schema.names)) < len(schema.names):
            return []
        kind = schema.field(name).type
        if pyarrow.types.is_struct(kind) and {each.name for each in kind} == {"bytes", "path"}:
            # Only where bytes are absent does the path count; most files say that none are.
            if _has_no_nulls(file, f"{name}.bytes"):
                return []
            records = file.read([name])[name].combine_chunks()
            paths = records.field("path").filter(records.field("bytes").is_null())
        elif _is_text(kind):
            paths = file.read([name])[name]
        else:
            return []
    except (pyarrow.ArrowException, OSError):
        # Opening the file for its samples says what is wrong with it.
        return []
    return [os.path.join(os.path.dirname(path), each) for each in paths.to_pylist() if each]


def _has_no_nulls(file: Any, column: str) -> bool:
    """Returns whether the statistics of a Parquet file say that a column has a value in every row."""
    metadata = file.metadata
    for group in range(metadata.num_row_groups):
        columns = [metadata.row_group(group).column(number) for number in range(metadata.num_columns)]
        found = next((each.statistics for each in columns if each.path_in_schema == column), None)
        if found is None or not found.has_null_count or found.null_count:
            return False
    return True


def _image_column(schema: "pyarrow.Schema", images: Sequence[str]) -> str | None:
    """Returns the name of the column of images; columns of images take precedence over columns of paths."""
    found = [name for name in images if name in schema.names]
    return next(iter(sorted(found, key=lambda name: _is_text(schema.field(name).type))), None)


def _is_text(kind: "pyarrow.DataType") -> bool:
    import pyarrow

    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    kinds = pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view
    return any(each(kind) for each in kinds)


def _convert(path: str, file: BinaryIO) -> None:
    """Writes a Parquet file as an Arrow file, which supports random access to rows."""
    import pyarrow
    from pyarrow import parquet

    limit = size_limit(path)
    try:
        source = parquet.ParquetFile(open_binary(path) if is_remote(path) else path)
        schema = pyarrow.schema(
            [
                field.with_type(field.type.value_type) if pyarrow.types.is_dictionary(field.type) else field
                for field in source.schema_arrow
            ],
            source.schema_arrow.metadata,
        )
        with pyarrow.ipc.new_file(file, schema) as writer:
            for batch in source.iter_batches(_ROWS):
                writer.write_batch(batch.cast(schema) if batch.schema != schema else batch)
                if file.tell() > limit:
                    raise ValueError(
                        f"A Parquet file must not expand to more than {limit:,} bytes. Received: {path}. Convert it "
                        "yourself, for instance to .tar."
                    )
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"A Parquet file must be whole. Received: {path}: {error}.") from error


def _require_pyarrow(path: str) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise ImportError(
            f'{path} is read by pyarrow, which is not installed. pip install "keras_clip[parquet]"'
        ) from error
    return pyarrow
