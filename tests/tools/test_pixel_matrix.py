"""The pipeline's pixels are PIL's on every file of the matrix, and the matrix can find that they are not."""

import pytest
from scripts import load_script

from keras_clip.data import image_files

pytestmark = pytest.mark.backend_free


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/pixel_matrix.py")


@pytest.fixture(scope="module")
def rows(tool):
    return tool.compare()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_no_faults(tool, rows):
    assert [row for row in rows if tool.is_fault(row)] == []
    whole = {row[0] for row in rows if row[2] == "whole"}
    assert whole == {"JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "PPM"}
    assert sum(row[2] == "whole" for row in rows) > 350 and len(rows) > 750


def test_a_fault_is_found(tool, monkeypatch):
    files = [(form, name, data) for form, name, data in tool.matrix() if name in ("eXIf 6", "4:2:0")]
    monkeypatch.setattr(image_files, "_orientation", lambda image: None)
    assert [tool.is_fault(row) for row in tool.compare(files)] == [False, True]
