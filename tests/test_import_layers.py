"""Who may import whom in keras_clip, read from its source: rooms in order, no cycle, backends only where named."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_free

PACKAGE = Path(__file__).resolve().parents[1] / "keras_clip"

# From the top of the house to its ground: a room may import its own level and everything below, never above. Rooms that
# share a level do not know each other. Whoever adds a room or a module beside them gives it its place here.
LEVELS = (
    ("evaluation",),
    ("zero_shot",),
    ("presets",),
    ("training",),
    ("model", "baselines", "flops"),
    ("step",),
    ("encoders",),
    ("layers",),
    ("export",),
    ("data", "losses"),
    ("distribution", "prompts", "optimizers"),
    ("compat",),
    ("types",),
)
# Modules beside the rooms that are a part of one.
PARTS = {"tiling": "losses", "graph_tokenizer": "export"}
# The order of the rooms inside a room, by the same rule.
INSIDE = {
    "evaluation": (
        ("run", "callback", "report"),
        ("parts",),
        ("tasks",),
        ("classifiers",),
        ("features",),
        ("datasets",),
        ("studies",),
        ("metrics",),
        ("results",),
    ),
}
# Rooms that may import these parts of the package and nothing else of it: a report never runs a model.
ONLY = {
    "evaluation.report": (
        "evaluation.report",
        "evaluation.metrics",
        "evaluation.results",
        "evaluation.studies.published",
        "evaluation.studies.robustness",
        "evaluation.studies.scaling",
        "evaluation.studies.transfer",
    ),
}

# What may ask which backend runs, or import one inside a function: whole rooms, or single modules.
BACKEND_AWARE = (
    "compat",
    "data",
    "distribution",
    "tiling",
    "layers.input_shapes",
    "layers.projection",
    "layers.pure_call",
    "step",
    "export",
    "graph_tokenizer",
    "evaluation.classifiers.matmul",
    "presets.tensor_files",
    "presets.in_place",
    "presets.keras_hub",
    "optimizers.foreach",
    "training.state",
    "training.strategies",
    "training.telemetry",
)
BACKENDS = frozenset({"tensorflow", "tensorflow_text", "torch", "jax", "jaxlib", "keras_hub"})
# Slow to import, or not installed with the light core.
LAZY = BACKENDS | {
    "matplotlib",
    "onnx",
    "onnxruntime",
    "tf2onnx",
    "transformers",
    "open_clip",
    "torchvision",
    "datasets",
    "huggingface_hub",
    "safetensors",
}
LAZY |= {"tensorflow_datasets", "sklearn", "pandas", "scipy"}
# Only the readers open the files that samples are stored in: training and evaluation read a form by the same code.
READERS = ("data.readers",)
FORMATS = frozenset({"csv", "tarfile", "tensorflow_datasets"})
# Attributes of TensorFlow and of paths that do so without such an import.
WALKERS = frozenset({"TFRecordDataset", "rglob"})
# They write tables of results.
WRITERS = ("evaluation.results", "training.telemetry")
MEANINGLESS = frozenset({"utils", "util", "common", "helpers", "helper", "misc"})


def find_faults(package: Path) -> list[str]:
    """Every breach of the contract below a package folder, one line each."""
    trees = {module_name(path, package): ast.parse(path.read_text(), path) for path in sorted(package.rglob("*.py"))}
    packages = {module_name(path, package) for path in package.rglob("__init__.py")}
    imports = {name: ours(tree, name, trees, packages, package.name) for name, tree in trees.items()}
    faults = [fault for name, tree in trees.items() for fault in module_faults(name, tree)]
    for name, targets in imports.items():
        faults += [fault for target in sorted(targets) if (fault := layer_fault(name, target))]
    return faults + cycle_faults(imports)


def module_name(path, package):
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree, module, packages):
    """(dotted names, statement) of each import; of `from a import b`, both `a.b` and `a`, the likelier first."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.name,), node
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - (module in packages)
                parts = module.split(".")
                base = ".".join([*parts[: len(parts) - up], *filter(None, [node.module])])
            for alias in node.names:
                yield (f"{base}.{alias.name}", base), node
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__") and node.args:
            if isinstance(node.args[0], ast.Constant):
                yield (node.args[0].value,), node


def ours(tree, module, trees, packages, package_name):
    """The modules of the package that a module imports, anywhere in its source."""
    targets = set()
    for names, _ in imported(tree, module, packages):
        if names[0].split(".")[0] == package_name:
            targets.add(next((name for name in names if name in trees), names[0]))
    return targets


def room(module):
    parts = module.split(".")
    return PARTS.get(parts[1], parts[1]) if len(parts) > 1 else None


def room_inside(module):
    """The room or module of `INSIDE` that a module belongs to; None of the outer room's own `__init__`."""
    parts = module.split(".")
    return parts[2] if len(parts) > 2 else None


def level(name, levels):
    return next((i for i, rooms in enumerate(levels) if name in rooms), None)


def within(module, names):
    inside = ".".join(module.split(".")[1:])
    return any(inside == name or inside.startswith(f"{name}.") for name in names)


