"""`recipe`: the paper's numbers, their values for other data, and `adamw` with them."""

import json
from dataclasses import asdict

import pytest

import keras_clip
from keras_clip.evaluation.studies import published
from keras_clip.training import adamw, recipe

pytestmark = pytest.mark.backend_free

# Radford et al. (2021), tables 18 to 20: learning rate, beta_2, epsilon, epochs.
PAPER = {
    "rn50": (5e-4, 0.999, 1e-8, 32),
    "rn101": (5e-4, 0.999, 1e-8, 32),
    "rn50x4": (5e-4, 0.999, 1e-8, 32),
    "rn50x16": (4e-4, 0.999, 1e-8, 32),
    "rn50x64": (3.6e-4, 0.999, 1e-8, 32),
    "vit_b32": (5e-4, 0.98, 1e-6, 32),
    "vit_b16": (5e-4, 0.98, 1e-6, 32),
    "vit_l14": (4e-4, 0.98, 1e-6, 32),
    "vit_l14_336": (2e-5, 0.98, 1e-6, 1),
}


@pytest.mark.parametrize("preset", PAPER)
def test_numbers_of_the_paper(preset):
    numbers = recipe(preset)
    assert (numbers.learning_rate, numbers.beta_2, numbers.epsilon, numbers.epochs) == PAPER[preset]
    assert (numbers.weight_decay, numbers.beta_1, numbers.warmup_steps) == (0.2, 0.9, 2000)
    assert (numbers.num_pairs, numbers.batch_size) == (400_000_000, 32_768)
    assert numbers.total_steps == (12_207 if preset == "vit_l14_336" else 390_625)


def test_every_model_of_the_paper_has_one():
    assert set(PAPER) == set(published.models("zero_shot")) <= set(keras_clip.presets.names())


def test_the_extra_epoch_continues_the_training():
    assert (recipe("vit_l14_336").starts_from, recipe("vit_l14_336").temperature) == ("vit_l14", None)
    others = [recipe(preset) for preset in PAPER if preset != "vit_l14_336"]
    assert {(numbers.starts_from, numbers.temperature) for numbers in others} == {(None, 0.07)}


SCALED = {
    "a tenth of a short run": (dict(num_pairs=64_000, batch_size=128, epochs=10), 5000, 500),
    "at most the paper's": (dict(num_pairs=10_000_000, batch_size=1000, epochs=5), 50_000, 2000),
    "longer than the paper's": (dict(epochs=64), 781_250, 2000),
    "incomplete batches do not count": (dict(num_pairs=100, batch_size=64, epochs=3), 4, 0),
    "one step": (dict(num_pairs=64, batch_size=64, epochs=1), 1, 0),
}


@pytest.mark.parametrize("changes, total_steps, warmup_steps", SCALED.values(), ids=SCALED)
def test_steps_follow_the_data(changes, total_steps, warmup_steps):
    numbers = recipe("vit_b32", **changes)
    assert (numbers.total_steps, numbers.warmup_steps) == (total_steps, warmup_steps)
    assert {key: asdict(numbers)[key] for key in changes} == changes
    assert numbers.learning_rate == recipe("vit_b32").learning_rate


def test_the_same_numbers_given_or_not():
    given = recipe("vit_l14_336", num_pairs=400_000_000, batch_size=32_768, epochs=1)
    assert given == recipe("vit_l14_336")


def test_it_is_plain_data():
    numbers = asdict(recipe("vit_l14_336", num_pairs=1000, batch_size=10))
    assert json.loads(json.dumps(numbers)) == numbers


def test_adamw_takes_it():
    model = keras_clip.encoders.VisionTransformer(8, 4, 8, 1, 2)
    numbers = recipe("rn50x64", num_pairs=64_000, batch_size=128, epochs=10)
    optimizer = adamw(model, **numbers.optimizer)
    assert (optimizer.weight_decay, optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.2, 0.9, 0.999, 1e-8)
    rates = [float(optimizer._learning_rate(step)) for step in (500, 2750, 5000)]
    assert rates == pytest.approx([3.6e-4, 1.8e-4, 0.0], abs=1e-9)


REFUSED = {
    "unknown name": (dict(preset="ViT-B/32"), r"preset='ViT-B/32'"),
    "no pairs": (dict(preset="rn50", num_pairs=0), "num_pairs=0"),
    "negative batch and epochs": (dict(preset="rn50", batch_size=-1, epochs=-1), "batch_size=-1, epochs=-1"),
    "no full batch": (dict(preset="rn50", num_pairs=10, batch_size=64, epochs=6), "num_pairs=10, batch_size=64"),
}


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        recipe(**arguments)
