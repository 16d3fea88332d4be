"""Ends a training in which nothing is learned any more."""

import keras

from keras_clip import compat


class StopOnSkippedSteps(keras.callbacks.Callback):
    """Stops `fit` with an error when a given number of consecutive steps was skipped.

    A step whose loss or gradient is not finite changes nothing and is counted in `skipped_steps`. One now and then does
    no harm; where all are, the run has diverged, and time is lost. Looks every `steps` steps, and at the end of each
    epoch, at what the device has counted, so that the device need not wait in between: training stops after at least
    `steps` and less than twice as many skipped ones.

    With several processes all of them pass it.

    Args:
        steps: int > 0. How many in a row. Totals do not matter.

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
        """Counts from zero."""
        if not hasattr(self.model, "skipped_steps"):
            raise TypeError(
                f"Skipped steps are counted by a `CLIPModel`. Received: a model of type {type(self.model).__name__}. "
                "Use `keras.callbacks.TerminateOnNaN` for others."
            )
        self._done = self._looked = 0
        self._before, self._seen = 0.0, None

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Arguments as of `keras.callbacks.Callback`."""
        if self._seen is None or self._done - self._looked >= self.steps:
            self._look(self._skipped())
        self._done += self.model.steps_per_execution

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Arguments as of `keras.callbacks.Callback`."""
        # After a validation the metrics are those of it.
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
                "learning rate, clip gradients (`global_clipnorm=1.0`), or look for pairs that are not finite."
            )
        self._seen, self._looked = total, self._done
