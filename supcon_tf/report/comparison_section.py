"""Several runs side by side: their flags, figures, paired differences and curves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from supcon_tf.evaluation import intervals
from supcon_tf.evaluation.prediction_files import Predictions
from supcon_tf.report.content import OtherRun, ReportData, Section
from supcon_tf.report.figures import line_chart, with_table
from supcon_tf.report.markup import (
    joined,
    name_of,
    number,
    paragraphs,
    percent,
    table,
    tag,
    with_interval,
)

COMPARED_FIGURES = (
    ("top_1", "Top-1"),
    ("top_5", "Top-5"),
    ("mean_per_class_accuracy", "Mean per class"),
    ("knn_top_1", "k-NN"),
    ("linear_probe_top_1", "Logistic regression"),
    ("mean_average_precision", "mAP"),
    ("mean_absolute_error", "Mean absolute error"),
    ("r2", "R2"),
)


class PairedDifference(NamedTuple):
    """Accuracy of another run minus that of this run, on the images that both evaluated."""

    num_examples: int
    difference: intervals.Difference


def comparison_section(data: ReportData) -> Section | None:
    """Compares the runs of --compare with this run; None without any."""
    runs = data.comparison
    if not runs:
        return None
    body = [
        *paragraphs(
            "The first row is the run of this report. A difference is the accuracy of a run minus "
            "that of the first row on the same test images, with its paired 95% interval. An "
            "interval without 0 means that the two runs differ by more than the choice of test "
            "images explains; it does not cover the variation between training seeds."
        ),
        _figure_table(runs),
        tag("h3", "Differences"), _difference_table(runs),
        tag("h3", "Flags"), _flags_of_runs(runs),
        _curves(runs),
    ]  # fmt: skip
    return Section("comparison", "Comparison", joined(body))


def _figure_table(runs):
    columns = [
        (title, [_figure_text(run.figures, name) for run in runs])
        for name, title in COMPARED_FIGURES
        if any(name in run.figures for run in runs)
    ]
    seconds = ["not recorded" if run.seconds is None else f"{run.seconds:,.0f} s" for run in runs]
    columns.append(("Pretraining time", seconds))
    names = [name_of(run.name) for run in runs]
    rows = list(zip(names, *(values for _, values in columns), strict=True))
    caption = "Figures of each run, with 95% intervals in brackets"
    return table(("Run", *(title for title, _ in columns)), rows, caption=caption)


def _figure_text(figures, name):
    if name not in figures:
        return "none"
    if name in ("mean_absolute_error", "r2"):
        return number(figures[name])
    return with_interval(figures[name], figures.get("intervals_95", {}).get(name))


def _difference_table(runs):
    first, *others = runs
    rows = []
    for run in others:
        try:
            count, (difference, low, high) = paired_difference(first, run)
        except ValueError as error:
            rows.append((name_of(run.name), "not comparable", "", "", str(error)))
            continue
        verdict = "no clear difference"
        if low > 0 or high < 0:
            verdict = "better" if low > 0 else "worse"
        interval = f"[{100 * low:+.1f}, {100 * high:+.1f}] points"
        shown = f"{100 * difference:+.1f} points"
        rows.append((name_of(run.name), shown, interval, count, verdict))
    columns = ("Run", "Difference in accuracy", "Paired 95% interval", "Images", "Verdict")
    return table(columns, rows, caption="Differences from the run of this report")


def paired_difference(first: OtherRun, other: OtherRun) -> PairedDifference:
    """Compares two runs on the test images that both evaluated.

    With several labels per image, an image counts as right if the most probable class is one of
    its labels.

    Raises:
        ValueError: If a run has no predictions, or if they share no image with the same label.
    """
    for run in (first, other):
        if run.predictions is None:
            raise ValueError(
                f"{run.name} has no classes in eval/predictions.npz: run --mode=eval there."
            )
    ours, theirs = first.predictions, other.predictions
    assert ours is not None and theirs is not None
    own, same = _common_rows(ours, theirs)
    if not len(own):
        raise ValueError("The two runs evaluated different images, or images with other labels.")
    found = intervals.paired_bootstrap(ours.is_correct()[own], theirs.is_correct()[same])
    return PairedDifference(len(own), found)


def _common_rows(ours: Predictions, theirs: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of both that belong to the same image with the same labels."""
    places = {str(name): row for row, name in enumerate(theirs.names)}
    pairs = [
        (row, places[str(name)])
        for row, name in enumerate(ours.names)
        if str(name) in places
        and _label_names(ours, row) == _label_names(theirs, places[str(name)])
    ]
    rows = np.array(pairs, int).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def _label_names(predictions, row):
    labels = predictions.labels[row]
    if np.ndim(labels):
        return {predictions.class_names[index] for index in np.flatnonzero(labels)}
    return {predictions.class_names[labels]}


def _flags_of_runs(runs):
    rows = [
        (name_of(run.name), tag("code", " ".join(run.changed_flags) or "none")) for run in runs[1:]
    ]
    return table(("Run", "Flags that differ"), rows, caption="Flags that differ from this run")


def _curves(runs):
    figures = []
    for name, title, label in (
        ("loss", "Loss of pretraining", "loss"),
        ("knn_accuracy", "k-NN accuracy of pretraining", "k-NN accuracy"),
        ("probe_accuracy", "Probe accuracy of pretraining", "probe accuracy"),
    ):
        lines, rows = [], []
        for run in runs:
            found = [(line["step"], line[name]) for line in run.lines if name in line]
            if found:
                lines.append((run.name, *zip(*found, strict=True)))
                rows += [(name_of(run.name), step, value) for step, value in found]
        if lines:
            chart = line_chart(lines, x_label="step", y_label=label)
            text = "One line per run, over its own steps."
            figures.append(with_table(title, text, chart, ("Run", "Step", label), rows))
    if not figures:
        return None
    return joined([tag("h3", "Curves"), tag("div", figures, class_="grid")])


def describe_differences(runs: list[OtherRun]) -> list[str]:
    """Returns one line of text per compared run, for the console."""
    lines = []
    for run in runs[1:]:
        try:
            count, (difference, low, high) = paired_difference(runs[0], run)
        except ValueError as error:
            lines.append(f"{run.name}: not comparable. {error}")
            continue
        lines.append(
            f"{run.name}: {percent(difference)} [{percent(low)}, {percent(high)}] compared with "
            f"{runs[0].name}, on {count:,} images"
        )
    return lines
