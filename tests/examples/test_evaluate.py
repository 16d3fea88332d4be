"""Runs examples/evaluate.py on a folder of images, in this process."""

import bz2
import dataclasses
import gzip
import lzma

import numpy as np
import pytest
from numbered_pairs import write_records, write_tar
from PIL import Image
from scripts import load_script

import keras_clip
from keras_clip.evaluation import Results


@pytest.fixture(scope="module")
def example():
    return load_script("examples/evaluate.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    image_encoder = keras_clip.encoders.VisionTransformer(16, 8, 8, 1, 1)
    text_encoder = keras_clip.encoders.TextTransformer(32, 1, 2, context_length=16)
    keras_clip.CLIPModel(image_encoder, text_encoder, 16).save(folder / "clip.keras")
    rng = np.random.default_rng(0)
    for name in ("cat", "a & b"):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 255, (20, 20, 3), "uint8")
            Image.fromarray(pixels).save(folder / "pictures" / name / f"{i}.png")
    return folder


def test_a_folder_becomes_a_report(example, folder, capsys):
    out = folder / "out"
    command = ["--model", str(folder / "clip.keras"), "--data", str(folder / "pictures"), "--out", str(out)]
    results = example.main([*command, "--parts", "zero_shot", "errors", "--templates", "a {}.", "one {}."])
    printed = capsys.readouterr().out
    assert "pictures\tzero_shot/family\taccuracy\t" in printed and "n=8" in printed
    assert "a &amp; b" in (out / "report.html").read_text(encoding="utf-8")
    assert Results.from_json((out / "results.json").read_text()).scores == results.scores
    again = example.main([*command, "--parts", "zero_shot", "--compare", str(out / "results.json")])
    assert again.select(method="zero_shot/bare_name") == results.select(method="zero_shot/bare_name")
    assert "Comparison of two models" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.backend_free
