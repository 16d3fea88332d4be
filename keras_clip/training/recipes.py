"""The paper's recipe for each of its models, as numbers (Radford et al., 2021, tables 18, 19 and 20)."""

from dataclasses import dataclass

# Adam's for the two families (table 18).
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
# Those that go on from another model: its name, and for how many epochs.
_CONTINUED = {"vit_l14_336": ("vit_l14", 1)}


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, as plain data: `dataclasses.asdict` makes it a dict that JSON can hold.

    Args:
        preset: name of the model.
        starts_from: name of the trained model whose weights it starts from; None: from the initialisation.
        num_pairs: image-text pairs of an epoch.
        batch_size: pairs of a step, over all devices.
        epochs: passes over the pairs.
        total_steps: steps of the whole run.
        learning_rate: the highest one.
        warmup_steps: steps until then.
        weight_decay: per step, times the learning rate.
        beta_1: Adam's decay of the first moment.
        beta_2: Adam's decay of the second moment.
        epsilon: Adam's.
        temperature: initial one; None: as the model that it starts from has learned it.
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

    @property
    def optimizer(self) -> dict[str, float]:
        """The arguments of `adamw`: `adamw(model, **recipe("vit_l14").optimizer)`."""
        names = ("learning_rate", "warmup_steps", "total_steps", "weight_decay", "beta_1", "beta_2", "epsilon")
        return {name: getattr(self, name) for name in names}


def recipe(
    preset: str, num_pairs: int | None = None, batch_size: int | None = None, epochs: int | None = None
) -> Recipe:
    """How the paper trained a model, or the same for another number of pairs, batch or epochs.

    The steps follow from these. The warm-up has the paper's 2,000 steps in a run as long as the paper's of this model,
    and in a shorter one a tenth of the steps, if that is less. (Of its extra epoch at 336 pixels the paper gives the
    learning rate alone; the rest is what all its models have in common.) The learning rate does not follow the batch
    size: the paper has one batch size, and says nothing of others.

    Args:
        preset: one of `presets.names()`.
        num_pairs: int > 0 or None. Pairs of an epoch; None: the paper's 400 million. Where the data drops pairs that do
            not fill a batch, `len(dataset) * batch_size` gives exactly its steps.
        batch_size: int > 0 or None. Pairs of a step, over all devices; None: the paper's 32,768.
        epochs: int > 0 or None. None: the paper's 32, and 1 for "vit_l14_336".

    Returns:
        A `Recipe`.

    Raises:
        ValueError: an unknown name, a number that is not positive, or less pairs in all than one batch has.
    """
    if preset not in _LEARNING_RATES:
        raise ValueError(
            f"`preset` must be one of {', '.join(map(repr, _LEARNING_RATES))}. Received: preset={preset!r}. For a "
            "model of your own take the recipe of the one that is nearest in kind and size."
        )
    starts_from, paper_epochs = _CONTINUED.get(preset, (None, _EPOCHS))
    paper_steps = paper_epochs * _NUM_PAIRS // _BATCH_SIZE
    num_pairs, batch_size, epochs = (
        usual if given is None else given
        for given, usual in ((num_pairs, _NUM_PAIRS), (batch_size, _BATCH_SIZE), (epochs, paper_epochs))
    )
    total_steps = epochs * num_pairs // batch_size if min(num_pairs, batch_size, epochs) > 0 else 0
    if total_steps < 1:
        raise ValueError(
            "`num_pairs`, `batch_size` and `epochs` must be positive, and give one batch at least. "
            f"Received: num_pairs={num_pairs}, batch_size={batch_size}, epochs={epochs}. Make the batch smaller."
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
    )