def layer_fault(module, target):
    for here, allowed in ONLY.items():
        if within(module, [here]) and not within(target, allowed):
            return f"{module} imports {target}, but {here} may import only {', '.join(allowed)}"
    here, there, levels = room(module), room(target), LEVELS
    if here == there and here in INSIDE:
        here, there, levels = room_inside(module), room_inside(target), INSIDE[here]
    if here is None:  # the package's own __init__ names everything
        return None
    if there is None:
        return f"{module} imports the package itself, which imports {module}"
    above, below = level(here, levels), level(there, levels)
    if here == there or above is None or below is None:  # no place in the levels is a fault of its own
        return None
    if above == below:
        return f"{module} imports {target}, a sibling"
    return f"{module} imports {target}, which is above it" if above > below else None


def module_faults(module, tree):
    """What is wrong within one module: its name, its place, what it asks and what it imports too early."""
    if MEANINGLESS & set(module.split(".")):
        yield f"{module} has a name without a meaning"
    if room(module) is not None and level(room(module), LEVELS) is None:
        yield f"{module} has no place in LEVELS or PARTS"
    if room(module) in INSIDE and room_inside(module) and level(room_inside(module), INSIDE[room(module)]) is None:
        yield f"{module} has no place in INSIDE"
    aware = within(module, BACKEND_AWARE)
    early = set(executed_at_import(tree))
    for names, node in imported(tree, module, ()):
        top = names[0].split(".")[0]
        if top in LAZY and node in early:
            yield f"{module}:{node.lineno} imports {top} at module level"
        elif top in BACKENDS and not aware:
            yield f"{module}:{node.lineno} imports {top}, but is not in BACKEND_AWARE"
        if top in FORMATS and not within(module, READERS) and not (top == "csv" and within(module, WRITERS)):
            yield f"{module}:{node.lineno} imports {top}, but only the readers open stored samples"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in WALKERS and not within(module, READERS):
            yield f"{module}:{node.lineno} calls {node.attr}, but only the readers open stored samples"
        if not aware and asks_backend(node):
            yield f"{module}:{node.lineno} asks which backend runs, but is not in BACKEND_AWARE"


