"""Evaluation of a model by the methods of the paper, with confidence intervals."""

from keras_clip.evaluation import metrics, report
from keras_clip.evaluation.callback import EvaluateDuringTraining
from keras_clip.evaluation.classifiers import zero_shot as ladder
from keras_clip.evaluation.classifiers.few_shot import (
    FewShotScore,
    ShotsToMatch,
    few_shot_scores,
    few_shot_subset,
    shots_to_match,
)
from keras_clip.evaluation.classifiers.linear_probe import CSearch, LinearProbe, search_C
from keras_clip.evaluation.classifiers.nearest_neighbours import NearestNeighbours, tune_nearest_neighbours
from keras_clip.evaluation.classifiers.ridge import RidgeProbe
from keras_clip.evaluation.classifiers.tip_adapter import TipAdapter, tune_tip_adapter
from keras_clip.evaluation.classifiers.tuning import Tuned
from keras_clip.evaluation.classifiers.wise_ft import WiseFT, tune_wise_ft
from keras_clip.evaluation.classifiers.zero_shot import ZeroShotHead, zero_shot_heads, zero_shot_scores
from keras_clip.evaluation.datasets import catalogue, sources
from keras_clip.evaluation.datasets import catalogue as suites
from keras_clip.evaluation.datasets.labelled_images import LabelledImages, Sample
from keras_clip.evaluation.features.store import FeatureStore
from keras_clip.evaluation.metrics.bootstrap import bootstrap_interval, resampled_variance
from keras_clip.evaluation.metrics.calibration import (
    ReliabilityCurve,
    calibration_error_interval,
    debiased_calibration_error,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_curve,
    softmax,
)
from keras_clip.evaluation.metrics.classification import (
    METRICS,
    accuracy,
    map_11pt,
    mean_over_folds,
    mean_per_class,
    mean_top1_top5,
    roc_auc,
    top5_accuracy,
)
from keras_clip.evaluation.metrics.comparison import (
    Comparison,
    compare,
    compare_models,
    compare_over_datasets,
    compare_scores,
)
from keras_clip.evaluation.metrics.intervals import (
    blaker_interval,
    clopper_pearson_interval,
    clustered_interval,
    clustered_quantile_interval,
    mean_interval,
    wilson_interval,
)
from keras_clip.evaluation.metrics.inversion import inverted_interval
from keras_clip.evaluation.metrics.regression import LineFit, fit_line
from keras_clip.evaluation.metrics.retrieval import RetrievalRanks, retrieval_ranks
from keras_clip.evaluation.metrics.significance import binomial_test, bonferroni, holm, mcnemar_test
from keras_clip.evaluation.report.figure_data import gallery
from keras_clip.evaluation.results import Examples, Failure, Results, Score
from keras_clip.evaluation.run import PARTS, evaluate
from keras_clip.evaluation.studies import duplicate_detector, limits, overlap, published
from keras_clip.evaluation.studies import duplicate_detector as overlap_detector
from keras_clip.evaluation.studies.class_design import Disparity, class_design_rates, class_set_hits, disparity
from keras_clip.evaluation.studies.duplicate_detector import (
    DuplicateDetector,
    recall_on_copies,
    train_duplicate_detector,
)
from keras_clip.evaluation.studies.overlap import (
    Overlap,
    analyse_overlap,
    hash_vectors,
    nearest_vectors,
    overlap_table,
    perceptual_hash,
    pixel_digest,
    recall_at_precision,
)
from keras_clip.evaluation.studies.published import PublishedDataset
from keras_clip.evaluation.studies.robustness import (
    SHIFT_LINES,
    ShiftLine,
    adaptation,
    effective_robustness,
    effective_robustness_interval,
    few_shot_robustness,
    fit_shift_line,
    gap_closed,
    pool_classes,
    restrict_to_classes,
    robustness_gaps,
)
from keras_clip.evaluation.studies.scaling import (
    PowerLaw,
    compute_gain,
    compute_to_reach,
    fit_power_law,
    gflops_per_image,
    mean_score,
    scaling_rows,
)
from keras_clip.evaluation.studies.transfer import (
    ShotsSummary,
    Transfer,
    by_dataset,
    few_shot_curve,
    score_differences,
    summarise_shots,
    transfer_correlation,
    wins,
)
from keras_clip.evaluation.tasks import Task, captions_of_tars
