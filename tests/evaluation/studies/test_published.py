"""The paper's claims, computed by our code from its published tables; and the accessors of these tables.

Where the printed tables do not reproduce the printed claim, the test states both numbers.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import keras_clip.evaluation as evaluation
from keras_clip.evaluation.studies import published, scaling
from keras_clip.evaluation.studies.robustness import logit

pytestmark = pytest.mark.backend_free
CLIPS = published.models("zero_shot")
# The zero-shot scores that figure 5 implies where it differs from table 11 by more than rounding.
OF_FIGURE_5 = {"KITTI": 0.331, "UCF101": 0.789}


def points(share):
    return 100 * share


# Figure 5


def test_zero_shot_beats_the_probe_of_a_resnet50_on_16_of_27():
    differences = evaluation.score_differences(published.zero_shot(), published.linear_probe("resnet50"))
    assert evaluation.wins(differences) == (16, 27)
    assert list(differences)[0] == "StanfordCars" and list(differences)[-1] == "KITTI"
    assert evaluation.wins(published.zero_shot_gain()) == (16, 27)


def test_figure_5_is_the_difference_of_tables_11_and_10():
    differences = evaluation.score_differences(published.zero_shot(), published.linear_probe("resnet50"))
    printed = published.zero_shot_gain()
    off = {name: points(differences[name] - printed[name]) for name in printed}
    assert {name for name, value in off.items() if abs(value) > 0.15} == set(OF_FIGURE_5)
    corrected = {**published.zero_shot(), **OF_FIGURE_5}
    differences = evaluation.score_differences(corrected, published.linear_probe("resnet50"))
    assert differences == pytest.approx(printed, abs=0.0011)


# Figure 7


def test_shots_needed_to_match_zero_shot():
    summary = evaluation.summarise_shots(published.shots_to_match())
    assert (summary.n, summary.never) == (26, 0)
    assert summary.mean == pytest.approx(20.77, abs=0.005)  # printed: 20.8
    assert summary.median == pytest.approx(5.4)
    assert set(published.datasets()) - set(published.shots_to_match()) == {"VOC2007"}


# Figure 8


def test_correlation_of_zero_shot_and_probe():
    found = evaluation.transfer_correlation(published.zero_shot(), published.linear_probe())
    assert (found.line.r, found.line.slope) == pytest.approx((0.814, 1.32), abs=0.001)
    found = evaluation.transfer_correlation({**published.zero_shot(), **OF_FIGURE_5}, published.linear_probe())
    assert (found.line.r, found.line.slope) == pytest.approx((0.822, 1.284), abs=0.0005)  # printed: 0.82 and 1.28
    assert found.line.slope_low > 0


def test_where_zero_shot_is_close_to_the_probe():
    found = evaluation.transfer_correlation({**published.zero_shot(), **OF_FIGURE_5}, published.linear_probe())
    five = {"STL10", "CIFAR10", "Food101", "OxfordPets", "Caltech101"}
    # The paper names five datasets within 3 points; in the tables, Caltech101 has 3.2 points.
    assert set(found.near_optimal(0.03)) == five - {"Caltech101"}
    assert set(found.near_optimal(0.032)) == five
    assert {name for name, (_, zero_shot) in found.points.items() if zero_shot > 0.9} == five


def test_zero_shot_is_mostly_10_to_25_points_below_the_probe():
    shortfalls = evaluation.score_differences(published.linear_probe(), published.zero_shot())
    assert min(shortfalls.values()) > 0
    assert 10 < points(np.median(list(shortfalls.values()))) < 25


# Figures 9 and 10, and section 6


def test_resnets_span_44_times_the_compute():
    computes = [evaluation.gflops_per_image(model) for model in scaling.RESNETS]
    assert computes == sorted(computes)
    assert computes[-1] / computes[0] == pytest.approx(44, abs=0.5)


def test_compute_is_counted_for_all_nine_models():
    assert set(scaling.RESNETS + scaling.VISION_TRANSFORMERS) == set(CLIPS)
    # open_clip counts both encoders: our count of the image encoder must be most of that, and not exceed it.
    assert evaluation.gflops_per_image("vit_l14_336") == pytest.approx(191, abs=0.5)


def test_zero_shot_error_falls_as_a_power_of_compute():
    rows = evaluation.scaling_rows({model: published.zero_shot(model) for model in scaling.RESNETS})
    law = evaluation.fit_power_law([row["gflops"] for row in rows], [row["error"] for row in rows])
    assert law.line.r2 > 0.98
    assert law.line.slope == pytest.approx(-0.075, abs=0.002)
    assert law.line.slope_low < law.line.slope < law.line.slope_high < 0
    # On a single dataset, the error need not fall: the paper reports wide variation.
    slopes = {
        name: evaluation.fit_power_law(
            [row["gflops"] for row in rows], [1 - published.zero_shot(row["name"])[name] for row in rows]
        ).line
        for name in published.datasets()
    }
    assert any(line.slope > 0 for line in slopes.values())
    assert sum(line.slope < 0 for line in slopes.values()) > 20


def test_a_thousand_times_the_compute():
    """Section 6: "around a 1000x increase in compute" to reach the state of the art, by the ResNets' power law."""
    # The best probe of other models, averaged over the 27 datasets, is that of Noisy Student at 800 pixels.
    others = [model for model in published.models("linear_probe") if model not in CLIPS]
    best = max(others, key=lambda model: evaluation.mean_score(published.linear_probe(model)))
    assert best == "efficientnet_ns_l2_800"
    found = evaluation.compute_to_reach(evaluation.mean_score(published.linear_probe(best)))
    assert found["factor"] == pytest.approx(1653, rel=0.002)
    assert found["factor_low"] < 1000 < found["factor_high"]
    # Reaching the probe on its own features takes far more compute, a supervised ResNet-50 only 6 times as much.
    own = evaluation.compute_to_reach(evaluation.mean_score(published.linear_probe("vit_l14_336")))
    assert own["factor_low"] > 1000
    near = evaluation.compute_to_reach(evaluation.mean_score(published.linear_probe("resnet50")))
    assert near["factor"] == pytest.approx(5.95, abs=0.05)


