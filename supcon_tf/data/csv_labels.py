"""Labels in a CSV file: one row per image, with its file name and its label or labels.

    filename,label
    images/1.jpg,cat
    images/2.jpg,dog

This module reads and checks the text; `csv_source` makes a source of it.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from supcon_tf.data.folder_layout import SPLITS, printable

if TYPE_CHECKING:
    import numpy as np

# class: one class. multi_label: any number of classes. hierarchy: one class per level, from coarse
# to fine. real: a number.
LABEL_TYPES = ("class", "multi_label", "hierarchy", "real")
FILE_COLUMN, SPLIT_COLUMN = "filename", "split"
DEFAULT_COLUMNS = ("label",)
# Separates the classes in one cell of multi-label data.
SEPARATOR = "|"
SPLIT_NAMES = {**{split: split for split in SPLITS}, "valid": "validation", "val": "validation"}


@dataclasses.dataclass(frozen=True)
class CsvLabels:
    """The content of a CSV file.

    Attributes:
        filenames: as written, one per example.
        lines: the line of each example, counted from 1.
        labels: int32 [M] for "class", bool [M, C] for "multi_label", int32 [M, L] for
            "hierarchy", float32 [M] for "real".
        label_type: one of `LABEL_TYPES`.
        class_names: the name of each class; of a hierarchy, the classes of the finest level;
            empty for "real".
        level_names: for a hierarchy, the class names of each level.
        splits: "train", "validation" or "test" for each example; None without a split column.
        num_repeated: rows that repeat an earlier one and were left out.
    """

    filenames: tuple[str, ...]
    lines: tuple[int, ...]
    labels: np.ndarray
    label_type: str
    class_names: tuple[str, ...]
    level_names: tuple[tuple[str, ...], ...] = ()
    splits: tuple[str, ...] | None = None
    num_repeated: int = 0


def read_csv_labels(
    path: str, *, label_type: str = "class", label_columns: Sequence[str] = DEFAULT_COLUMNS
) -> CsvLabels:
    """Reads a local CSV file: see `parse_csv_labels`.

    Raises:
        ValueError: if there is no such file, it is not UTF-8, or it has a wrong row.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return parse_csv_labels(file, path, label_type=label_type, label_columns=label_columns)
    except OSError as error:
        raise ValueError(f"--data_csv={path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}). Save it as UTF-8.") from error


def parse_csv_labels(
    lines: Iterable[str],
    path: str,
    *,
    label_type: str = "class",
    label_columns: Sequence[str] = DEFAULT_COLUMNS,
) -> CsvLabels:
    """Parses the lines of a CSV file whose first line names the columns.

    Args:
        lines: text, comma-separated.
        path: names the file in messages.
        label_type: how to read the labels, one of `LABEL_TYPES`. Numbers are class names unless it
            is "real".
        label_columns: the columns of the label. One column for "class" and "real". For
            "multi_label" one column with classes separated by "|", or several columns of 0 and 1,
            one per class. For "hierarchy" a column per level, from coarse to fine.

    Raises:
        ValueError: if a column is missing or a row is wrong. Names the line.
    """
    import numpy as np  # Here, because the command checks its flags without NumPy.

    check_columns(label_type, label_columns)
    rows = list(_rows(lines, path, label_columns))
    if not rows:
        raise ValueError(f"{path} has no row below its header.")
    rows, num_repeated = _without_repeated(rows, path)
    cells = [row.cells for row in rows]
    level_names: tuple[tuple[str, ...], ...] = ()
    class_names: tuple[str, ...] = ()
    if label_type == "real":
        labels = np.array([_real_label(row, path) for row in rows], np.float32)
    elif label_type == "multi_label":
        labels, class_names = _multi_hot(rows, path, label_columns)
    else:
        for row in rows:
            for column, cell in zip(label_columns, row.cells, strict=True):
                if not cell:
                    raise ValueError(f"{path}, line {row.line}: the cell {column} is empty.")
        level_names = tuple(_sorted_names(level) for level in zip(*cells, strict=True))
        numbers = [{name: i for i, name in enumerate(names)} for names in level_names]
        labels = np.array(
            [[number[cell] for number, cell in zip(numbers, row, strict=True)] for row in cells],
            np.int32,
        )
        class_names = level_names[-1]
        if label_type == "class":
            labels, level_names = labels[:, 0], ()
        else:
            _check_tree(rows, path, label_columns)
    for name in (*class_names, *(name for names in level_names for name in names)):
        if printable(name) != name:
            raise ValueError(
                f"{path}: the class {printable(name)} contains control characters. Rename it."
            )
    if label_type != "real" and len(class_names) < 2:
        raise ValueError(f"{path} has {len(class_names)} class; at least two are needed.")
    return CsvLabels(
        filenames=tuple(row.filename for row in rows),
        lines=tuple(row.line for row in rows),
        labels=labels,
        label_type=label_type,
        class_names=class_names,
        level_names=level_names,
        splits=None if rows[0].split is None else tuple(row.split for row in rows),
        num_repeated=num_repeated,
    )


