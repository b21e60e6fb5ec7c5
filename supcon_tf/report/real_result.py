"""The result of a model that predicts a number instead of a class."""

from __future__ import annotations

import numpy as np

from supcon_tf.report.content import Result, Targets
from supcon_tf.report.figures import INK, SERIES, as_svg, drawing, with_table
from supcon_tf.report.markup import Html, file_name, joined, name_of, number, table, tag
from supcon_tf.report.pictures import thumbnail, tiles

NUM_WORST_PREDICTIONS, MAX_DRAWN = 12, 1_000
TARGET_FIGURES = (
    ("mean_absolute_error", "Mean absolute error", "In the unit of the labels."),
    ("r2", "R2", "Share of the variance of the labels that is explained; 1 is perfect."),
    ("knn_mean_absolute_error", "Mean absolute error of k-NN", "Mean of the nearest images."),
    ("knn_r2", "R2 of k-NN", "Mean of the nearest training images."),
)


def describe_targets(result: Result, targets: Targets) -> Html:
    """Shows the errors, predictions against labels, and the largest errors."""
    body = [
        _target_summary(result.figures, len(targets.labels)),
        tag("h3", "Predictions"), _scatter(targets),
        tag("h3", "Largest errors"), _largest_errors(result, targets),
    ]  # fmt: skip
    return joined(body)


def _target_summary(figures, count):
    limits, rows = figures.get("intervals_95", {}), []
    for key, title, meaning in TARGET_FIGURES:
        if key in figures:
            text = number(figures[key])
            if key in limits:
                text += f" [{number(limits[key][0])}, {number(limits[key][1])}]"
            rows.append((title, text, meaning))
    text = f"{count:,} images of {figures.get('data', 'the test split')}."
    headers = ("Figure", "Value [95% interval]", "Meaning")
    return joined([tag("p", text), table(headers, rows, caption="Errors on the test images")])


def _scatter(targets):
    chosen = np.linspace(0, len(targets.labels) - 1, min(MAX_DRAWN, len(targets.labels)))
    labels, predicted = (x[chosen.astype(int)] for x in (targets.labels, targets.predicted))
    ends = [min(labels.min(), predicted.min()), max(labels.max(), predicted.max())]
    with drawing(4.6, 3.6) as (figure, axes):
        axes.plot(ends, ends, color=INK, linewidth=1, linestyle=":")
        axes.plot(labels, predicted, "o", markersize=3, alpha=0.6, color=SERIES[0])
        axes.set(xlabel="label", ylabel="prediction")
        picture = as_svg(figure)
    order = np.argsort(labels, kind="stable")
    rows = [(number(float(labels[i])), float(predicted[i])) for i in order]
    text = "One dot per test image. On the dotted line, the prediction is the label."
    return with_table("Predictions and labels", text, picture, ("Label", "Prediction"), rows)


def _largest_errors(result, targets):
    errors = np.abs(targets.predicted - targets.labels)
    rows = np.argsort(-errors, kind="stable")[:NUM_WORST_PREDICTIONS]
    captions = [
        joined([
            f"label {number(float(targets.labels[row]))}", tag("br"),
            f"predicted {number(float(targets.predicted[row]))}", tag("br"),
            tag("small", name_of(file_name(targets.names[row]))),
        ])
        for row in rows
    ]  # fmt: skip
    if result.load_images is None:
        return tag("ul", [tag("li", caption) for caption in captions])
    images = result.load_images([int(row) for row in rows])
    return tiles([
        thumbnail(image, f"Test image {file_name(targets.names[row])}", caption)
        for image, row, caption in zip(images, rows, captions, strict=True)
    ])  # fmt: skip
