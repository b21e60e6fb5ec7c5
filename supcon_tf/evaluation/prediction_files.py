"""The files that hold predictions: `predictions.npz` of eval, and the tables of predict.

What is written goes to bytes or to an open binary file, so that the caller decides where and how.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf

VERSION = 1
# An image with several labels is predicted to show the classes of at least this probability.
PRESENT_FROM = 0.5


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A classifier's predictions for every test example, in the order of the dataset.

    Attributes:
        labels: int [N], or bool [N, C] of images with several labels.
        probabilities: float16 or float32 [N, C].
        names: str [N], the file names; or int [N], the places in the dataset.
        class_names: of the C classes.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    names: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self):
        count, num_classes = len(self.labels), len(self.class_names)
        shapes = {
            "labels": (self.labels.shape, [(count,), (count, num_classes)]),
            "probabilities": (self.probabilities.shape, [(count, num_classes)]),
            "names": (self.names.shape, [(count,)]),
        }
        for name, (shape, expected) in shapes.items():
            if shape not in expected:
                raise ValueError(
                    f"Predictions of {count:,} examples and {num_classes} classes: expected {name} "
                    f"of shape {' or '.join(map(str, expected))}, got {shape}."
                )
        kinds = {"labels": "bui", "probabilities": "f", "names": "Uui"}
        for name, kind in kinds.items():  # No object, which would need pickle.
            dtype = getattr(self, name).dtype
            if dtype.kind not in kind:
                raise ValueError(f"Predictions cannot hold {name} of type {dtype}.")

    def log_probabilities(self) -> np.ndarray:
        """ln p, float64 [N, C]: logits for the functions of `metrics`, up to the rounding of p."""
        smallest = np.finfo(self.probabilities.dtype).smallest_subnormal
        return np.log(np.maximum(self.probabilities, smallest).astype(np.float64))

    def predicted(self) -> np.ndarray:
        """The most probable class, int [N]; the first of equally probable ones."""
        return np.argmax(self.probabilities, axis=1)

    def is_correct(self) -> np.ndarray:
        """Whether the most probable class is a label of the example, bool [N]."""
        if self.labels.ndim == 1:
            return self.predicted() == self.labels
        return np.take_along_axis(self.labels, self.predicted()[:, None], axis=1)[:, 0] > 0


def to_npz(predictions: Predictions) -> bytes:
    """The bytes of `predictions.npz`, which `numpy.load` reads without pickle.

    Its arrays are version, label, probabilities, class_names, and name (str) or index (int).
    """
    names = predictions.names
    arrays: dict[str, Any] = {
        "version": np.array(VERSION),
        "label": predictions.labels,
        "probabilities": predictions.probabilities,
        "class_names": np.array(predictions.class_names, dtype=str),
        "name" if names.dtype.kind == "U" else "index": names,
    }
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def targets_to_npz(targets: np.ndarray, predicted: np.ndarray, names: np.ndarray) -> bytes:
    """Returns the bytes of the `predictions.npz` of a regression, for `numpy.load`.

    Its arrays are version, label, prediction, and name (str) or index (int).

    Args:
        targets: float [N].
        predicted: float [N].
        names: str [N], the file names; or int [N], the places in the dataset.
    """
    arrays: dict[str, Any] = {
        "version": np.array(VERSION),
        "label": targets,
        "prediction": predicted,
        "name" if names.dtype.kind == "U" else "index": names,
    }
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def from_npz(content: bytes) -> Predictions:
    """What `to_npz` wrote.

    Raises:
        ValueError: not such a file, or one of a later version.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = dict(archive)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"This is not a predictions.npz: {error}") from error
    version = int(arrays.get("version", -1))
    missing = {"version", "label", "probabilities", "class_names"} - set(arrays)
    if "prediction" in arrays:
        raise ValueError(
            "This predictions.npz holds numbers, not classes (--label_type=real): read it with "
            "numpy.load; its arrays label and prediction are float32 [N]."
        )
    if missing or not {"name", "index"} & set(arrays):
        raise ValueError(
            f"This is not a predictions.npz: it has the arrays {', '.join(sorted(arrays))}."
        )
    if version != VERSION:
        raise ValueError(
            f"This predictions.npz has version {version}, expected {VERSION}: read it with the "
            "version of supcon_tf that wrote it."
        )
    return Predictions(
        arrays["label"],
        arrays["probabilities"],
        arrays["name"] if "name" in arrays else arrays["index"],
        tuple(arrays["class_names"].tolist()),
    )