def image_paths(labels: CsvLabels, path: str, data_dir: str | None = None) -> tuple[str, ...]:
    """The path of each image, relative to data_dir or else to the folder of the CSV file."""
    root = data_dir or os.path.dirname(path)
    return tuple(os.path.join(root, name) for name in labels.filenames)


def check_files_exist(labels: CsvLabels, paths: Sequence[str], path: str) -> None:
    """Raises ValueError with the first line whose local image is missing."""
    missing = [
        (line, image)
        for line, image in zip(labels.lines, paths, strict=True)
        if "://" not in image and not os.path.lexists(image)
    ]
    if missing:
        line, image = missing[0]
        more = f" {len(missing) - 1:,} more are missing too." if len(missing) > 1 else ""
        raise ValueError(
            f"{path}, line {line}: there is no file {printable(image)}.{more} File names are "
            "relative to the CSV file, or to --data_dir."
        )


@dataclasses.dataclass(frozen=True)
class _Row:
    line: int
    filename: str
    cells: tuple[str, ...]
    split: str | None


def check_columns(label_type: str, label_columns: Sequence[str]) -> None:
    """Raises ValueError unless the label type is known and the number of columns fits it."""
    if label_type not in LABEL_TYPES:
        raise ValueError(
            f"label_type={label_type} is unknown: expected one of {', '.join(LABEL_TYPES)}."
        )
    shown = ",".join(label_columns)
    if len(set(label_columns)) != len(label_columns) or not label_columns:
        raise ValueError(f"label_columns={shown}: expected at least one column, each once.")
    if label_type in ("class", "real") and len(label_columns) != 1:
        raise ValueError(
            f"label_columns={shown} are {len(label_columns)} columns, but --label_type={label_type}"
            " needs one. Several columns need --label_type=multi_label or hierarchy."
        )
    if label_type == "hierarchy" and len(label_columns) < 2:
        raise ValueError(
            f"label_columns={shown} is one column, but --label_type=hierarchy needs one per level, "
            "from coarse to fine, such as --label_columns=genus,species."
        )


def _rows(lines, path, label_columns):
    reader = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        places = _places(header, path, label_columns)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue  # An empty line.
            yield _row(cells, reader.line_num, header, places, path)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error}).") from error


def _places(header, path, label_columns):
    """Column name to position."""
    for name in (FILE_COLUMN, *label_columns):
        if name not in header:
            other = next((x for x in (";", "\t") if len(header) == 1 and x in header[0]), None)
            advice = f" Separate the columns by commas, not by {other!r}." if other else ""
            which = "" if name == FILE_COLUMN else " (--label_columns names the label's columns)"
            raise ValueError(
                f"{path}, line 1: there is no column {name!r}{which}; the columns are "
                f"{printable(', '.join(header))}. Expected a header such as "
                f"{FILE_COLUMN},{','.join(DEFAULT_COLUMNS)}.{advice}"
            )
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ValueError(f"{path}, line 1: the column {repeated[0]!r} is there twice.")
    names = [FILE_COLUMN, *label_columns]
    if SPLIT_COLUMN in header and SPLIT_COLUMN not in label_columns:
        names.append(SPLIT_COLUMN)
    return {name: header.index(name) for name in names}


