"""`tools/measure_curation.py`: the faults of its raw pool, and the numbers of its tables."""

import sys
from collections import Counter

import numpy as np
import pytest
from scripts import load_script
from subprocesses import REPOSITORY

pytestmark = pytest.mark.backend_free


@pytest.fixture(scope="module")
def tool():
    sys.path.append(str(REPOSITORY / "tools"))
    yield load_script("tools/measure_curation.py")
    sys.path.remove(str(REPOSITORY / "tools"))


def test_the_raw_pool_has_the_faults_that_are_named(tool):
    pairs = tool.noisy_pairs(200, np.random.default_rng(0))
    kinds = Counter(pair.kind for pair in pairs)
    assert len(pairs) == 200
    assert {kind: kinds[kind] for kind in tool.SHARES} == {kind: 200 * share for kind, share in tool.SHARES.items()}
    copies = [pair for pair in pairs if pair.original >= 0]
    assert len(copies) == 40 and len({pair.original for pair in copies}) < 10
    assert all(
        pairs[copy.original].kind == tool.CLEAN and pairs[copy.original].caption == copy.caption for copy in copies
    )
    # The most frequent of 409 classes has a seventh of all pairs.
    assert Counter(pair.source for pair in pairs[:160]).most_common(1)[0][1] > 10
    wrong = [pair for pair in pairs if pair.kind == "wrong caption"]
    assert sum(pair.source not in pair.caption for pair in wrong) > 0.7 * len(wrong)


def test_composition_counts_faults_and_copies(tool):
    verdict = tool.make_noisy_pool.Verdict
    found = {
        "a": verdict("clean", "one", None, None),
        "b": verdict("exact duplicate", "one", "a", None),
        # Its original was rejected, so that it is no copy.
        "c": verdict("re-encoded duplicate", "one", "z", None),
        "d": verdict("wrong caption", "two", None, None),
    }
    assert tool.composition(found) == (4, 0.25, 0.0, 0.0, 0.25, 1.0)


def test_the_interval_is_over_images_not_over_models(tool):
    hits = np.random.default_rng(0).random(100) < 0.5
    one, three = tool.summary(hits[None]), tool.summary(np.stack([hits] * 3))
    assert three["accuracy"] == pytest.approx(hits.mean()) and three["models"] == [hits.mean()] * 3
    # Three equal models tell no more than one.
    widths = [high - low for low, high in (one["interval"], three["interval"])]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)
