"""Disables patch dropout in the final phase of training, so that it matches inference."""

import keras

from keras_clip import compat
from keras_clip.layers.patch_dropout import PatchDropout


class Unmask(keras.callbacks.Callback):
    """Disables the patch dropout of `VisionTransformer(patch_dropout=...)` in the last epochs of `fit`.

    A short unmasked phase closes most of the gap between training on part of the patches and testing on all of them (Li
    et al., 2022, section 3). Its steps take the time and memory of training without patch dropout.

    The phase is counted from the end of `fit(epochs=...)`, so that a run resumed with `initial_epoch` enters it at the
    same epoch as an uninterrupted run. The rates are zero within the epochs of the phase only: a model saved at the end
    of an epoch has its original rates if this callback comes before the one that saves, and another `fit` applies
    patch dropout again.

    Args:
        epochs: int > 0. Number of final epochs without patch dropout.

    Raises:
        ValueError: `epochs` is not positive or, when `fit` begins, the model has no patch dropout.
    """

    def __init__(self, epochs: int = 1):
        super().__init__()
        if epochs < 1:
            raise ValueError(f"`epochs` must be positive. Received: epochs={epochs}. Omit the callback for no epochs.")
        self.epochs = epochs
        self._rates = {}
        self._has_begun = False

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Stores the rates of all patch dropout layers."""
        if self._has_begun:
            # The previous `fit` of a model that is not of this library was interrupted in its last epochs, and this one
            # would use its compiled step.
            self._restore()
            self._has_begun = False
            compat.retrace_step(self.model)
        layers = compat.all_layers(self.model, include_self=False)
        self._rates = {layer: layer.rate for layer in layers if isinstance(layer, PatchDropout) and layer.rate > 0}
        if isinstance(self.model, compat.CompiledFunctions):
            self.model.call_after_fit(self._end)
        if not self._rates:
            raise ValueError(
                f"`Unmask` requires an encoder with patch dropout. Received: model={self.model.name!r} without it. "
                "Pass `patch_dropout=0.5` to the image encoder, or omit the callback."
            )

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Sets the rates to zero in the last epochs. Arguments as in `keras.callbacks.Callback`."""
        if epoch < self.params["epochs"] - self.epochs:
            return
        for layer in self._rates:
            layer.rate = 0.0
        if not self._has_begun:
            # The compiled step contains the rates as constants. `fit` looks the function up at every step.
            compat.retrace_step(self.model)
            self._has_begun = True

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Restores the rates. Arguments as in `keras.callbacks.Callback`."""
        self._restore()

    def on_train_end(self, logs: dict | None = None) -> None:
        """Discards the compiled step without patch dropout."""
        self._end()

    def _end(self):
        """Leaves the model as it was, also after an exception in `fit`."""
        self._restore()
        if self._has_begun:
            self._has_begun = False
            compat.forget_step(self.model)

    def _restore(self):
        for layer, rate in self._rates.items():
            layer.rate = rate
