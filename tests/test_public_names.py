"""Every public name is exported by its own line, documented, annotated, and registered if it can be saved."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import keras
import pytest

pytestmark = pytest.mark.backend_free

PACKAGE = Path(__file__).resolve().parents[1] / "keras_clip"
# Modules for higher import levels, not for users.
INTERNAL = {"compat", "distribution", "tiling"}
# Former names of modules that users' code may still import: {package: names}.
FORMER_NAMES = {"evaluation": {"ladder", "overlap_detector", "suites"}}
# The package, its subpackages and its modules, which a user can write after `keras_clip.`.
PUBLIC_MODULES = ["keras_clip"] + sorted(
    f"keras_clip.{path.parent.name if path.name == '__init__.py' else path.stem}"
    for path in [*PACKAGE.glob("*/__init__.py"), *PACKAGE.glob("*.py")]
    if path != PACKAGE / "__init__.py" and path.stem not in INTERNAL
)
# Methods that Keras calls and documents.
KERAS_PROTOCOL = {
    "build",
    "call",
    "compute_loss",
    "compute_output_shape",
    "compute_output_spec",
    "compile",
    "get_config",
}
KERAS_PROTOCOL |= {"from_config", "get_compile_config", "compile_from_config", "compute_mask", "get_metrics"}
KERAS_PROTOCOL |= {"train_step", "test_step", "predict_step", "reset_state", "update_state", "result", "metrics"}
KERAS_PROTOCOL |= {"add_variable", "update_step"}
# Methods that the base classes in `keras_clip.compat` call and document.
KERAS_PROTOCOL |= {"decay_all", "decays", "moments", "prepare_training", "update_all", "wrap_train_function"}


def public_objects():
    """Returns {name as a user writes it: object}, with each object once, under its shortest name."""
    found = {}
    for module in map(importlib.import_module, PUBLIC_MODULES):
        # A package exports the names that it imports, a module only those that it defines.
        owner = "keras_clip" if hasattr(module, "__path__") else module.__name__
        for name, value in vars(module).items():
            if name.startswith("_") or not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            if f"{value.__module__}.".startswith(f"{owner}.") and value not in found.values():
                found[f"{module.__name__}.{name}"] = value
    return found


OBJECTS = public_objects()
CLASSES = {name: value for name, value in OBJECTS.items() if inspect.isclass(value)}
FUNCTIONS = {name: value for name, value in OBJECTS.items() if inspect.isfunction(value)}
METHODS = {
    f"{name}.{method}": getattr(value, method)
    for name, value in CLASSES.items()
    for method, function in vars(value).items()
    if not method.startswith("_") and method not in KERAS_PROTOCOL
    if inspect.isfunction(inspect.unwrap(getattr(function, "__func__", function)))
}


def parameters(function):
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    signature = inspect.signature(function)
    return [p for p in signature.parameters.values() if p.name not in ("self", "cls") and p.kind not in kinds]


def missing_parts(value, sections):
    if not value.__doc__:
        return ["a docstring"]
    return [section for section in sections if f"{section}:\n" not in f"{inspect.cleandoc(value.__doc__)}\n"]


def missing_in_function(function):
    """Returns the parts that the docstring and the signature of a function lack.

    One sentence is enough for a method with at most one argument, and where it refers to the arguments of another
    function.
    """
    arguments, returns = parameters(function), inspect.signature(function).return_annotation
    brief = "." in function.__qualname__ and len(arguments) < 2 or "arguments as" in (function.__doc__ or "").lower()
    sections = ["Args"] if arguments and not brief else []
    if sections and returns not in (None, "None", inspect.Signature.empty):
        sections.append("Returns")
    missing = missing_parts(function, sections)
    missing += [f"annotation of {p.name}" for p in arguments if p.annotation is p.empty]
    return missing + (["annotation of the returned"] if returns is inspect.Signature.empty else [])


def missing_in_class(value):
    own_constructor = "__init__" in vars(value)
    sections = ["Args"] if own_constructor and parameters(value.__init__) else []
    if issubclass(value, keras.Layer) and "call" in vars(value):
        sections += ["Call arguments", "Returns"]
    missing = missing_parts(value, sections)
    if own_constructor:
        arguments = parameters(value.__init__)
        missing += [f"annotation of {p.name}" for p in arguments if p.annotation is p.empty]
        doc = inspect.getdoc(value) or ""
        missing += [f"{p.name} under Args" for p in arguments if f"{p.name}:" not in doc and f"{p.name}`" not in doc]
    return missing


@pytest.mark.parametrize("name", CLASSES)
def test_class_is_documented(name):
    assert missing_in_class(CLASSES[name]) == []


@pytest.mark.parametrize("name", FUNCTIONS | METHODS)
def test_function_is_documented(name):
    assert missing_in_function((FUNCTIONS | METHODS)[name]) == []


@pytest.mark.parametrize("name", [name for name, value in CLASSES.items() if hasattr(value, "get_config")])
def test_class_is_registered(name):
    value = CLASSES[name]
    assert keras.saving.get_registered_name(value) == f"keras_clip>{value.__name__}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_exports_are_explicit(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in tree.body[1:]:
        assert isinstance(node, ast.ImportFrom), (
            f"{path}:{node.lineno} is no line of the form `from module import name`"
        )
        renamed = {alias.asname for alias in node.names if alias.name == "*" or alias.asname}
        assert renamed <= FORMER_NAMES.get(path.parent.name, set())


def hidden_modules(package):
    """Returns modules of a package that another object hides, such as a function with the name of its file."""
    names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    modules = {name: importlib.import_module(name) for name in names}
    parents = {name: importlib.import_module(name.rpartition(".")[0]) for name in names}
    return [name for name in names if getattr(parents[name], name.rpartition(".")[2]) is not modules[name]]


def test_no_name_hides_a_module():
    assert hidden_modules(importlib.import_module("keras_clip")) == []


def test_a_hidden_module_is_found(tmp_path, monkeypatch):
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "outer" / "__init__.py").write_text("")
    (inner / "__init__.py").write_text("from outer.inner.open import open\nfrom outer.inner.shut import lock")
    (inner / "open.py").write_text("def open(): pass")
    (inner / "shut.py").write_text("def lock(): pass")
    monkeypatch.syspath_prepend(tmp_path)
    assert hidden_modules(importlib.import_module("outer")) == ["outer.inner.open"]


def test_what_users_write_exists():
    """The shortest names, which the README uses, exist."""
    names = {"CLIPModel", "ZeroShotClassifier", "data", "encoders", "layers", "losses", "training"}
    keras_clip = importlib.import_module("keras_clip")
    assert names <= set(vars(keras_clip))
    names = {"catalogue", "ladder", "metrics", "overlap", "published", "report", "sources", "suites"}
    assert {name for name in names if inspect.ismodule(getattr(keras_clip.evaluation, name, None))} == names
    assert {"keras_clip.CLIPModel", "keras_clip.layers.LogitScale", "keras_clip.losses.sigmoid_loss"} <= set(OBJECTS)


def faulty(x: int) -> int:
    return x


def bare(x):
    """Does.

    Args:
        x: a number.
    """


class Faulty(keras.layers.Layer):
    """Does."""

    def __init__(self, width: int, depth, **kwargs):
        super().__init__(**kwargs)

    def call(self, x):
        return x


def test_faults_are_found():
    assert missing_in_function(faulty) == ["a docstring"]
    assert missing_in_function(bare) == ["annotation of x", "annotation of the returned"]
    faulty.__doc__ = "Does.\n\nArgs:\n    x: a number.\n"
    assert missing_in_function(faulty) == ["Returns"]
    lacks = ["Args", "Call arguments", "Returns", "annotation of depth", "width under Args", "depth under Args"]
    assert missing_in_class(Faulty) == lacks
    assert missing_in_class(type("Child", (Faulty,), {})) == ["a docstring"]