def test_margins_of_the_linear_probe():
    margins = []
    for suite in ("kornblith12", "all"):
        tables = {model: published.linear_probe(model) for model in published.models("linear_probe")}
        rows = evaluation.scaling_rows(tables, published.datasets(suite))
        mine = max(row["score"] for row in rows if row["name"] in CLIPS)
        margins.append(points(mine - max(row["score"] for row in rows if row["name"] not in CLIPS)))
    assert margins == pytest.approx([2.64, 4.73], abs=0.005)  # printed: 2.6 and 5


# Figure 11


def test_probe_beats_that_of_noisy_student_on_21_of_27():
    differences = evaluation.score_differences(
        published.linear_probe("vit_l14_336"), published.linear_probe("efficientnet_ns_l2_475")
    )
    assert evaluation.wins(differences) == (21, 27)
    # The paper names all five, and it names CIFAR and PCam, of low resolution, among those on which CLIP loses.
    assert set(list(differences)[:5]) == {"RenderedSST2", "Country211", "HatefulMemes", "GTSRB", "StanfordCars"}
    losses = {name for name, value in differences.items() if value < 0}
    assert {"CIFAR10", "CIFAR100", "ImageNet", "PCam"} <= losses


# Figures 13 to 15


def test_equal_on_imagenet_and_far_apart_under_shift():
    standard, clip = published.robustness_matched("resnet101"), published.robustness_matched("zero_shot_clip")
    assert standard["ImageNet"] == clip["ImageNet"] == 0.762
    closed = evaluation.gap_closed(standard, clip)
    # The paper says "by up to 75 %", of an average that the tables lack. For single shifts they give 49 and 69 %.
    assert points(np.array([closed["ImageNetV2"], closed["ImageNet-Sketch"]])) == pytest.approx([48.7, 68.6], abs=0.05)
    assert closed["ObjectNet"] == pytest.approx(0.911, abs=0.001)
    assert min(closed["ImageNet-A"], closed["ImageNet-R"]) > 1
    assert points(closed["mean"]) == pytest.approx(94.3, abs=0.05)


