"""Compares the pixels of the tf.data pipeline with PIL's, over generated images of every kind that PIL opens.

    python tools/pixel_matrix.py

The files are all combinations that exist of format, mode, bit depth, carrier of the orientation, colour profile,
interlacing and truncation. Each is decoded by the pipeline (evaluation and a training crop), by `ImagePreprocessor`,
and by PIL alone, spelt out here. Prints, for each format, how many files were whole and refused and the largest
difference in grey levels; the status is 1 if a difference is above 0 in evaluation or 1 in a training crop, or if one
path refuses what the other reads.
"""

import argparse
import functools
import io
import struct
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

# The scripts of both folders use `terminal`, which is in examples/.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import numpy as np
import terminal

SIZE = 32
SIDES = (SIZE, SIZE)


def parse_args(argv=None) -> argparse.Namespace:
    parser = terminal.Parser(__doc__)
    parser.add_argument("--verbose", action="store_true", help="name every file that differs")
    return parser.parse_args(argv)


def noise(channels: int, bits: int = 8, height: int = 45, width: int = 67) -> np.ndarray:
    """Reproducible random values, with a gradient so that a wrong turn shows."""
    rng = np.random.default_rng(channels * 100 + bits)
    values = rng.integers(0, 2**bits, (height, width, channels))
    gradient = np.linspace(0, 2**bits - 1, height)[:, None, None] * np.linspace(0.2, 1, width)[None, :, None]
    return ((values + 3 * gradient) // 4).astype(np.uint16 if bits > 8 else np.uint8)


@functools.cache
def exif_block(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """A TIFF header with the tag of the orientation as the `kind` that EXIF knows: byte 1, short 3 or long 4."""
    form = {1: "B3x", 3: "H2x", 4: "I"}[kind]
    directory = struct.pack(f"{order}HHHI", 1, 0x0112, kind, 1) + struct.pack(order + form, orientation) + bytes(4)
    return (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8) + directory


def xmp(orientation: int, as_element: bool = False) -> bytes:
    tag = f'tiff:Orientation="{orientation}"'
    body = f"<tiff:Orientation>{orientation}</tiff:Orientation>" if as_element else ""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" {"" if as_element else tag}>{body}'
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(bits: int, colour: int, interlaced: bool, chunks: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG written by hand: Pillow writes neither interlaced ones nor all bit depths."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    pixels = noise(channels, bits)
    height, width = pixels.shape[:2]
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    data = b""
    for top, left, down, right in passes if interlaced else [(0, 0, 1, 1)]:
        for row in pixels[top::down, left::right]:
            if bits == 16:
                packed = row.astype(">u2").tobytes()
            elif bits == 8:
                packed = row.tobytes()
            else:
                digits = np.unpackbits(row.reshape(-1, 1), axis=1)[:, 8 - bits :]
                packed = np.packbits(digits.reshape(-1)).tobytes()
            data += b"\0" + packed
    palette = png_chunk(b"PLTE", noise(3, 8, 1, 2**bits).tobytes()) if colour == 3 else b""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))
    body = png_chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + header + palette + chunks + body + after + png_chunk(b"IEND", b"")


def saved(pixels, form: str, mode: str | None = None, **options) -> bytes:
    from PIL import Image

    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels.squeeze())
    image = image if mode is None else image.convert(mode)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def profile() -> bytes:
    """A profile with other primaries: whoever converts by it gets other pixels."""
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def jpegs() -> Iterator[tuple[str, bytes]]:
    """(name, file) of JPEGs."""
    colour, grey = noise(3), noise(1)
    for name, options in {
        "4:2:0": {},
        "4:2:2": {"subsampling": 1},
        "4:4:4": {"subsampling": 0},
        "RGB": {"keep_rgb": True},
        "progressive": {"progressive": True},
        "restart markers": {"restart_marker_rows": 1},
        "quality 100": {"quality": 100},
        "quality 5": {"quality": 5},
        "profile": {"icc_profile": profile()},
        "large profile": {"icc_profile": profile() + bytes(150_000)},
        "comment": {"comment": b"tiff:Orientation"},
    }.items():
        yield name, saved(colour, "JPEG", **options)
    yield "grey", saved(grey, "JPEG")
    yield "grey progressive", saved(grey, "JPEG", progressive=True)
    cmyk = saved(colour, "JPEG", "CMYK")
    yield "CMYK", cmyk
    yield "CMYK with its marker", cmyk[:2] + segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, 0)) + cmyk[2:]
    yield "YCCK", cmyk[:2] + segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, 2)) + cmyk[2:]
    plain = saved(colour, "JPEG", subsampling=0)
    without = plain[:2] + plain[2 + 2 + struct.unpack(">H", plain[4:6])[0] :]
    yield "without JFIF", without
    for transform in (0, 1, 2):
        adobe = segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform))
        yield f"Adobe transform {transform}", without[:2] + adobe + without[2:]
    yield "bytes at the end", plain + b"more bytes than the image has"
    for orientation in range(0, 10):
        for name, block in {
            "EXIF": exif_block(orientation),
            "EXIF, big end first": exif_block(orientation, ">"),
            "EXIF, a long": exif_block(orientation, "<", 4),
            "EXIF, a byte": exif_block(orientation, ">", 1),
        }.items():
            yield f"{name} {orientation}", plain[:2] + segment(0xE1, b"Exif\0\0" + block) + plain[2:]
        for as_element in (False, True):
            packet = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(orientation % 10, as_element))
            yield f"XMP {as_element} {orientation}", plain[:2] + packet + plain[2:]
            upright = segment(0xE1, b"Exif\0\0" + exif_block(1))
            yield f"XMP {as_element} {orientation} after EXIF", plain[:2] + upright + packet + plain[2:]
    long = b"".join(segment(0xE2, bytes(65_000)) for _ in range(3))
    yield "EXIF far from the start", plain[:2] + long + segment(0xE1, b"Exif\0\0" + exif_block(6)) + plain[2:]
    yield (
        "XMP far from the start",
        plain[:2] + long + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(8)) + plain[2:],
    )
    yield (
        "two EXIF blocks",
        plain[:2] + segment(0xE1, b"Exif\0\0" + exif_block(1)) + segment(0xE1, b"Exif\0\0" + exif_block(6)) + plain[2:],
    )
    yield "damaged EXIF", plain[:2] + segment(0xE1, b"Exif\0\0" + exif_block(6)[:-9]) + plain[2:]


