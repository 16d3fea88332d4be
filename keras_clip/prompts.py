"""Prompt templates, from a small grammar or a user's file, and validation of templates and class names.

A caption is rarely a single word, and an ensemble of prompts describes a class better than a single prompt (Radford et
al., 2021, section 3.1.4).
"""

import json
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

DETERMINERS = ("a", "the", "my", "one", "many")
# Qualities of the photo.
CAPTURES = (
    "good",
    "bad",
    "blurry",
    "bright",
    "dark",
    "cropped",
    "close-up",
    "low resolution",
    "pixelated",
    "jpeg corrupted",
    "black and white",
)
# Qualities of the object.
LOOKS = ("clean", "dirty", "cool", "weird", "large", "small", "hard to see")
# Types of images other than photos, and materials of depictions of the object.
RENDITIONS = ("art", "graffiti", "painting", "drawing", "sketch", "doodle", "sculpture", "tattoo", "rendering")
MATERIALS = ("origami", "embroidered", "plastic", "plushie", "toy", "cartoon")
_UNCOUNTED = ("art", "graffiti")


def templates(
    domain: str | None = None,
    determiners: Sequence[str] = DETERMINERS,
    captures: Sequence[str] = CAPTURES,
    looks: Sequence[str] = LOOKS,
    renditions: Sequence[str] = RENDITIONS,
    materials: Sequence[str] = MATERIALS,
) -> tuple[str, ...]:
    """Returns a family of templates: one plain photo per determiner, then variants with "a" and "the".

    `templates()` returns 71, similar to the 80 that the paper used for ImageNet. Omit variants that do not apply to
    your images: `templates("a type of pet", renditions=(), materials=())`.

    Args:
        domain: description of all classes after the name, such as "a type of pet"; None: no description.
        determiners: words before the name.
        captures: qualities of the photo.
        looks: qualities of the object.
        renditions: types of images other than photos.
        materials: materials of depictions of the object.

    Returns:
        Unique templates with one `{}` each, the plainest first.
    """
    pairs = [determiner for determiner in ("a", "the") if determiner in determiners]
    sentences = [f"a photo of {determiner} {{}}" for determiner in determiners]
    sentences += [f"{_a(capture)} photo of {determiner} {{}}" for capture in captures for determiner in pairs]
    sentences += [f"a photo of {_the(determiner, look)} {{}}" for look in looks for determiner in pairs]
    sentences += [
        f"{rendition if rendition in _UNCOUNTED else _a(rendition)} of {determiner} {{}}"
        for rendition in renditions
        for determiner in pairs
    ]
    sentences += [f"{_the(determiner, material)} {{}}" for material in materials for determiner in pairs]
    end = "." if domain is None else f", {domain}."
    return validate_templates([sentence + end for sentence in sentences])


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _the(determiner: str, words: str) -> str:
    return _a(words) if determiner == "a" else f"{determiner} {words}"


def read(path: str | Path) -> tuple[str, ...]:
    """Reads templates from a file.

    Args:
        path: a .json file with a list of strings, or a text file with one template per line; empty lines and lines that
            begin with # are ignored.

    Returns:
        The templates.

    Raises:
        ValueError: no template, or an invalid one (see `validate_templates`).
    """
    text = Path(path).read_text(encoding="utf-8")
    if Path(path).suffix == ".json":
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"The file must contain a JSON list of templates. Received: path={path}: {error}."
            ) from None
        if not isinstance(found, list):
            raise ValueError(
                f"The file must contain a JSON list of templates. Received: path={path} with {type(found).__name__}."
            )
    else:
        lines = (line.strip() for line in text.splitlines())
        found = [line for line in lines if line and not line.startswith("#")]
    try:
        return validate_templates(found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error} The file is {path}.") from None


