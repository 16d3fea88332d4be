"""The private names that `keras_clip.compat` uses still exist upstream, and behave as each entry says.

A failure names the entry. Read the new version of Keras, TensorFlow or torch there, then change the entry, or remove it
if there is a public name now.
"""

import inspect
import re
import threading

import keras
import numpy as np
import pytest
from keras import ops

from keras_clip import compat

BACKEND = keras.backend.backend()


def upstream(path):
    """Returns an object by its dotted path; keras and the backends are imported on demand."""
    name, *rest = path.split(".")
    value = __import__(name)
    for part in rest:
        value = getattr(value, part)
    return value


# {entry: [(name that must exist, the only backend that it concerns, or None)]}.
NAMES = {
    "all_layers": [("keras.layers.Layer._flatten_layers", None)],
    "sublayers": [("keras.layers.Layer._flatten_layers", None)],
    "forget_removed_weights": [("keras.layers.Layer._track_variables", "torch")],
    "BuildHook": [("keras.layers.Layer._post_build", None)],
    "CompiledFunctions": [
        *((f"keras.Model.make_{name}_function", None) for name in ("train", "test", "predict")),
        ("keras.Model._purge_model_variables", "jax"),
        ("keras.Model.jax_state_sync", "jax"),
    ],
    "BatchNormMoments": [("keras.layers.BatchNormalization._moments", None)],
    "call_stateless": [("keras.StatelessScope.get_current_value", None)],
    "FitHooks": [
        ("keras.Model.make_train_function", None),
        ("keras.Model._maybe_symbolic_build", "tensorflow"),
    ],
    "retrace_step": [("keras.Model.make_train_function", None)],
    "synchronize_variables": [("keras.Model.jax_state_sync", "jax")],
    "strategy_of_model": [("keras.Model.distribute_strategy", "tensorflow")],
    "disable_gradient_sum": [("keras.optimizers.SGD._all_reduce_sum_gradients", "tensorflow")],
    "replicas_must_merge": [("tensorflow.__internal__.distribute.strategy_supports_no_merge_call", "tensorflow")],
    "UpdateHooks": [
        (f"keras.optimizers.AdamW.{name}", None)
        for name in ("_use_weight_decay", "_apply_weight_decay", "_backend_update_step")
    ],
    "variable_index": [("keras.optimizers.AdamW._get_variable_index", None)],
    "list_operations": [(f"torch._foreach_{name}", "torch") for name in compat._LIST_OPERATIONS],
}
CASES = [(entry, path, only) for entry, paths in NAMES.items() for path, only in paths if only in (None, BACKEND)]


@pytest.mark.parametrize("entry, path, only", CASES, ids=[f"{entry}-{path}" for entry, path, _ in CASES])
def test_the_name_exists(entry, path, only):
    try:
        upstream(path)
    except AttributeError:
        pytest.fail(f"`compat.{entry}` relies on `{path}`, which keras {keras.__version__} on {BACKEND} does not have.")


class Small(keras.Model):
    """A model that multiplies by one weight, which starts as 1."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
        self.dense.build((None, 1))
        self.built = True

    def call(self, x):
        return self.dense(x)


class Hooked(compat.FitHooks, Small):
    """Records the calls of its hooks."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def prepare_training(self, is_first):
        self.noted.append(f"prepare {is_first}")
        self.optimizer.build(self.trainable_variables)

    def wrap_train_function(self, function):
        number = sum(name.startswith("wrap") for name in self.noted)
        self.noted.append("wrap")

        def step(*args):
            self.noted.append(f"step {number}")
            return function(*args)

        return step


def compiled(model, optimizer="sgd"):
    model.compile(optimizer, "mse")
    return model


def fit(model, epochs=1, callbacks=(), rows=4, **options):
    x = np.ones((rows, 1), "float32")
    return model.fit(x, 2 * x, epochs=epochs, batch_size=2, verbose=0, callbacks=list(callbacks), **options)


def kernel(model):
    return float(ops.convert_to_numpy(ops.convert_to_tensor(model.dense.kernel))[0, 0])


