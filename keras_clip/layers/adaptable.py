"""Linear layers and embeddings whose LoRA updates are saved beside the weights (Hu et al., 2021)."""

import keras
from keras import ops


class _SavesLora:
    """Mixin before a Keras layer that has `enable_lora`.

    Keras saves the sum of a weight and its update, and sets both factors of the update to zero when it loads. Then
    neither factor has a gradient, and training could not continue. A layer without updates is saved as by Keras.
    """

    def quantize(self, mode=None, type_check=True, config=None):
        # Keras refuses subclasses, which may compute something else.
        super().quantize(mode, type_check=False, config=config)

    def save_own_variables(self, store):
        if not self.lora_enabled:
            super().save_own_variables(store)
            return
        for weight in self.weights:
            store[weight.name] = weight
        store["lora_scale"] = ops.convert_to_tensor(self.lora_alpha / self.lora_rank, "float32")

    def load_own_variables(self, store):
        saved = set(store.keys())
        if "lora_scale" not in saved:
            factors = [(weight, ops.copy(weight.value)) for weight in self.weights if weight.name.startswith("lora_")]
            super().load_own_variables(store)
            for weight, value in factors:
                # Keras set both factors to zero; a new update has only the second factor at zero.
                if weight.name.endswith("_a"):
                    weight.assign(value)
            return
        if not self.lora_enabled:
            self._load_merged(store)
            return
        for weight in self.weights:
            weight.assign(store[weight.name])

    def _load_merged(self, store):
        if self.quantization_mode is not None:
            raise ValueError(
                f"The file has LoRA updates, which a quantised layer cannot take up. Received: layer {self.name!r}, "
                f"quantised to {self.quantization_mode}. Call `keras_clip.training.enable_lora` first."
            )
        for weight in self.weights:
            value = ops.convert_to_tensor(store[weight.name])
            if f"lora_{weight.name}_a" in store.keys():
                first, second = (ops.convert_to_tensor(store[f"lora_{weight.name}_{i}"]) for i in "ab")
                update = ops.convert_to_tensor(store["lora_scale"]) * ops.matmul(first, second)
                value = value + ops.cast(update, value.dtype)
            weight.assign(value)


@keras.saving.register_keras_serializable(package="keras_clip")
class LoraDense(_SavesLora, keras.layers.Dense):
    """`keras.layers.Dense` whose LoRA updates are saved as they are.

    Args:
        As `keras.layers.Dense`.

    Call arguments:
        inputs: float tensor (..., D).

    Returns:
        Tensor (..., units) in the compute dtype.
    """

    def call(self, inputs, training=None):
        if keras.backend.backend() != "jax" or len(inputs.shape) <= 2:
            return super().call(inputs, training)
        # XLA for CPUs computes the gradient of the kernel by one fast matrix product only if the inputs are a matrix.
        rows = super().call(ops.reshape(inputs, (-1, inputs.shape[-1])), training)
        return ops.reshape(rows, (*inputs.shape[:-1], self.units))


@keras.saving.register_keras_serializable(package="keras_clip")
class LoraEmbedding(_SavesLora, keras.layers.Embedding):
    """`keras.layers.Embedding` whose LoRA updates are saved as they are.

    Args:
        As `keras.layers.Embedding`.

    Call arguments:
        inputs: int tensor of any shape.

    Returns:
        Tensor of that shape and one axis more, in the compute dtype.
    """
