"""The part `heads` of an evaluation."""

from keras_clip.evaluation import metrics
from keras_clip.evaluation.classifiers.linear_probe import search_C
from keras_clip.evaluation.classifiers.nearest_neighbours import tune_nearest_neighbours
from keras_clip.evaluation.classifiers.tip_adapter import tune_tip_adapter
from keras_clip.evaluation.classifiers.wise_ft import tune_wise_ft
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.parts.part import TRAIN_OF_ONE_CLASS, Part, has_train_of_one_class


def run(case: Case) -> None:
    """Adds scores of nearest neighbours, Tip-Adapter and WiSE-FT on embeddings, tuned on the validation split."""
    train, validation, test = case.splits.train, case.splits.validation, case.splits.test
    metric, protocol = metrics.METRICS[case.task.metric], case.protocol(*case.training())
    parts = [(store.embeddings, store.labels) for store in (train, validation)]
    class_embeddings = case.zero_shot_heads["zero_shot/family"].class_embeddings
    num_classes, logit_scale = len(class_embeddings), test.logit_scale
    probe = search_C(*parts, metric, num_classes, refit=False, verbose=0).probe
    tuned = {
        "knn": tune_nearest_neighbours(*parts, metric, num_classes),
        "tip_adapter": tune_tip_adapter(class_embeddings, logit_scale, *parts, metric),
        "wise_ft": tune_wise_ft(class_embeddings, logit_scale, probe, parts[1], metric),
    }
    for method, result in tuned.items():
        case.add(method, result.head.decision_function(test.embeddings), protocol, **result.choices)


PART = Part("heads", TRAIN_OF_ONE_CLASS, has_train_of_one_class, run)