@pytest.mark.parametrize("shift", evaluation.SHIFT_LINES)
def test_zero_shot_is_above_every_line(shift):
    clip = published.robustness("zero_shot_clip")
    robustness = evaluation.effective_robustness(shift, clip["ImageNet"], clip[shift])
    line = evaluation.SHIFT_LINES[shift]
    # The distance is far above the scatter of standard models around their line.
    logits = logit(clip[shift]) - logit(line.predict(clip["ImageNet"]))
    assert robustness > 0.06 and logits > 6 * line.residual


def test_the_standard_model_of_figure_13_is_near_the_lines():
    standard = published.robustness_matched("resnet101")
    for shift in ("ImageNetV2", "ImageNet-Sketch", "ObjectNet"):
        assert abs(evaluation.effective_robustness(shift, standard["ImageNet"], standard[shift])) < 0.016
    # The lines of ImageNet-R and -A use the accuracy on 200 classes of ImageNet, which is higher.
    for shift in ("ImageNet-R", "ImageNet-A"):
        assert evaluation.effective_robustness(shift, standard["ImageNet"], standard[shift]) > 0.016


def test_adapting_to_imagenet_gains_there_and_loses_under_shift():
    changes = evaluation.adaptation(published.robustness("zero_shot_clip"), published.robustness("linear_probe_clip"))
    assert points(changes["ImageNet"]) == pytest.approx(9.2)
    assert changes["mean of shifts"] < 0
    assert {name for name, change in changes.items() if change > 0} == {"ImageNet", "ImageNetV2"}
    for name in ("ImageNet-A", "ImageNet-R", "ImageNet-Sketch"):
        assert -5 < points(changes[name]) < -1


def test_the_probe_is_less_robust_than_zero_shot():
    curve = {0: published.robustness("zero_shot_clip"), math.inf: published.robustness("linear_probe_clip")}
    zero_shot, probe = evaluation.few_shot_robustness(curve)
    assert zero_shot["effective_robustness"] > probe["effective_robustness"] + 0.1
    assert probe["imagenet"] > zero_shot["imagenet"] and probe["shifted"] < zero_shot["shifted"]


# Tables 13 to 15, and the re-measurements


def test_retrieval():
    found = published.retrieval("Flickr30k")
    assert found["image_to_text"] == {"recall_at_1": 0.88, "recall_at_5": 0.987, "recall_at_10": 0.994}
    assert published.retrieval("MSCOCO")["text_to_image"]["recall_at_1"] == 0.378
    for direction in found:
        again = published.open_clip_retrieval()
        name = {"image_to_text": "text", "text_to_image": "image"}[direction]
        # open_clip measured without "a photo of" before the captions, a prompt that gains 1 to 2 points.
        gain = points(found[direction]["recall_at_1"] - again[f"Flickr {name} retr. R@1"])
        assert 0 < gain < 2.5


def test_tables_agree_where_they_overlap():
    zero_shot, probe = published.zero_shot(), published.linear_probe()
    for name in ("HatefulMemes", "RenderedSST2"):
        assert published.ocr("zero_shot_clip")[name] == zero_shot[name]
        assert published.ocr("linear_probe_clip")[name] == probe[name]
    assert published.video("linear_probe_clip") == {"UCF101": probe["UCF101"], "Kinetics700": probe["Kinetics700"]}
    # In two places, the paper's tables disagree by more than rounding.
    assert published.video()["UCF101"] - zero_shot["UCF101"] == pytest.approx(0.034)
    assert published.video()["Kinetics700"] - zero_shot["Kinetics700"] == pytest.approx(0.083)
    assert published.ocr("linear_raw_pixels") == {"MNIST": 0.925}


