"""Which first bytes are those of an image."""

import io

import pytest
from PIL import Image

from keras_clip.data.readers.elements.image_formats import HEAD, looks_like_image

pytestmark = pytest.mark.backend_free


def encoded(form, mode="RGB", **options):
    file = io.BytesIO()
    Image.new(mode, (9, 7)).save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "PPM"])
def test_images(form):
    # A DIB is a bitmap without the header of a file, which nothing marks.
    assert looks_like_image(encoded(form)[:HEAD]) == (form != "DIB")


OTHERS = {
    "nothing": b"",
    "text": b"a photo of a cat",
    "text that begins with BM": b"BMW is the name of a car maker, and of its cars and engines",
    "text that begins with P1": b"P1 is a car, and not a portable bitmap",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "MP4": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2avc1",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0",
    "PDF": b"%PDF-1.7",
    "wave file": b"RIFF\x24\0\0\0WAVEfmt ",
    "HTML": b"<!DOCTYPE html><html>",
    "ICO": encoded("ICO"),
    "PSD": b"8BPS\0\1",
    "SVG": b"<svg xmlns=",
}


@pytest.mark.parametrize("head", OTHERS.values(), ids=OTHERS)
def test_others(head):
    assert not looks_like_image(head[:HEAD])


@pytest.mark.parametrize(
    "head", [b"P6 9 7 255\n", b"P5\n# by hand\n# twice\n9 7\n", b"MM\0*", b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif"]
)
def test_other_ways_to_write_them(head):
    assert looks_like_image(head)