def executed_at_import(node):
    """All nodes but those in the bodies of functions and under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from executed_at_import(child)


def asks_backend(node):
    return (isinstance(node, ast.Call) and called(node) == "backend") or (
        isinstance(node, ast.Constant) and node.value == "KERAS_BACKEND"
    )


def called(node):
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)


def cycle_faults(imports):
    """One line for the first cycle found, if there is one."""
    done = set()

    def visit(name, path):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for target in sorted(imports.get(name, ())):
            if cycle := visit(target, [*path, name]):
                return cycle
        done.add(name)
        return None

    for name in imports:
        if cycle := visit(name, []):
            return [f"import cycle: {' -> '.join(cycle)}"]
    return []


def test_the_package_keeps_the_contract():
    assert find_faults(PACKAGE) == []


def test_every_module_is_seen():
    trees = {module_name(path, PACKAGE): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert {"keras_clip", "keras_clip.layers", "keras_clip.layers.transformer", "keras_clip.model"} <= set(trees)
    assert "keras_clip.layers.projection" in ours(
        trees["keras_clip.model"], "keras_clip.model", trees, (), "keras_clip"
    )


GOOD = {
    "__init__.py": "from house.model import Model\nfrom house import layers",
    "types.py": "from typing import Any",
    "distribution.py": "import keras\ndef f():\n    import jax\n    return keras.backend.backend()",
    "tiling.py": "from house import distribution",
    "losses.py": "from house.tiling import tile",
    "layers/__init__.py": "from house.layers.pooling import Pool",
    "layers/pooling.py": "from house.types import Tensor\nfrom .. import losses\nfrom . import projection",
    "layers/projection.py": "",
    "data/__init__.py": "",
    "data/reader.py": "if TYPE_CHECKING:\n    import torch\ndef f():\n    import tensorflow as tf\n    return tf",
    "data/readers/__init__.py": "from house.data.readers import tar",
    "data/readers/tar.py": "import csv\nimport tarfile\ndef f(tf):\n    return tf.data.TFRecordDataset",
    "model.py": "from house.layers import Pool\nfrom house.data import reader",
    "evaluation/__init__.py": "from house.evaluation.run import evaluate\nfrom house.evaluation import report",
    "evaluation/run.py": "from house.model import Model\nfrom house.evaluation.parts.errors import PART",
    "evaluation/parts/__init__.py": "",
    "evaluation/parts/errors.py": "from house.evaluation import metrics\nfrom house.model import Model",
    "evaluation/metrics/__init__.py": "from house.evaluation.metrics.intervals import wilson",
    "evaluation/metrics/intervals.py": "from ..results import Score",
    "evaluation/results.py": "",
    "evaluation/report/__init__.py": "from house.evaluation import metrics\nfrom house.evaluation.results import Score",
}
FAULTS = {
    "upwards": (
        {"layers/projection.py": "from house.model import Model"},
        "layers.projection imports house.model, which",
    ),
    "upwards, name of a room": (
        {"losses.py": "from house import layers"},
        "losses imports house.layers, which is above",
    ),
    "upwards, relative": ({"layers/projection.py": "from ..model import Model"}, "imports house.model, which is above"),
    "upwards, relative in a room's init": ({"data/__init__.py": "from ..layers import Pool"}, "house.layers, which is"),
    "upwards, inside a function": ({"types.py": "def f():\n    import house.losses"}, "imports house.losses, which is"),
    "upwards, by its name": (
        {"types.py": "m = importlib.import_module('house.losses')"},
        "imports house.losses, which",
    ),
    "upwards, part of a room": ({"tiling.py": "from house.layers import Pool"}, "house.tiling imports house.layers"),
    "ground level upwards": ({"types.py": "from house import distribution"}, "house.types imports house.distribution"),
    "siblings": ({"baselines.py": "from house import model"}, "house.baselines imports house.model, a sibling"),
    "other siblings": ({"losses.py": "import house.data.reader"}, "house.losses imports house.data.reader, a sibling"),
    "the package itself": ({"losses.py": "import house"}, "house.losses imports the package itself"),
    "a name from the package": ({"losses.py": "from house import Model"}, "house.losses imports the package itself"),
    "cycle in a room": ({"layers/projection.py": "from house.layers import pooling"}, "import cycle: house.layers.poo"),
    "cycle through the room": ({"layers/projection.py": "from house.layers import Pool"}, "import cycle: house.layers"),
    "upwards inside a room": (
        {"evaluation/results.py": "from house.evaluation.metrics import intervals"},
        "evaluation.results imports house.evaluation.metrics.intervals, which is above it",
    ),
    "upwards inside a room, two levels": (
        {"evaluation/metrics/intervals.py": "def f():\n    from ..parts import errors"},
        "metrics.intervals imports house.evaluation.parts.errors, which is above it",
    ),
    "siblings inside a room": (
        {"evaluation/run.py": "from house.evaluation.report import write"},
        "evaluation.run imports house.evaluation.report, a sibling",
    ),
    "the room itself": (
        {"evaluation/results.py": "from house.evaluation import evaluate"},
        "evaluation.results imports the package itself",
    ),
    "new module inside a room": ({"evaluation/extra.py": ""}, "house.evaluation.extra has no place in INSIDE"),
    "a report that runs a model": (
        {"evaluation/report/page.py": "from house.model import Model"},
        "report.page imports house.model, but evaluation.report may import only",
    ),
    "a report that evaluates": (
        {"evaluation/report/page.py": "from house.evaluation.parts import errors"},
        "report.page imports house.evaluation.parts.errors, but",
    ),
    "a second reader of tars": (
        {"model.py": "def f():\n    import tarfile"},
        "house.model:2 imports tarfile, but only",
    ),
    "a second reader of tables": (
        {"evaluation/metrics/intervals.py": "from csv import DictReader"},
        "intervals:1 imports csv, but only the readers",
    ),
    "a second reader of tensorflow-datasets": (
        {"data/reader.py": "def f():\n    import tensorflow_datasets as tfds"},
        "house.data.reader:2 imports tensorflow_datasets, but only the readers",
    ),
    "a second reader of folders": ({"model.py": "files = path.rglob('*')"}, "house.model:1 calls rglob, but only"),
    "a second reader of records": (
        {"data/reader.py": "def f(tf):\n    return tf.data.TFRecordDataset('a')"},
        "house.data.reader:2 calls TFRecordDataset, but only the readers",
    ),
    "new module": ({"metrics.py": ""}, "house.metrics has no place"),
    "new room": ({"quantization/__init__.py": "", "quantization/int8.py": ""}, "house.quantization.int8 has no place"),
    "name": ({"layers/utils.py": ""}, "house.layers.utils has a name without a meaning"),
    "backend at module level": ({"data/reader.py": "import tensorflow as tf"}, "imports tensorflow at module level"),
    "backend in a try": (
        {"tiling.py": "try:\n    from jax import numpy\nexcept ImportError:\n    pass"},
        "jax at module",
    ),
    "backend in a class": ({"data/reader.py": "class A:\n    import torch.nn"}, "imports torch at module level"),
    "hub in a default": ({"data/reader.py": "x = __import__('keras_hub')"}, "imports keras_hub at module level"),
    "backend elsewhere": ({"losses.py": "def f():\n    import torch"}, "losses:2 imports torch, but is not in"),
    "question": (
        {"losses.py": "def f():\n    return keras.backend.backend()"},
        "house.losses:2 asks which backend runs",
    ),
    "question, other words": (
        {"model.py": "from keras.config import backend\nb = backend()"},
        "house.model:2 asks which",
    ),
    "question to the shell": ({"model.py": "b = os.environ['KERAS_BACKEND']"}, "house.model:1 asks which backend"),
}


def build(folder, files):
    for name, source in files.items():
        path = folder / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder / "house"


def test_a_good_house_has_no_fault(tmp_path):
    assert find_faults(build(tmp_path, GOOD)) == []


@pytest.mark.parametrize("files, expected", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found(tmp_path, files, expected):
    faults = find_faults(build(tmp_path, {**GOOD, **files}))
    assert any(expected in fault for fault in faults), faults
