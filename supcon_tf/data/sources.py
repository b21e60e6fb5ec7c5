"""Where labeled images come from: the embedded digits, TFDS, folders of images, or a CSV file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from supcon_tf.data import streams
from supcon_tf.data.csv_labels import DEFAULT_COLUMNS
from supcon_tf.data.csv_source import load_csv
from supcon_tf.data.decode import MAX_PIXELS, decode_whole, find_undecodable
from supcon_tf.data.folder_layout import SPLITS
from supcon_tf.data.folder_source import class_and_file_names, load_folder
from supcon_tf.data.image_files import NO_LABEL as NO_LABEL
from supcon_tf.data.image_files import FileSource, first_of_each_class
from supcon_tf.data.image_files import advice_on_size as advice_on_size
from supcon_tf.data.image_files import load_unlabeled as load_unlabeled
from supcon_tf.data.streams import StreamSource
from supcon_tf.models.pixel_values import as_uint8_images

# The 8x8 digits fill their frame. They are enlarged to 16 pixels and get a border of 2 pixels, so
# that random crops seldom cut off a stroke.
DIGITS_SIDE, DIGITS_BORDER = 16, 2
SMALLEST_SIDE = 8
# Batches draw their random numbers with (seed, step) for steps from 0, so this step is free.
LABEL_NOISE_STEP = -1

# The datasets that are not of TFDS.
OWN_NAMES = ("digits", "folder", "csv")
# A mirrored digit or letter is no longer the same digit or letter.
NEVER_FLIPPED = ("digits", "mnist", "kmnist", "emnist", "svhn_cropped", "binary_alpha_digits")


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images in memory.

    Attributes:
        images: uint8 [M, H, W, 3].
        labels: int32 [M], or for the label type "multi_label" bool [M, C].
        class_names: the name of each class.
        label_type: one of `csv_labels.LABEL_TYPES`.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    label_type: str = "class"

    @property
    def num_examples(self) -> int:
        return len(self.labels)


Source = ArraySource | FileSource | StreamSource


@dataclasses.dataclass(frozen=True)
class Splits:
    """The splits of a dataset.

    Attributes:
        train: the training examples.
        validation: examples for figures while a model is developed, if the dataset has them.
        test: examples for the final figures, if the dataset has them.
    """

    train: Source
    validation: Source | None = None
    test: Source | None = None

    @property
    def held_out(self) -> Source | None:
        """The examples that training is measured on: validation, else test."""
        return self.test if self.validation is None else self.validation


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How to read a dataset; each option concerns the datasets that its description names.

    Attributes:
        data_csv: "csv": the file.
        label_type, label_columns: "csv": how to read the labels, see
            `csv_labels.parse_csv_labels`.
        validation_split, seed: "folder" and "csv": what is held out of the training examples, see
            `load_folder` and `load_csv`.
        train_split, test_split: TFDS: the splits to use, such as "train[:80%]" or
            "train+validation". By default "train", and "test" or else "validation".
        skip_broken_images: "folder" and "csv": leave out files that cannot be decoded instead of
            raising an error. Every image is decoded once to find them.
        max_pixels: all but the digits: images whose header states more pixels are rejected before
            decoding.
    """

    data_csv: str | None = None
    label_type: str = "class"
    label_columns: tuple[str, ...] = DEFAULT_COLUMNS
    validation_split: float | None = None
    seed: int = 0
    train_split: str | None = None
    test_split: str | None = None
    skip_broken_images: bool = False
    max_pixels: int = MAX_PIXELS


def load_splits(dataset: str, data_dir: str | None = None, **options) -> Splits:
    """Loads all splits of a dataset for training, and checks them without decoding every image.

    Args:
        dataset: "digits", "folder", "csv", or the name of a TFDS image classification dataset.
        data_dir: for "folder", the folder, see `folder_layout`. For "csv", what file names are
            relative to. For TFDS, its data directory.
        **options: the fields of `DataOptions`.

    Raises:
        ValueError: if the dataset is unknown, something is missing, or files are not images.
    """
    return Splits(**_load(dataset, data_dir, SPLITS, True, DataOptions(**options)))