def pngs() -> Iterator[tuple[str, bytes]]:
    """(name, file) of PNGs."""
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    for colour, bits in ((kind, bits) for kind in depths for bits in depths[kind]):
        for interlaced in (False, True):
            name = f"type {colour}, {bits} bit{', interlaced' if interlaced else ''}"
            yield name, png(bits, colour, interlaced)
            clear = {0: struct.pack(">H", 1), 2: struct.pack(">HHH", 1, 2, 3), 3: b"\0\x80"}.get(colour)
            if clear:
                yield f"{name}, transparent", png(bits, colour, interlaced, png_chunk(b"tRNS", clear))
    for name, chunk in {
        "gamma": png_chunk(b"gAMA", struct.pack(">I", 100_000)),
        "profile": png_chunk(b"iCCP", b"p\0\0" + zlib.compress(profile())),
        "significant bits": png_chunk(b"sBIT", bytes([5, 5, 5])),
        "background": png_chunk(b"bKGD", struct.pack(">HHH", 9, 9, 9)),
        "animation": png_chunk(b"acTL", struct.pack(">II", 1, 0)),
    }.items():
        yield name, png(8, 2, False, chunk)
    raw = b"\nexif\n" + f"{26:8d}\n".encode() + exif_block(6).hex().encode() + b"\n"
    for orientation in range(1, 9):
        for name, chunk in {
            "eXIf": png_chunk(b"eXIf", exif_block(orientation)),
            "XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(orientation)),
            "compressed XMP": png_chunk(
                b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0" + zlib.compress(xmp(orientation, True))
            ),
        }.items():
            yield f"{name} {orientation}", png(8, 2, False, chunk)
            yield f"{name} {orientation} at the end", png(8, 0, False, b"", chunk)
    yield "raw profile", png(8, 2, False, png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)))
    yield "raw profile as text", png(8, 2, False, png_chunk(b"tEXt", b"Raw profile type exif\0" + raw))
    whole = png(8, 2, False)
    yield "wrong checksum of the data", whole[:-16] + bytes(4) + whole[-12:]
    yield "without its end", whole[:-12]


