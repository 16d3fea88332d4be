"""Templates from the grammar and from files, and refusals."""

import json

import pytest

from keras_clip import prompts

pytestmark = pytest.mark.backend_free


def test_the_whole_family():
    family = prompts.templates()
    # 5 templates differ in the determiner; 11 captures, 7 looks, 9 renditions and 6 materials have "a" and "the" each.
    assert len(family) == len(set(family)) == 5 + 2 * (11 + 7 + 9 + 6) == 71
    assert family[0] == "a photo of a {}."
    assert all(template.count("{}") == 1 and template.endswith(".") for template in family)


SENTENCES = [
    "a photo of many {}.",
    "a low resolution photo of the {}.",
    "a photo of a hard to see {}.",
    "a sculpture of the {}.",
    "art of a {}.",
    "an origami {}.",
    "an embroidered {}.",
    "the plastic {}.",
]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_sentences_of_each_kind(sentence):
    assert sentence in prompts.templates()


def test_domain_and_choice():
    family = prompts.templates(
        "a type of pet", determiners=("a",), captures=("good",), looks=(), renditions=(), materials=()
    )
    assert family == ("a photo of a {}, a type of pet.", "a good photo of a {}, a type of pet.")


def test_read_text(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# mine\na {} here\n\n  there: {}  \n")
    assert prompts.read(path) == ("a {} here", "there: {}")


def test_read_json(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(["a {}", "caf\u00e9 {}"]))
    assert prompts.read(str(path)) == ("a {}", "caf\u00e9 {}")


BAD_FILES = {
    "nothing.txt": "# only a comment\n",
    "none.txt": "a photo\n",
    "broken.json": "[",
    "object.json": "{}",
    "numbers.json": "[1]",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(name, tmp_path):
    (tmp_path / name).write_text(BAD_FILES[name])
    with pytest.raises(ValueError, match=f"(?s)Received.*{name}|{name}"):
        prompts.read(tmp_path / name)


BAD_TEMPLATES = {
    "a text": ("a {}", TypeError, "Pass a single template as a list"),
    "nothing": ([], ValueError, "At least one"),
    "no placeholder": (["a {}", "a photo"], ValueError, r"templates\[1\]='a photo'"),
    "two placeholders": (["{} and {}"], ValueError, "exactly one"),
    "a format": (["a {:d}"], ValueError, "exactly one"),
    "a named placeholder": (["{} of {name}"], ValueError, "exactly one"),
    "a number": ([7], TypeError, r"templates\[0\]=7"),
    "twice": (["a {}", "the {}", "a {}"], ValueError, "'a {}' twice"),
}


@pytest.mark.parametrize("templates, error, message", BAD_TEMPLATES.values(), ids=BAD_TEMPLATES)
def test_bad_templates(templates, error, message):
    with pytest.raises(error, match=message):
        prompts.validate_templates(templates)


def test_class_names_become_lists():
    assert prompts.validate_class_names(["cat", ("car", "auto")]) == [["cat"], ["car", "auto"]]


BAD_NAMES = {
    "a text": ("cat", TypeError, "Pass a single name as a list"),
    "nothing": ([], ValueError, "At least one class"),
    "empty": (["cat", " "], ValueError, r"class_names\[1\]=' '"),
    "no name": (["cat", []], ValueError, r"class_names\[1\]=\[\]"),
    "a number": (["cat", 3], TypeError, r"class_names\[1\]=3"),
    "twice": (["cat", "dog", "cat"], ValueError, "'cat' twice"),
    "twice among synonyms": (["cat", ["dog", "cat"]], ValueError, "'cat' twice"),
}


@pytest.mark.parametrize("names, error, message", BAD_NAMES.values(), ids=BAD_NAMES)
def test_bad_class_names(names, error, message):
    with pytest.raises(error, match=message):
        prompts.validate_class_names(names)


@pytest.mark.parametrize("family", prompts.FAMILIES.values(), ids=prompts.FAMILIES)
def test_families_are_valid_and_begin_with_a_plain_template(family):
    assert prompts.validate_templates(family) == family
    assert len(family) > 2
    assert not family[0].startswith(("a good", "the", "my", "inside"))


SAID_BY_THE_PAPER = {
    "pet": "a photo of a {}, a type of pet.",
    "food": "a photo of a {}, a type of food.",
    "aircraft": "a photo of a {}, a type of aircraft.",
    "satellite": "a satellite photo of {}.",
    "number": 'a photo of the number: "{}".',
}


@pytest.mark.parametrize("name, template", SAID_BY_THE_PAPER.items(), ids=SAID_BY_THE_PAPER)
def test_contexts_of_the_paper(name, template):
    assert prompts.FAMILIES[name][0] == template


def test_the_former_module_still_has_all_names():
    from keras_clip.data import prompts as former

    names = {name for name in vars(prompts) if not name.startswith("_")} - {"json", "Path", "Sequence"}
    assert {name: getattr(former, name) for name in names} == {name: getattr(prompts, name) for name in names}
