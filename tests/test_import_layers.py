"""The import rules of keras_clip, checked in its source: levels in order, no cycle, backends only in named modules."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_free

PACKAGE = Path(__file__).resolve().parents[1] / "keras_clip"

# The import levels, from the highest to the lowest. A component (a package or module directly below keras_clip) may
# import itself and the levels below, never those above. Components of one level do not import each other. A new package
# or module needs a place here.
LEVELS = (
    ("search",),
    ("evaluation", "curation"),
    ("zero_shot",),
    ("presets",),
    ("training",),
    ("model", "baselines", "flops"),
    ("step",),
    ("encoders",),
    ("layers",),
    ("export",),
    ("similarity", "pages"),
    ("data", "losses"),
    ("distribution", "prompts", "optimizers", "custom_gradient", "printable", "engines"),
    ("compat",),
    ("lock",),
    ("types", "files"),
)
# Modules that count as a part of another component.
PARTS = {"tiling": "losses", "graph_tokenizer": "export"}
# The levels inside packages, by the same rule. "*" stands for every module that has no other place.
INSIDE = {
    "curation": (
        ("duplicates", "filters", "leaks", "scoring", "balancing", "validation", "writing", "card"),
        ("matching",),
        ("profiling", "queries", "rules", "clusters", "keeping"),
        ("passes",),
        ("pool",),
        ("shards", "draws", "verdicts", "expressions", "colours"),
    ),
    "data": (
        ("pairs",),
        ("epochs", "arguments"),
        ("readers", "graph_images", "decoding"),
        ("images", "tokenizer", "prompts", "synthetic"),
        ("image_files", "graph_resize", "skipped"),
    ),
    "data.readers": (
        ("forms",),
        ("*",),  # the readers, which do not import one another
        ("elements",),
        ("storage",),
        ("reader", "brief"),
    ),
    "evaluation": (
        ("run", "callback", "report"),
        ("parts",),
        ("tasks",),
        ("classifiers", "task_options"),
        ("features",),
        ("datasets",),
        ("studies",),
        ("metrics",),
        ("results", "rows"),
    ),
    "search": (
        ("server",),
        ("labels",),
        ("queries",),
        ("pictures", "vectors"),
    ),
}
# Components that may import only these parts of keras_clip: a report never runs a model.
ONLY = {
    "evaluation.report": (
        "evaluation.report",
        "evaluation.metrics",
        "evaluation.results",
        "evaluation.studies.published",
        "evaluation.studies.robustness",
        "evaluation.studies.scaling",
        "evaluation.studies.transfer",
        "files",
        "pages",
        "printable",
    ),
}

# Components and modules that may check which backend runs, or import one inside a function.
BACKEND_AWARE = (
    "compat",
    "custom_gradient",
    "data",
    "distribution",
    "engines.cluster",
    "tiling",
    "curation.writing",
    "layers.adaptable",
    "layers.convolutions",
    "layers.inference",
    "layers.input_shapes",
    "layers.pixel_range",
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
# Packages that are slow to import, or that the core dependencies do not include.
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
LAZY |= {"aiohttp", "fsspec", "ray", "tensorflow_datasets", "sklearn", "pandas", "scipy", "pyarrow"}
# Only the readers open files with samples, so that training and evaluation read a format by the same code.
READERS = ("data.readers",)
FORMATS = frozenset({"csv", "tarfile", "tensorflow_datasets", "pyarrow"})
# Attributes of TensorFlow and of paths that open or list such files without an import of `FORMATS`.
READING_ATTRIBUTES = frozenset({"TFRecordDataset", "rglob"})
# Modules that write such files: tables of results, the tables of curation, and the shards that it makes.
WRITERS = {
    "csv": ("evaluation.results", "training.telemetry", "search.labels.exports"),
    "pyarrow": ("curation",),
    "tarfile": ("curation.writing", "search.labels.exports"),
}
MEANINGLESS = frozenset({"utils", "util", "common", "helpers", "helper", "misc"})


def find_faults(package: Path) -> list[str]:
    """Returns one line for each breach of the import rules in a package folder."""
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
    """Yields (dotted names, statement) of each import; for `from a import b`, the names are `a.b` and `a`."""
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
    """Returns the modules of the package that a module imports, anywhere in its source."""
    targets = set()
    for names, _ in imported(tree, module, packages):
        if names[0].split(".")[0] == package_name:
            targets.add(next((name for name in names if name in trees), names[0]))
    return targets


def component(module):
    parts = module.split(".")
    return PARTS.get(parts[1], parts[1]) if len(parts) > 1 else None


def place(module, package):
    """Returns the component of a package of `INSIDE` that a module belongs to; None for its `__init__` or another's."""
    inside = module.split(".", 1)[1] if "." in module else ""
    return inside.removeprefix(f"{package}.").split(".")[0] if inside.startswith(f"{package}.") else None