def others() -> Iterator[tuple[str, str, bytes]]:
    """(format, name, file) of the other formats."""
    from PIL import Image

    colour, alpha, grey = noise(3), noise(4), noise(1)
    palette = Image.fromarray(colour).quantize(17)
    tags = {orientation: Image.Exif() for orientation in range(1, 9)}
    for orientation, exif in tags.items():
        exif[0x0112] = orientation
    for name, options in {"lossy": {}, "lossless": {"lossless": True}, "profile": {"icc_profile": profile()}}.items():
        yield "WEBP", name, saved(colour, "WEBP", **options)
        yield "WEBP", f"{name} with alpha", saved(alpha, "WEBP", **options)
    yield "WEBP", "animated", saved(colour, "WEBP", save_all=True, append_images=[Image.fromarray(colour[::-1])])
    for orientation, exif in tags.items():
        yield "WEBP", f"EXIF {orientation}", saved(colour, "WEBP", exif=exif)
        yield "WEBP", f"XMP {orientation}", saved(colour, "WEBP", xmp=xmp(orientation))
        yield "AVIF", f"EXIF {orientation}", saved(colour, "AVIF", exif=exif)
        yield "AVIF", f"XMP {orientation}", saved(colour, "AVIF", xmp=xmp(orientation))
        for compression in ("raw", "tiff_lzw", "tiff_deflate"):
            tag = {"compression": compression, "exif": exif}
            yield "TIFF", f"{compression}, orientation {orientation}", saved(colour, "TIFF", **tag)
    yield "AVIF", "alpha", saved(alpha, "AVIF")
    yield "AVIF", "grey", saved(grey, "AVIF")
    for mode in ("1", "L", "P", "RGB"):
        yield "GIF", mode, saved(colour, "GIF", mode)
        yield "BMP", mode, saved(colour, "BMP", mode)
    yield "BMP", "RGBA", saved(alpha, "BMP")
    yield "GIF", "transparent", saved(palette, "GIF", transparency=3)
    yield "GIF", "interlaced", saved(palette, "GIF", interlace=True)
    yield "GIF", "animated", saved(palette, "GIF", save_all=True, append_images=[palette.rotate(180)])
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "F"):
        image = Image.fromarray(noise(1, 16).squeeze()) if mode == "I;16" else Image.fromarray(colour).convert(mode)
        for compression in ("raw", "tiff_lzw", "packbits"):
            yield "TIFF", f"{mode}, {compression}", saved(image, "TIFF", compression=compression)
    yield "TIFF", "RGB, jpeg", saved(colour, "TIFF", compression="jpeg")
    for mode in ("1", "L", "RGB"):
        yield "PPM", mode, saved(colour, "PPM", mode)
    yield "PPM", "16 bit", saved(Image.fromarray(noise(1, 16).squeeze()), "PPM")
    yield "PPM", "text", b"P3 2 2 255 1 2 3 4 5 6 7 8 9 250 251 252"
    yield "JPEG 2000", "refused", saved(colour, "JPEG2000")
    yield "ICO", "refused", saved(colour, "ICO")


def matrix() -> Iterator[tuple[str, str, bytes]]:
    """(format, name, file) of everything, whole and cut short."""
    whole = [("JPEG", *file) for file in jpegs()] + [("PNG", *file) for file in pngs()] + list(others())
    yield from whole
    seen = defaultdict(int)
    for form, name, data in whole:
        seen[form] += 1
        if seen[form] % 3 == 1:
            for part in (0.1, 0.5, 0.9):
                yield form, f"{name}, {part:.0%} of it", data[: int(part * len(data))]
            yield form, f"{name}, without a byte", data[:-1]


