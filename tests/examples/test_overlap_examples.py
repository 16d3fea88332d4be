"""The examples that repeat figure 2 and train a detector of copies: end to end on few images, and by hand."""

import csv
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from scripts import load_script
from subprocesses import REPOSITORY, run_python

from keras_clip.data import synthetic

EXAMPLES = REPOSITORY / "examples"


def points(*accuracies):
    return [{"images": 1000 * 2**i, "accuracy": accuracy} for i, accuracy in enumerate(accuracies)]


@pytest.mark.backend_free
def test_images_to_reach_by_hand():
    images_to_reach = load_script("examples/efficiency.py").images_to_reach
    # The midpoint of the logarithms of 2,000 and 4,000.
    assert images_to_reach(points(0.1, 0.2, 0.4), 0.3) == 2828
    assert images_to_reach(points(0.1, 0.2, 0.4), 0.2) == 2000
    assert images_to_reach(points(0.1, 0.2, 0.4), 0.05) == 1000
    assert images_to_reach(points(0.1, 0.2, 0.4), 0.5) is None


@pytest.mark.slow
@pytest.mark.backend_free
def test_efficiency(tmp_path):
    sizes = ["--epochs", "2", "--steps", "1", "--batch-size", "8", "--image-size", "32"]
    output = run_python(EXAMPLES / "efficiency.py", *sizes, "--out", str(tmp_path), backend="tensorflow", timeout=900)
    record = json.loads((tmp_path / "efficiency.json").read_text())
    assert set(record["curves"]) == {"language_model", "bag_of_words", "contrastive"}
    for curve in record["curves"].values():
        assert [point["images"] for point in curve] == [8, 16]
        for point in curve:
            assert point["accuracy"] == point["correct"] / point["n"]
            assert point["low"] <= point["accuracy"] <= point["high"]
    with open(tmp_path / "efficiency.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["objective"], int(row["correct"])) for row in rows] == [
        (objective, point["correct"]) for objective, curve in record["curves"].items() for point in curve
    ]
    assert np.asarray(Image.open(tmp_path / "efficiency.png").convert("RGB")).std() > 10
    assert output.count("after 16 images") == 3


@pytest.mark.slow
@pytest.mark.backend_free
def test_train_duplicate_detector(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for number in range(40):
            buffer = io.BytesIO()
            Image.fromarray(synthetic.sample(number, 48)[0]).save(buffer, "PNG")
            # Each two images form a group.
            record = json.dumps({"name": f"scene {number}", "pair": f"pair {number // 2}"}).encode()
            for suffix, data in (("png", buffer.getvalue()), ("json", record)):
                member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    sizes = ["--steps", "2", "--batch-size", "4", "--image-size", "32", "--width", "8", "--group", "pair"]
    out = ["--hold-out", "0.5", "--out", str(tmp_path / "run")]
    script = EXAMPLES / "train_duplicate_detector.py"
    output = run_python(script, str(tmp_path / "*.tar"), *sizes, *out, backend="tensorflow", timeout=900)
    record = json.loads((tmp_path / "run" / "recall.json").read_text())
    line = next(line for line in output.splitlines() if line.endswith("held out"))
    training, held_out = (int(word) for word in line.split() if word.isdigit())
    # Held-out groups count one image, the others both.
    assert training + 2 * held_out == 40 and 4 <= held_out <= 16
    assert record["hash"]["recompressed"]["n"] == held_out and record["hash"]["all"]["n"] == 4 * held_out
    assert record["hash"]["recompressed"]["recall"] > record["hash"]["flipped"]["recall"]
    assert (tmp_path / "run" / "detector.keras").stat().st_size > 1e5
