"""The paper's 27 datasets and 7 distribution shifts of ImageNet: source, classes, prompts and metric of each.

Radford et al. (2021), tables 9 and 16, appendix A. Datasets in tensorflow-datasets are read from there; for the
others the table says what to download manually and how to arrange it. `class_names.json` has the class names, looked up
by label, never by order.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from keras_clip.evaluation.datasets import sources
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.datasets.names import align_names
from keras_clip.evaluation.metrics.classification import IGNORED
from keras_clip.evaluation.studies import published
from keras_clip.prompts import FAMILIES

# Increase it when a class name, a template, a split or a label rule changes: earlier scores are not comparable then.
PROTOCOL = 1


@functools.cache
def _all_names() -> Mapping[str, Mapping[str, str | list[str]]]:
    return json.loads((Path(__file__).parent / "class_names.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class DatasetRecord:
    """A dataset and its evaluation protocol.

    Attributes:
        name: as in the paper's tables and in `published`.
        family: key of `prompts.FAMILIES`.
        metric: key of `metrics.METRICS`.
        builder: name in tensorflow-datasets; None: not available there, see `manual`.
        splits: {"train", "validation", "test"}: names of the splits in the source. "train" is the paper's training
            split for probes, without "validation" where the source separates the two.
        manual: what to download manually and how to arrange it; "" where tensorflow-datasets does both.
        note: differences from the paper's protocol that only this dataset has, see `differences`.
        size: number of test images in the source; None: as in the paper, or unknown.
        classes_of: dataset whose classes it uses; "": its own.
        empty_classes: "drop" where the source lists classes without images.
        image: feature of the builder, or a function of an example.
        label: feature of the builder, or a function of an example and the builder's features.
        separator: separator of several labels in a table that was arranged manually.
    """

    name: str
    family: str
    metric: str = "accuracy"
    builder: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({"train": "train", "test": "test"}))
    manual: str = ""
    note: str = ""
    classes_of: str = ""
    empty_classes: str = "refuse"
    image: str | Callable[[dict], Any] = "image"
    label: str | Callable[[dict, Any], Any] = "label"
    separator: str | None = None
    size: int | None = None

    @property
    def differences(self) -> tuple[str, ...]:
        """The known differences between this protocol and the paper's, one text each.

        The templates and the class names of the catalogue are the library's own, so no record is without differences.
        """
        found = ["prompt templates of keras_clip"]
        if self.names is not None:
            found.append("class names of keras_clip")
        if self.name in PAPER and self.size not in (None, self._in_paper.test):
            found.append(f"{self.size:,} test images, not {self._in_paper.test:,}")
        return (*found, *filter(None, self.note.split("; ")))

    @property
    def _in_paper(self) -> published.PublishedDataset:
        return published.dataset(self.name)

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates of its family, the simplest first."""
        return FAMILIES[self.family]

    @property
    def names(self) -> Mapping[str, str | list[str]] | None:
        """{label: name or names for prompts}; None where the labels are readable themselves."""
        return _all_names().get(self.classes_of or self.name)

    @property
    def protocol(self) -> str:
        """The conditions that two comparable scores share: source, test split, templates, version, `differences`."""
        source = f"tfds:{self.builder}[{self.splits['test']}]" if self.builder else "files"
        differences = "; ".join(self.differences)
        return f"{self.name}/{source}/{self.family}/{self.metric}/{PROTOCOL}, differs from the paper: {differences}"

    def names_per_class(self, class_names: Sequence[str]) -> list[list[str]]:
        """Returns the prompt names of each class of a store.

        Args:
            class_names: K names of its labels.

        Returns:
            K lists of names; without a table the labels themselves, with underscores replaced by spaces.

        Raises:
            ValueError: a label that is not a class of this dataset.
        """
        names = self.names or {label: label.replace("_", " ").strip() for label in class_names}
        return align_names(class_names, names)

    def images(
        self, split: str = "test", files: str | os.PathLike | None = None, data_dir: str | os.PathLike | None = None
    ) -> LabelledImages:
        """Returns the images of a split.

        Args:
            split: a key of `splits`.
            files: a folder with one folder per class, or a table (.csv), to read instead of
                tensorflow-datasets.
            data_dir: where tensorflow-datasets keeps its files. None: its default.

        Returns:
            `LabelledImages`.

        Raises:
            ValueError: no such split; a dataset that must be downloaded manually, without `files`; unknown labels.
        """
        if split not in self.splits:
            raise ValueError(f"{self.name} has the splits {list(self.splits)}. Received: split={split!r}.")
        if files is not None:
            return self._from_files(Path(files), split)
        if self.builder is None:
            raise ValueError(
                f"{self.name} must be downloaded manually: {self.manual} "
                "Received: files=None. Pass the folder or table."
            )
        return sources.tfds(
            self.builder,
            self.splits[split],
            image=self.image,
            label=self.label,
            class_names=list(self.names) if callable(self.label) else None,
            empty_classes=self.empty_classes,
            name=self.name,
            data_dir=data_dir,
        )

    def _from_files(self, files: Path, split: str) -> LabelledImages:
        if files.is_dir():
            images = sources.folder_per_class(files, name=self.name, split=split)
        else:
            images = sources.csv(files, separator=self.separator, name=self.name, split=split)
        self.names_per_class(images.class_names)
        return images

    def published_scores(self, model: str) -> dict[str, float]:
        """Returns the scores that the paper reports for a model.

        Args:
            model: a preset, or another row of `published.models("linear_probe")`.

        Returns:
            {method: fraction in [0, 1]}, for "zero_shot/family" and "linear_probe" as far as the paper has them.
        """
        if self.name in SHIFTS:
            rows = {"zero_shot/family": "zero_shot_clip", "linear_probe": "linear_probe_clip"}
            scores = {method: published.robustness(row)[self.name] for method, row in rows.items()}
            return scores if model == "vit_l14_336" else {}
        scores = {}
        if model in published.models("zero_shot"):
            scores["zero_shot/family"] = published.zero_shot(model)[self.name]
        if model in published.models("linear_probe"):
            scores["linear_probe"] = published.linear_probe(model)[self.name]
        return scores


