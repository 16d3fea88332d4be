"""Class names of prompts: they are looked up by the names of the labels, never by their position."""

import pytest

from keras_clip.evaluation.datasets.names import align_names

pytestmark = pytest.mark.backend_free

CLASSES = ("dog", "ant", "cat")
NAMES = {"cat": ["cat", "kitten"], "dog": "dog", "ant": ["ant", "emmet", "pismire"]}


def test_names_are_found_by_name():
    assert align_names(CLASSES, NAMES) == [["dog"], ["ant", "emmet", "pismire"], ["cat", "kitten"]]
    assert align_names(("b", "a")) == [["b"], ["a"]]
    assert align_names(("a", "b"), {"c": "c", "b": "y", "a": "x"}) == [["x"], ["y"]]


REFUSED = {
    "labels without a name": (("cat", "unicorn"), NAMES, r"without \['unicorn'\]"),
    "no class names": (None, None, "class_names=None"),
    "a name of two classes": (("a", "b"), {"a": "x", "b": "x"}, "'x' twice"),
}


@pytest.mark.parametrize("class_names, names, message", REFUSED.values(), ids=REFUSED)
def test_refusals(class_names, names, message):
    with pytest.raises(ValueError, match=message):
        align_names(class_names, names)
