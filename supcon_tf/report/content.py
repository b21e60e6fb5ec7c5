"""What the report is made of: plain data that a stage collects, and the sections of the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from supcon_tf.evaluation.prediction_files import Predictions
from supcon_tf.report.markup import Html

# Positions of test examples -> their images, uint8 [S, S, 3] each.
LoadImages = Callable[[Sequence[int]], list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: Its id, for links.
        title: Its heading.
        body: Its content; headings in it start at h3.
    """

    anchor: str
    title: str
    body: Html


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What ran.

    Attributes:
        model_dir: The directory of the run.
        recipe: The name of the recipe, or None.
        changed_flags: Stage, name, value and default (or value of the recipe) of every flag
            that differs.
        data: Name and value of what describes the data.
        environment: Name and value of what describes versions and the machine.
        stages: Stage, steps, seconds and finishing time of every stage that ran; None if unknown.
        command: The command that repeats the run.
    """

    model_dir: str
    recipe: str | None
    changed_flags: Sequence[tuple[str, str, str, str]]
    data: Sequence[tuple[str, str]]
    environment: Sequence[tuple[str, str]]
    stages: Sequence[tuple[str, int | None, float | None, str | None]]
    command: str


@dataclasses.dataclass(frozen=True)
class StageLog:
    """The training of one stage.

    Attributes:
        stage: "pretrain", "linear" or "finetune".
        lines: The logged metrics, in order; [] if the stage logs none.
        result: What the stage recorded at its end; {} if it is unfinished.
        still_improving: What improved over the last quarter, or None.
    """

    stage: str
    lines: Sequence[dict]
    result: dict
    still_improving: str | None = None


@dataclasses.dataclass(frozen=True)
class Targets:
    """Predicted numbers, for the label type "real".

    Attributes:
        labels, predicted: float [N].
        names: The file names, or the places in the dataset.
    """

    labels: np.ndarray
    predicted: np.ndarray
    names: np.ndarray


@dataclasses.dataclass(frozen=True)
class Result:
    """The evaluation of a classifier, or of the prediction of a number.

    Attributes:
        figures: The content of `eval.json`.
        predictions: The content of `predictions.npz`.
        load_images: Reads test images by their row in `predictions`; None if the test images
            are not the ones that were evaluated.
        note: What the reader has to know about it, or "".
    """

    figures: dict
    predictions: Predictions | Targets
    load_images: LoadImages | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Embedding:
    """Embeddings of test images.

    Attributes:
        embeddings: float32 [M, F], of the trained encoder.
        labels: int [M], or multi-hot [M, C]; None without labels.
        class_names: The C classes.
        names: The name of each image.
        images: uint8 [M, S, S, 3].
        predicted: int [M], the predicted class; multi-hot [M, C]; None without a classifier.
        before: float32 [K, F], of the untrained encoder, for the first K of `before_rows`.
        before_rows: The rows of `embeddings` that `before` belongs to.
        num_examples: Number of test images that the M were chosen from.
        without_before: Why `before` is None.
        seed: For t-SNE.
    """

    embeddings: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    names: Sequence[str]
    images: np.ndarray
    predicted: np.ndarray | None
    before: np.ndarray | None
    before_rows: np.ndarray | None
    num_examples: int
    without_before: str = ""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class InputData:
    """What pretraining reads.

    Attributes:
        views: uint8 [R, V, S, S, 3], what the encoder receives, for R images.
        originals: uint8 [R, S, S, 3].
        labels: The class of each of the R images, as text.
        operations: The sampled operations of each view, as texts.
        policy: Name and value of the flags that decide the views.
        class_names: The C classes.
        class_counts: Images of each class by the name of the split.
    """

    views: np.ndarray | None
    originals: np.ndarray | None
    labels: Sequence[str]
    operations: Sequence[Sequence[str]]
    policy: Sequence[tuple[str, str]]
    class_names: tuple[str, ...]
    class_counts: dict[str, Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One row of `inspect/issues.csv`.

    Attributes:
        image, other_image: uint8 [S, S, 3], or None if the file cannot be read.
    """

    kind: str
    file: str
    split: str
    score: str
    other_file: str
    evidence: str
    confirmed: str
    image: np.ndarray | None = None
    other_image: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `--mode=inspect` found.

    Attributes:
        counts: Number of findings by kind.
        worst: The worst findings of each kind, in the order of the file.
        figures: Other figures of `inspect.json`.
        path: The file with all findings.
    """

    counts: dict[str, int]
    worst: Sequence[Finding]
    figures: dict[str, Any]
    path: str


@dataclasses.dataclass(frozen=True)
class OtherRun:
    """A run to compare with; the first one in a comparison is the run of the report itself.

    Attributes:
        name: Its model directory.
        changed_flags: `--name=value` of the flags that differ from this run.
        figures: The content of `eval.json`; {} without an evaluation.
        predictions: The content of `predictions.npz`; None without it or for real targets.
        lines: The logged metrics of pretraining.
        seconds: Of pretraining, or None.
    """

    name: str
    changed_flags: Sequence[str]
    figures: dict
    predictions: Predictions | None
    lines: Sequence[dict]
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class ReportData:
    """Everything on the page; a part that is None was not made.

    Attributes:
        missing: For "result", "embedding", "input" and "views", why that part is missing and the
            command that makes it (or None).
        robustness: The content of `robustness.json`.
        comparison: The run itself and the runs of `--compare`; empty without them.
    """

    facts: RunFacts
    training: Sequence[StageLog] = ()
    result: Result | None = None
    embedding: Embedding | None = None
    input: InputData | None = None
    inspection: Inspection | None = None
    robustness: dict | None = None
    comparison: Sequence[OtherRun] = ()
    missing: dict[str, tuple[str, str | None]] = dataclasses.field(default_factory=dict)
