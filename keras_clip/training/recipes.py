"""The hyperparameters of each of the paper's models (Radford et al., 2021, tables 18, 19 and 20)."""

from dataclasses import dataclass

from keras_clip.data.arguments import check_crop

# Hyperparameters of Adam for the two model families (table 18).
_RESNET = {"beta_2": 0.999, "epsilon": 1e-8}
_VISION_TRANSFORMER = {"beta_2": 0.98, "epsilon": 1e-6}
_LEARNING_RATES = {
    "rn50": 5e-4,
    "rn101": 5e-4,
    "rn50x4": 5e-4,
    "rn50x16": 4e-4,
    "rn50x64": 3.6e-4,
    "vit_b32": 5e-4,
    "vit_b16": 5e-4,
    "vit_l14": 4e-4,
    "vit_l14_336": 2e-5,
}
_NUM_PAIRS = 400_000_000
_BATCH_SIZE = 32_768
_EPOCHS = 32
_WARMUP_STEPS = 2000
# Models that continue the training of another model: {name: (initial model, epochs)}.
_CONTINUED = {"vit_l14_336": ("vit_l14", 1)}


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a training run; `dataclasses.asdict` converts them to a JSON-serialisable dict.

    Args:
        preset: name of the model.
        starts_from: name of the trained model that provides the initial weights; None: random initialisation.
        num_pairs: image-text pairs per epoch.
        batch_size: pairs per step, over all devices.
        epochs: passes over the pairs.
        total_steps: steps of the whole run.
        learning_rate: peak learning rate.
        warmup_steps: steps until the peak learning rate.
        weight_decay: decoupled weight decay, multiplied by the learning rate at each step.
        beta_1: Adam's decay rate of the first moment.
        beta_2: Adam's decay rate of the second moment.
        epsilon: Adam's epsilon.
        temperature: initial temperature; None: the learned temperature of the initial model.
        crop: the random crop of the images, an argument of `data.image_text_pairs`.
    """

    preset: str
    starts_from: str | None
    num_pairs: int
    batch_size: int
    epochs: int
    total_steps: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    beta_1: float
    beta_2: float
    epsilon: float
    temperature: float | None
    crop: str

    @property
    def optimizer(self) -> dict[str, float]:
        """The arguments of `adamw`: `adamw(model, **recipe("vit_l14").optimizer)`."""
        names = ("learning_rate", "warmup_steps", "total_steps", "weight_decay", "beta_1", "beta_2", "epsilon")
        return {name: getattr(self, name) for name in names}


def recipe(
    preset: str,
    num_pairs: int | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    crop: str = "paper",
) -> Recipe:
    """Returns the paper's hyperparameters of a model, for a given number of pairs, batch size and number of epochs.

    These determine the number of steps. The warm-up has the paper's 2,000 steps; in a run shorter than the paper's it
    has at most a tenth of all steps. The learning rate is not scaled with the batch size, as the paper uses a single
    batch size. For the additional epoch at 336 pixels the paper states the learning rate only; the other values are
    those common to all its models.

    Args:
        preset: one of `presets.names()`.
        num_pairs: int > 0 or None. Pairs per epoch; None: the paper's 400 million. If the dataset drops incomplete
            batches, `len(dataset) * batch_size` results in its exact number of steps.
        batch_size: int > 0 or None. Pairs per step, over all devices; None: the paper's 32,768.
        epochs: int > 0 or None. None: the paper's 32, and 1 for "vit_l14_336".
        crop: "paper", a random crop of the image whose shorter side fits, or "random_resized", that of open_clip: see
            `data.image_text_pairs`.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: an unknown name or crop, a number that is not positive, or fewer pairs over all epochs than one
            batch.
    """
    if preset not in _LEARNING_RATES:
        raise ValueError(
            f"`preset` must be one of {', '.join(map(repr, _LEARNING_RATES))}. Received: preset={preset!r}. For "
            "another model, use the recipe of the preset with the most similar architecture and size."
        )
    check_crop(crop)
    starts_from, paper_epochs = _CONTINUED.get(preset, (None, _EPOCHS))
    paper_steps = paper_epochs * _NUM_PAIRS // _BATCH_SIZE
    num_pairs, batch_size, epochs = (
        default if given is None else given
        for given, default in ((num_pairs, _NUM_PAIRS), (batch_size, _BATCH_SIZE), (epochs, paper_epochs))
    )
    total_steps = epochs * num_pairs // batch_size if min(num_pairs, batch_size, epochs) > 0 else 0
    if total_steps < 1:
        raise ValueError(
            "`num_pairs`, `batch_size` and `epochs` must be positive and result in at least one batch. "
            f"Received: num_pairs={num_pairs}, batch_size={batch_size}, epochs={epochs}. Reduce the batch size."
        )
    return Recipe(
        preset=preset,
        starts_from=starts_from,
        num_pairs=num_pairs,
        batch_size=batch_size,
        epochs=epochs,
        total_steps=total_steps,
        learning_rate=_LEARNING_RATES[preset],
        warmup_steps=_WARMUP_STEPS if total_steps >= paper_steps else min(_WARMUP_STEPS, total_steps // 10),
        weight_decay=0.2,
        beta_1=0.9,
        **(_RESNET if preset.startswith("rn") else _VISION_TRANSFORMER),
        temperature=None if starts_from else 0.07,
        crop=crop,
    )