def read_predictions(path: str) -> Predictions:
    """The content of a `predictions.npz`, local or remote.

        predictions = read_predictions("runs/mine/eval/predictions.npz")
        bootstrap_interval(predictions.is_correct())

    Raises:
        ValueError: the file is damaged, or has another form or a later version.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    try:
        return from_npz(content)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read. {error}") from error


@dataclasses.dataclass(frozen=True)
class PredictedFile:
    """What predict says about one image; probabilities and similarities in descending order.

    Attributes:
        file: its name.
        classes: the names of the k most probable classes; the first one is the prediction.
        probabilities: of these classes.
        neighbors: names of the nearest training images.
        similarities: their cosine similarities.
        present: for images with several labels, the classes with a probability of at least
            `PRESENT_FROM`; None for images of one class.
        value: the predicted number of a regression, which has no classes; else None.
    """

    file: str
    classes: Sequence[str]
    probabilities: Sequence[float]
    neighbors: Sequence[str] = ()
    similarities: Sequence[float] = ()
    present: Sequence[str] | None = None
    value: float | None = None


def predicted_files(
    names: Sequence[str],
    probabilities: np.ndarray,
    class_names: Sequence[str],
    *,
    k: int = 5,
    neighbor_names: Sequence[str] = (),
    neighbor_indices: np.ndarray | None = None,
    similarities: np.ndarray | None = None,
    is_multi_label: bool = False,
) -> Iterator[PredictedFile]:
    """Makes the rows of the tables from arrays.

    Args:
        names: of the N images.
        probabilities: [N, C].
        class_names: of the C classes.
        k: number of classes to list; at most C.
        neighbor_names: of the M training images.
        neighbor_indices, similarities: [N, K], what `retrieval.nearest` returns; None without
            neighbors.
        is_multi_label: whether an image may show any number of classes.
    """
    # Of equally probable classes, the first comes first.
    order = np.argsort(-np.asarray(probabilities), axis=1, kind="stable")
    for row, name in enumerate(names):
        present = [c for c in order[row] if probabilities[row, c] >= PRESENT_FROM]
        near: list[int] = [] if neighbor_indices is None else neighbor_indices[row].tolist()
        yield PredictedFile(
            name,
            [class_names[c] for c in order[row, :k]],
            [float(p) for p in probabilities[row, order[row, :k]]],
            [neighbor_names[i] for i in near],
            [] if similarities is None else [float(x) for x in similarities[row]],
            [class_names[c] for c in present] if is_multi_label else None,
        )


def csv_columns(
    k: int, num_neighbors: int, *, is_multi_label: bool = False, is_real: bool = False
) -> list[str]:
    """The header of `predictions.csv`."""
    classes = ["file", "value"] if is_real else _class_columns(k, is_multi_label)
    return [
        *classes,
        *(f"{what}_{i}" for i in range(1, num_neighbors + 1) for what in ("nearest", "similarity")),
    ]


def _class_columns(k, is_multi_label):
    return [
        *("file", "class", "probability"),
        *(["classes"] if is_multi_label else []),
        *(f"{what}_{i}" for i in range(1, k + 1) for what in ("class", "probability")),
    ]


def write_csv(
    file: BinaryIO,
    rows: Iterable[PredictedFile],
    *,
    k: int,
    num_neighbors: int,
    is_multi_label: bool = False,
    is_real: bool = False,
) -> None:
    """Writes `predictions.csv`: UTF-8, a header, one line per image.

    The columns are file, class, probability, then class_1, probability_1, ... (the first repeats
    class), then nearest_1, similarity_1, ... Names with commas, quotes or line breaks are quoted
    as RFC 4180 says, and stay as they are otherwise. A file name that is not valid UTF-8 keeps its
    bytes. With several labels per image, a column classes after probability lists the classes that
    are present, separated by |. The columns of a regression are file, value, then the neighbors.

    Args:
        file: open for binary writing.
        k, num_neighbors: classes and neighbors per row; a row with fewer leaves cells empty.
        is_multi_label: whether an image may show any number of classes.
        is_real: whether numbers were predicted.
    """

    def write_line(cells):
        text = io.StringIO(newline="")
        # csv quotes a name with a line break only if it is part of the line terminator.
        csv.writer(text, lineterminator="\r\n").writerow(cells)
        line = text.getvalue().removesuffix("\r\n") + "\n"
        file.write(line.encode("utf-8", "surrogateescape"))

    write_line(csv_columns(k, num_neighbors, is_multi_label=is_multi_label, is_real=is_real))
    for row in rows:
        near = _interleaved(row.neighbors, row.similarities, num_neighbors)
        if is_real:
            write_line([row.file, f"{row.value:.6g}", *near])
            continue
        classes = _interleaved(row.classes, row.probabilities, k)
        present = ["|".join(row.present or ())] if is_multi_label else []
        write_line([row.file, *classes[:2], *present, *classes, *near])


def _interleaved(names, values, count):
    """name_1, value_1, name_2, ... of `count` pairs, the missing ones empty."""
    pairs = list(zip(names, values, strict=True))[:count]
    cells = [cell for name, value in pairs for cell in (name, f"{value:.6g}")]
    return cells + [""] * (2 * count - len(cells))


def write_jsonl(file: BinaryIO, rows: Iterable[PredictedFile]) -> None:
    """Writes `predictions.jsonl`: the content of `predictions.csv`, one JSON object per line.

    {"file": ..., "class": ..., "probability": ..., "top": [{"class": ..., "probability": ...}],
    "nearest": [{"file": ..., "similarity": ...}]}, in UTF-8; with several labels per image also
    "classes": [...], those that are present; of a regression {"file": ..., "value": ...,
    "nearest": ...}. A byte of a file name that is not valid UTF-8 is
    written as the escape of the surrogate that Python uses for it.

    Args:
        file: open for binary writing.
    """
    for row in rows:
        near = zip(row.neighbors, row.similarities, strict=True)
        answer = {"value": row.value} if row.value is not None else _class_record(row)
        record = {
            "file": row.file,
            **answer,
            "nearest": [{"file": name, "similarity": value} for name, value in near],
        }
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        file.write(line.encode("utf-8", "backslashreplace"))


def _class_record(row):
    top = zip(row.classes, row.probabilities, strict=True)
    return {
        "class": row.classes[0],
        "probability": row.probabilities[0],
        **({} if row.present is None else {"classes": list(row.present)}),
        "top": [{"class": name, "probability": value} for name, value in top],
    }
