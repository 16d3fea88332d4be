"""`tools/estimate_curation.py`: its arithmetic, and that the documentation has its tables."""

from pathlib import Path

import pytest
from scripts import load_script

pytestmark = pytest.mark.backend_free

RATES = {
    "core_seconds": dict.fromkeys(("profile", "duplicates", "score", "balance", "write"), 1e-12) | {"match": 3.6e-3},
    "table_bytes": dict.fromkeys(("profile", "match", "duplicates", "balance"), 100) | {"score": 2000, "image": 20_000},
}


@pytest.fixture(scope="module")
def script():
    return load_script("tools/estimate_curation.py")


def test_hours_and_bytes_of_a_pass(script):
    arguments = script.parse_args(["--kept", "0.5", "--peak-tflops", "100", "--utilisation", "0.5"])
    rows = script.estimate(2e6, RATES, arguments)
    assert rows["match"] == pytest.approx((2.0, 0, 2e8))
    assert rows["write"] == pytest.approx((0, 0, 2e6 * 20_000 * 0.5), abs=1e-6)
    # About 8.7 GFLOPs of an image and 1.1 of 16 tokens.
    assert rows["score"][1] == pytest.approx(2e6 * 9.8e9 / 50e12 / 3600, rel=0.1)


def test_machines_and_cost(script):
    arguments = script.parse_args(["--pairs", "1e9", "--cores", "4", "--core-price", "0.1", "--gpu-price", "0"])
    cells = (line.strip("|").split("|") for line in script.tables(RATES, arguments).splitlines() if line)
    rows = {row[0].strip(): row[1].strip() for row in cells}
    assert rows["core-hours"] == "1,000" and rows["cost"] == "$100"
    assert rows["machines of 4 cores for 1 day(s)"] == "11"
    assert rows["source"] == "20 TB" and rows["new shards"] == "5 TB"


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (0.0123, "0.012"), (9.96, "10"), (123, "120"), (45_678, "46,000"), (1e10, "10,000,000,000")],
)
def test_two_significant_digits(script, value, text):
    assert script.number(value) == text


def test_the_documentation_has_these_tables(script):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    assert script.tables(script.RATES, script.parse_args([])) in page
