"""What Hugging Face's datasets declare: names of classes, in a dataset and in a Parquet file."""

import json

import pytest

from keras_clip.data.readers.elements import hugging_face

pytestmark = pytest.mark.backend_free


class ClassLabel:
    names = ("ant", "bee")

    def int2str(self, number):
        return self.names[number]


class Dataset:
    features = {"kind": ClassLabel(), "text": object()}


def schema(content):
    pa = pytest.importorskip("pyarrow")
    return pa.schema([("kind", pa.int64()), ("text", pa.string())], {b"huggingface": content})


FEATURES = {"kind": {"_type": "ClassLabel", "names": ["ant", "bee"]}, "text": {"_type": "Value"}}
DECLARED = {
    "dataset": lambda: hugging_face.class_names(Dataset()),
    "Parquet": lambda: hugging_face.class_names_of_schema(
        schema(json.dumps({"info": {"features": FEATURES}}).encode())
    ),
}


@pytest.mark.parametrize("declared", DECLARED.values(), ids=DECLARED)
@pytest.mark.parametrize(("number", "name"), [(0, "ant"), (1, "bee"), (-1, None), (2, None), (None, None)], ids=str)
def test_numbers_become_names(declared, number, name):
    """-1 is the number of samples without a label."""
    assert hugging_face.with_names({"kind": number, "text": 1}, declared()) == {"kind": name, "text": 1}


@pytest.mark.parametrize("content", [b"[]", b"{", json.dumps({"info": {"features": {"label": 3}}}).encode()])
def test_metadata_of_other_programs_are_no_reason_to_fail(content):
    assert hugging_face.class_names_of_schema(schema(content)) == {}


def test_a_transform_may_have_changed_the_classes():
    dataset = Dataset()
    dataset.format = {"type": "custom"}
    assert hugging_face.class_names(dataset) == {}
