"""Makes torchvision, and so open_clip, importable if its compiled operators do not match the installed torch.

torchvision describes the output shapes of its operators to torch at import, which fails for operators that were never
loaded. Import this first: where loading fails, the operators are declared under their names, without an implementation.
No test needs one.
"""

import importlib.util
import re
from pathlib import Path

import torch


def _loads(folder: Path) -> bool:
    try:
        for library in folder.glob("_C*"):
            torch.ops.load_library(library)
            return True
    except OSError:
        pass
    return False


def _declare(folder: Path) -> torch.library.Library:
    operators = torch.library.Library("torchvision", "DEF")
    described = re.findall(r"register_fake\(.torchvision::(\w+)", (folder / "_meta_registrations.py").read_text())
    for operator in sorted(set(described)):
        operators.define(f"{operator}(Tensor x) -> Tensor")
    return operators


_folder = Path(importlib.util.find_spec("torchvision").origin).parent
# This object must live as long as the process: torch removes the declarations with it.
_operators = None if _loads(_folder) else _declare(_folder)
