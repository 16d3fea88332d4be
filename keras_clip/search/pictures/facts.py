"""Facts of one picture, from one reading of its file and one decoding: digest, size, date, caption, hash, thumbnail."""

import calendar
import errno
import hashlib
import os
import re
import stat
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_clip.data.decoding import Broken
from keras_clip.data.image_files import PixelBudget, decode, open_header, reason_of, reduce_jpeg
from keras_clip.data.images import ImagePreprocessor
from keras_clip.search.pictures import thumbnails
from keras_clip.similarity.fingerprints import hash_of_decoded

# Reasons by which files that are no pictures are counted.
BEING_WRITTEN, UNREADABLE, TOO_LARGE = "being written", "unreadable file", "file too large"
# Those that say nothing about the content: each update tries again.
PASSING = (BEING_WRITTEN, UNREADABLE)
# Bytes of a file: more than an uncompressed image of the largest number of pixels has.
_MOST_BYTES = 2**31
# Letters of a caption, and bytes that are read for them.
_MOST_LETTERS = 10_000
# A file that was written this number of nanoseconds ago may change once more without another time of change: file
# systems count in up to 2 seconds.
UNSETTLED = 2_000_000_000
# A JPEG that is decoded smaller keeps this number of times the sides that the encoder sees.
_SHARP = 2
# The time of change that no file has: such a file is read again by the next update.
UNKNOWN_TIME = -1
# Stamp of a picture without a text beside it; that of a text is its time of change and its size.
NO_CAPTION = "none"
_EXIF, _DATE_TIME_ORIGINAL, _DATE_TIME, _DESCRIPTION = 0x8769, 0x9003, 0x0132, 0x010E
_DATE = re.compile(r"(\d{4})[:-](\d\d)[:-](\d\d)[ T](\d\d):(\d\d):(\d\d)")


class Content(NamedTuple):
    """The bytes of a file, and its size and time of change at that moment.

    Attributes:
        data: bytes.
        mtime_ns: int; `UNKNOWN_TIME` if the file is so new that it may change without a change of this time.
        modified_ns: int, the time of change as it is.
    """

    data: bytes
    mtime_ns: int
    modified_ns: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


class Facts(NamedTuple):
    """What the index keeps of a picture beside its place.

    Attributes:
        size: int, bytes.
        mtime_ns: see `Content`.
        sha256: str, digest of the file.
        width, height: int, pixels of the upright picture.
        taken: int, seconds since 1970 in the local time of the camera, or of the machine if the file has no date.
        format: str, Pillow's name, such as "JPEG".
        caption: str, the text beside the picture.
        description: str, the text in its metadata.
        perceptual_hash: int in [0, 2**64), of the thumbnail.
    """

    size: int
    mtime_ns: int
    sha256: str
    width: int
    height: int
    taken: int
    format: str
    caption: str
    description: str
    perceptual_hash: int


class Read(NamedTuple):
    """A picture that was read: its `Facts`, and its pixels for the encoder, uint8 (H, W, 3)."""

    facts: Facts
    pixels: np.ndarray


def content(path: bytes) -> Content | Broken | None:
    """Reads a file.

    Args:
        path: absolute path. A link is not followed: it was resolved when the folder was scanned.

    Returns:
        Its content, or why there is none; None if there is no such file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(path, flags), "rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                return None
            if before.st_size > _MOST_BYTES:
                return Broken(TOO_LARGE, f"{before.st_size:,} bytes")
            now, data = time.time_ns(), file.read(before.st_size + 1)
            after = os.fstat(file.fileno())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        # A file that became a link is scanned again next time.
        return None if error.errno == errno.ELOOP else Broken(UNREADABLE, error.strerror or str(error))
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        return Broken(BEING_WRITTEN, "")
    is_settled = now - before.st_mtime_ns > UNSETTLED or before.st_mtime_ns - now > UNSETTLED
    return Content(data, before.st_mtime_ns if is_settled else UNKNOWN_TIME, before.st_mtime_ns)


def read(
    path: bytes,
    has_caption: bool,
    preprocessor: ImagePreprocessor,
    place: Path,
    budget: PixelBudget,
    fast_jpeg: bool = False,
) -> Read | Broken | None:
    """Reads and decodes a picture, and writes its thumbnail.

    Args:
        path: absolute path of the file.
        has_caption: whether there is a text beside it.
        preprocessor: gives the pixels for the encoder.
        place: folder of the index.
        budget: bounds the pixels that are decoded at the same time.
        fast_jpeg: whether a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size.

    Returns:
        `Read`; `Broken`; or None if there is no such file any more.

    Raises:
        OSError: the thumbnail cannot be written.
    """
    file = content(path)
    if not isinstance(file, Content):
        return file
    if not file.data:
        return Broken("empty file", "")
    sha256 = file.sha256
    try:
        header = open_header(file.data, "image", preprocessor.max_pixels)
        # A picture of several MPO frames is a JPEG with more behind it.
        format = "JPEG" if header.format == "MPO" else header.format
        with budget.hold(header.width * header.height):
            width, height = header.size
            if fast_jpeg:
                reduce_jpeg(header, _SHARP * max(*preprocessor.resize_sides, thumbnails.SIDE / 2))
            decoded = header.size
            image = decode(header, "image")
            if image.size != decoded:
                width, height = height, width
            pixels = preprocessor.resize_decoded(image)
            small = thumbnails.reduced(image)
            bits = hash_of_decoded(small)
            thumbnail = thumbnails.path_of(place, sha256)
            if not thumbnail.exists():
                thumbnails.write(thumbnail, small)
    except ValueError as error:
        return Broken(reason_of(error), str(error))
    taken, description = _metadata(header)
    taken = local_seconds(file.modified_ns) if taken is None else taken
    caption = caption_of(path) if has_caption else ""
    facts = Facts(len(file.data), file.mtime_ns, sha256, width, height, taken, format, caption, description, bits)
    return Read(facts, pixels)


def _metadata(image: Any) -> tuple[int | None, str]:
    """The date on which a picture was taken, in seconds since 1970, and the text in its metadata."""
    try:
        exif = image.getexif()
        date = exif.get_ifd(_EXIF).get(_DATE_TIME_ORIGINAL) or exif.get(_DATE_TIME)
        description = exif.get(_DESCRIPTION) or getattr(image, "text", {}).get("Description") or ""
    except Exception:  # PIL raises many types of exceptions for corrupt metadata.
        return None, ""
    return _seconds(date), _cleaned(description) if isinstance(description, str) else ""


def _seconds(date: Any) -> int | None:
    match = _DATE.match(date) if isinstance(date, str) else None
    try:
        return calendar.timegm(datetime(*map(int, match.groups())).timetuple()) if match else None
    except ValueError:
        # Cameras whose clock is not set write zeros.
        return None


def local_seconds(time_ns: int) -> int:
    """Returns a time of change as seconds since 1970 in local time, as cameras write it without a time zone."""
    try:
        return calendar.timegm(time.localtime(time_ns // 1_000_000_000))
    except (OverflowError, ValueError, OSError):
        return 0


def caption_of(path: bytes) -> str:
    """Returns the text in the .txt of the same name beside a picture; "" if it cannot be read."""
    beside = content(os.path.splitext(path)[0] + b".txt")
    if not isinstance(beside, Content):
        return ""
    data = beside.data[: 4 * _MOST_LETTERS]
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return _cleaned(data.decode(encoding, "replace"))


def _cleaned(text: str) -> str:
    return text.replace("\0", "").encode("utf-8", "replace").decode().strip()[:_MOST_LETTERS]
