"""Writes a small dataset as TensorFlow Datasets prepares them, without a download.

    python tests/helpers/prepared_tfds.py FOLDER

Its name is two_greys: dark and bright images, 16 for training and 6 for validation.
"""

import abc
import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds


class TwoGreys(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["dark", "bright"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(16), "validation": self._generate_examples(6)}

    def _generate_examples(self, count):
        for index in range(count):
            image = np.full((20 + index, 24, 3), 200 * (index % 2), np.uint8)
            yield index, {"image": image, "label": index % 2}


class FourGreys(tfds.core.GeneratorBasedBuilder):
    """Images of four classes, whose brightness is 60 times the class."""

    VERSION = tfds.core.Version("1.0.0")
    SKIP_REGISTERING = True

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["a", "b", "c", "d"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(21), "test": self._generate_examples(8)}

    def _generate_examples(self, count):
        for index in range(count):
            image = np.full((8, 8, 3), 60 * (index % 4), np.uint8)
            yield index, {"image": image, "label": index % 4}


def write_four_greys(folder: str | Path) -> None:
    """Prepares four_greys in this TensorFlow Datasets directory."""
    FourGreys(data_dir=str(folder)).download_and_prepare()


def write_two_greys(folder: str | Path) -> None:
    """Prepares the dataset in this TensorFlow Datasets directory."""
    TwoGreys(data_dir=str(folder)).download_and_prepare()


class NumberedDigits(tfds.core.GeneratorBasedBuilder):
    """Test images of ten classes without names, with a configuration, as cifar10_corrupted."""

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="fog_5", version="1.0.0")]
    SKIP_REGISTERING = True

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(20, 20, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        for index in range(20):
            yield index, {"image": np.full((20, 20, 3), index, np.uint8), "label": index % 10}


def write_numbered_digits(folder: str | Path) -> None:
    """Prepares numbered_digits/fog_5 in this TensorFlow Datasets directory."""
    NumberedDigits(data_dir=str(folder)).download_and_prepare()


class _Several(tfds.core.GeneratorBasedBuilder):
    """Images with none, one, two and three of the classes; a test split alone."""

    VERSION = tfds.core.Version("1.0.0")
    SKIP_REGISTERING = True

    @abc.abstractmethod
    def _feature(self, class_label):
        """Returns the features that hold the labels."""

    @abc.abstractmethod
    def _label(self, numbers):
        """Returns the labels as the features store them."""

    def _info(self):
        class_label = tfds.features.ClassLabel(names=["cat", "dog", "owl"])
        features = {
            "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
            **self._feature(class_label),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        for count in range(4):
            image = np.full((8, 8, 3), 60 * count, np.uint8)
            yield count, {"image": image, **self._label(list(range(count)))}


class SeveralLabels(_Several):
    """As voc/2007: a sequence of classes."""

    def _feature(self, class_label):
        return {"labels": tfds.features.Sequence(class_label)}

    def _label(self, numbers):
        return {"labels": numbers}


class SeveralObjects(_Several):
    """As coco: a sequence of objects, each with its class."""

    def _feature(self, class_label):
        return {"objects": tfds.features.Sequence({"label": class_label})}

    def _label(self, numbers):
        return {"objects": [{"label": number} for number in numbers]}


def write_several_labels(folder: str | Path, kind: str) -> None:
    """Prepares several_labels or several_objects in this TensorFlow Datasets directory."""
    builder = {"labels": SeveralLabels, "objects": SeveralObjects}[kind]
    builder(data_dir=str(folder)).download_and_prepare()


if __name__ == "__main__":
    write_two_greys(sys.argv[1])
