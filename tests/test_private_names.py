"""Private names of Keras, TensorFlow, torch and KerasHub are used in `keras_clip/compat.py` only."""

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_free

PACKAGE = Path(__file__).resolve().parents[1] / "keras_clip"
ALLOWED = PACKAGE / "compat.py"
# These names have no underscore but are undocumented: `compat` has functions and classes for them.
UNDOCUMENTED = {
    "async_safe",
    "distribute_strategy",
    "jax_state_sync",
    "make_predict_function",
    "make_test_function",
    "make_train_function",
    "predict_function",
    "test_function",
    "train_function",
}
# Matches the dotted paths of undocumented modules.
INTERNAL_MODULE = re.compile(r"(^|\.)(_\w+|src)(\.|$)|^tensorflow\.python(\.|$)")


def parse(path):
    return ast.parse(path.read_text(), path)


def own_names(trees):
    """Returns all names that a package defines: functions, classes, variables, and attributes that it assigns."""
    names = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
    return names


def is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def is_private(name):
    # Names that Python documents: of named tuples, and `os._exit`.
    if name in ("_asdict", "_exit", "_fields", "_replace"):
        return False
    is_protocol = name.startswith("__") and name.endswith("__") and name != "__internal__"
    return name.startswith("_") and not is_protocol


def attributes(tree):
    """Yields (name, line) of each attribute that is read, assigned, or named in a call of `getattr` or `setattr`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            name = node.args[1]
            if node.func.id in ("getattr", "hasattr", "setattr", "delattr") and isinstance(name, ast.Constant):
                yield name.value, node.lineno


def imported_modules(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def find_private_names(package, allowed):
    """Returns one line for each use of a private or undocumented name that the package does not define."""
    trees = {path: parse(path) for path in sorted(package.rglob("*.py"))}
    own = own_names(tree for path, tree in trees.items() if path != allowed)
    faults = []
    for path, tree in trees.items():
        if path == allowed:
            continue
        place = path.relative_to(package)
        for name, line in attributes(tree):
            if (is_private(name) and name not in own) or name in UNDOCUMENTED:
                faults.append(f"{place}:{line} uses {name!r}")
        for module, line in imported_modules(tree):
            if not module.startswith(f"{package.name}.") and INTERNAL_MODULE.search(module):
                faults.append(f"{place}:{line} imports {module!r}")
    return faults


def test_no_module_uses_private_names_of_others():
    assert find_private_names(PACKAGE, ALLOWED) == [], "Put them into keras_clip/compat.py, with the reason."


FAULTS = {
    "a method": "def f(layer):\n    return layer._flatten_layers()",
    "an attribute that is assigned": "def f(model):\n    model._initial_epoch = 3",
    "an attribute of self that nobody assigns": "class A(B):\n    def f(self):\n        return self._reduction_axes",
    "by getattr": "def f(layer):\n    return getattr(layer, '_metrics', None)",
    "by setattr": "def f(layer):\n    setattr(layer, '_metrics', None)",
    "a function of a module": "def f(x):\n    import torch\n    torch._foreach_neg(x)",
    "an internal namespace": "def f():\n    import tensorflow as tf\n    tf.__internal__.distribute",
    "an internal module of Keras": "from keras.src.backend import common",
    "an internal module, from its parent": "from keras import src",
    "an internal module of TensorFlow": "from tensorflow.python.distribute import values",
    "a private module": "def f():\n    import torch._dynamo",
    "undocumented": "def f(model):\n    model.jax_state_sync()",
}


@pytest.mark.parametrize("source", FAULTS.values(), ids=FAULTS)
def test_a_private_name_is_found(tmp_path, source):
    package = tmp_path / "package"
    package.mkdir()
    (package / "compat.py").write_text(source)
    assert find_private_names(package, package / "compat.py") == []
    (package / "other.py").write_text(source)
    assert len(find_private_names(package, package / "compat.py")) == 1


def test_own_private_names_are_no_fault(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    source = "class A:\n    def __init__(self):\n        self._x = self.__class__\n    def _f(self, other):\n        "
    (package / "one.py").write_text(source + "return other._f(), self._x, _g()\ndef _g():\n    pass")
    assert find_private_names(package, package / "compat.py") == []


def package_classes():
    for path in sorted(PACKAGE.rglob("*.py")):
        if path in (ALLOWED, PACKAGE / "__init__.py"):
            continue
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        module = importlib.import_module(name)
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == name:
                yield value


def own_private_names(value):
    """Returns the private names that a class defines or assigns on itself."""
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(value)))
    return {name for name in own_names([tree]) if is_private(name)} & {
        *vars(value),
        *(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_self(node.value)),
    }


def test_no_class_redefines_a_private_name_of_its_base():
    """A private name that a base from another package also uses would change that base without an error."""
    known, faults = {}, []
    for value in package_classes():
        foreign = [base for base in value.__mro__ if base.__module__.split(".")[0] in ("keras", "torch", "tensorflow")]
        for base in foreign:
            if base not in known:
                known[base] = set(re.findall(r"\b_[a-z]\w*", inspect.getsource(base)))
            for name in own_private_names(value) & known[base]:
                faults.append(f"{value.__module__}.{value.__name__} defines {name!r}, which {base.__name__} uses")
    assert faults == []
    assert {base.__name__ for base in known} >= {"Layer", "Model", "Trainer"} and "keras" in sys.modules