def level(name, levels):
    return next((i for each in (name, "*") for i, names in enumerate(levels) if each in names), None)


def within(module, names):
    inside = ".".join(module.split(".")[1:])
    return any(inside == name or inside.startswith(f"{name}.") for name in names)


def layer_fault(module, target):
    for here, allowed in ONLY.items():
        if within(module, [here]) and not within(target, allowed):
            return f"{module} imports {target}, but {here} may import only {', '.join(allowed)}"
    here, there, levels = component(module), component(target), LEVELS
    for package in sorted(INSIDE, key=len):
        if within(module, [package]) and within(target, [package]):
            here, there, levels = place(module, package), place(target, package), INSIDE[package]
    if here is None:  # the package's own __init__ names everything
        return None
    if there is None:
        return f"{module} imports the package itself, which imports {module}"
    above, below = level(here, levels), level(there, levels)
    if here == there or above is None or below is None:  # `module_faults` reports a module without a level
        return None
    if above == below:
        return f"{module} imports {target}, a sibling"
    return f"{module} imports {target}, which is above it" if above > below else None


def module_faults(module, tree):
    """Yields the faults of one module by itself: its name, its level, its checks of the backend, its early imports."""
    if MEANINGLESS & set(module.split(".")):
        yield f"{module} has a name without a meaning"
    if component(module) is not None and level(component(module), LEVELS) is None:
        yield f"{module} has no place in LEVELS or PARTS"
    for package, levels in INSIDE.items():
        if (inner := place(module, package)) and level(inner, levels) is None:
            yield f"{module} has no place in INSIDE"
    aware = within(module, BACKEND_AWARE)
    early = set(executed_at_import(tree))
    for names, node in imported(tree, module, ()):
        top = names[0].split(".")[0]
        if top in LAZY and node in early:
            yield f"{module}:{node.lineno} imports {top} at module level"
        elif top in BACKENDS and not aware:
            yield f"{module}:{node.lineno} imports {top}, but is not in BACKEND_AWARE"
        if top in FORMATS and not within(module, READERS) and not within(module, WRITERS.get(top, ())):
            yield f"{module}:{node.lineno} imports {top}, but only the readers open stored samples"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in READING_ATTRIBUTES and not within(module, READERS):
            yield f"{module}:{node.lineno} calls {node.attr}, but only the readers open stored samples"
        if not aware and checks_backend(node):
            yield f"{module}:{node.lineno} checks which backend runs, but is not in BACKEND_AWARE"


