"""Turns patch dropout off in the last epochs of a training."""

import keras

from keras_clip import compat
from keras_clip.layers.patch_dropout import PatchDropout


class Unmask(keras.callbacks.Callback):
    """Trains on all patches in the last epochs of `fit`, after `VisionTransformer(patch_dropout=...)` left some out.

    Li et al. (2022), section 3: a short unmasked phase closes most of the gap between training on parts of images and
    testing on whole ones. Steps of that phase take the time and memory of a training without patch dropout.

    The phase is counted from the end of `fit(epochs=...)`, so that a resumed run enters it in the same epoch. Rates are
    zero during these epochs only: at the end of each they are restored, so that a model saved by a later callback has
    its original rate, and another `fit` uses patch dropout again.

    Args:
        epochs: int > 0. Number of epochs at the end.

    Raises:
        ValueError: `epochs` is not positive or, when `fit` begins, the model has no layer with patch dropout.
    """

    def __init__(self, epochs: int = 1):
        super().__init__()
        if epochs < 1:
            raise ValueError(f"`epochs` must be positive. Received: epochs={epochs}. Leave the callback out for none.")
        self.epochs = epochs
        self._rates = {}
        self._has_begun = False

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Notes the rates."""
        if self._has_begun:
            # The previous `fit` was interrupted in its last epochs, and its compiled step is still there.
            self._restore()
            self._has_begun = False
            compat.retrace_step(self.model)
        layers = compat.all_layers(self.model, include_self=False)
        self._rates = {layer: layer.rate for layer in layers if isinstance(layer, PatchDropout) and layer.rate > 0}
        if not self._rates:
            raise ValueError(
                f"`Unmask` needs an encoder with patch dropout. Received: model={self.model.name!r}, which has none. "
                "Build its image encoder with `patch_dropout=0.5`, or leave the callback out."
            )

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Arguments as of `keras.callbacks.Callback`."""
        if epoch < self.params["epochs"] - self.epochs:
            return
        for layer in self._rates:
            layer.rate = 0.0
        if not self._has_begun:
            # The compiled step has the rate as a constant.
            compat.retrace_step(self.model)
            self._has_begun = True

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Arguments as of `keras.callbacks.Callback`."""
        self._restore()

    def on_train_end(self, logs: dict | None = None) -> None:
        """Drops the compiled step without patch dropout."""
        if self._has_begun:
            self._has_begun = False
            compat.forget_step(self.model)

    def _restore(self):
        for layer, rate in self._rates.items():
            layer.rate = rate
