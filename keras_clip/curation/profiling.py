"""The first pass: what is known of each pair from one decoding of its image and one reading of its caption."""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keras_clip.curation.passes import ShardPass, run_pass
from keras_clip.curation.pool import Pool
from keras_clip.curation.shards import Shard, keys_of
from keras_clip.data.image_files import MAX_PIXELS, decode, open_header, reason_of, reduce_jpeg, upright_sides
from keras_clip.data.readers import Captions, Reader
from keras_clip.data.tokenizer import CLIPTokenizer
from keras_clip.engines import Engine
from keras_clip.similarity.fingerprints import COLOUR_SIDE, HASH_SHORTEST, colours_of_decoded, hash_of_decoded

if TYPE_CHECKING:
    import pyarrow

_BLOCK = 64
_LONGEST_NAME = 255
# Names that cameras, telephones and programs give files, hexadecimal digests, and numbers alone.
_FILE_NAME = re.compile(
    r"\S+\.(jpe?g|png|gif|webp|bmp|tiff?|heic|avif|svg|raw|cr2|nef|arw|dng|mp4|mov|psd|pdf)"
    r"|(img|dsc[fn]?|dscn|pict|p|mvi|vid|pxl|gopr|dji|sam|image|photo|picture|screen ?shot|screenshot|untitled|scan"
    r"|whatsapp image|wp|capture|file|fullsizerender)?[-_ #(]*\d[\d\s_.:()-]*(at [\d. ]+)?(px|[ap]m|x)?\)?"
    r"|(img|vid)-\d{8}-wa\d+"
    r"|[0-9a-f]{12,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    re.IGNORECASE,
)
# Exposure, aperture, sensitivity and focal length, as cameras write them.
_SETTING = re.compile(
    r"f/ ?\d+(\.\d+)?|1/\d+ ?(s|sec)?|iso[ -]?\d{2,6}|\d{1,4}(\.\d+)? ?mm|[+-]?\d(\.\d+)? ?ev|\d+(\.\d+)? ?sec(onds)?"
    r"|(canon|nikon|sony|fujifilm|olympus|panasonic|pentax|leica|kodak) [\w -]*\d[\w-]*|digital camera|no flash|flash",
    re.IGNORECASE,
)


