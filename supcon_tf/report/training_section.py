"""The curves of each training stage, and what they say by stated rules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from supcon_tf.report.content import ReportData, Section, StageLog
from supcon_tf.report.figures import line_chart, with_table
from supcon_tf.report.markup import Html, joined, paragraphs, percent, tag

# Collapsed: over the last quarter, views of different classes have at least this mean cosine; or,
# where no similarities are logged, the collapse ratio has at least this mean.
COLLAPSED = 0.99
# Overfitting: the accuracy on training batches exceeds that on test images by this much.
OVERFITTING_GAP = 0.1

RULES = (
    "Rules: a run is collapsed if the mean cosine similarity of different classes is at least "
    f"{COLLAPSED} over the last quarter of the steps (without logged similarities: if "
    f"the mean collapse ratio is at least {COLLAPSED}). It is still improving if k-NN "
    "accuracy rose by 0.01 over the last quarter, or, where k-NN was measured fewer than three "
    "times in a quarter, the probe's accuracy by 0.02, or without both the loss fell by 2%. A "
    "classifier overfits if its accuracy on the last quarter of the training batches, or on the "
    f"training images that it was fitted to, is {OVERFITTING_GAP} or more above that on test "
    "images."
)
# Title, description, label of the y axis, whether it is a fraction, and the logged names.
CHARTS = (
    (
        "Loss", "Loss of the batch at each logged step. Lower is better.", "loss", False,
        {"loss": "loss"},
    ),
    (
        "Collapse ratio",
        "The loss divided by the loss of identical embeddings. It starts near 1 and should fall; "
        "a value that stays at 1 means that all embeddings are equal.",
        "collapse ratio", False, {"collapse_ratio": "collapse ratio"},
    ),
    (
        "Similarities of the batch",
        "Mean cosine similarity between projections of the same class (positives; of the same "
        "image without labels) and of different classes (negatives). They move apart as training "
        "works.",
        "cosine similarity", False,
        {"positive_similarity": "positives", "negative_similarity": "negatives"},
    ),
    (
        "Accuracy while training",
        "Accuracy of the online linear probe and of the classifier on training batches, and of "
        "k-NN on held-out images. Higher is better.",
        "accuracy", True,
        {
            "probe_accuracy": "probe (training batches)",
            "accuracy": "classifier (training batches)",
            "knn_accuracy": "k-NN (held-out images)",
            "knn_mean_average_precision": "k-NN mAP (held-out images)",
        },
    ),
    (
        "Learning rate", "The learning rate of the schedule at each step.", "learning rate", False,
        {"learning_rate": "learning rate"},
    ),
    (
        "Throughput", "Training images per second; the views of an image count as one.",
        "images per second", False, {"images_per_second": "images per second"},
    ),
)  # fmt: skip
TITLES = {"pretrain": "Pretraining", "linear": "Linear stage", "finetune": "Fine-tuning"}


def training_section(data: ReportData) -> Section:
    """Shows the logged metrics of each stage and a sentence on them."""
    body = [_stage(log) for log in data.training]
    if not body:
        body = paragraphs("No training stage of this model directory has logged anything yet.")
    else:
        body += paragraphs(tag("small", RULES))
    return Section("training", "Training", joined(body))


def _stage(log):
    title = TITLES.get(log.stage, log.stage)
    figures = [] if is_fitted(log) else [_chart(log, title, *chart) for chart in CHARTS]
    sentences = [tag("li", sentence) for sentence in describe_training(log)]
    return joined([tag("h3", title), tag("ul", sentences), tag("div", figures, class_="grid")])


def _chart(log, stage, title, description, y_label, is_fraction, names) -> Html | None:
    lines: list[tuple] = []
    rows: dict[int, dict] = {}
    for name, label in names.items():
        found = [(line["step"], line[name]) for line in log.lines if name in line]
        if found:
            lines.append((label, *zip(*found, strict=True)))
            for step, value in found:
                rows.setdefault(step, {})[label] = value
    if not lines:
        return None
    chart = line_chart(
        lines, x_label="step", y_label=y_label, y_range=(-0.02, 1.02) if is_fraction else None
    )
    labels = [label for label, *_ in lines]
    # A line with its own interval, such as k-NN, leaves the other rows empty.
    numbers = [(step, *(rows[step].get(label, "") for label in labels)) for step in sorted(rows)]
    return with_table(f"{title} ({stage.lower()})", description, chart, ("Step", *labels), numbers)


def is_fitted(log: StageLog) -> bool:
    """Returns whether a stage fitted its classifier at once, which logs one line without a rate."""
    return len(log.lines) == 1 and "learning_rate" not in log.lines[0] and log.stage != "pretrain"


def describe_training(log: StageLog) -> list[str]:
    """Returns sentences on the curves of a stage, by the rules in `RULES`."""
    if not log.lines:
        return ["This stage logs no curves: its classifier was fitted, not trained in steps."]
    loss = log.lines[-1].get("loss")
    if loss is not None and not math.isfinite(loss):
        return [
            "The loss is not finite: the weights are unusable. Train again with a lower learning "
            "rate."
        ]
    found = []
    if is_fitted(log):
        found.append(
            "The classifier was fitted to the embeddings of the training images, so there are no "
            "curves."
        )
    if not log.result:
        found.append(f"The stage is unfinished: it reached step {log.lines[-1]['step']:,}.")
    if log.stage == "pretrain" and (reason := _collapsed(log.lines)):
        found.append(
            f"Collapsed: {reason}. Check images and labels, then try a lower learning rate or "
            "weaker augmentation."
        )
    elif log.stage == "pretrain" and log.still_improving:
        found.append(f"Still improving at the end ({log.still_improving}): train for more epochs.")
    elif log.stage == "pretrain":
        found.append(
            "Not collapsed, and no longer improving at the end: more epochs alone are unlikely to "
            "help much."
        )
    overfitting = None if log.stage == "pretrain" else _overfitting(log)
    return found + ([overfitting] if overfitting else [])


def _collapsed(lines: Sequence[dict]) -> str | None:
    negatives = last_quarter(lines, "negative_similarity")
    if negatives is not None:
        is_collapsed = negatives >= COLLAPSED
        text = f"the mean cosine similarity of different classes is {negatives:.3f}"
        return text if is_collapsed else None
    ratio = last_quarter(lines, "collapse_ratio")
    if ratio is not None and ratio >= COLLAPSED:
        return f"the mean collapse ratio is {ratio:.3f}"
    return None


def _overfitting(log):
    train, test = last_quarter(log.lines, "accuracy"), log.result.get("top_1")
    if train is None or test is None:
        return None
    where = "training images" if is_fitted(log) else "training batches"
    texts = f"{percent(train)} on {where} and {percent(test)} on test images"
    if train - test >= OVERFITTING_GAP:
        remedy = "Try fewer epochs, weight decay, or stronger augmentation of this stage."
        if is_fitted(log):
            remedy = (
                "The encoder knows its training images better than new ones: try stronger "
                "augmentation in pretraining, or more images."
            )
        return f"Overfitting: the classifier reaches {texts}. {remedy}"
    return f"No overfitting: the classifier reaches {texts}."


def last_quarter(lines: Sequence[dict], name: str) -> float | None:
    """Returns the mean of a metric over the last quarter of the steps, or None if not logged."""
    last = lines[-1]["step"] if lines else 0
    values = [line[name] for line in lines if name in line and line["step"] > 0.75 * last]
    return float(np.mean(values)) if values else None
