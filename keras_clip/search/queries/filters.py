"""Filters: which pictures a search may find."""

import datetime
import math
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np

# The columns of an index that filters and lists read.
COLUMNS = ("root", "folder", "name", "caption", "width", "height", "size", "taken")
_SECONDS_OF_DAY = 86400


@dataclass(frozen=True)
class Filters:
    """Conditions that a picture must all meet; None is no condition.

    Args:
        folder: "ROOT:PATH", such as "0:2024/sea", with its subfolders; "0:" is all of the first root.
        taken_after: `datetime.date`, `datetime.datetime` or ISO text, without a time zone, as cameras record it.
            Pictures of this time or later.
        taken_before: likewise. Pictures of this time or earlier; a date without a time counts to its end.
        min_width: int, pixels.
        min_height: int, pixels.
        words: str. Each of its words must occur in the caption, name or folder, in any case.
        label: str. The name of a class that the picture must have.
        not_label: str. The name of a class that it must not have.
        min_score: float. The smallest cosine with the query.
        min_relevance: float in [0, 1]. The smallest relevance.

    Raises:
        ValueError: a value of another type or form.
    """

    folder: str | None = None
    taken_after: datetime.date | str | None = None
    taken_before: datetime.date | str | None = None
    min_width: int | None = None
    min_height: int | None = None
    words: str | None = None
    label: str | None = None
    not_label: str | None = None
    min_score: float | None = None
    min_relevance: float | None = None

    def __post_init__(self):
        if self.folder is not None:
            split_folder(self.folder)
        for name in ("taken_after", "taken_before"):
            if getattr(self, name) is not None:
                _seconds(getattr(self, name), name, False)
        for name in ("min_width", "min_height"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ValueError(f"`{name}` must be a number of pixels, an integer of at least 0. Received: {value!r}.")
        for name in ("words", "label", "not_label"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"`{name}` must be a text. Received: {value!r}.")
        for name in ("min_score", "min_relevance"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and (not is_number or not math.isfinite(value)):
                raise ValueError(f"`{name}` must be a number. Received: {value!r}.")
        if self.min_relevance is not None and not 0 <= self.min_relevance <= 1:
            raise ValueError(f"`min_relevance` must be in [0, 1]. Received: {self.min_relevance!r}.")

    def written(self) -> str:
        """Returns a text that differs for different filters."""
        return repr([(field.name, str(getattr(self, field.name))) for field in fields(self) if self._has(field.name)])

    def _has(self, name):
        return getattr(self, name) is not None

    def mask(
        self, columns: Mapping[str, np.ndarray], words: Callable[[], list[str]], labelled: Callable[[str], np.ndarray]
    ) -> np.ndarray:
        """Returns which pictures meet the conditions that do not depend on the query.

        Args:
            columns: arrays (M,) by name: those of `COLUMNS`.
            words: returns M texts: what `searchable` makes of caption, name and folder.
            labelled: name of a class -> bool (M,).

        Returns:
            bool (M,).
        """
        allowed = np.ones(len(columns["taken"]), bool)
        if self.folder is not None:
            allowed &= _in_folder(columns["root"], columns["folder"], *split_folder(self.folder))
        if self.taken_after is not None:
            allowed &= columns["taken"] >= _seconds(self.taken_after, "taken_after", False)
        if self.taken_before is not None:
            allowed &= columns["taken"] <= _seconds(self.taken_before, "taken_before", True)
        if self.min_width is not None:
            allowed &= columns["width"] >= self.min_width
        if self.min_height is not None:
            allowed &= columns["height"] >= self.min_height
        for word in searchable(self.words or "").split():
            allowed &= np.fromiter((word in text for text in words()), bool, len(allowed))
        if self.label is not None:
            allowed &= labelled(self.label)
        if self.not_label is not None:
            allowed &= ~labelled(self.not_label)
        return allowed


def split_folder(folder: str) -> tuple[int, str]:
    """Splits the text of a folder.

    Args:
        folder: "ROOT:PATH".

    Returns:
        The number of the root, and the path with / between its parts; "" is the root itself.

    Raises:
        ValueError: another form.
    """
    root, colon, path = folder.partition(":") if isinstance(folder, str) else ("", "", "")
    if not colon or not root.isdecimal():
        raise ValueError(
            f'`folder` must be the number of a root, a colon and a path, such as "0:2024/sea". Received: {folder!r}.'
        )
    return int(root), path.strip("/")


def searchable(text: str) -> str:
    """Returns a text in one case and one Unicode form, so that equal words are equal strings.

    Args:
        text: str.

    Returns:
        str.
    """
    return (
        text.lower()
        if text.isascii()
        else unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    )


def _in_folder(roots, folders, root, path):
    if not path:
        return roots == root
    inside = f"{path}/"
    is_inside = {folder: folder == path or folder.startswith(inside) for folder in set(folders.tolist())}
    return (roots == root) & np.fromiter((is_inside[folder] for folder in folders.tolist()), bool, len(folders))


def _seconds(time, name, is_end):
    """Returns a time as seconds since 1970, local times as if they were UTC, as `taken` has them."""
    try:
        if isinstance(time, str):
            text = time.strip()
            time = datetime.date.fromisoformat(text) if len(text) <= 10 else datetime.datetime.fromisoformat(text)
        if isinstance(time, datetime.datetime):
            if time.tzinfo is not None:
                raise ValueError("Cameras do not record a time zone.")
            return time.replace(tzinfo=datetime.UTC).timestamp()
        midnight = datetime.datetime(time.year, time.month, time.day, tzinfo=datetime.UTC).timestamp()
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f'`{name}` must be a date, or a time without a time zone, such as "2024-07-31" or "2024-07-31T18:30". '
            f"Received: {time!r}."
        ) from error
    # A day lasts up to the last number before the next one.
    return float(np.nextafter(midnight + _SECONDS_OF_DAY, 0)) if is_end else midnight
