"""Stops a training that has diverged."""

import keras

from keras_clip import compat


class StopOnSkippedSteps(keras.callbacks.Callback):
    """Stops `fit` with an error after `steps` consecutive skipped steps.

    A step whose loss or gradient is not finite changes nothing and is counted in `skipped_steps`. A few are harmless;
    if all steps are skipped, the run has diverged. The count is read from the device every `steps` steps, and at the
    end of each epoch, so that the device does not wait in between: training stops after at least `steps` and fewer than
    twice as many skipped steps.

    With several processes all of them pass it.

    Args:
        steps: int > 0. Number of consecutive skipped steps.

    Raises:
        ValueError: `steps` is not positive.
        TypeError: in `fit`, a model that does not count them.
        RuntimeError: in `fit`, when it stops.
    """

    def __init__(self, steps: int = 20):
        super().__init__()
        if steps < 1:
            raise ValueError(f"`steps` must be positive. Received: steps={steps}.")
        self.steps = steps
        self._done = self._looked = 0
        self._before, self._seen = 0.0, None

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Resets the counts."""
        if not hasattr(self.model, "skipped_steps"):
            raise TypeError(
                f"The model must be a `CLIPModel`, which counts skipped steps. Received: {type(self.model).__name__}. "
                "Use `keras.callbacks.TerminateOnNaN` for others."
            )
        self._done = self._looked = 0
        self._before, self._seen = 0.0, None
        # On JAX, each access to `self.model` copies the state of the training back to the model.
        self._steps_at_a_time = self.model.steps_per_execution

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Arguments as of `keras.callbacks.Callback`."""
        if self._seen is None or self._done - self._looked >= self.steps:
            self._look(self._skipped())
        self._done += self._steps_at_a_time

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Arguments as of `keras.callbacks.Callback`."""
        # After a validation the metrics of the model are those of the validation.
        skipped = logs["skipped_steps"]
        if self._done - self._looked >= self.steps:
            self._look(skipped)
        self._before += skipped

    def _skipped(self):
        compat.synchronize_variables(self.model)
        return float(keras.ops.convert_to_numpy(self.model.skipped_steps.result()))

    def _look(self, skipped):
        total, steps = self._before + skipped, self._done - self._looked
        if steps and total - self._seen >= steps:
            raise RuntimeError(
                f"Fewer than {self.steps} steps in a row may have a loss or gradients that are not finite. Received: "
                f"{steps} such steps, all since step {self._looked} of this `fit`; they were skipped. Lower the "
                "learning rate, clip gradients (`global_clipnorm=1.0`), or check that the data is finite."
            )
        self._seen, self._looked = total, self._done