def load_source(
    dataset: str, split: str, data_dir: str | None = None, *, for_training: bool = True, **options
) -> Source:
    """Loads one split of a dataset.

    Args:
        dataset, data_dir: see `load_splits`.
        split: "train", "validation" or "test"; for TFDS also in its own syntax, such as
            "test[:10%]". If a dataset has no "test" split, its "validation" split is used.
        for_training: whether the dataset must have training examples. If not, it may have the
            split alone; and one folder per class, or a CSV file without a split column, is a test
            split as a whole.
        **options: the fields of `DataOptions`.

    Raises:
        ValueError: if the dataset has no such split; else see `load_splits`.
    """
    given = DataOptions(**options)
    names = ("test", "validation") if split == "test" else (split,)
    if dataset in OWN_NAMES and split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}: choose one of {', '.join(SPLITS)}.")
    loaded = _load(dataset, data_dir, names, for_training, given)
    for name in names:
        if name in loaded:
            return loaded[name]
    raise ValueError(f"{given.data_csv or data_dir or dataset} has no {split} split.")


def _load(
    dataset: str,
    data_dir: str | None,
    splits: Sequence[str],
    for_training: bool,
    options: DataOptions,
) -> dict[str, Source]:
    """Those of the splits that the dataset has."""
    loaded: dict[str, Source] = {}
    if dataset == "digits":
        return loaded | {split: _load_digits(split) for split in splits if split != "validation"}
    if dataset in ("folder", "csv"):
        common: dict[str, Any] = {
            "validation_split": options.validation_split,
            "seed": options.seed,
            "for_training": for_training,
            "skip_broken_images": options.skip_broken_images,
            "max_pixels": options.max_pixels,
        }
        if dataset == "folder":
            return loaded | load_folder(data_dir, splits, **common)
        common |= {"label_type": options.label_type, "label_columns": options.label_columns}
        return loaded | load_csv(options.data_csv, data_dir, splits, **common)
    builder = streams.prepared_builder(dataset, data_dir)
    given = {"train": options.train_split, "test": options.test_split}
    for split in [name for name in splits if name != "validation"] or splits:
        name = given.get(split) or streams.find_split(builder, split)
        if name is not None:
            stream = streams.stream_of(builder, name)
            loaded[split] = dataclasses.replace(stream, max_pixels=options.max_pixels)
        elif split == "train":
            raise ValueError(
                f"The dataset {dataset!r} has the splits {list(builder.info.splits)}, but train is "
                "required. Name another one with --train_split."
            )
    return loaded


def source_of_arrays(examples: tuple) -> ArraySource:
    """Makes a source without class names from arrays (images, labels).

    Args:
        examples: images as `pixel_values.as_uint8_images` accepts them, and labels [M] or [M, C].

    Raises:
        ValueError: if the examples have another form.
    """
    if not isinstance(examples, (tuple, list)) or len(examples) != 2:
        raise ValueError(
            "Expected arrays (images, labels) or a tf.data.Dataset of (image, label), got "
            f"{type(examples).__name__}."
        )
    images, labels = as_uint8_images(examples[0]), np.asarray(examples[1])
    if labels.ndim == 0 or len(labels) != len(images):
        raise ValueError(
            f"Expected one label for each of the {len(images):,} images, got labels of shape "
            f"{labels.shape}."
        )
    return ArraySource(images, labels, (), "multi_label" if labels.ndim == 2 else "class")


def example_names(source: Source) -> list[str]:
    """The name of each example: its path, its TFDS id, or for arrays its position."""
    if isinstance(source, FileSource):
        return list(source.paths)
    if isinstance(source, StreamSource):
        return [name.numpy().decode() for _, _, name in source.named_examples()]
    return [str(index) for index in range(source.num_examples)]


def file_names(source: FileSource) -> list[str]:
    """The name that decides on which side of a validation split a file is."""
    return list(source.names) or class_and_file_names(source)


def default_image_size(source: Source, *, largest: int = 224) -> int:
    """The short side of the first image in pixels, but at least 8 and at most `largest`.

    Raises:
        ValueError: if the first image file cannot be decoded or is smaller than 8 pixels.
    """
    if isinstance(source, ArraySource):
        return source.images.shape[1]
    if isinstance(source, FileSource):
        shape = _shape_of_file(source.paths[0], source.max_pixels)
    else:
        shape = source.builder.info.features["image"].shape
    return largest if None in shape[:2] else max(8, min(largest, *shape[:2]))


def _shape_of_file(path, max_pixels):
    for reason in find_undecodable([path], max_pixels=max_pixels).values():
        raise ValueError(f"{path} {reason}; remove or replace it.")
    shape = decode_whole(tf.io.read_file(path), max_pixels=max_pixels).shape
    if min(shape[:2]) < SMALLEST_SIDE:
        raise ValueError(
            f"{path} has {shape[1]}x{shape[0]} pixels, which is too small to choose the image "
            f"size from it (at least {SMALLEST_SIDE} are needed): set --image_size."
        )
    return shape


