"""Examples that a Python program already has: arrays or a dataset, with labels of any kind."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from supcon_tf.data.sources import ArraySource
from supcon_tf.models.pixel_values import as_uint8_images


def images_in_memory(examples: Any) -> np.ndarray:
    """Returns the images of an array or a dataset as uint8 [M, H, W, 3].

    Args:
        examples: Images uint8 [M, H, W, 3] or [M, H, W]; or a finite `tf.data.Dataset` of
            images, or of (image, label), single or batched, all of one size.

    Raises:
        ValueError: If the images have another type or shape, or if there are none.
    """
    if isinstance(examples, tf.data.Dataset):
        examples = _read(examples)[0]
    if hasattr(examples, "toarray"):
        raise TypeError("Images cannot be sparse: pass a dense array, such as images.toarray().")
    images = as_uint8_images(examples)
    if not len(images):
        raise ValueError(f"Expected at least one image, got 0 samples of shape {images.shape}.")
    return images


def examples_in_memory(examples: Any, labels: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [M, H, W, 3] and their labels [M] or [M, C].

    Args:
        examples: Images as for `images_in_memory`, or a dataset of (image, label).
        labels: The labels of an array of images; None for a dataset, which holds them.

    Raises:
        ValueError: If there are no labels, not one per image, or labels beside a dataset.
    """
    if isinstance(examples, tf.data.Dataset):
        if labels is not None:
            raise ValueError(
                "The labels come from the dataset of (image, label): leave out the second argument."
            )
        examples, labels = _read(examples)
    if labels is None:
        raise ValueError(
            "The labels are missing (requires y to be passed, but the target y is None): pass "
            "(images, labels), or a tf.data.Dataset of (image, label)."
        )
    images, labels = images_in_memory(examples), np.asarray(labels)
    if labels.ndim == 0 or len(labels) != len(images):
        raise ValueError(
            f"Expected one label for each of the {len(images):,} images, got labels of shape "
            f"{labels.shape}."
        )
    return images, labels


def _read(dataset):
    """Returns the images and the labels (or None) of a finite dataset as arrays."""
    spec = dataset.element_spec
    has_labels = isinstance(spec, tuple) and len(spec) == 2
    image_spec = spec[0] if has_labels else spec
    rank = getattr(getattr(image_spec, "shape", None), "rank", None)
    if rank not in (3, 4):
        raise ValueError(
            "Expected a dataset of images [H, W, 3] or of (image, label), single or batched; got "
            f"{spec}."
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("The dataset never ends: pass it without .repeat().")
    if rank == 4:
        dataset = dataset.unbatch()
    elements = list(dataset.as_numpy_iterator())
    images = [element[0] for element in elements] if has_labels else elements
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise ValueError(
            f"The images of the dataset have {len(shapes)} sizes, such as {shapes[0]} and "
            f"{shapes[-1]}: map them to one size, for example with tf.image.resize_with_pad and "
            "tf.cast(..., tf.uint8), or train on the image files with the command's "
            "--dataset=folder."
        )
    if not images:
        raise ValueError("The dataset is empty: expected at least one image, got 0 samples.")
    labels = np.array([_as_text(element[1]) for element in elements]) if has_labels else None
    return np.stack(images), labels


def _as_text(label):
    return label.decode() if isinstance(label, bytes) else label


@dataclasses.dataclass(frozen=True)
class LabelEncoding:
    """The classes of some labels, and the numbers or the multi-hot rows that represent them.

    Attributes:
        classes: The distinct labels in sorted order; for multi-hot labels the columns' numbers.
        is_multi_label: Whether the labels are multi-hot [M, C].
        dtype: The type of multi-hot labels.
    """

    classes: np.ndarray
    is_multi_label: bool
    dtype: str

    @classmethod
    def of(cls, labels: np.ndarray) -> LabelEncoding:
        """Finds the classes of labels [M] of any sortable kind, or multi-hot [M, C].

        Raises:
            ValueError: If the labels are real numbers or neither [M] nor multi-hot, or if there is
                only one class.
        """
        from sklearn.utils.multiclass import check_classification_targets

        labels = _as_vector_or_rows(labels)
        if labels.ndim == 2:
            return cls(np.arange(labels.shape[1]), True, labels.dtype.name)
        if labels.dtype.kind == "f" and np.any(np.mod(labels[np.isfinite(labels)], 1)):
            raise ValueError(
                "Unknown label type: continuous. The labels are real numbers, but a classifier "
                "needs classes. For a regression, fit one of scikit-learn's to transform(images); "
                "docs/python.md shows how."
            )
        check_classification_targets(labels)
        classes = np.unique(labels)
        if len(classes) < 2:
            raise ValueError(
                f"A classifier needs at least 2 classes; the labels hold one class, {classes[0]!r}."
            )
        return cls(classes, False, labels.dtype.name)

    def encode(self, labels: np.ndarray) -> np.ndarray:
        """Returns the class of each label as int32 [M], or the multi-hot labels as bool [M, C].

        Raises:
            ValueError: If a label is none of the classes.
        """
        labels = _as_vector_or_rows(labels)
        if labels.ndim != 1 + self.is_multi_label:
            kind = f"multi-hot labels [M, {len(self.classes)}]" if self.is_multi_label else "[M]"
            raise ValueError(f"Expected labels of shape {kind}, got {labels.shape}.")
        if self.is_multi_label:
            if labels.shape[1] != len(self.classes):
                raise ValueError(
                    f"Expected {len(self.classes)} columns of multi-hot labels, got "
                    f"{labels.shape[1]}."
                )
            return labels.astype(bool)
        unknown = np.setdiff1d(labels, self.classes)
        if len(unknown):
            raise ValueError(
                f"Unknown labels {unknown[:10].tolist()}: training had the classes "
                f"{self.classes[:10].tolist()}{' and more' if len(self.classes) > 10 else ''}."
            )
        return np.searchsorted(self.classes, labels).astype(np.int32)

    def source(self, images: np.ndarray, labels: np.ndarray) -> ArraySource:
        """Returns images uint8 [M, H, W, 3] with these labels as a source of training examples."""
        names = tuple(str(name) for name in self.classes)
        label_type = "multi_label" if self.is_multi_label else "class"
        return ArraySource(images, self.encode(labels), names, label_type)


def _as_vector_or_rows(labels):
    """Returns labels as [M], or as multi-hot [M, C] with two or more columns of 0 and 1."""
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        from sklearn.utils import column_or_1d

        return column_or_1d(labels, warn=True)
    if labels.ndim == 2 and not np.isin(labels, (0, 1)).all():
        raise ValueError(
            "Labels [M, C] are multi-hot: expected False and True, or 0 and 1, in every column."
        )
    if labels.ndim not in (1, 2):
        raise ValueError(
            f"Expected labels [M], or multi-hot labels [M, C], got the shape {labels.shape}."
        )
    return labels
