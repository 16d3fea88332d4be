"""The demo as `make demo` runs it: it learns what it says, and leaves what it promises."""

import json

import numpy as np
import pytest
from PIL import Image
from subprocesses import REPOSITORY, run_python


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