def executed_at_import(node):
    """Yields all nodes except those in the bodies of functions and under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from executed_at_import(child)


def checks_backend(node):
    return (isinstance(node, ast.Call) and called(node) == "backend") or (
        isinstance(node, ast.Constant) and node.value == "KERAS_BACKEND"
    )


def called(node):
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)


def cycle_faults(imports):
    """Returns one line for the first import cycle, or none."""
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


def test_the_package_keeps_the_import_rules():
    assert find_faults(PACKAGE) == []


def test_every_module_is_seen():
    trees = {module_name(path, PACKAGE): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert {"keras_clip", "keras_clip.layers", "keras_clip.layers.transformer", "keras_clip.model"} <= set(trees)
    assert "keras_clip.layers.projection" in ours(
        trees["keras_clip.model"], "keras_clip.model", trees, (), "keras_clip"
    )


GOOD = {
    "__init__.py": "from pkg.model import Model\nfrom pkg import layers",
    "types.py": "from typing import Any",
    "distribution.py": "import keras\ndef f():\n    import jax\n    return keras.backend.backend()",
    "tiling.py": "from pkg import distribution",
    "losses.py": "from pkg.tiling import tile",
    "layers/__init__.py": "from pkg.layers.pooling import Pool",
    "layers/pooling.py": "from pkg.types import Tensor\nfrom .. import losses\nfrom . import projection",
    "layers/projection.py": "",
    "data/__init__.py": "",
    "data/images.py": "if TYPE_CHECKING:\n    import torch\ndef f():\n    import tensorflow as tf\n    return tf",
    "data/readers/__init__.py": "from pkg.data.readers.forms import open_reader",
    "data/readers/forms.py": "from pkg.data.readers import tar",
    "data/readers/tar.py": "import csv\nimport tarfile\ndef f(tf):\n    return tf.data.TFRecordDataset",
    "data/readers/storage/__init__.py": "",
    "data/readers/storage/paths.py": "from pkg.data.readers.reader import Reader",
    "data/readers/reader.py": "",
    "data/readers/sevenzip.py": "from pkg.data.readers.storage import paths",
    "model.py": "from pkg.layers import Pool\nfrom pkg.data import images",
    "evaluation/__init__.py": "from pkg.evaluation.run import evaluate\nfrom pkg.evaluation import report",
    "evaluation/run.py": "from pkg.model import Model\nfrom pkg.evaluation.parts.errors import PART",
    "evaluation/parts/__init__.py": "",
    "evaluation/parts/errors.py": "from pkg.evaluation import metrics\nfrom pkg.model import Model",
    "evaluation/metrics/__init__.py": "from pkg.evaluation.metrics.intervals import wilson",
    "evaluation/metrics/intervals.py": "from ..results import Score",
    "evaluation/results.py": "",
    "evaluation/report/__init__.py": "from pkg.evaluation import metrics\nfrom pkg.evaluation.results import Score",
}
FAULTS = {
    "upwards": (
        {"layers/projection.py": "from pkg.model import Model"},
        "layers.projection imports pkg.model, which",
    ),
    "upwards, name of a package": (
        {"losses.py": "from pkg import layers"},
        "losses imports pkg.layers, which is above",
    ),
    "upwards, relative": ({"layers/projection.py": "from ..model import Model"}, "imports pkg.model, which is above"),
    "upwards, relative in an __init__": ({"data/__init__.py": "from ..layers import Pool"}, "pkg.layers, which is"),
    "upwards, inside a function": ({"types.py": "def f():\n    import pkg.losses"}, "imports pkg.losses, which is"),
    "upwards, by its name": (
        {"types.py": "m = importlib.import_module('pkg.losses')"},
        "imports pkg.losses, which",
    ),
    "upwards, from a part of a component": (
        {"tiling.py": "from pkg.layers import Pool"},
        "pkg.tiling imports pkg.layers",
    ),
    "upwards from the lowest level": (
        {"types.py": "from pkg import distribution"},
        "pkg.types imports pkg.distribution",
    ),
    "siblings": ({"baselines.py": "from pkg import model"}, "pkg.baselines imports pkg.model, a sibling"),
    "other siblings": ({"losses.py": "import pkg.data.images"}, "pkg.losses imports pkg.data.images, a sibling"),
    "the package itself": ({"losses.py": "import pkg"}, "pkg.losses imports the package itself"),
    "a name from the package": ({"losses.py": "from pkg import Model"}, "pkg.losses imports the package itself"),
    "cycle in a package": ({"layers/projection.py": "from pkg.layers import pooling"}, "import cycle: pkg.layers.poo"),
    "cycle through the __init__": ({"layers/projection.py": "from pkg.layers import Pool"}, "import cycle: pkg.layers"),
    "upwards inside a package": (
        {"evaluation/results.py": "from pkg.evaluation.metrics import intervals"},
        "evaluation.results imports pkg.evaluation.metrics.intervals, which is above it",
    ),
    "upwards inside a package, two levels": (
        {"evaluation/metrics/intervals.py": "def f():\n    from ..parts import errors"},
        "metrics.intervals imports pkg.evaluation.parts.errors, which is above it",
    ),
    "siblings inside a package": (
        {"evaluation/run.py": "from pkg.evaluation.report import write"},
        "evaluation.run imports pkg.evaluation.report, a sibling",
    ),
    "the package that contains the module": (
        {"evaluation/results.py": "from pkg.evaluation import evaluate"},
        "evaluation.results imports the package itself",
    ),
    "upwards inside a package of a package": (
        {"data/readers/storage/paths.py": "from pkg.data.readers import tar"},
        "storage.paths imports pkg.data.readers.tar, which is above it",
    ),
    "siblings inside a package of a package": (
        {"data/readers/folder.py": "from pkg.data.readers.tar import read"},
        "data.readers.folder imports pkg.data.readers.tar, a sibling",
    ),
    "a new reader that imports the table of forms": (
        {"data/readers/zip.py": "from pkg.data.readers.forms import open_reader"},
        "pkg.data.readers.zip imports pkg.data.readers.forms, which is above it",
    ),
    "upwards from a package inside a package": (
        {"data/readers/tar.py": "from pkg.data import pairs", "data/pairs.py": ""},
        "data.readers.tar imports pkg.data.pairs, which is above it",
    ),
    "new module inside a package": ({"evaluation/extra.py": ""}, "pkg.evaluation.extra has no place in INSIDE"),
    "a report that runs a model": (
        {"evaluation/report/page.py": "from pkg.model import Model"},
        "report.page imports pkg.model, but evaluation.report may import only",
    ),
    "a report that evaluates": (
        {"evaluation/report/page.py": "from pkg.evaluation.parts import errors"},
        "report.page imports pkg.evaluation.parts.errors, but",
    ),
    "a second reader of tars": (
        {"model.py": "def f():\n    import tarfile"},
        "pkg.model:2 imports tarfile, but only",
    ),
    "a second reader of tables": (
        {"evaluation/metrics/intervals.py": "from csv import DictReader"},
        "intervals:1 imports csv, but only the readers",
    ),
    "a second reader of tensorflow-datasets": (
        {"data/images.py": "def f():\n    import tensorflow_datasets as tfds"},
        "pkg.data.images:2 imports tensorflow_datasets, but only the readers",
    ),
    "a second reader of folders": ({"model.py": "files = path.rglob('*')"}, "pkg.model:1 calls rglob, but only"),
    "a second reader of records": (
        {"data/images.py": "def f(tf):\n    return tf.data.TFRecordDataset('a')"},
        "pkg.data.images:2 calls TFRecordDataset, but only the readers",
    ),
    "new module": ({"metrics.py": ""}, "pkg.metrics has no place"),
    "new package": ({"quantization/__init__.py": "", "quantization/int8.py": ""}, "pkg.quantization.int8 has no place"),
    "name": ({"layers/utils.py": ""}, "pkg.layers.utils has a name without a meaning"),
    "backend at module level": ({"data/images.py": "import tensorflow as tf"}, "imports tensorflow at module level"),
    "backend in a try": (
        {"tiling.py": "try:\n    from jax import numpy\nexcept ImportError:\n    pass"},
        "jax at module",
    ),
    "backend in a class": ({"data/images.py": "class A:\n    import torch.nn"}, "imports torch at module level"),
    "hub in a default": ({"data/images.py": "x = __import__('keras_hub')"}, "imports keras_hub at module level"),
    "backend elsewhere": ({"losses.py": "def f():\n    import torch"}, "losses:2 imports torch, but is not in"),
    "backend check": (
        {"losses.py": "def f():\n    return keras.backend.backend()"},
        "pkg.losses:2 checks which backend runs",
    ),
    "backend check by keras.config": (
        {"model.py": "from keras.config import backend\nb = backend()"},
        "pkg.model:2 checks which",
    ),
    "backend check by environment": (
        {"model.py": "b = os.environ['KERAS_BACKEND']"},
        "pkg.model:1 checks which backend",
    ),
}


def build(folder, files):
    for name, source in files.items():
        path = folder / "pkg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder / "pkg"


def test_a_package_that_keeps_the_rules_has_no_fault(tmp_path):
    assert find_faults(build(tmp_path, GOOD)) == []


@pytest.mark.parametrize("files, expected", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found(tmp_path, files, expected):
    faults = find_faults(build(tmp_path, {**GOOD, **files}))
    assert any(expected in fault for fault in faults), faults