def all_layers():
    shared = keras.layers.Dense(2, name="shared")
    inner = keras.Sequential([shared, keras.layers.BatchNormalization(name="norm")], name="inner")
    outer = keras.Sequential([keras.Input((2,)), inner, keras.layers.Dense(2, name="last"), shared], name="outer")
    names = [layer.name for layer in compat.all_layers(outer) if not isinstance(layer, keras.layers.InputLayer)]
    assert sorted(names) == ["inner", "last", "norm", "outer", "shared"]
    assert outer not in compat.all_layers(outer, include_self=False)


def sublayers():
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="deep")], name="inner")
    outer = keras.Sequential([keras.Input((2,)), inner, keras.layers.Dense(2, name="last")], name="outer")
    names = [layer.name for layer in compat.sublayers(outer)]
    assert [name for name in names if not name.startswith("input")] == ["inner", "last"]


def trainable_by_nature():
    norm = keras.layers.BatchNormalization()
    norm.build((None, 2))
    norm.trainable = False
    assert [weight.name for weight in compat.trainable_by_nature(norm)] == ["gamma", "beta"]


def set_trainable_flag():
    model = Small()
    compat.set_trainable_flag(model, False)
    assert (model.trainable, model.dense.trainable, model.dense.kernel.trainable) == (False, True, True)
    assert model.trainable_weights == []


def forget_removed_weights():
    model = Small()
    model.dense.quantize("int8")
    compat.forget_removed_weights(model)
    if BACKEND == "torch":
        assert {weight.dtype.is_floating_point for weight in model.parameters()} == {False, True}
        assert sum(weight.dtype.is_floating_point for weight in model.parameters()) == 1


def build_hook():
    built = []

    class Hooked(compat.BuildHook, Small):
        def __init__(self):
            super().__init__()
            self.mark_built()

        def finish_build(self):
            built.append(self.built)

    class Late(compat.BuildHook, keras.layers.Dense):
        def finish_build(self):
            built.append(self.kernel.shape)

    fit(compiled(Hooked()))
    Late(3)(np.ones((1, 2)))
    assert built == [True, (2, 3)]


