"""The demo as `make demo` runs it: the accuracy that it prints and the files that it writes."""

import json

import numpy as np
import pytest
from PIL import Image
from scripts import load_script
from subprocesses import REPOSITORY, run_python


@pytest.mark.backend_free
@pytest.mark.parametrize("probabilities", [np.full((4, 3), np.nan), np.full((4, 3), 1 / 3)], ids=["NaN", "all equal"])
def test_nan_and_equal_probabilities_count_as_wrong(probabilities):
    top_1 = load_script("examples/demo.py").measure(probabilities, np.array([0, 1, 2, 0]))["all"]["top_1"]
    assert top_1[:2] == (0, 4)


@pytest.mark.backend_free
def test_accuracy_by_hand():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]])
    measured = load_script("examples/demo.py").measure(probabilities, np.array([0, 1, 2, 2]))
    assert [measured[group]["top_1"][:2] for group in ("all", "photos", "sketches")] == [(2, 4), (2, 2), (0, 2)]
    assert measured["all"]["top_5"][:2] == (4, 4)


@pytest.mark.slow
@pytest.mark.backend_free
def test_demo(tmp_path):
    output = run_python(REPOSITORY / "examples" / "demo.py", "--out", str(tmp_path), backend="tensorflow", timeout=1800)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["candidates"] >= 50
    correct, total, low, high = summary["accuracies"]["all"]["top_1"]
    assert total >= 200 and low < correct / total < high
    assert correct / total >= 0.5
    assert f"{correct / total:.1%}  [{low:.1%}, {high:.1%}]  of {total}" in output
    for name in ("loss_curve", "similarity_matrix", "contact_sheet"):
        picture = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        assert picture.std() > 10
    assert (tmp_path / "clip.keras").stat().st_size > 1e6