def validate_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Checks that every template has exactly one place for a name.

    Args:
        templates: texts with exactly one `{}`.

    Returns:
        The templates as a tuple.

    Raises:
        TypeError: not a sequence of texts.
        ValueError: no template, one without exactly one `{}`, or a duplicate.
    """
    if isinstance(templates, str) or not isinstance(templates, Sequence):
        raise TypeError(
            f"`templates` must be a sequence of texts. Received: templates={templates!r}. "
            "Pass a single template as a list: ['a photo of a {}.']."
        )
    if not templates:
        raise ValueError(
            f"At least one template is required. Received: templates={templates!r}. Pass ['a photo of a {{}}.']."
        )
    for i, template in enumerate(templates):
        if not isinstance(template, str):
            raise TypeError(f"Templates must be texts. Received: templates[{i}]={template!r}.")
        if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
            raise ValueError(
                "A template must have exactly one {}, which the class name replaces. "
                f"Received: templates[{i}]={template!r}."
            )
    _check_unique("templates", templates)
    return tuple(templates)


def validate_class_names(class_names: Sequence[str | Sequence[str]]) -> list[list[str]]:
    """Checks that every class has a name and that all names are unique.

    Args:
        class_names: K items, each a name or a sequence of names of the same class.

    Returns:
        K lists of names.

    Raises:
        TypeError: not a sequence of texts or of sequences of texts.
        ValueError: no class, a class without a name, an empty name, or a duplicate name.
    """
    if isinstance(class_names, str) or not isinstance(class_names, Sequence):
        raise TypeError(
            f"`class_names` must be a sequence of names. Received: class_names={class_names!r}. "
            "Pass a single name as a list: ['cat']."
        )
    names = [[item] if isinstance(item, str) else item for item in class_names]
    if not names:
        raise ValueError(f"At least one class is required. Received: class_names={class_names!r}.")
    for i, synonyms in enumerate(names):
        if not isinstance(synonyms, Sequence) or not all(isinstance(name, str) for name in synonyms):
            raise TypeError(
                f"A class must be a name or a sequence of names. Received: class_names[{i}]={class_names[i]!r}."
            )
        if not synonyms or not all(name.strip() for name in synonyms):
            raise ValueError(f"A class must have a non-empty name. Received: class_names[{i}]={class_names[i]!r}.")
    _check_unique("class_names", [name for synonyms in names for name in synonyms])
    return [list(synonyms) for synonyms in names]


def warn_of_equal_prompts(owners: Sequence[tuple[str, int, str]], token_ids: np.ndarray) -> None:
    """Warns of classes with prompts that the tokenizer makes equal, such as those of "Apple" and "apple".

    Such classes have equal scores, so that the second one is never predicted. Prompts of different templates are not
    compared: "a {}" of "cat" and "{}" of "a cat" are equal, but the classes differ in each template.

    Args:
        owners: template, class index and name of each of P prompts.
        token_ids: ints (P, L).
    """
    seen: dict[tuple[str, bytes], tuple[int, str]] = {}
    equal: dict[tuple[str, str], None] = {}
    for (template, index, name), row in zip(owners, np.ascontiguousarray(token_ids), strict=True):
        other, other_name = seen.setdefault((template, row.tobytes()), (index, name))
        if other != index:
            equal[other_name, name] = None
    if equal:
        shown = "; ".join(f"{_shown(one, other)} and {_shown(other, one)}" for one, other in list(equal)[:5])
        warnings.warn(
            "Prompts of different classes must differ for the tokenizer (upper case, accents in one or two characters "
            "and spaces do not count), or images of the second class are never predicted. Received: equal token ids of "
            f"{shown} ({len(equal)} pair{'s' if len(equal) > 1 else ''} of names). Rename one of each pair, or make "
            "them one class with a list of names.",
            stacklevel=3,
        )


def _shown(name: str, other: str) -> str:
    """A name in quotes; with numbers for its characters where the other name looks the same."""
    looks_equal = unicodedata.normalize("NFKC", name) == unicodedata.normalize("NFKC", other)
    return ascii(name) if looks_equal else repr(name)


def _check_unique(argument: str, texts: Sequence[str]) -> None:
    seen = set()
    for text in texts:
        if text in seen:
            raise ValueError(f"`{argument}` must be unique. Received: {text!r} twice.")
        seen.add(text)


def _photo_templates(domain: str) -> tuple[str, ...]:
    """Returns templates for photos of classes that share one description."""
    return templates(domain, ("a", "the", "my"), ("good", "bad", "close-up", "low resolution"), (), (), ())


# Templates by domain, following the paper (Radford et al., 2021, section 3.1.4): a description of all classes, quotes
# around text in the image, "a satellite photo". The plainest template comes first.
FAMILIES = {
    "object": templates(),
    "photo": templates(renditions=(), materials=()),
    "pet": _photo_templates("a type of pet"),
    "food": _photo_templates("a type of food"),
    "flower": _photo_templates("a type of flower"),
    "bird": _photo_templates("a type of bird"),
    "aircraft": _photo_templates("a type of aircraft"),
    "car": _photo_templates("a type of car"),
    "sign": _photo_templates("a type of traffic sign"),
    "scene": ("a photo of a {}.", "a photo of the {}.", "a good photo of a {}.", "a view of a {}.", "inside a {}."),
    "satellite": ("a satellite photo of {}.", "a centered satellite photo of {}.", "an aerial photo of {}."),
    "texture": ("a photo of a {} texture.", "a photo of a {} pattern.", "a photo of a {} thing.", "a {} surface."),
    "number": ('a photo of the number: "{}".', 'the number "{}", written by hand.', 'a drawing of the digit "{}".'),
    "action": ("a photo of a person {}.", "a video of a person {}.", "an example of someone {}.", "people {}."),
    "country": ("a photo taken in {}.", "a photo I took in {}.", "a photo of a street in {}.", "a landscape in {}."),
    "expression": ("a photo of a {} looking face.", "a face that looks {}.", "a portrait of a person who is {}."),
    "microscope": ("a microscope photo of {}.", "a histology image of {}.", "this is a photo of {}."),
    "count": ("a photo of {} objects.", "a picture of {} things.", "there are {} objects in the picture."),
    "distance": ("a photo I took of {}.", "a photo from my car of {}.", "a photo of a road with {}."),
    "meme": ("a {}.", "a picture of a {}.", "a screenshot of a {}."),
    "review": ("a {} review of a movie.", "a {} movie review, as printed text.", "a sentence with a {} opinion."),
}