@pytest.mark.parametrize("model", CLIPS)
def test_open_clip_measured_nearly_the_same(model):
    paper, again = published.zero_shot(model), published.open_clip(model)
    names = {"STL10": "STL-10", "Food101": "Food-101", "ImageNet": "ImageNet 1k", "OxfordPets": "Oxford-IIIT Pet"}
    for name, theirs in names.items():
        assert paper[name] == pytest.approx(again[theirs], abs=0.006)
    assert len(again) == 39  # 38 datasets and their mean


# The accessors


def test_data_sets():
    names = published.datasets()
    assert len(names) == len(set(names)) == 27
    assert published.datasets("kornblith12") == names[:12]
    kinds = {name: published.dataset(name).metric for name in names}
    assert {name for name, metric in kinds.items() if metric == "mean_per_class"} == {
        "FGVCAircraft",
        "OxfordPets",
        "Caltech101",
        "Flowers102",
    }
    assert (kinds["VOC2007"], kinds["HatefulMemes"], kinds["Kinetics700"]) == ("map_11pt", "roc_auc", "mean_top1_top5")
    assert {name: published.dataset(name).folds for name in ("STL10", "UCF101", "MNIST")} == {
        "STL10": 10,
        "UCF101": 3,
        "MNIST": 1,
    }
    imagenet = published.dataset("ImageNet")
    assert (imagenet.num_classes, imagenet.train, imagenet.test) == (1000, 1281167, 50000)


@pytest.mark.parametrize("table", ["zero_shot", "linear_probe"])
def test_tables_are_complete(table):
    for model in published.models(table):
        scores = getattr(published, table)(model)
        assert tuple(scores) == published.datasets()
        assert all(0.1 < score < 1 for score in scores.values())
    assert published.zero_shot()["ImageNet"] == 0.762
    assert published.linear_probe("rn50")["ImageNet"] == 0.733


def test_returned_tables_are_copies():
    published.zero_shot()["ImageNet"] = 1.0
    published.open_clip().clear()
    published.shots_to_match().clear()
    assert published.zero_shot()["ImageNet"] == 0.762
    assert published.open_clip() and published.shots_to_match()


BAD_NAMES = {
    "dataset": (published.dataset, "ImageNet-1k", "name='ImageNet-1k'"),
    "suite": (published.datasets, "vtab", "suite='vtab'"),
    "table": (published.models, "table 11", "table='table 11'"),
    "zero-shot": (published.zero_shot, "ViT-L/14", "'vit_l14_336'.*Received: model='ViT-L/14'"),
    "probe": (published.linear_probe, "resnet18", "model='resnet18'"),
    "robustness": (published.robustness, "resnet101", "model='resnet101'"),
    "matched": (published.robustness_matched, "resnet50", "model='resnet50'"),
    "retrieval": (published.retrieval, "COCO", "data='COCO'"),
    "ocr": (published.ocr, "x", "model='x'"),
    "video": (published.video, "x", "model='x'"),
    "open_clip": (published.open_clip, "ViT-L-14", "model='ViT-L-14'"),
    "open_clip retrieval": (published.open_clip_retrieval, "x", "model='x'"),
}


@pytest.mark.parametrize("function, name, message", BAD_NAMES.values(), ids=BAD_NAMES)
def test_unknown_names(function, name, message):
    with pytest.raises(ValueError, match=f"Expected one of the published.*{message}"):
        function(name)


def test_the_file_names_its_sources():
    tables = json.loads(Path(published.__file__).with_name("published.json").read_text())
    assert "2103.00020" in tables["source"][0] and "open_clip" in tables["source"][1]
