"""Leaving out the images that a list names, such as the `issues.csv` of --mode=inspect."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from supcon_tf.data.sources import ArraySource, Source, Splits
from supcon_tf.data.streams import StreamSource

# What counts as agreement in the column `confirmed`.
CONFIRMED = ("yes", "y", "true", "1", "x")
REJECTED = ("no", "n", "false", "0")
NUM_SHOWN = 5


def read_rows(path: str) -> list[dict[str, str]]:
    """Reads the rows of a CSV file with at least the columns file, kind and confirmed.

    Raises:
        ValueError: If the file cannot be read or lacks a column.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except (tf.errors.OpError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'message', error)}") from error
    # A name may contain a line break, so that lines are divided by the reader.
    reader = csv.DictReader(text.splitlines(keepends=True))
    missing = [
        name for name in ("file", "kind", "confirmed") if name not in (reader.fieldnames or [])
    ]
    if missing:
        raise ValueError(
            f"{path} has no column {missing[0]}: expected the issues.csv of --mode=inspect, with "
            "the columns file, split, kind, score, other_file, evidence and confirmed."
        )
    return list(reader)


def excluded_files(rows: Sequence[dict[str, str]], kinds: Sequence[str] = ()) -> dict[str, str]:
    """Returns the files to leave out, each with the kind of its first row.

    Args:
        rows: What `read_rows` returned.
        kinds: Rows of these kinds are taken unless `confirmed` is no. Of other kinds, those
            whose `confirmed` is yes.
    """
    taken: dict[str, str] = {}
    for row in rows:
        mark = (row["confirmed"] or "").strip().lower()
        is_taken = mark in CONFIRMED or (row["kind"] in kinds and mark not in REJECTED)
        if row["file"] and is_taken:
            taken.setdefault(row["file"], row["kind"])
    return taken


def image_names(source: Source, split: str) -> list[str]:
    """Returns the name of each example in `issues.csv`: its path; of arrays, `train/123`."""
    if isinstance(source, StreamSource):
        return [name.numpy().decode() for _, _, name in source.named_examples()]
    if isinstance(source, ArraySource):
        return [f"{split}/{index}" for index in range(source.num_examples)]
    return list(source.paths)


def without_files(
    splits: Splits, files: dict[str, str], data_dir: str | None = None
) -> tuple[Splits, list[str]]:
    """Leaves files out of every split.

    A file is named by its path as it is read, by its absolute path, by its path relative to
    `data_dir`, or by its name in a CSV file of labels.

    Args:
        splits: The examples.
        files: File to kind, as `excluded_files` returns them.
        data_dir: The folder of the images.

    Returns:
        The splits, and lines for the user: how many were left out, and what was not found.

    Raises:
        ValueError: If the examples cannot be left out, or if a class would lose all its training
            images.
    """
    kept: dict[str, Source | None] = {}
    lines: list[str] = []
    found: set[str] = set()
    for split in ("train", "validation", "test"):
        source = getattr(splits, split)
        if source is None:
            continue
        if isinstance(source, StreamSource):
            raise ValueError(
                "--exclude needs --dataset=digits, folder or csv: the examples of a TensorFlow "
                "Datasets name are read as a stream and cannot be left out one by one. Write its "
                "images to one folder per class."
            )
        is_left_out = np.zeros(source.num_examples, bool)
        for index, names in enumerate(_all_names(source, split, data_dir)):
            matches = [name for name in names if name in files]
            is_left_out[index] = bool(matches)
            found.update(matches)
        kept[split] = _keep(source, ~is_left_out, split)
        if is_left_out.any():
            lines.append(_describe_left_out(source, is_left_out, split))
    unknown = [name for name in files if name not in found]
    if unknown:
        more = ", ..." if len(unknown) > NUM_SHOWN else ""
        lines.append(
            f"{len(unknown):,} files of --exclude are not in the data: "
            f"{', '.join(unknown[:NUM_SHOWN])}{more}."
        )
    return Splits(**kept), lines  # type: ignore[arg-type]


def _all_names(source, split, data_dir):
    """All names of each example."""
    first = image_names(source, split)
    if isinstance(source, ArraySource):
        return [(name,) for name in first]
    own = source.names or [None] * len(first)
    root = os.path.abspath(data_dir) if data_dir and "://" not in data_dir else None
    found = []
    for path, name in zip(first, own, strict=True):
        absolute = path if "://" in path else os.path.abspath(path)
        relative = os.path.relpath(absolute, root) if root and "://" not in path else None
        found.append({path, absolute, relative, name})
    return found


def _keep(source, is_kept, split):
    if is_kept.all():
        return source
    if isinstance(source, ArraySource):
        kept = dataclasses.replace(
            source, images=source.images[is_kept], labels=source.labels[is_kept]
        )
    else:
        kept = source.choose(is_kept)
    if split == "train" and source.label_type == "class":
        for label in np.setdiff1d(source.labels, kept.labels).tolist()[:1]:
            raise ValueError(
                f"--exclude leaves no training image of the class {source.class_names[label]}. "
                "Confirm fewer of its rows, or remove the class from the data."
            )
    if not kept.num_examples:
        raise ValueError(f"--exclude leaves no {split} image. Confirm fewer rows.")
    return kept


def _describe_left_out(source, is_left_out, split):
    text = f"Left out by --exclude: {is_left_out.sum():,} of {len(is_left_out):,} {split} images"
    if source.label_type != "class" or source.labels.ndim > 1:
        return f"{text}."
    counts = Counter(source.labels[is_left_out].tolist())
    shown = ", ".join(
        f"{count:,} of {source.class_names[label]}" for label, count in counts.most_common(10)
    )
    return f"{text} ({shown}{', ...' if len(counts) > 10 else ''})."