def _row(cells, line, header, places, path):
    if len(cells) != len(header):
        raise ValueError(
            f"{path}, line {line}: {len(cells)} cells, but the header has {len(header)}. Put cells "
            "that contain a comma in double quotes."
        )
    values = {name: cells[place].strip() for name, place in places.items()}
    filename = values.pop(FILE_COLUMN)
    if not filename:
        raise ValueError(f"{path}, line {line}: the cell {FILE_COLUMN} is empty.")
    split = None
    if SPLIT_COLUMN in values:
        name = values.pop(SPLIT_COLUMN)
        split = SPLIT_NAMES.get(name.lower())
        if split is None:
            raise ValueError(
                f"{path}, line {line}: unknown split {name!r}; expected one of {', '.join(SPLITS)}."
            )
    return _Row(line, filename, tuple(values.values()), split)


def _without_repeated(rows, path):
    """Leaves out rows that repeat one, and refuses those that contradict one."""
    first: dict[str, _Row] = {}
    for row in rows:
        other = first.setdefault(row.filename, row)
        if (other.cells, other.split) != (row.cells, row.split):
            what = "label" if other.cells != row.cells else "split"
            raise ValueError(
                f"{path}, line {row.line}: {printable(row.filename)} has another {what} than on "
                f"line {other.line}. Keep one row per file; an image of several classes is "
                "--label_type=multi_label, with the classes separated by "
                f"{SEPARATOR!r} in one cell."
            )
    return list(first.values()), len(rows) - len(first)


def _real_label(row, path):
    try:
        number = float(row.cells[0])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"{path}, line {row.line}: {row.cells[0]!r} is not a number; --label_type=real needs "
            "one per row."
        )
    return number


def _multi_hot(rows, path, label_columns):
    """Labels bool [M, C] and class names, from one column of classes or from columns of 0 and 1."""
    import numpy as np

    if len(label_columns) > 1:
        for row in rows:
            for column, cell in zip(label_columns, row.cells, strict=True):
                if cell not in ("0", "1"):
                    raise ValueError(
                        f"{path}, line {row.line}: {column} is {cell!r}; with several "
                        "--label_columns, multi_label needs 0 or 1 in each."
                    )
        values = [[cell == "1" for cell in row.cells] for row in rows]
        return np.array(values, bool), tuple(label_columns)
    sets = [{part.strip() for part in row.cells[0].split(SEPARATOR)} - {""} for row in rows]
    names = _sorted_names(set().union(*sets))
    return np.array([[name in classes for name in names] for classes in sets], bool), names


def _sorted_names(names):
    """In alphabetical order; whole numbers by size."""
    names = sorted(set(names))
    if all(name.isascii() and name.isdigit() for name in names):
        names.sort(key=lambda name: (int(name), name))
    return tuple(names)


def _check_tree(rows, path, label_columns):
    """Refuses a class that belongs to two classes of the level above it."""
    parents: dict[tuple[int, str], _Row] = {}
    for row in rows:
        for level in range(1, len(label_columns)):
            other = parents.setdefault((level, row.cells[level]), row)
            if other.cells[level - 1] != row.cells[level - 1]:
                raise ValueError(
                    f"{path}, line {row.line}: {row.cells[level]!r} in {label_columns[level]} "
                    f"belongs to {row.cells[level - 1]!r}, but on line {other.line} to "
                    f"{other.cells[level - 1]!r}. Give the two different names."
                )
