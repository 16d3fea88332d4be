"""Hand-made results of an evaluation, of two datasets and all methods, for the figures and the report."""

import numpy as np

from keras_clip.evaluation import Results, Score

PROTOCOL = "test, 64 px, 2 templates"


def results(right=0.5, model="tiny <1>"):
    """Returns all scores and tables that an evaluation can produce, of two datasets."""
    made = Results(info={"model": model, "gflops_per_image": 1.5, "class_names": {}})
    rng = np.random.default_rng(0)
    for i, name in enumerate(("digits", "Food101")):
        shift = 0.05 * i
        values = {
            "zero_shot/bare_name": right - 0.2,
            "zero_shot/one_template": right - 0.1,
            "zero_shot/family": right + shift,
            "linear_probe": right + 0.3,
            "knn": right + 0.1,
            **{f"few_shot/{k}": right - 0.2 + 0.1 * j for j, k in enumerate((1, 2, 4, 8, 16))},
        }
        for method, value in values.items():
            correct = rng.permutation(np.arange(100) < round(100 * value))
            share = float(correct.mean())
            paper = 0.938 if (name, method) == ("Food101", "zero_shot/family") else None
            score = Score(name, method, "accuracy", share, share - 0.1, share + 0.1, 100, PROTOCOL, paper)
            made.add(score, correct)
        made.tables.setdefault("shots_to_match", []).append({"dataset": name, "shots": (2.5, None)[i]})
        names = ["nought", "one & <two>", "three"]
        made.info["class_names"][name] = names
        made.tables[f"confusion/{name}"] = [
            {"true": a, "predicted": b, "images": 1 + 5 * (a == b)} for a in names for b in names
        ]
    made.tables["reliability"] = [
        {"dataset": "digits", "method": "zero_shot/family", "confidence": c, "accuracy": c - 0.1, "images": 10}
        for c in (0.3, 0.6, 0.9)
    ]
    made.tables["robustness"] = [
        {"reference": "digits", "shift": shift, "method": method, "reference_accuracy": a, "accuracy": b}
        for shift, loss in (("noise", 0.1), ("blur", 0.2))
        for method, a, b in (
            ("zero_shot/family", 0.5, 0.5 - loss),
            ("few_shot/4", 0.4, 0.35 - loss),
            ("linear_probe", 0.8, 0.75 - loss),
        )
    ]
    made.tables["efficiency"] = [
        {"objective": objective, "images": images, "accuracy": accuracy}
        for objective, start in (("contrastive", 0.1), ("bag of words", 0.05))
        for images, accuracy in ((1000, start), (2000, 2 * start))
    ]
    return made
