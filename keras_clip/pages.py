"""Templates of the pages that show strings of users: reports and data cards."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_clip.printable import printable

if TYPE_CHECKING:
    import jinja2


def page_template(
    path: Path,
    extra: str,
    filters: Mapping[str, Callable[[Any], Any]] | None = None,
    finalize: Callable[[Any], Any] | None = None,
) -> "jinja2.Template":
    """Returns a template that escapes what it shows, and refuses names that do not exist.

    Args:
        path: path of the template of a page.
        extra: name of the extra of keras_clip with which Jinja2 is installed.
        filters: functions that the template uses, by name, beside `printable`.
        finalize: function of every value that is shown, before it is escaped.

    Returns:
        `jinja2.Template`.

    Raises:
        ImportError: Jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(
            f'Pages are laid out by Jinja2, which is not installed. pip install "keras_clip[{extra}]"'
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"printable": printable, **(filters or {})}
    return environment.get_template(path.name)