def by_pil(data: bytes, view: np.ndarray | None):
    """Spelt out with PIL alone: the centre crop, or that view; None if PIL cannot decode the file."""
    from PIL import Image, ImageOps

    from keras_clip.data.image_files import FORMATS

    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
        turned = ImageOps.exif_transpose(image)
        if turned.mode.startswith("I"):
            turned = Image.fromarray((np.asarray(turned) >> 8).clip(0, 255).astype(np.uint8))
        if turned.mode == "F":
            return None
        if turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info:
            turned = turned.convert("RGBA")
            turned = Image.alpha_composite(Image.new("RGBA", turned.size, (255, 255, 255, 255)), turned)
        turned = turned.convert("RGB")
    except Exception:  # PIL raises many types of exceptions for corrupt files.
        return None
    if view is None:
        scale = SIZE / min(turned.size)
        size = [SIZE if side == min(turned.size) else int(side * scale) for side in turned.size]
        left, top = (round((side - SIZE) / 2) for side in size)
        return np.asarray(turned.resize(size, Image.BICUBIC).crop((left, top, left + SIZE, top + SIZE)))
    top, left, height, width = view[:4].tolist()
    return np.asarray(turned.crop((left, top, left + width, top + height)).resize(SIDES[::-1], Image.BICUBIC))


def paths() -> tuple:
    """Functions of a file: the pipeline in evaluation, a training crop and its view, and `ImagePreprocessor`."""
    import tensorflow as tf

    from keras_clip.data import ImagePreprocessor, graph_images

    seed = tf.constant([3, 4], tf.int64)

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def evaluation(data):
        return graph_images.decode_view(data, seed, SIZE, graph_images.centered_view_in_graph)

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def training(data):
        view_of = graph_images.random_resized_view
        return graph_images.decode_view(data, seed, SIZE, view_of, dtype="float32")

    @tf.function(input_signature=[tf.TensorSpec([2], tf.int32)])
    def view(shape):
        return graph_images.random_resized_view(shape, SIDES, seed)

    preprocessor = ImagePreprocessor(SIZE)

    def attempt(function, data):
        try:
            return np.asarray(function(data))
        except (ValueError, tf.errors.OpError):
            return None

    return (
        lambda data: attempt(evaluation, data),
        lambda data: attempt(training, data),
        lambda data: attempt(lambda data: preprocessor.to_uint8(data)[0], data),
        lambda shape: view(tf.constant(shape, tf.int32)).numpy(),
    )


def compare(files: Iterable[tuple[str, str, bytes]] | None = None) -> list[tuple]:
    """(format, name, outcome, difference in evaluation, in the training crop) of files; None: of the matrix."""
    from keras_clip.data.image_files import open_image

    evaluation, training, preprocessed, view_of = paths()
    rows = []
    for form, name, data in matrix() if files is None else files:
        expected, pixels, own, crop = by_pil(data, None), evaluation(data), preprocessed(data), training(data)
        found = [values is not None for values in (expected, pixels, own, crop)]
        if not any(found):
            rows.append((form, name, "refused", None, None))
        elif not all(found):
            paths_of = dict(zip(("PIL", "pipeline", "ImagePreprocessor", "training"), found, strict=True))
            rows.append((form, name, f"whole on some paths only: {paths_of}", None, None))
        else:
            image = open_image(data, name, 10**9)
            expected_crop = by_pil(data, view_of((image.height, image.width)))
            most = max(_difference(pixels, expected), _difference(own, expected))
            rows.append((form, name, "whole", most, _difference(crop, expected_crop)))
    return rows


def _difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def is_fault(row: tuple) -> bool:
    """Whether a row breaks the promise: 0 grey levels in evaluation, 1 in training crops, the same files refused."""
    _, _, outcome, evaluation, training = row
    return outcome not in ("whole", "refused") or (outcome == "whole" and (evaluation > 0 or training > 1))


def main(argv=None) -> int:
    args = parse_args(argv)
    rows = compare()
    print(f"{'format':10} {'files':>6} {'whole':>6} {'refused':>8} {'evaluation':>11} {'training':>9} {'faults':>7}")
    for form in dict.fromkeys(row[0] for row in rows):
        of_form = [row for row in rows if row[0] == form]
        whole = [row for row in of_form if row[2] == "whole"]
        most = [max((row[column] for row in whole), default=0) for column in (3, 4)]
        refused = sum(row[2] == "refused" for row in of_form)
        faults = sum(map(is_fault, of_form))
        print(f"{form:10} {len(of_form):6} {len(whole):6} {refused:8} {most[0]:11} {most[1]:9} {faults:7}")
    faults = [row for row in rows if is_fault(row)]
    for row in faults if args.verbose else faults[:10]:
        print(*row)
    print(f"{len(rows)} files, {len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    terminal.start(parse_args)
    terminal.run(lambda: sys.exit(main()))
