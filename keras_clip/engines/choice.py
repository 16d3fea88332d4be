"""The choice of an engine by its name."""

from keras_clip.engines.cluster import Ray
from keras_clip.engines.engine import Engine
from keras_clip.engines.processes import Processes, num_cores
from keras_clip.engines.serial import Serial

# Below this number of items, starting processes takes longer than it saves.
_FEW_ITEMS = 8


def engine_named(engine: str | Engine, num_items: int) -> Engine:
    """Returns an engine.

    Args:
        engine: "serial", "processes" or "ray", with its default arguments; "auto": processes if there are at least 8
            items and more than one core, otherwise serial; or an `Engine`, which is returned.
        num_items: number of items.

    Returns:
        The engine.

    Raises:
        ValueError: an unknown name.
        ImportError: Ray is not installed.
    """
    if not isinstance(engine, str):
        return engine
    if engine == "auto":
        engine = "processes" if num_items >= _FEW_ITEMS and num_cores() > 1 else "serial"
    if engine == "serial":
        return Serial()
    if engine == "processes":
        return Processes()
    if engine == "ray":
        return Ray()
    raise ValueError(
        f'An engine must be "auto", "serial", "processes", "ray" or an Engine. Received: engine={engine!r}.'
    )
