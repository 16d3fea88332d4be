"""`examples/curate.py duplicates`, `score` and `filter`: what they print and write, and their errors."""

import io
import json

import keras
import numpy as np
import pytest
from numbered_pairs import write_tar
from PIL import Image
from scripts import load_script

import keras_clip
from keras_clip import curation


def picture(seed):
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (5, 4, 3), np.uint8)).resize((50, 40), Image.Resampling.BICUBIC).save(
        file, "PNG"
    )
    return file.getvalue()


CAPTIONS = ["a red square on a sofa", "a dog", "eine blaue Katze auf dem Tisch", "a small dog and a cat"]


@pytest.fixture(scope="module")
def curate():
    return load_script("examples/curate.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, curate):
    folder = tmp_path_factory.mktemp("curate")
    keras.utils.set_random_seed(0)
    image_encoder = keras_clip.encoders.VisionTransformer(16, 8, 16, 1, 2)
    text_encoder = keras_clip.encoders.TextTransformer(16, 1, 2, context_length=16)
    tokenizer = keras_clip.data.CLIPTokenizer(16)
    keras_clip.CLIPModel(image_encoder, text_encoder, 8, tokenizer=tokenizer).save(folder / "clip.keras")
    members = [(f"{i}.png", picture(i % 3)) for i in range(4)] + [(f"{i}.txt", CAPTIONS[i].encode()) for i in range(4)]
    write_tar(folder / "raw.tar", sorted(members))
    test = folder / "test"
    test.mkdir()
    (test / "one.png").write_bytes(picture(1))
    curate.main(["profile", str(folder / "raw.tar"), "--work", str(folder / "work"), "--engine", "serial"])
    return folder


def run(curate, folder, *arguments):
    curate.main([arguments[0], "--work", str(folder / "work"), "--engine", "serial", *arguments[1:]])


def reasons(folder, name):
    pool = curation.Pool.open(None, folder / "work")
    return pool.table(name, pool.shards[0])["reason"].to_pylist()


def test_duplicates_and_test_sets(curate, folder, capsys):
    run(curate, folder, "score", "--model", str(folder / "clip.keras"), "--batch-size", "4")
    assert "4  scored" in capsys.readouterr().out
    test_set = ["--test-set", f"birds={folder / 'test'}", "--test-model", str(folder / "clip.keras")]
    run(curate, folder, "duplicates", "--prefer", "profile.characters", *test_set, "--test-cosine", "0.99999")
    printed = capsys.readouterr().out
    assert "1  exact duplicate" in printed and "1  near a test image of birds" in printed
    assert reasons(folder, "duplicates") == [None, None, None, "exact duplicate"]
    assert reasons(folder, "test_images") == [None, "near a test image of birds", None, None]
    run(curate, folder, "duplicates", "--method", "embedding", "--clusters", "1", "--cosine", "0.99999")
    assert sum(map(bool, reasons(folder, "duplicates"))) == 1
    run(curate, folder, "duplicates", *test_set, "--list-only")
    assert reasons(folder, "test_images") == [None] * 4


def test_filter(curate, folder):
    (folder / "rules.json").write_text(json.dumps([{"expression": "words > 2", "reason": "short", "name": "w"}]))
    (folder / "names.txt").write_text("Katze\nred square\n")
    named = ["--rules", str(folder / "rules.json"), "--list", f"names={folder / 'names.txt'}"]
    run(curate, folder, "filter", *named, "--rule", "mentions(caption, 'names')")
    assert reasons(folder, "filter") == [None, "short", None, "not: mentions(caption, 'names')"]
    run(curate, folder, "filter", "--basic", "--name", "basic")
    assert reasons(folder, "basic")[0] == "shorter side below 200 pixels"


REFUSED = {
    "no rule": (["filter"], SystemExit, "needs rules"),
    "a rule that is no rule": (["filter", "--rule", "open('x')"], ValueError, "no other functions"),
    "a preference without a column": (["duplicates", "--prefer", "pixels"], SystemExit, "PASS.COLUMN"),
    "a test set without a name": (["duplicates", "--test-set", "photos"], SystemExit, "NAME=PATH"),
}


@pytest.mark.parametrize("arguments, kind, message", REFUSED.values(), ids=REFUSED)
def test_refusals(curate, folder, arguments, kind, message):
    with pytest.raises(kind, match=message):
        run(curate, folder, *arguments)
