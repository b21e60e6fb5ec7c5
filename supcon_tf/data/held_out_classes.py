"""Classes that are left out of training, so that a run can be evaluated on classes it never saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from supcon_tf.data.sources import ArraySource, FileSource, Source
from supcon_tf.data.streams import StreamSource, classes_of_stream


def without_classes(source: Source, names: Sequence[str]) -> Source:
    """Removes the examples of some classes; the others are renumbered, in the same order.

    Args:
        source: Examples with one class each.
        names: Class names.

    Raises:
        ValueError: If a class does not exist, if fewer than two classes are left, or if the
            examples do not have one class each.
    """
    _check_classes(source, names)
    kept = [name for name in source.class_names if name not in names]
    if len(kept) < 2:
        raise ValueError(
            f"--holdout_classes={','.join(names)} leaves {len(kept)} of "
            f"{len(source.class_names)} classes to train on. Leave at least two."
        )
    return _of_classes(source, kept)


def only_classes(source: Source, names: Sequence[str]) -> Source:
    """Keeps the examples of some classes alone, numbered in the order of the source.

    Raises:
        ValueError: As for `without_classes`.
    """
    _check_classes(source, names)
    return _of_classes(source, [name for name in source.class_names if name in names])


def _check_classes(source, names):
    if source.label_type != "class":
        raise ValueError(
            f"--holdout_classes={','.join(names)} needs one class per image; these labels are "
            f"{source.label_type}. Leave it out."
        )
    unknown = [name for name in names if name not in source.class_names]
    if unknown:
        raise ValueError(
            f"--holdout_classes names {', '.join(unknown)}, which is no class of the data. The "
            f"classes are {', '.join(source.class_names[:20])}"
            + (", ..." if len(source.class_names) > 20 else ".")
        )


def _of_classes(source, names):
    if isinstance(source, StreamSource):
        return classes_of_stream(source, names)
    numbers = np.full(len(source.class_names), -1, np.int32)
    numbers[[source.class_names.index(name) for name in names]] = np.arange(len(names))
    labels = numbers[source.labels]
    kept = labels >= 0
    renamed = dataclasses.replace(source, labels=labels, class_names=tuple(names))
    if isinstance(renamed, FileSource) and renamed.parents:
        kept_classes = np.flatnonzero(numbers >= 0)
        parents = tuple(tuple(level[c] for c in kept_classes) for level in renamed.parents)
        renamed = dataclasses.replace(renamed, parents=parents)
    if isinstance(renamed, ArraySource):
        return dataclasses.replace(renamed, images=renamed.images[kept], labels=labels[kept])
    return renamed.choose(kept)
