"""Templates that make a sentence of a class name, from a small grammar or a user's file; and checks of both.

Radford et al. (2021), section 3.1.4: a caption is rarely one word, and an ensemble of sentences names a class better
than any one of them.
"""

import json
from collections.abc import Sequence
from pathlib import Path

DETERMINERS = ("a", "the", "my", "one", "many")
# How the picture was taken.
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
# How the thing looks.
LOOKS = ("clean", "dirty", "cool", "weird", "large", "small", "hard to see")
# What the picture is, if no photograph; and what the thing is made of, if it is a likeness.
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
    """A family of templates: one plain photo per determiner, then photos, likenesses and pictures with "a" and "the".

    `templates()` has 71 of them, like the 80 that the paper used for ImageNet. Leave out what your images are not:
    `templates("a type of pet", renditions=(), materials=())`.

    Args:
        domain: what all classes are, such as "a type of pet": said after the name. None: nothing.
        determiners: words before the name.
        captures: qualities of the photo.
        looks: qualities of the thing.
        renditions: what else than a photo the picture may be.
        materials: what the thing may be made of.

    Returns:
        Templates with one `{}` each, no two alike, the plainest first.
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
    """Reads a user's own templates.

    Args:
        path: a .json file with a list of strings, or a text file with one template a line; empty lines and lines that
            begin with # are left out.

    Returns:
        The templates.

    Raises:
        ValueError: no templates, or one that is not valid (see `validate_templates`).
    """
    text = Path(path).read_text(encoding="utf-8")
    if Path(path).suffix == ".json":
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"The file must hold a JSON list of templates. Received: path={path}: {error}.") from None
        if not isinstance(found, list):
            raise ValueError(
                f"The file must hold a JSON list of templates. Received: path={path} with {type(found).__name__}."
            )
    else:
        lines = (line.strip() for line in text.splitlines())
        found = [line for line in lines if line and not line.startswith("#")]
    try:
        return validate_templates(found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error} The file is {path}.") from None


def validate_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates as a tuple, if each can take a name.

    Args:
        templates: texts with exactly one `{}`.

    Returns:
        The same, as a tuple.

    Raises:
        TypeError: not a sequence of texts.
        ValueError: none at all, one without exactly one `{}`, or one twice.
    """
    if isinstance(templates, str) or not isinstance(templates, Sequence):
        raise TypeError(
            f"`templates` must be a sequence of texts. Received: templates={templates!r}. "
            "Put a single one into a list: ['a photo of a {}.']."
        )
    if not templates:
        raise ValueError(
            f"At least one template is needed. Received: templates={templates!r}. Try 'a photo of a {{}}.'."
        )
    for i, template in enumerate(templates):
        if not isinstance(template, str):
            raise TypeError(f"Templates must be texts. Received: templates[{i}]={template!r}.")
        if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
            raise ValueError(
                "A template must have exactly one {}, where the class name goes. "
                f"Received: templates[{i}]={template!r}."
            )
    _refuse_twice("templates", templates)
    return tuple(templates)


def validate_class_names(class_names: Sequence[str | Sequence[str]]) -> list[list[str]]:
    """The names of each class, if every class has one and no two share one.

    Args:
        class_names: K items, each a name or a sequence of names of the same class.

    Returns:
        K lists of names.

    Raises:
        TypeError: not a sequence of texts or of sequences of texts.
        ValueError: no class, a class without a name, an empty name, or a name twice.
    """
    if isinstance(class_names, str) or not isinstance(class_names, Sequence):
        raise TypeError(
            f"`class_names` must be a sequence of names. Received: class_names={class_names!r}. "
            "Put a single one into a list: ['cat']."
        )
    names = [[item] if isinstance(item, str) else item for item in class_names]
    if not names:
        raise ValueError(f"At least one class is needed. Received: class_names={class_names!r}.")
    for i, of_class in enumerate(names):
        if not isinstance(of_class, Sequence) or not all(isinstance(name, str) for name in of_class):
            raise TypeError(
                f"A class must be a name or a sequence of names. Received: class_names[{i}]={class_names[i]!r}."
            )
        if not of_class or not all(name.strip() for name in of_class):
            raise ValueError(f"A class needs a name that is not empty. Received: class_names[{i}]={class_names[i]!r}.")
    _refuse_twice("class_names", [name for of_class in names for name in of_class])
    return [list(of_class) for of_class in names]


def _refuse_twice(what: str, texts: Sequence[str]) -> None:
    seen = set()
    for text in texts:
        if text in seen:
            raise ValueError(f"No two of `{what}` may be the same. Received: {text!r} twice.")
        seen.add(text)


def _kind(domain: str) -> tuple[str, ...]:
    """Photographs of things that are all of one kind."""
    return templates(domain, ("a", "the", "my"), ("good", "bad", "close-up", "low resolution"), (), (), ())


# What the paper says of the pictures, by their kind (Radford et al., 2021, section 3.1.4): what all classes are, quotes
# around what is to be read, "satellite photo". The plainest template comes first.
FAMILIES = {
    "object": templates(),
    "photo": templates(renditions=(), materials=()),
    "pet": _kind("a type of pet"),
    "food": _kind("a type of food"),
    "flower": _kind("a type of flower"),
    "bird": _kind("a type of bird"),
    "aircraft": _kind("a type of aircraft"),
    "car": _kind("a type of car"),
    "sign": _kind("a type of traffic sign"),
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
