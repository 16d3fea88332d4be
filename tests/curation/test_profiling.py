"""The profile has a row for each pair, with what one decoding of the image and one reading of the caption show."""

import hashlib
import io
import tarfile

import numpy as np
import pytest
from numbered_pairs import image_file, numbered, write_records, write_shards, write_tar
from PIL import Image

from keras_clip import curation
from keras_clip.curation.profiling import is_file_name_like, text_hash
from keras_clip.data.image_files import MAX_PIXELS, open_image
from keras_clip.similarity.fingerprints import HASH_SHORTEST, colours_of_decoded, perceptual_hash

pytestmark = pytest.mark.backend_free


def jpeg(size=(300, 200), orientation=None, quality=90):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, exif=exif)
    return file.getvalue()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    whole = jpeg()
    members = [
        ("a.jpg", whole),
        ("a.txt", b"two dogs run across a field of grass"),
        ("b.jpg", whole[: len(whole) // 2]),
        ("b.txt", b"IMG_2041.JPG"),
        ("c.png", image_file(3)),
        ("c.txt", "Der Hund läuft über die grüne Wiese".encode("latin-1")),
        ("d.jpg", jpeg(orientation=6)),
        ("d.txt", b"  \n "),
        ("e.txt", b"a caption without an image"),
        ("f.webp", b"not an image at all"),
        ("f.txt", "Der Hund läuft über die grüne Wiese".encode()),
    ]
    write_tar(folder / "00000.tar", members)
    pool = curation.Pool.open(str(folder / "*.tar"), folder / "work")
    counts = curation.profile(pool, "serial", progress=False)
    rows = {row["key"]: row for row in pool.table("profile", pool.shards[0]).to_pylist()}
    return rows, counts, members


def test_a_good_pair(table):
    rows, _, members = table
    image = members[0][1]
    assert rows["a"] == {
        "key": "a",
        "shard": "00000",
        "sample": 0,
        "caption_number": 0,
        "caption": "two dogs run across a field of grass",
        "decode_ok": True,
        "reason": None,
        "format": "JPEG",
        "mode": "RGB",
        "width": 300,
        "height": 200,
        "aspect": 1.5,
        "bytes": len(image),
        "sha256": hashlib.sha256(image).hexdigest(),
        "perceptual_hash": int.from_bytes(perceptual_hash(image, shortest=HASH_SHORTEST).tobytes(), "big"),
        "colours": colours_of_decoded(open_image(image, "image", MAX_PIXELS, HASH_SHORTEST)),
        "characters": 36,
        "words": 8,
        "tokens": 10,
        "utf8_ok": True,
        "file_name_like": False,
        "blank": False,
        "language": "en",
        "text_hash": text_hash("Two dogs run  across a field of GRASS "),
    }


def test_broken_images_have_a_reason(table):
    rows, counts, _ = table
    assert {key: row["reason"] for key, row in rows.items()} == {
        "a": None,
        "b": "undecodable image",
        "c": None,
        "d": None,
        "e": "no image",
        "f": "undecodable image",
    }
    assert all(row["decode_ok"] == (row["reason"] is None) for row in rows.values())
    # The header of a file that is cut short is whole.
    assert (rows["b"]["width"], rows["b"]["height"], rows["b"]["perceptual_hash"]) == (300, 200, None)
    assert rows["f"]["width"] is None and rows["f"]["format"] is None
    assert counts["undecodable image"] == 2 and counts["no image"] == 1 and counts["pairs"] == counts["samples"] == 6


def test_sides_are_those_of_the_upright_image(table):
    rows, _, _ = table
    assert (rows["d"]["width"], rows["d"]["height"], rows["d"]["aspect"]) == (200, 300, 1.5)


def test_captions(table):
    rows, counts, _ = table
    assert [rows[key]["blank"] for key in "abcdef"] == [False, False, False, True, False, False]
    assert rows["d"]["language"] is None and rows["f"]["language"] == "de"
    assert [rows[key]["utf8_ok"] for key in "abcdef"] == [True, True, False, True, True, True]
    assert "�" in rows["c"]["caption"] and rows["f"]["characters"] == 35
    assert [rows[key]["file_name_like"] for key in "abcdef"] == [False, True, False, False, False, False]
    assert counts["blank"] == 1 and counts["file_name_like"] == 1 and counts["not utf8"] == 1


def test_each_caption_of_an_image_has_a_row(tmp_path):
    write_records(tmp_path / "a.tfrecord", [{"jpg": jpeg(), "txt": [b"first", b"second", b"third"]}, {"jpg": jpeg()}])
    pool = curation.Pool.open(tmp_path / "a.tfrecord", tmp_path / "work")
    assert curation.profile(pool, progress=False)["pairs"] == 4
    rows = pool.table("profile", pool.shards[0]).to_pylist()
    assert [(row["sample"], row["caption_number"], row["caption"]) for row in rows] == [
        (0, 0, "first"),
        (0, 1, "second"),
        (0, 2, "third"),
        (1, 0, ""),
    ]


def test_images_of_too_many_pixels_are_not_decoded(tmp_path):
    write_shards(tmp_path, numbered(3), 1)
    pool = curation.Pool.open(str(tmp_path / "*.tar"), tmp_path / "work")
    assert curation.profile(pool, max_pixels=100, progress=False)["image too large"] == 3
    # Another limit is another configuration: the pass runs again.
    assert "image too large" not in curation.profile(pool, progress=False)


def test_an_empty_shard_and_names_that_are_no_utf8(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w"):
        pass
    write_tar(tmp_path / "1.tar", [("caf\udce9.png", image_file(1)), ("caf\udce9.txt", b"a cup")])
    pool = curation.Pool.open(str(tmp_path / "*.tar"), tmp_path / "work")
    assert curation.profile(pool, "serial", progress=False)["pairs"] == 1
    assert [table["key"].to_pylist() for table in pool.tables("profile")] == [[], ["caf\\udce9"]]
    assert curation.keep(pool, engine="serial", progress=False)["kept pairs"] == 1


@pytest.mark.parametrize(
    "caption",
    ["IMG_2041.JPG", "dsc01234", "DSC_0042", "20230412_153000.jpg", "photo.png", "1234567", "P1010023", "image (3)",
     "Screenshot 2023-04-12 at 15.30.00", "f/2.8 1/200s ISO 400", "ISO 100, 50mm, f/1.8", "img-20190101-wa0003",
     "3f2a9c4d5e6f7a8b", "550e8400-e29b-41d4-a716-446655440000", "000000001", "My Holiday.jpeg"[3:], "Canon EOS 5D"],
)  # fmt: skip
def test_file_names_and_camera_settings(caption):
    assert is_file_name_like(caption)


@pytest.mark.parametrize(
    "caption",
    ["a dog", "", "  ", "image of a dog", "Photo: the harbour at dawn", "3 dogs", "cafe", "a 50mm lens on a table",
     "route 66", "photo", "a scan of a page", "Boeing 747", "no flash photography allowed", "feedback", "Nikon"],
)  # fmt: skip
def test_descriptions_are_no_file_names(caption):
    assert not is_file_name_like(caption)


def test_long_captions_are_no_file_names():
    """And they cost no time: a pattern would take one that grows with the square of their length."""
    assert not is_file_name_like("x " + "1" * 10**6) and not is_file_name_like("canon " * 10**5)


def test_text_hash_ignores_case_space_and_unicode_form():
    assert text_hash("A  Café\n") == text_hash("a cafe\u0301") == text_hash("Ａ café")
    assert text_hash("a cafe") != text_hash("a café")
    assert text_hash("a dog") == "2d542c246172ce211bbe11280c9c4824"
