"""Runs examples/evaluate.py on a folder of images, in this process."""

import numpy as np
import pytest
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
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "no.keras", "--data", "digits"], "No such file: --model no.keras"),
        (["--model", "clip.keras", "--data", "no/folder"], "neither `digits`, a folder"),
        (["--model", "clip.keras", "--data", "digits", "--captions"], "--captions reads the .txt of tars"),
    ],
    ids=["model", "data", "captions"],
)
def test_missing_inputs_are_named(example, folder, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit, match=message):
        example.main(words)