def _middle_frame(example: dict) -> Any:
    return example["video"][len(example["video"]) // 2]


def _voc_labels(example: dict, features: Any) -> dict[str, int]:
    """Returns the classes of the objects in an image; classes with difficult objects only are ignored."""
    name = features["labels"].feature.int2str
    found = {name(int(label)): IGNORED for label in example["labels"]}
    return found | {name(int(label)): 1 for label in example["labels_no_difficult"]}


def _nearest_vehicle(example: dict, features: Any) -> str:
    """Returns the class by VTAB's rule: the distance in metres to the nearest car, van or truck ahead of the camera."""
    kind = features["objects"]["type"].int2str
    objects = example["objects"]
    vehicles = [kind(int(number)) in ("Car", "Van", "Truck") for number in objects["type"]]
    ahead = [place[2] for place, is_vehicle in zip(objects["location"], vehicles, strict=True) if is_vehicle]
    if not ahead:
        return "none"
    return "near" if min(ahead) < 8 else "medium" if min(ahead) < 20 else "far"


def _object_count(example: dict, _: Any) -> str:
    return str(len(example["objects"]["shape"]))


def _splits(**names: str) -> Mapping[str, str]:
    return MappingProxyType(names)


_FOLDERS = "One folder for each class, in a folder for each split."
_WHOLE = _splits(train="train", validation="validation", test="test")
_IMAGENET = {"family": "object", "classes_of": "ImageNet"}

_PAPER = (
    DatasetRecord("Food101", "food", builder="food101", splits=_splits(train="train", test="validation")),
    DatasetRecord("CIFAR10", "photo", builder="cifar10"),
    DatasetRecord("CIFAR100", "photo", builder="cifar100"),
    DatasetRecord(
        "Birdsnap",
        "bird",
        manual="get the list and the script of Birdsnap (Berg et al., 2014); some of its images are gone. " + _FOLDERS,
        note="fewer images, since some are gone",
    ),
    DatasetRecord("SUN397", "scene", builder="sun397/standard-part1-120k"),
    DatasetRecord("StanfordCars", "car", builder="cars196"),
    DatasetRecord(
        "FGVCAircraft",
        "aircraft",
        "mean_per_class",
        splits=_WHOLE,
        manual="get fgvc-aircraft-2013b and make a table of path,label from images_variant_<split>.txt, with the "
        "variant as the label. (tensorflow-datasets has it at 72 pixels and without names only.)",
    ),
    DatasetRecord("VOC2007", "photo", "map_11pt", "voc/2007", _WHOLE, label=_voc_labels, separator=";"),
    DatasetRecord("DTD", "texture", builder="dtd", splits=_WHOLE, note="the first of ten partitions"),
    DatasetRecord("OxfordPets", "pet", "mean_per_class", "oxford_iiit_pet"),
    DatasetRecord("Caltech101", "object", "mean_per_class", "caltech101", size=6084),
    DatasetRecord("Flowers102", "flower", "mean_per_class", "oxford_flowers102", _WHOLE),
    DatasetRecord("MNIST", "number", builder="mnist"),
    DatasetRecord(
        "FER2013",
        "expression",
        splits=_WHOLE,
        manual="get fer2013.csv of the Kaggle challenge, write each row of pixels to a 48 x 48 PNG, in folders named "
        "angry, disgust, fear, happy, sad, surprise, neutral (0 to 6), one folder for each split.",
        note="seven classes, not eight as in the paper's table",
        size=3589,
    ),
    DatasetRecord("STL10", "photo", builder="stl10", note="probes on all 5,000 training images, not on ten folds"),
    DatasetRecord(
        "EuroSAT",
        "satellite",
        builder="eurosat/rgb",
        splits=_splits(train="train[:10000]", test="train[10000:15000]"),
        note="the paper does not say which images are its test split",
    ),
    DatasetRecord(
        "RESISC45",
        "satellite",
        builder="resisc45",
        splits=_splits(train="train[:3150]", test="train[3150:28350]"),
        manual="get NWPU-RESISC45.rar and put its folder where the builder's message says.",
        note="the paper does not say which images are its test split",
    ),
    DatasetRecord(
        "GTSRB",
        "sign",
        manual="get GTSRB_Final_Training_Images.zip, whose folders are named 00000 to 00042, and sort the test images "
        "into folders of these names by GT-final_test.csv. (tensorflow-datasets has it at 72 pixels only.)",
    ),
    DatasetRecord("KITTI", "distance", builder="kitti", splits=_WHOLE, label=_nearest_vehicle, note="VTAB's rule"),
    DatasetRecord(
        "Country211",
        "country",
        splits=_WHOLE,
        manual="get country211.tgz, which OpenAI published with CLIP. " + _FOLDERS,
    ),
    DatasetRecord("PCam", "microscope", builder="patch_camelyon", splits=_WHOLE),
    DatasetRecord(
        "UCF101",
        "action",
        builder="ucf101/ucf101_1_256",
        image=_middle_frame,
        note="the first of three splits",
        size=3783,
    ),
    DatasetRecord(
        "Kinetics700",
        "action",
        "mean_top1_top5",
        splits=_splits(train="train", test="validation"),
        manual="get the videos of Kinetics-700 that are left, and write the middle frame of each. " + _FOLDERS,
        note="fewer videos, since some are gone",
    ),
    DatasetRecord(
        "CLEVRCounts",
        "count",
        builder="clevr",
        splits=_splits(train="train[:2000]", test="validation[:500]"),
        label=_object_count,
        note="the paper does not say which images are its 2,500",
    ),
    DatasetRecord(
        "HatefulMemes",
        "meme",
        "roc_auc",
        splits=_splits(train="train", test="dev"),
        manual="get the Hateful Memes challenge and make tables of path,label (0 or 1) of train.jsonl and dev.jsonl.",
    ),
    DatasetRecord(
        "RenderedSST2",
        "review",
        splits=_WHOLE,
        manual="get rendered-sst2.tgz, which OpenAI published with CLIP: folders negative and positive for each split.",
    ),
    DatasetRecord(
        "ImageNet",
        "object",
        builder="imagenet2012",
        splits=_splits(train="train", test="validation"),
        manual="get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar and put them where the builder's message says.",
    ),
)
_TEST = _splits(test="test")
_SHIFTS = (
    DatasetRecord("ImageNetV2", builder="imagenet_v2/matched-frequency", splits=_TEST, **_IMAGENET),
    DatasetRecord("ImageNet-Sketch", builder="imagenet_sketch", splits=_TEST, **_IMAGENET),
    DatasetRecord("ImageNet-A", builder="imagenet_a", splits=_TEST, empty_classes="drop", **_IMAGENET),
    DatasetRecord("ImageNet-R", builder="imagenet_r", splits=_TEST, empty_classes="drop", **_IMAGENET),
    DatasetRecord(
        "ObjectNet",
        splits=_TEST,
        manual="get objectnet-1.0.zip, cut two pixels off each border (they are red), and keep the 113 classes of "
        "ImageNet, in folders named by the wnid of one of their ImageNet classes.",
        **_IMAGENET,
    ),
    DatasetRecord(
        "ImageNet-Vid PM0",
        "photo",
        splits=_TEST,
        manual="get ImageNet-Vid-Robust (Shankar et al., 2019): anchor frames in folders named by its 30 classes.",
    ),
    DatasetRecord(
        "YTBB PM0",
        "photo",
        splits=_TEST,
        manual="get YTBB-Robust (Shankar et al., 2019): anchor frames in folders named by its classes.",
    ),
)

PAPER: Mapping[str, DatasetRecord] = MappingProxyType({record.name: record for record in _PAPER})
SHIFTS: Mapping[str, DatasetRecord] = MappingProxyType({record.name: record for record in _SHIFTS})


def record(name: str) -> DatasetRecord:
    """Returns the record of a dataset.

    Args:
        name: name of one of the paper's 27 datasets or of the 7 shifts.

    Returns:
        A `DatasetRecord`.

    Raises:
        ValueError: an unknown name.
    """
    known = {**PAPER, **SHIFTS}
    if name not in known:
        raise ValueError(f"`name` must be one of {list(known)}. Received: name={name!r}.")
    return known[name]
