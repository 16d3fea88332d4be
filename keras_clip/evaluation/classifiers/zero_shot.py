"""Zero-shot classifiers on a feature store: bare class names, one template, all templates, selected templates.

Radford et al. (2021), section 3.1.4. Only the text encoder runs, once per prompt.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from keras_clip.evaluation.datasets.names import align_names
from keras_clip.evaluation.features.store import FeatureStore
from keras_clip.evaluation.metrics.classification import accuracy
from keras_clip.model import CLIPModel
from keras_clip.prompts import validate_class_names, validate_templates, warn_of_equal_prompts
from keras_clip.zero_shot import embed_classes, tokenize_prompts, unit_length

BARE = "{}"
# Images per product with the class embeddings.
_ROWS = 8192
# The number of float32 values in a GiB.
_MAX_SCORES = 1 << 28


@dataclass(frozen=True)
class ZeroShotHead:
    """A zero-shot classifier and the templates it was made with.

    Args:
        method: "zero_shot/bare_name", "zero_shot/one_template", "zero_shot/family" or "zero_shot/selected".
        templates: the prompt templates.
        class_embeddings: float32 (K, E) of unit length, in the order of the store's classes.
    """

    method: str
    templates: tuple[str, ...]
    class_embeddings: np.ndarray


def zero_shot_scores(store: FeatureStore, class_embeddings: np.ndarray, logit_scale: float | None = None) -> np.ndarray:
    """Returns the logits of all images: cosine similarities divided by the temperature.

    Args:
        store: N images.
        class_embeddings: floats (K, E) of unit length.
        logit_scale: float, log(1 / temperature). None: the one of the store's model.

    Returns:
        float32 (N, K).

    Raises:
        ValueError: no logit scale is known, or `class_embeddings` of another shape.
    """
    logit_scale = store.logit_scale if logit_scale is None else logit_scale
    if logit_scale is None:
        raise ValueError(f"`logit_scale` must be given for {store}, which has none. Received: logit_scale=None.")
    class_embeddings = np.asarray(class_embeddings, np.float32)
    wanted = store.embeddings.shape[1]
    if class_embeddings.ndim != 2 or class_embeddings.shape[1] != wanted:
        raise ValueError(
            f"`class_embeddings` must be (K, E) with E = {wanted}. "
            f"Received: class_embeddings.shape={class_embeddings.shape}."
        )
    scores = np.empty((len(store), len(class_embeddings)), np.float32)
    for start in range(0, len(store), _ROWS):
        scores[start : start + _ROWS] = store.embeddings[start : start + _ROWS] @ class_embeddings.T
    scores *= np.float32(np.exp(logit_scale))
    return scores


class PromptTable:
    """The embeddings of all class names in all templates; each prompt is encoded once.

    Args:
        clip: `CLIPModel`; its text encoder is used.
        names: K lists of names, as `align_names` returns them.
        templates: T texts with one `{}` each.

    Raises:
        ValueError: a prompt that is too long, or invalid templates or names.
    """

    def __init__(self, clip: CLIPModel, names: Sequence[Sequence[str]], templates: Sequence[str]):
        self.templates = validate_templates(templates)
        self._names = validate_class_names(names)
        prompts = [[t.replace("{}", name) for name in of_class] for t in self.templates for of_class in self._names]
        owners = [(t, k, name) for t in self.templates for k, of_class in enumerate(self._names) for name in of_class]
        rows = [t.replace("{}", name) for t, _, name in owners]
        distinct = list(dict.fromkeys(rows))
        place = {prompt: row for row, prompt in enumerate(distinct)}
        token_ids = tokenize_prompts(clip.tokenizer, distinct)
        warn_of_equal_prompts(owners, token_ids[[place[prompt] for prompt in rows]])
        _, first, place_of = np.unique(token_ids, axis=0, return_index=True, return_inverse=True)
        embedded = embed_classes(clip.text_embedder, [distinct[row] for row in first], (BARE,))
        embeddings = embedded[place_of.reshape(-1)]
        # The embeddings of synonyms are summed, so that all prompts of a class have equal weight.
        sums = [embeddings[[place[prompt] for prompt in of_class]].sum(axis=0) for of_class in prompts]
        self._sums = np.stack(sums).reshape(len(self.templates), len(self._names), -1)

    def sums(self, template: str) -> np.ndarray:
        """Returns the sum (K, E) of the embeddings with one template over the names of each class."""
        return self._sums[self.templates.index(template)]

    def class_embeddings(self, templates: Sequence[str]) -> np.ndarray:
        """Returns the class embeddings of a prompt ensemble, as `embed_classes` computes them.

        Args:
            templates: a subset of the table's templates.

        Returns:
            float32 (K, E) of unit length.

        Raises:
            ValueError: a template that the table lacks.
        """
        if missing := sorted(set(templates) - set(self.templates)):
            raise ValueError(f"The templates must be among the table's. Received: {missing[:3]}, which are not.")
        return unit_length(sum(self.sums(template) for template in templates))


def zero_shot_heads(
    clip: CLIPModel,
    store: FeatureStore,
    templates: Sequence[str],
    names: Mapping[str, str | Sequence[str]] | None = None,
    training: FeatureStore | None = None,
    metric: Callable[[np.ndarray, np.ndarray], float] = accuracy,
) -> dict[str, ZeroShotHead]:
    """Returns the zero-shot classifiers of a dataset, from bare names to selected templates.

    Args:
        clip: the `CLIPModel` of the store.
        store: the dataset to classify; only its class names are used.
        templates: texts with one `{}` each; the first is used for "one template".
        names: as `align_names` takes them.
        training: a store of the training split to select templates on. None: no "selected" classifier.
        metric: function of scores (N, K) and labels, maximised on `training`.

    Returns:
        {method: `ZeroShotHead`}; the methods as in `ZeroShotHead.method`, in that order.

    Raises:
        ValueError: a store of another model; class names that do not match; `training` holds the images of `store`,
            other classes, or a test split.
    """
    store.require_model(clip)
    aligned = align_names(store.class_names, names)
    templates = validate_templates(templates)
    table = PromptTable(clip, aligned, tuple(dict.fromkeys((BARE, *templates))))
    chosen = {"bare_name": (BARE,), "one_template": templates[:1], "family": templates}
    if training is not None:
        training.require_model(clip)
        _require_training(training, store)
        chosen["selected"] = select_templates(table, training, templates, metric)
    return {
        f"zero_shot/{name}": ZeroShotHead(f"zero_shot/{name}", tuple(used), table.class_embeddings(used))
        for name, used in chosen.items()
    }


def select_templates(
    table: PromptTable,
    training: FeatureStore,
    templates: Sequence[str],
    metric: Callable[[np.ndarray, np.ndarray], float] = accuracy,
) -> tuple[str, ...]:
    """Selects templates greedily: in each round the one that improves the metric most, until none does.

    Ties are resolved in favour of the first template. The scores of all images with every template are held in memory;
    if they exceed one GiB, the choice is made on a subset of the images, drawn evenly from the classes by their ids.

    Args:
        table: `PromptTable` with the templates.
        training: images to select on, none of which is evaluated later.
        templates: the candidates.
        metric: function of scores (N, K) and labels.

    Returns:
        The selected templates in the order of selection; at least one.
    """
    rows = _draw(training, _MAX_SCORES // (len(templates) * len(training.class_names)))
    embeddings, labels = training.embeddings[rows], training.labels[rows]
    sums = [table.sums(template) for template in templates]
    scores = [embeddings @ of_template.T for of_template in sums]
    chosen: list[int] = []
    best, sum_chosen, score_chosen = -np.inf, np.float32(0), np.float32(0)
    while True:
        values = {}
        for number in set(range(len(templates))) - set(chosen):
            # The score of the normalised mean is the sum of the scores divided by the norm of the sum.
            lengths = np.maximum(np.linalg.norm(sum_chosen + sums[number], axis=-1), 1e-6)
            values[number] = metric((score_chosen + scores[number]) / lengths, labels)
        winner = max(sorted(values), key=values.get, default=None)
        if winner is None or not values[winner] > best:
            return tuple(templates[number] for number in chosen)
        chosen.append(winner)
        best, sum_chosen = values[winner], sum_chosen + sums[winner]
        score_chosen = score_chosen + scores[winner]


def _draw(store: FeatureStore, count: int) -> np.ndarray:
    """Returns at most `count` rows, equal in every run and balanced over the classes, with at least one of each."""
    if len(store) <= count:
        return np.arange(len(store))
    digests = [hashlib.sha256(str(i).encode()).digest() for i in store.ids]
    order = np.array(sorted(range(len(store)), key=digests.__getitem__))
    if store.multi_label:
        return np.sort(order[:count])
    ranks, seen = np.empty(len(store), np.int64), np.zeros(len(store.class_names), np.int64)
    for row in order:
        ranks[row] = seen[store.labels[row]]
        seen[store.labels[row]] += 1
    drawn = order[np.argsort(ranks[order], kind="stable")]
    return np.sort(drawn[: max(count, len(store.class_names))])


def _require_training(training: FeatureStore, store: FeatureStore) -> None:
    same = training.split == store.split and training.name == store.name
    shared = np.intersect1d(training.ids, store.ids).size if training.name == store.name else 0
    if same or shared or training.split.startswith("test"):
        raise ValueError(
            "Templates must be selected on a training split, not on the evaluated images. "
            f"Received: training={training}, store={store}, with {shared} ids in both. Build a store of the training "
            "split, with other ids."
        )
    if training.class_names != store.class_names:
        raise ValueError(
            "The training split must have the same classes in the same order. "
            f"Received: {training} with {training.class_names[:3]}, ..., {store} with {store.class_names[:3]}, ..."
        )


# Former names, which users' code may still import.
Rung, ladder = ZeroShotHead, zero_shot_heads
