"""Recognises the image files that the library reads: by a usual extension, or else by their first bytes."""

import re
from collections.abc import Callable

# Extensions of the formats that `images` opens. A file with one of them counts as an image; a file that is not an image
# fails at decoding.
IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib"),
    *("tif", "tiff", "avif", "ppm", "pgm", "pbm", "pnm"),
)
# Extensions of image formats that it does not open. Some begin like a TIFF, of which Pillow would read a thumbnail.
OTHER_IMAGE_EXTENSIONS = frozenset(
    "heic heif jxl jp2 j2k jpf psd svg eps ps pdf ico icns tga exr hdr dds pcx xcf ai "
    "dng cr2 cr3 nef arw orf rw2 raf pef srw".split()
)
# Number of bytes that `looks_like_image` needs.
HEAD = 64

_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*"
    # The size of a bitmap's second header.
    rb"|BM.{4}\0{4}.{4}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0{3}"
    rb"|....ftyp(?:.{4})*?avi[fs]"
    # The numbers of a portable pixmap.
    rb"|P[1-6]\s+(?:#[^\n]*\n\s*)*\d+\s",
    re.DOTALL,
)


def as_extension(name: str) -> str:
    """Returns an extension as this module compares them: in lower case, without the dot."""
    return name.lower().lstrip(".")


def is_unnamed_image(extension: str, head: Callable[[int], bytes]) -> bool:
    """Returns whether a file without an extension of `IMAGE_EXTENSIONS` is an image that the library reads.

    Args:
        extension: extension of the file name, in lower case.
        head: function of a number of bytes that reads that many from the beginning of the file.

    Returns:
        bool.
    """
    return extension not in OTHER_IMAGE_EXTENSIONS and looks_like_image(head(HEAD))


def looks_like_image(head: bytes) -> bool:
    """Returns whether the first bytes of a file are those of a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or PPM.

    Args:
        head: the first `HEAD` bytes.

    Returns:
        bool.
    """
    return _MAGIC.match(head) is not None


def why_passed_over(extension: str) -> str:
    """Returns the reason why a file that is not an image of these formats is passed over.

    Args:
        extension: extension of the file name, in lower case.

    Returns:
        str.
    """
    return "image format not read" if extension in OTHER_IMAGE_EXTENSIONS else "not an image"
