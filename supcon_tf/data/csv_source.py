"""Images and labels of a CSV file as training, validation and test examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from supcon_tf.data import csv_labels
from supcon_tf.data.decode import MAX_PIXELS
from supcon_tf.data.folder_layout import SPLITS
from supcon_tf.data.folder_source import hold_out
from supcon_tf.data.image_files import FileSource, check_files
from supcon_tf.data.validation_split import DEFAULT_FRACTION


def load_csv(
    data_csv: str | None,
    data_dir: str | None = None,
    splits: Sequence[str] = SPLITS,
    *,
    label_type: str = "class",
    label_columns: Sequence[str] = csv_labels.DEFAULT_COLUMNS,
    validation_split: float | None = None,
    seed: int = 0,
    for_training: bool = True,
    skip_broken_images: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, FileSource]:
    """Loads the splits of a CSV file and looks at the first bytes of every image.

    Args:
        data_csv: the file, with a column "filename", those of the label, and optionally "split".
        data_dir: the folder that file names are relative to; by default that of the CSV file.
        splits: which of "train", "validation" and "test" to load.
        label_type, label_columns: see `csv_labels.parse_csv_labels`.
        validation_split: the share of the training rows to hold out for validation by the rule of
            `validation_split`; 0 holds out none. By default 0.2 if no row is of another split.
        seed: of the validation split.
        for_training: whether training images are needed. If not, a file without a split column is
            a test split as a whole.
        skip_broken_images: leave out files that cannot be decoded instead of raising an error.
        max_pixels: images whose header states more pixels are rejected before decoding.

    Returns:
        Those of the splits that the file has.

    Raises:
        ValueError: if a row is wrong or its image is missing; names the line.

    >>> load_csv("labels.csv", label_type="multi_label")["train"].labels.dtype
    dtype('bool')
    """
    if not data_csv:
        raise ValueError(
            "--dataset=csv needs --data_csv: a CSV file with the header filename,label."
        )
    table = _read_labels(data_csv, label_type, label_columns)
    paths = csv_labels.image_paths(table, data_csv, data_dir)
    csv_labels.check_files_exist(table, paths, data_csv)
    whole = FileSource(
        paths,
        table.labels,
        table.class_names,
        max_pixels=max_pixels,
        label_type=table.label_type,
        level_names=table.level_names,
        parents=_parents(table),
        names=table.filenames,
    )
    if table.splits is None:
        parts = {"train" if for_training else "test": np.ones(len(paths), bool)}
    else:
        parts = {split: np.array(table.splits) == split for split in SPLITS}
        parts = {split: mask for split, mask in parts.items() if mask.any()}
    loaded = {split: whole.choose(mask) for split, mask in parts.items()}
    if for_training:
        _check_training(loaded.get("train"), whole, data_csv)
        fraction = _fraction_of_rows(loaded, validation_split, data_csv)
        if fraction:
            train = loaded["train"]
            loaded |= hold_out(train, train.names, fraction=fraction, seed=seed)
    return {
        split: check_files(source, skip_broken_images=skip_broken_images)
        for split, source in loaded.items()
        if split in splits
    }


def _parents(table):
    """Returns the class at each coarser level of each class of the finest level of a hierarchy."""
    if table.label_type != "hierarchy":
        return ()
    _, first = np.unique(table.labels[:, -1], return_index=True)
    return tuple(tuple(level) for level in table.labels[first, :-1].T.tolist())


def _read_labels(data_csv, label_type, label_columns):
    if "://" not in data_csv:
        return csv_labels.read_csv_labels(
            data_csv, label_type=label_type, label_columns=label_columns
        )
    try:
        text = tf.io.gfile.GFile(data_csv, "rb").read().decode("utf-8-sig")
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        raise ValueError(f"--data_csv={data_csv} cannot be read: {error}") from error
    return csv_labels.parse_csv_labels(
        text.splitlines(keepends=True),
        data_csv,
        label_type=label_type,
        label_columns=label_columns,
    )


def _check_training(train, whole, data_csv):
    if train is None:
        raise ValueError(f"{data_csv} has no row of the split train.")
    if whole.label_type in ("class", "hierarchy"):
        lacking = np.setdiff1d(whole.class_numbers, train.class_numbers)
        if len(lacking):
            raise ValueError(
                f"{data_csv}: no training row has the class {whole.class_names[lacking[0]]}, which "
                "rows of another split have."
            )


def _fraction_of_rows(loaded, given, data_csv):
    if given and "validation" in loaded:
        raise ValueError(
            f"--validation_split={given:g} and rows of the split validation in {data_csv} both name"
            " validation images. Leave out the flag or those rows."
        )
    if given is not None:
        return given
    return DEFAULT_FRACTION if list(loaded) == ["train"] else 0.0