def test_unreadable_images_are_allowed_up_to_a_limit(example, folder):
    for name in ("cat", "dog"):
        (folder / "spoilt" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(folder / "spoilt" / name / "0.png")
        (folder / "spoilt" / name / "1.png").write_bytes(b"no image")
    command = ["--model", str(folder / "clip.keras"), "--data", str(folder / "spoilt"), "--parts", "zero_shot"]
    command += ["--out", str(folder / "out_spoilt")]
    with pytest.raises(ValueError, match="At most 5% of the samples .*raise `max_broken`"):
        example.main(command)
    assert {score.n for score in example.main([*command, "--max-broken", "0.5"]).scores} == {2}


@pytest.mark.backend_free
def test_classes_that_train_lacks(example, folder, capsys):
    """Of three classes of pictures the training data have two: an error, or a count."""
    for name, classes in (("test", ("ant", "bee", "cow")), ("train", ("ant", "bee"))):
        for i, class_name in enumerate(classes):
            (folder / name / class_name).mkdir(parents=True)
            for k in range(8):
                pixels = np.random.default_rng([i, k]).integers(0, 255, (20, 20, 3), "uint8")
                Image.fromarray(pixels).save(folder / name / class_name / f"{k}.png")
    command = ["--model", str(folder / "clip.keras"), "--parts", "zero_shot", "--out", str(folder / "out_classes")]
    command += ["--data", str(folder / "test"), "--train", str(folder / "train")]
    with pytest.raises(ValueError, match=r"Only test/test has \['cow'\] \(1 of 3 classes\).*missing=\"drop\""):
        example.main(command)
    results = example.main([*command, "--missing", "drop"])
    assert "n=16" in capsys.readouterr().out
    assert all("without 8 of 24 images of test" in score.protocol for score in results.scores)
    assert "Images that were left out" in (folder / "out_classes" / "report.html").read_text(encoding="utf-8")
    # The other way round nothing is lost.
    command[-3:] = [str(folder / "train"), "--train", str(folder / "test")]
    with pytest.raises(ValueError, match=r"Only test/train has \['cow'\]"):
        example.main(command)
    results = example.main([*command, "--missing", "keep", "--out", str(folder / "out_kept")])
    assert {score.n for score in results.scores} == {16} and "dropped" not in results.tables


@pytest.mark.backend_free
def test_every_form_of_data(example, folder, tmp_path):
    """What a word of the command line names is read by its form, and by the names that are given."""
    file = next((folder / "pictures").rglob("*.png")).read_bytes()
    (tmp_path / "a.png").write_bytes(file)
    (tmp_path / "b.png").write_bytes(file)
    (tmp_path / "a.csv").write_text("photo;kind;alt\na.png;cat;x\nb.png;dog;y\n")
    (tmp_path / "a.jsonl").write_text('{"photo": "a.png", "kind": "cat"}\n{"photo": "b.png", "kind": "dog"}\n')
    members = [
        (f"{k}.{end}", text) for k in range(2) for end, text in (("png", file), ("cls", b"%d" % k), ("alt", b"x"))
    ]
    write_tar(tmp_path / "a.tar", members)
    rows = [{"photo": file, "kind": name} for name in (b"cat", b"dog")]
    write_records(tmp_path / "a.tfrec", rows)

    def read(name, *words):
        args = example.parse_args(["--model", "m", "--data", "d", *words])
        return example.images(str(tmp_path / name), args, "test")

    named = ["--image", "photo", "--label", "kind"]
    for name in ("a.csv", "a.jsonl", "a.tfrec"):
        assert read(name, *named).class_names == ("cat", "dog")
    assert read("a.csv", *named, "--separator", ";").ids == ("a.png", "b.png")
    assert read("a.tar").class_names == ("0", "1")
    # Every form is recognised by the library's table, compressed or not, and by globs.
    for name, compress in (("csv.gz", gzip), ("jsonl.xz", lzma), ("tar.bz2", bz2), ("tgz", gzip)):
        plain = tmp_path / ("a.tar" if name == "tgz" else f"a.{name.rpartition('.')[0]}")
        (tmp_path / f"packed.{name}").write_bytes(compress.compress(plain.read_bytes()))
        words = [] if "t" == name[0] else named
        packed, expected = (read(path, *words) for path in (f"packed.{name}", plain.name))
        assert (packed.class_names, packed.ids) == (expected.class_names, expected.ids)
        assert np.array_equal(packed.labels, expected.labels)
    assert read("packed.csv.gz", *named, "--separator", ";").class_names == ("cat", "dog")
    (tmp_path / "tables").mkdir()
    for name, kind in (("1", "cat"), ("2", "dog")):
        (tmp_path / "tables" / f"{name}.csv").write_text(f"photo|kind,;\n../a.png|{kind}\n")
    found = read("tables/*.csv", "--image", "photo", "--label", "kind,;", "--delimiter", "|")
    assert found.class_names == ("cat", "dog") and found.name == "tables"
    # Both tables name the same image.
    assert len(set(found.ids)) == 2
    assert read("tables/{1,2}.csv", "--image", "photo", "--label", "kind,;", "--delimiter", "|").ids == found.ids
    args = example.parse_args(["--model", "m", "--data", "d", "--captions", "--caption", "alt"])
    task = example.make_task(str(tmp_path / "a.tar"), args, ["a {}."])
    assert dict(task.captions) == {"0": ["x"], "1": ["x"]}


@pytest.mark.backend_free
def test_what_fails_is_written_and_ends_with_an_error(example, folder, capsys, monkeypatch):
    out = folder / "out_failed"
    command = ["--model", str(folder / "clip.keras"), "--data", str(folder / "pictures"), "--out", str(out)]
    command += ["--parts", "zero_shot", "errors"]

    def fail(*_):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("keras_clip.evaluation.parts.errors._thumbnail", fail)
        with pytest.raises(SystemExit, match="1 parts failed"), pytest.warns(UserWarning, match="errors of pictures"):
            example.main(command)
    read = Results.from_json((out / "results.json").read_text())
    assert [(one.part, one.error) for one in read.failures] == [("errors", "RuntimeError: no memory")]
    assert len(read.scores) == 3 and "no memory" in (out / "report.html").read_text(encoding="utf-8")
    # A drawing, and results of other images.
    other = Results([dataclasses.replace(s, examples=dataclasses.replace(s.examples, ids="x")) for s in read.scores])
    (out / "other.json").write_text(other.to_json())
    with monkeypatch.context() as patch:
        patch.setattr("keras_clip.evaluation.report.html.gallery", fail)
        with pytest.raises(SystemExit, match="2 parts failed"):
            example.main([*command, "--compare", str(out / "other.json")])
    printed = capsys.readouterr().out
    assert "pictures\tzero_shot/family" in printed and "report of all: RuntimeError: no memory" in printed
    read = Results.from_json((out / "results.json").read_text())
    assert [one.part for one in read.failures] == ["comparison", "report"] and len(read.scores) == 3


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "no.keras", "--data", "digits"], "No such file: --model no.keras"),
        (["--model", "clip.keras", "--data", "no/folder"], "neither `digits`, a folder"),
        (["--model", "clip.keras", "--data", "digits", "--captions"], "--captions needs images with captions"),
        (["--model", "clip.keras", "--data", "digits", "--shift", "a/noise", "b/noise"], "different names"),
    ],
    ids=["model", "data", "captions", "shifts"],
)
def test_missing_inputs_are_named(example, folder, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit, match=message):
        example.main(words)