def profile_schema() -> "pyarrow.Schema":
    """Returns the columns of a profile, which has a row for each pair of an image and one of its captions.

    - `key`: key of the sample; `shard`; `sample`: index in the shard's source; `caption_number`: 0 for the first;
    - `caption`, with invalid UTF-8 replaced;
    - `decode_ok`, and `reason` if not: "no image", "undecodable image" or "image too large";
    - `format`, `mode`, `width`, `height` in pixels after the orientation is applied, `aspect`: longer side by shorter
      side; null if the header cannot be read;
    - `bytes` and `sha256` of the image file; `perceptual_hash`: 64 bits; `colours` of its parts, see
      `similarity.fingerprints.colours_of_decoded`;
    - `characters`, `words` (separated by white space), `tokens` of `CLIPTokenizer`, with start and end tokens, before
      truncation;
    - `utf8_ok`; `blank`; `file_name_like`: the caption is a file name, a number or camera settings;
    - `language`: ISO 639-1 by py3langid, null if blank; `text_hash` of the caption in normal form (see `text_hash`).
    """
    import pyarrow as pa

    return pa.schema(
        [
            ("key", pa.string()),
            ("shard", pa.string()),
            ("sample", pa.int32()),
            ("caption_number", pa.int32()),
            ("caption", pa.string()),
            ("decode_ok", pa.bool_()),
            ("reason", pa.string()),
            ("format", pa.string()),
            ("mode", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("aspect", pa.float32()),
            ("bytes", pa.int64()),
            ("sha256", pa.string()),
            ("perceptual_hash", pa.uint64()),
            ("colours", pa.binary(3 * COLOUR_SIDE**2)),
            ("characters", pa.int32()),
            ("words", pa.int32()),
            ("tokens", pa.int32()),
            ("utf8_ok", pa.bool_()),
            ("file_name_like", pa.bool_()),
            ("blank", pa.bool_()),
            ("language", pa.string()),
            ("text_hash", pa.string()),
        ]
    )


class Profile(ShardPass):
    """Profiles the pairs of a shard; see `profile_schema`.

    Args:
        max_pixels: int. Images of more pixels are not decoded; see `data.image_files.open_header`.
    """

    name = "profile"
    reads_source = True
    version = 2

    def __init__(self, max_pixels: int = MAX_PIXELS):
        self.max_pixels = max_pixels

    def config(self) -> dict[str, Any]:
        """See `ShardPass.config`."""
        return {"version": self.version, "max_pixels": self.max_pixels}

    def start(self) -> tuple[CLIPTokenizer, Any]:
        """See `ShardPass.start`."""
        return CLIPTokenizer(), _language_identifier()

    def run(
        self, state: tuple[CLIPTokenizer, Any], shard: Shard, inputs: Mapping[str, "pyarrow.Table"]
    ) -> tuple["pyarrow.Table", Mapping[str, int]]:
        """Profiles a shard; arguments as of `ShardPass.run`."""
        import pyarrow as pa

        tokenizer, identify = state
        schema = profile_schema()
        columns: dict[str, list] = {name: [] for name in schema.names}
        reader, ids = shard.open()
        for key, sample, image, captions in _samples(reader, ids):
            seen = _image_columns(image, self.max_pixels)
            for number, caption in enumerate(captions or [b""]):
                row = {"key": key, "shard": shard.name, "sample": sample, "caption_number": number}
                row |= seen | _caption_columns(caption)
                for name, values in columns.items():
                    values.append(row.get(name))
        texts = columns["caption"]
        columns["tokens"] = [len(tokenizer.encode(text)) + 2 for text in texts]
        languages = (None if blank else identify(text) for text, blank in zip(texts, columns["blank"], strict=True))
        columns["language"] = list(languages)
        counts = {"pairs": len(texts), "samples": len(ids)}
        for reason in filter(None, columns["reason"]):
            counts[reason] = counts.get(reason, 0) + 1
        for name in ("blank", "file_name_like"):
            counts[name] = sum(columns[name])
        counts["not utf8"] = len(texts) - sum(columns["utf8_ok"])
        return pa.table(columns, schema), counts


def profile(
    pool: Pool, engine: str | Engine = "auto", *, max_pixels: int = MAX_PIXELS, progress: bool = True
) -> Mapping[str, int]:
    """Decodes every image and reads every caption of a pool once, and writes what `profile_schema` describes.

    Args:
        pool: the pool.
        engine: see `run_pass`.
        max_pixels: int. Images of more pixels are not decoded.
        progress: bool. Whether to show a progress bar.

    Returns:
        Counts of "pairs", "samples", of each reason of an image that cannot be used, of captions that are "blank" or
        "file_name_like", and of those "not utf8".

    Raises:
        ImportError: pyarrow or py3langid is not installed.
        ValueError: see `run_pass`.
    """
    _language_identifier()
    return run_pass(pool, Profile(max_pixels), engine, progress=progress)


def text_hash(caption: str) -> str:
    """Returns a digest of a caption that is equal for captions that differ in case, white space and Unicode form.

    Args:
        caption: a text.

    Returns:
        32 hexadecimal digits: BLAKE2b of the text in NFKC, case-folded, with single spaces.
    """
    normal = " ".join(unicodedata.normalize("NFKC", caption).casefold().split())
    return hashlib.blake2b(normal.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def is_file_name_like(caption: str) -> bool:
    """Returns whether a caption is a file name, a number or a list of camera settings, rather than a description."""
    text = caption.strip()
    # Names of files have at most 255 characters. Longer captions would take a time that grows with their square.
    if len(text) > _LONGEST_NAME:
        return False
    if _FILE_NAME.fullmatch(text):
        return True
    return bool(text) and not re.sub(r"[\s,;|·•()-]+", "", _SETTING.sub("", text)) and any(map(str.isdigit, text))


class _Sample(NamedTuple):
    key: str
    sample: int
    image: bytes
    captions: Captions


def _samples(reader: Reader, ids: np.ndarray) -> Iterator[_Sample]:
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        images, captions = reader.read(block)
        # Names in a tar may be no UTF-8.
        keys = (key.encode(errors="backslashreplace").decode() for key in keys_of(reader, block))
        yield from map(_Sample, keys, block.tolist(), images, captions)


def _image_columns(content: bytes, max_pixels: int) -> dict[str, Any]:
    """Decodes an image file once."""
    columns: dict[str, Any] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    columns["decode_ok"] = False
    if not content:
        return columns | {"reason": "no image"}
    try:
        header = open_header(content, "image", max_pixels)
        columns |= {"format": header.format, "mode": header.mode} | _sides(*upright_sides(header))
        # The whole file is read nevertheless, so that a damaged one is found.
        reduce_jpeg(header, HASH_SHORTEST)
        image = decode(header, "image")
        columns["perceptual_hash"], columns["colours"] = hash_of_decoded(image), colours_of_decoded(image)
    except ValueError as error:
        return columns | {"reason": reason_of(error)}
    return columns | {"decode_ok": True}


def _sides(height: int, width: int) -> dict[str, Any]:
    return {"width": width, "height": height, "aspect": max(width, height) / max(1, min(width, height))}


def _caption_columns(caption: bytes) -> dict[str, Any]:
    text = caption.decode(errors="replace")
    return {
        "caption": text,
        "characters": len(text),
        "words": len(text.split()),
        "utf8_ok": _is_utf8(caption),
        "file_name_like": is_file_name_like(text),
        "blank": not text.strip(),
        "text_hash": text_hash(text),
    }


def _is_utf8(caption: bytes) -> bool:
    try:
        caption.decode()
    except UnicodeDecodeError:
        return False
    return True


@functools.cache
def _language_identifier() -> Any:
    """Returns a function of a text that identifies its language.

    Raises:
        ImportError: py3langid is not installed.
    """
    try:
        import py3langid
    except ImportError as error:
        raise ImportError(
            'Languages are identified by py3langid, which is not installed. pip install "keras_clip[curation]"'
        ) from error
    return lambda text: py3langid.classify(text)[0]
