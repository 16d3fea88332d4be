"""The examples of a split of tensorflow-datasets, images undecoded: PIL decodes them, as it does all others."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from keras_clip.evaluation.datasets.labelled_images import PATIENCE, Image, Label, LabelledImages, image_digest


def tfds(
    builder: str,
    split: str,
    *,
    image: str | Callable[[dict], Image] = "image",
    label: str | Callable[[dict, Any], Label] = "label",
    class_names: Sequence[str] | None = None,
    empty_classes: str = "refuse",
    name: str | None = None,
    data_dir: str | os.PathLike | None = None,
) -> LabelledImages:
    """A split of a data set of tensorflow-datasets, downloaded and prepared if it is not there yet.

    The records are read once for their labels and for the digest of their images, which takes minutes for a million.

    Args:
        builder: its name there, with its configuration: "eurosat/rgb".
        split: as there: "test", "train[:10000]", "train+validation".
        image: the feature that is the image, or a function of an example (images as bytes) that gives one.
        label: the feature that is the class, or a function of an example and of the builder's features that gives the
            class name, or for several classes a dict (see `LabelledImages`). A function needs `class_names`.
        class_names: K names. None: those of the builder.
        empty_classes: what to do with a class without an image: "refuse", "keep" or "drop", as of ImageNet-A, whose
            builder names 1,000 and has 200.
        name: of the data set. None: `builder`.
        data_dir: where tensorflow-datasets keeps its files. None: its own default.

    Returns:
        `LabelledImages`; the ids are those of tensorflow-datasets.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        AssertionError: of tensorflow-datasets: files that must be downloaded by hand are not there.
        ValueError: see `LabelledImages`.
    """
    records = Records(builder, split, image, data_dir)
    if not callable(label):
        feature, key = records.features[label], label
        class_names = feature.names if class_names is None else class_names
        # A builder's numbers are those of its own names.
        label = lambda example, _: feature.int2str(int(example[key]))  # noqa: E731
    elif class_names is None:
        raise ValueError("A function that gives labels needs `class_names`. Received: class_names=None.")
    labels, ids, content = [], [], hashlib.sha256()
    for example in records.examples(name or builder):
        labels.append(label(example, records.features))
        ids.append(records.id(example, len(ids)))
        content.update(image_digest(records.image(example)))
    images = LabelledImages(
        records.read, labels, ids, class_names, name=name or builder, split=split, empty_classes=empty_classes
    )
    images._content = content.hexdigest()
    return images


class Records:
    """The examples in their order, the same each time.

    Args:
        builder: name of a data set, with its configuration. It is downloaded and prepared if it is not there yet.
        split: as tensorflow-datasets writes it.
        image: the feature that is the image, or a function of an example that gives one.
        data_dir: where tensorflow-datasets keeps its files. None: its own default.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        AssertionError: files that must be downloaded by hand are not there.
    """

    def __init__(self, builder: str, split: str, image: str | Callable, data_dir: str | os.PathLike | None = None):
        try:
            import tensorflow_datasets
        except ImportError as error:
            raise ImportError(
                f"{builder!r} is read by tensorflow-datasets, which is not installed. "
                'pip install "keras_clip[tensorflow,evaluation]"'
            ) from error
        self._builder, self._split = tensorflow_datasets.builder(builder, data_dir=data_dir), split
        self._builder.download_and_prepare()
        is_image = tensorflow_datasets.features.Image
        skip = tensorflow_datasets.decode.SkipDecoding()
        self._decoders = {key: skip for key, feature in self.features.items() if type(feature) is is_image}
        self._config = tensorflow_datasets.ReadConfig(add_tfds_id=True)
        self.image = image if callable(image) else lambda example: example[image]

    @property
    def features(self) -> Mapping[str, Any]:
        """The builder's, which know the names of classes."""
        return self._builder.info.features

    def _examples(self, start: int) -> Iterator[dict]:
        import tensorflow_datasets

        dataset = self._builder.as_dataset(
            split=self._split, decoders=self._decoders, read_config=self._config, shuffle_files=False
        )
        return iter(tensorflow_datasets.as_numpy(dataset.skip(start)))

    def examples(self, name: str) -> Iterator[dict]:
        """All of them, with a progress bar that calls them `name`."""
        from tqdm import tqdm

        return iter(tqdm(self._examples(0), desc=f"Reading {name}", delay=PATIENCE, leave=False))

    def read(self, start: int) -> Iterator[Any]:
        """The images from the `start`-th on."""
        return map(self.image, self._examples(start))

    @staticmethod
    def id(example: Mapping[str, Any], number: int) -> str:
        """The id that tensorflow-datasets gives an example, or its number where there is none."""
        identity = example.get("tfds_id")
        return f"{number:07d}" if identity is None else identity.decode()
