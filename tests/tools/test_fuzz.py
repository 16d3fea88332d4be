"""5,000 mutated files of every kind: no crash, no hang, no unexpected exception, no lost sample."""

import numpy as np
import pytest
from scripts import load_script

pytestmark = pytest.mark.backend_free


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/fuzz.py")


@pytest.mark.slow
def test_no_faults(tool, capfd, tmp_path):
    assert tool.main(["--count", "5000", "--out", str(tmp_path)]) == 0, capfd.readouterr().out
    rows = capfd.readouterr().out.splitlines()[1 : 1 + len(tool.SHARES)]
    assert [row.split()[0] for row in rows] == list(tool.SHARES)
    for row in rows:
        kind, files, read, refused, faults = row.split()[:5]
        assert int(refused) > 0 and int(faults) == 0 and int(files) == int(read) + int(refused), row


class Target:
    """Stands for a reader with a fault of each kind."""

    files = [b"whole"]

    def __init__(self, folder):
        # The whole file is read four times first.
        self.count = -4

    def read(self, data):
        import time

        self.count += 1
        if self.count == 3:
            time.sleep(5)
        if self.count == 4:
            raise IndexError("out of range")
        if self.count == 5:
            return "silent shrink"
        if self.count == 6:
            raise ValueError("refused")


def test_faults_are_found(tool, monkeypatch):
    monkeypatch.setitem(tool.KINDS, "images", Target)
    outcomes, faults = tool.run_kind("images", 6, tool.parse_args(["--seconds", "0.2"]))
    assert outcomes == {"read": 2, "refused": 1, "fault": 3}
    assert ["more than 0.2 s" in faults[0], "IndexError" in faults[1], "shrink" in faults[2]] == [True] * 3


def test_a_mutation_follows_from_its_seed(tool):
    data = bytes(range(256)) * 4
    changed = [tool.mutate(data, np.random.default_rng(seed)) for seed in range(50)]
    assert changed == [tool.mutate(data, np.random.default_rng(seed)) for seed in range(50)]
    assert sum(one != data for one in changed) > 40
