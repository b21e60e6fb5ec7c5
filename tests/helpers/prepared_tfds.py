"""Writes a small dataset as TensorFlow Datasets prepares them, without a download.

    python tests/helpers/prepared_tfds.py FOLDER

Its name is two_greys: dark and bright images, 16 for training and 6 for validation.
"""

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


def write_two_greys(folder: str | Path) -> None:
    """Prepares the dataset in this TensorFlow Datasets directory."""
    TwoGreys(data_dir=str(folder)).download_and_prepare()


if __name__ == "__main__":
    write_two_greys(sys.argv[1])