def first_examples(source: Source, count: int) -> Source:
    """Keeps the first `count` examples.

    Files are sorted by class. From files, this takes the first of every class, then the second
    of every class, and so on.

    Raises:
        ValueError: if the source has fewer examples.
    """
    if not 0 < count <= source.num_examples:
        raise ValueError(
            f"num_images={count} is out of range: there are {source.num_examples:,} training "
            "examples. Use --num_images=0 for all of them."
        )
    if isinstance(source, StreamSource):
        return streams.first_of_stream(source, count)
    if isinstance(source, ArraySource):
        return dataclasses.replace(
            source, images=source.images[:count], labels=source.labels[:count]
        )
    return first_of_each_class(source, count)


def first_per_class(source: Source, per_class: int, *, true_labels: Source | None = None) -> Source:
    """Keeps the first `per_class` examples of every class, so that the classes are balanced.

    Args:
        source: The examples.
        per_class: At least 1.
        true_labels: The same examples before `with_label_noise`; their labels count.

    Raises:
        ValueError: If a class has fewer examples, or if an example does not have exactly one class.
    """
    if source.label_type not in ("class", "hierarchy"):
        raise ValueError(
            f"images_per_class={per_class} needs one class per image; these labels are "
            f"{source.label_type}. Use --num_images."
        )
    if isinstance(source, StreamSource):
        return streams.balanced_stream(source, per_class)
    labeled = source if true_labels is None else true_labels
    assert not isinstance(labeled, StreamSource)
    numbers = labeled.class_numbers if isinstance(labeled, FileSource) else labeled.labels
    counts = np.bincount(numbers, minlength=len(source.class_names))
    if counts.min() < per_class:
        raise streams.too_few_of_a_class(counts, source.class_names, per_class)
    chosen = np.sort(
        np.concatenate([np.flatnonzero(numbers == n)[:per_class] for n in range(len(counts))])
    )
    if isinstance(source, FileSource):
        return source.choose(chosen)
    return dataclasses.replace(source, images=source.images[chosen], labels=source.labels[chosen])


def with_label_noise(source: Source, probability: float, *, seed: int) -> Source:
    """Replaces each label with the given probability by a random class.

    The random class may be the true one. The new label depends only on the seed and the example:
    it is the same in every epoch and on every host, whichever other examples are used.

    Raises:
        ValueError: if an example does not have exactly one class.
    """
    if source.label_type != "class":
        raise ValueError(
            f"label_noise_prob={probability:g} needs one class per image; these labels are "
            f"{source.label_type}."
        )
    if isinstance(source, StreamSource):
        return dataclasses.replace(source, label_noise=(probability, seed))
    count = len(source.class_names)
    draws = tf.random.stateless_uniform(
        [source.num_examples, 2], seed=[seed, LABEL_NOISE_STEP], alg="philox"
    ).numpy()
    other = np.minimum((draws[:, 1] * count).astype(np.int32), count - 1)
    labels = np.where(draws[:, 0] < probability, other, source.labels)
    return dataclasses.replace(source, labels=labels)


def finest_level(source: Source) -> Source:
    """A hierarchy with the classes of its finest level as the only labels; others as they are."""
    if not isinstance(source, FileSource) or source.label_type != "hierarchy":
        return source
    return dataclasses.replace(source, labels=source.class_numbers, label_type="class")


def may_flip(dataset: str) -> bool:
    """Whether a mirrored image of this dataset still shows its class."""
    return not dataset.startswith(NEVER_FLIPPED)


def _load_digits(split: str) -> ArraySource:
    """The 1,797 handwritten 8x8 digits of UCI, from scikit-learn; 360 are for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    labels = digits.target.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=360, random_state=0, stratify=labels
    )
    chosen = np.sort(train if split == "train" else test)
    images = digits.images[chosen, :, :, None] * (255 / 16)
    images = tf.image.resize(images, [DIGITS_SIDE, DIGITS_SIDE], method="bicubic")
    images = np.clip(np.round(images), 0, 255).astype(np.uint8)
    border = (DIGITS_BORDER, DIGITS_BORDER)
    images = np.pad(images, [(0, 0), border, border, (0, 0)])  # [M, 20, 20, 1]
    return ArraySource(
        np.repeat(images, 3, axis=-1), labels[chosen], tuple(str(digit) for digit in range(10))
    )