class Shifted(keras.Model):
    """Adds two weights, of which either may be locked."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (self.add_weight(name=name, shape=(1,), initializer="zeros") for name in "ab")
        self.built = True

    def call(self, x):
        if len(x.shape) != 2:
            raise ValueError("rank")
        return x + self.first + 10 * self.second


class ShiftedAnew(compat.CompiledFunctions, Shifted):
    """The same, with functions that follow the locks."""


def compiled_functions():
    x = np.zeros((2, 1), "float32")
    model = compiled(ShiftedAnew(), keras.optimizers.SGD(0.01))
    model.first.assign([1.0])
    model.second.trainable = False
    assert model.predict(x, verbose=0)[0, 0] == 1.0
    model.fit(x, x, verbose=0)
    assert [float(ops.convert_to_numpy(v.value)[0]) for v in model.weights] == pytest.approx([0.98, 0.0])
    # Locked the other way round: as many values of the same shapes.
    model.first.trainable, model.second.trainable = False, True
    assert model.predict(x, verbose=0)[0, 0] == pytest.approx(0.98)
    model.compile(keras.optimizers.SGD(0.01), "mse")
    model.fit(x, x, verbose=0)
    assert [float(ops.convert_to_numpy(v.value)[0]) for v in model.weights] == pytest.approx([0.98, -0.196])
    # What fails leaves the values.
    for call in (model.predict, lambda x, verbose: model.evaluate(x, x, verbose=verbose)):
        with pytest.raises(ValueError, match="rank"):
            call(np.zeros((2, 1, 1)), verbose=0)
        assert float(ops.convert_to_numpy(model.first.value)[0]) == pytest.approx(0.98)
    done = []
    model.call_after_fit(lambda: done.append("fit"))
    with pytest.raises(ValueError, match="rank"):
        model.fit(np.zeros((2, 1, 1)), x, verbose=0)
    assert done == ["fit"] and model.predict(x, verbose=0)[0, 0] == pytest.approx(-0.98)
    model.fit(x, x, verbose=0)
    assert done == ["fit"]


def has_compiled_metrics():
    model = compiled(Small())
    assert not compat.has_compiled_metrics(model)
    model.compile("sgd", "mse", metrics=["mse"])
    assert compat.has_compiled_metrics(model)


def build_metrics():
    model = Small()
    model.compile("sgd", metrics=["mean_absolute_error"])
    compat.build_metrics(model, np.zeros((2, 1)), np.zeros((2, 1)))
    model.compute_metrics(None, np.zeros((2, 1)), np.ones((2, 1)))
    assert float(model.get_metrics_result()["mean_absolute_error"]) == 1.0
    compat.build_metrics(compiled(Small()), np.zeros((2, 1)), np.zeros((2, 1)))


def optimized_weights():
    variables = [keras.Variable(np.zeros(2)), keras.Variable(np.zeros(3))]
    for optimizer in (keras.optimizers.SGD(), keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())):
        assert compat.optimized_weights(optimizer) == []
        optimizer.build(variables)
        assert list(map(id, compat.optimized_weights(optimizer))) == list(map(id, variables))


REBUILT = {
    "Adam": lambda: keras.optimizers.Adam(0.5),
    "Nadam with a schedule": lambda: keras.optimizers.Nadam(keras.optimizers.schedules.CosineDecay(0.5, 10)),
    "averages": lambda: keras.optimizers.SGD(0.5, momentum=0.5, use_ema=True),
    "Muon": lambda: keras.optimizers.Muon(0.5),
    "scaled loss": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.5), initial_scale=2.0),
}


def step(optimizer, weights):
    gradients = [ops.ones((2,)) for _ in weights]
    if BACKEND != "jax":
        optimizer.apply(gradients, weights)
        return
    values = [ops.convert_to_tensor(v.value) for v in optimizer.variables]
    new = optimizer.stateless_apply(values, gradients, [ops.convert_to_tensor(v.value) for v in weights])
    for variables, group in zip((weights, optimizer.variables), new, strict=True):
        for variable, value in zip(variables, group, strict=True):
            variable.assign(value)


def rebuild_optimizer():
    for name, make in REBUILT.items():
        first, second, third = (keras.Variable(np.full((2,), float(i))) for i in range(3))
        optimizer = make()
        optimizer.build([first, second])
        step(optimizer, [first, second])
        every = {v.path: ops.convert_to_numpy(ops.copy(v.value)) for v in optimizer.variables}
        assert set(map(id, compat.optimized_weights(optimizer))) == {id(first), id(second)}
        number = len(optimizer.variables)
        compat.rebuild_optimizer(optimizer, [third, second])
        assert len(optimizer.variables) == number, name
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        assert int(inner.iterations) == 1
        for slot in ("_momentums", "_velocities", "adam_momentums", "_model_variables_moving_average"):
            if hasattr(inner, slot):
                new, old = (ops.convert_to_numpy(v.value) for v in getattr(inner, slot))
                np.testing.assert_array_equal(old, every[getattr(inner, slot)[1].path], err_msg=name)
                assert np.all(new == (2.0 if "average" in slot else 0.0)), name
        step(optimizer, [third, second])
        for _ in range(3):
            compat.rebuild_optimizer(optimizer, [first])
            compat.rebuild_optimizer(optimizer, [first, third])
        assert len(optimizer.variables) == number, name


def batch_norm_moments():
    seen = []

    class Norm(compat.BatchNormMoments):
        def moments(self, inputs, axes, mask=None):
            seen.append((inputs.shape, list(axes), mask))
            return ops.zeros((3,)), ops.full((3,), 4.0)

    x = np.random.default_rng(0).normal(size=(2, 5, 5, 3)).astype("float32")
    norm = Norm(epsilon=0.0, momentum=0.5)
    norm(x)
    assert seen == []
    np.testing.assert_allclose(ops.convert_to_numpy(norm(x, training=True)), x / 2, rtol=1e-6)
    assert seen == [((2, 5, 5, 3), [0, 1, 2], None)]
    np.testing.assert_allclose(ops.convert_to_numpy(norm.moving_variance.value), 2.5)
    plain = [layer(x, training=True) for layer in (compat.BatchNormMoments(), keras.layers.BatchNormalization())]
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, plain))


def call_stateless():
    regularized = keras.layers.Dense(2, kernel_regularizer="l2", activity_regularizer=lambda x: 7.0 * ops.sum(x))
    dropout, norm = keras.layers.Dropout(0.5, seed=1), keras.layers.BatchNormalization()
    for layer in (regularized, norm):
        layer.build((None, 2))
    variables = [*regularized.variables, *dropout.variables, *norm.variables]
    values = [ops.convert_to_tensor(v.value) + ops.cast(1, v.dtype) for v in variables]
    before = [ops.convert_to_numpy(ops.copy(v.value)) for v in variables]
    x = ops.ones((4, 2))

    def function(x):
        return norm(dropout(regularized(x), training=True), training=True)

    result = compat.call_stateless(function, variables, values, x)
    dense = ops.matmul(x, values[0]) + values[1]
    # Only the loss of the activity is returned; that of the kernel belongs to `model.losses`.
    (loss,) = map(ops.convert_to_numpy, result.losses)
    assert loss == pytest.approx(7.0 * ops.convert_to_numpy(ops.sum(dense)) / 4, rel=1e-5)
    assigned = [v.path for v, was_assigned in zip(variables, result.assigned, strict=True) if was_assigned]
    assert sorted(assigned) == sorted(v.path for v in [*dropout.variables, norm.moving_mean, norm.moving_variance])
    for value, given, was_assigned in zip(result.values, values, result.assigned, strict=True):
        assert np.array_equal(ops.convert_to_numpy(value), ops.convert_to_numpy(given)) != was_assigned
    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable.value), value)


def fit_hooks():
    model = compiled(Hooked())
    fit(model, epochs=2)
    assert model.noted == ["prepare True", "wrap", *["step 0"] * 4]
    fit(model)
    assert model.noted[6:] == ["prepare False", "step 0", "step 0"]


def no_symbolic_build():
    called = []

    class Plain(Small):
        def _maybe_symbolic_build(self, **options):
            called.append(sorted(options))

    fit(compiled(Plain()))
    # If Keras no longer calls it, `FitHooks` need not replace it.
    assert called == ([["iterator"]] if BACKEND == "tensorflow" else [])
    assert compat.FitHooks._maybe_symbolic_build(None, iterator=None) is None


def retrace_step():
    model = compiled(Hooked())

    class Retrace(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                compat.retrace_step(model)

    fit(model, epochs=2, callbacks=[Retrace()])
    # Keras uses the new function at once; it does not share variables or build again, as before the first step.
    steps = ["prepare True", "wrap", "step 0", "step 0", "prepare False", "wrap", "step 1", "step 1"]
    assert model.noted == steps


def forget_step():
    model = compiled(Hooked())
    fit(model)
    model.evaluate(np.ones((2, 1)), np.ones((2, 1)), verbose=0)
    model.predict(np.ones((2, 1)), verbose=0)
    functions = [model.train_function, model.test_function, model.predict_function]
    assert None not in functions
    compat.forget_step(model)
    assert [model.train_function, model.test_function, model.predict_function] == [None, *functions[1:]]
    compat.forget_step(model, evaluation=True)
    assert [model.test_function, model.predict_function] == [None, None]
    fit(model)
    assert model.noted.count("wrap") == 2


def set_initial_epoch():
    model, epochs = compiled(Small()), []

    class Begin(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            compat.set_initial_epoch(self.model, 2)

        def on_epoch_begin(self, epoch, logs=None):
            epochs.append(epoch)
            compat.set_initial_epoch(self.model, None)

    fit(model, epochs=4, callbacks=[Begin()])
    assert epochs == [2, 3]
    fit(model, epochs=1, callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=lambda e, logs: epochs.append(e))])
    assert epochs == [2, 3, 0]


def synchronize_variables():
    model, seen = compiled(Small()), []

    class Look(keras.callbacks.Callback):
        # Does not read `self.model`, which synchronizes by itself.
        def on_train_batch_end(self, batch, logs=None):
            compat.synchronize_variables(model)
            seen.append(kernel(model))

    fit(model, callbacks=[Look()])
    # With a learning rate of 0.01, the first step from 1 towards 2 ends at 1.02.
    assert seen == pytest.approx([1.02, 1.0396], rel=1e-5)


def async_callback():
    main, threads = threading.get_ident(), {"plain": set(), "async": set()}

    def look(base, name):
        class Look(base):
            def on_train_batch_end(self, batch, logs=None):
                threads[name].add(threading.get_ident())

        return Look()

    fit(compiled(Small()), callbacks=[look(keras.callbacks.Callback, "plain")])
    fit(compiled(Small()), callbacks=[look(compat.AsyncCallback, "async")])
    assert threads["plain"] == {main}
    # On TensorFlow, Keras calls all callbacks from the main thread.
    assert (threads["async"] == {main}) == (BACKEND == "tensorflow") and threads["async"]


def strategy_of_model():
    import tensorflow as tf

    assert compat.strategy_of_model(Small()).num_replicas_in_sync == 1
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = Small()
    assert compat.strategy_of_model(model) is strategy


def disable_gradient_sum():
    def sums(disable):
        optimizer, seen = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5)), []
        optimizer.inner_optimizer._all_reduce_sum_gradients = lambda pairs: seen.append(len(pairs)) or pairs
        if disable:
            compat.disable_gradient_sum(optimizer)
        variable = keras.Variable(2.0)
        optimizer.build([variable])
        optimizer.apply([optimizer.scale_loss(ops.convert_to_tensor(1.0))], [variable])
        assert float(variable.value) == 1.5
        return seen

    # If Keras sums elsewhere, the first list is empty, and gradients would be summed twice.
    assert (sums(False), sums(True)) == ([1], [])


def replicas_must_merge():
    import tensorflow as tf

    assert compat.replicas_must_merge() is False
    seen = []
    tf.distribute.MirroredStrategy(["CPU:0"]).run(lambda: seen.append(compat.replicas_must_merge()))
    assert seen == [True]


def update_hooks():
    seen = []

    class AdamW(compat.UpdateHooks, keras.optimizers.AdamW):
        def decays(self, variable):
            return compat.variable_index(self, variable) == 1 and super().decays(variable)

        def decay_all(self, variables):
            seen.append(f"decay {len(variables)}")
            super().decay_all(variables)

        def update_all(self, gradients, variables, learning_rate):
            seen.append(f"update {len(gradients)} {len(variables)} {float(learning_rate):.1f}")
            super().update_all(gradients, variables, learning_rate)

    variables = [keras.Variable(np.full((2,), 4.0)), keras.Variable(np.full((2,), 4.0))]
    optimizer = AdamW(0.5, weight_decay=0.5)
    optimizer.build(variables)
    optimizer.apply([ops.zeros((2,)), ops.zeros((2,))], variables)
    assert seen == ["decay 2", "update 2 2 0.5"]
    # With zero gradients, only weight decay changes variables, here by a quarter.
    assert [float(v.value[0]) for v in variables] == [4.0, 3.0]


def variable_index():
    variables = [keras.Variable(np.zeros(2)) for _ in range(3)]
    optimizer = keras.optimizers.AdamW()
    optimizer.build(variables)
    assert [compat.variable_index(optimizer, variable) for variable in reversed(variables)] == [2, 1, 0]


def adam_moments():
    variables = [keras.Variable(np.zeros(2)), keras.Variable(np.zeros(3))]
    for kind in (keras.optimizers.Adam, keras.optimizers.AdamW):
        optimizer = kind(beta_1=0.5, beta_2=0.75)
        optimizer.build(variables)
        optimizer.apply([ops.full((2,), 2.0), ops.full((3,), 4.0)], variables)
        moments = compat.adam_moments(optimizer)
        assert moments._fields == ("momentums", "velocities")
        means = [[float(ops.convert_to_numpy(v.value).mean()) for v in group] for group in moments]
        assert means == [[1.0, 2.0], [1.0, 4.0]]


def list_operations():
    import torch

    lists = compat.list_operations()
    draw = torch.Generator().manual_seed(0)

    def tensors():
        return [torch.rand(shape, generator=draw) + 1 for shape in ((), (3,), (2, 4))]

    def equal(one, other):
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    a, b = tensors(), tensors()
    assert equal(lists.add(a, 2.0), [x + 2.0 for x in a])
    assert equal(lists.mul(a, b), [x * y for x, y in zip(a, b, strict=True)])
    assert equal(lists.div(a, b), [x / y for x, y in zip(a, b, strict=True)])
    assert equal(lists.sqrt(a), [x.sqrt() for x in a])
    for name, given, expected in (
        ("mul_", (0.5,), [x * 0.5 for x in a]),
        ("mul_", ([2.0, 3.0, 4.0],), [x * y for x, y in zip(a, (2.0, 3.0, 4.0), strict=True)]),
        ("sub_", (b,), [x - y for x, y in zip(a, b, strict=True)]),
        ("copy_", (b,), b),
    ):
        changed = [x.clone() for x in a]
        getattr(lists, name)(changed, *given)
        assert equal(changed, expected), name
    changed = [x.clone() for x in a]
    lists.add_(changed, b, alpha=-1)
    assert equal(changed, [x - y for x, y in zip(a, b, strict=True)])


# {entry: (its check, the only backend that it concerns, or None)}.
BEHAVIOURS = {
    "all_layers": (all_layers, None),
    "sublayers": (sublayers, None),
    "trainable_by_nature": (trainable_by_nature, None),
    "set_trainable_flag": (set_trainable_flag, None),
    "forget_removed_weights": (forget_removed_weights, None),
    "BuildHook": (build_hook, None),
    "CompiledFunctions": (compiled_functions, None),
    "has_compiled_metrics": (has_compiled_metrics, None),
    "build_metrics": (build_metrics, None),
    "optimized_weights": (optimized_weights, None),
    "rebuild_optimizer": (rebuild_optimizer, None),
    "BatchNormMoments": (batch_norm_moments, None),
    "call_stateless": (call_stateless, None),
    "FitHooks": (fit_hooks, None),
    "FitHooks, symbolic build": (no_symbolic_build, None),
    "retrace_step": (retrace_step, None),
    "forget_step": (forget_step, None),
    "set_initial_epoch": (set_initial_epoch, None),
    "synchronize_variables": (synchronize_variables, None),
    "AsyncCallback": (async_callback, None),
    "strategy_of_model": (strategy_of_model, "tensorflow"),
    "disable_gradient_sum": (disable_gradient_sum, "tensorflow"),
    "replicas_must_merge": (replicas_must_merge, "tensorflow"),
    "UpdateHooks": (update_hooks, None),
    "variable_index": (variable_index, None),
    "adam_moments": (adam_moments, None),
    "list_operations": (list_operations, "torch"),
}


@pytest.mark.parametrize("entry", [entry for entry, (_, only) in BEHAVIOURS.items() if only in (None, BACKEND)])
def test_upstream_behaves_as_the_entry_says(entry):
    try:
        BEHAVIOURS[entry][0]()
    except (Exception, AssertionError) as error:
        raise AssertionError(
            f"`compat.{entry}` relies on something that keras {keras.__version__} on {BACKEND} does otherwise: {error}"
        ) from error


def test_every_entry_is_checked():
    own = {name: value for name, value in vars(compat).items() if getattr(value, "__module__", None) == compat.__name__}
    entries = {name for name, value in own.items() if not (inspect.isclass(value) and issubclass(value, tuple))}
    assert entries == {entry.split(",")[0] for entry in BEHAVIOURS}


@pytest.mark.parametrize("name", sorted({entry.split(",")[0] for entry in BEHAVIOURS}))
def test_every_entry_gives_its_reason(name):
    assert re.search(r"Relies on [^.]*`", inspect.getdoc(getattr(compat, name)))
