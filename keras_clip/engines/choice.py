"""The choice of an engine by its name."""

from keras_clip.engines.auto import Auto
from keras_clip.engines.cluster import Ray
from keras_clip.engines.engine import Engine
from keras_clip.engines.processes import Processes
from keras_clip.engines.serial import Serial


def engine_named(engine: str | Engine) -> Engine:
    """Returns an engine.

    Args:
        engine: "auto", "serial", "processes" or "ray", with its default arguments; or an `Engine`, which is returned.
            "auto" begins in this process, and goes on in several if the first items show that it saves time.

    Returns:
        The engine.

    Raises:
        ValueError: an unknown name.
        ImportError: Ray is not installed.
    """
    if not isinstance(engine, str):
        return engine
    if engine == "auto":
        return Auto()
    if engine == "serial":
        return Serial()
    if engine == "processes":
        return Processes()
    if engine == "ray":
        return Ray()
    raise ValueError(
        f'An engine must be "auto", "serial", "processes", "ray" or an Engine. Received: engine={engine!r}.'
    )
