"""Imports the scripts of examples/ and tools/, which are in no package, to call their functions in this process."""

import importlib.util
import sys
from types import ModuleType

from subprocesses import REPOSITORY


def load_script(path: str) -> ModuleType:
    """Imports a script again, with its folder on `sys.path`, as Python does when it runs the script.

    Args:
        path: relative to the repository, such as "examples/train.py".

    Returns:
        The module. Scripts that it imports from its folder stay in `sys.modules`.
    """
    file = REPOSITORY / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module
