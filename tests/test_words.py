"""The project's texts use the terms of the field: unclear phrases that were once replaced must not occur again."""

import re

import pytest
from subprocesses import REPOSITORY

pytestmark = pytest.mark.backend_free

# Each phrase, as a regular expression, and what to write instead.
BANNED = {
    r"kinds? that training never showed|kinds? that (it|the model) never saw": "unseen classes",
    r"which class for which": "confusion matrix",
    r"labels that zero-shot is worth|zero-shot is worth": "shots needed to match zero-shot",
    r"pixel rules?": "preprocessing",
    r"image's mark": "fingerprint",
    r"round and round": "busy-waiting",
    r"seven in eight": "about 88 %",
    r"the walk (also )?proves": "indexing verifies that the shard is complete",
    r"whole over R\b": "global_loss / R",
    r"so many times the rate": "lr * decay ** (depth - i)",
    r"what a batch of pairs costs": "contrastive and captioning losses",
    r"what (comes|came|goes|went) (out|in)\b": "the name of the value: embeddings, output, input",
    r"\bshall\b": "is, will or must",
    r"\btells\b": "returns, reports or shows",
    r"\bask(s|ed)? for\b": "requests, requires or needs",
    r"\bso many\b": "the number itself",
    r"\bas it comes\b": "unchanged",
    r"\bby heart\b": "overfits",
    r"\bnothing of\b": "none of",
    r"\bWanted: ": "Expected",
    r"\bno_drawing\b": "skip_initialization",
    r"\b_pull_back\b": "_backward",
    r"\b_hide\b": "_mask_positives_and_padding",
    r"\bSHORTEST\b": "EPSILON_SQUARED",
}
READ = ("*.py", "*.md", "*.toml", "*.sh", "*.j2", "Makefile", "run")
FOLDERS = ("keras_clip", "examples", "tests", "tools", "docs", ".ci")


def texts():
    files = [path for folder in FOLDERS for pattern in READ for path in (REPOSITORY / folder).rglob(pattern)]
    files += [path for pattern in READ for path in REPOSITORY.glob(pattern)]
    # This file names the phrases.
    return {path.relative_to(REPOSITORY).as_posix(): path.read_text() for path in files if path.name != "test_words.py"}


TEXTS = texts()


def find(pattern, text):
    """(line number, line) of each match, also of a phrase that is broken over two lines of a comment or docstring."""
    gap = r"(?:\s|\n\s*#\s*)+"
    compiled = re.compile(pattern.replace(" ", gap), re.IGNORECASE if pattern.islower() else 0)
    return [text.count("\n", 0, match.start()) + 1 for match in compiled.finditer(text)]


@pytest.mark.parametrize("pattern", BANNED)
def test_banned_phrase_does_not_occur(pattern):
    found = [f"{path}:{line}" for path, text in TEXTS.items() for line in find(pattern, text)]
    assert not found, f"write {BANNED[pattern]!r} instead of {pattern!r}"


def test_every_file_is_read():
    assert {"README.md", "Makefile", ".ci/run", "keras_clip/model.py", "docs/architecture.md"} <= set(TEXTS)


@pytest.mark.parametrize(
    "text", ["it tells the size", "# it is so\n    # many of them", "What came\nout of it", "Which class for which"]
)
def test_phrase_is_found(text):
    assert any(find(pattern, text) for pattern in BANNED)
