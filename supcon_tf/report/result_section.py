"""The result: accuracy with intervals, classes, calibration, confusions and mistakes."""

from __future__ import annotations

import numpy as np

from supcon_tf.evaluation import intervals, metrics
from supcon_tf.evaluation.prediction_files import Predictions
from supcon_tf.report import multi_label_result, real_result
from supcon_tf.report.content import ReportData, Section, Targets
from supcon_tf.report.figures import FAINT, INK, MAX_TABLE_ROWS, SERIES, as_svg, drawing, with_table
from supcon_tf.report.markup import (
    Html,
    file_name,
    joined,
    name_of,
    number,
    paragraphs,
    percent,
    table,
    tag,
    with_interval,
)
from supcon_tf.report.pictures import thumbnail, tiles
from supcon_tf.report.run_section import code_block

NUM_PAIRS, NUM_EXAMPLES, NUM_MISTAKES = 5, 6, 12
# A matrix of more classes is not drawn: its cells would be too small to see.
MAX_MATRIX_CLASSES = 40
FIGURES = (
    ("top_1", "Top-1 accuracy", "The most probable class is the label."),
    ("top_5", "Top-5 accuracy", "The label is among the five most probable classes."),
    ("mean_per_class_accuracy", "Mean accuracy per class", "Every class counts the same."),
    ("knn_top_1", "k-NN accuracy", "Vote of the nearest training embeddings."),
    ("linear_probe_top_1", "Logistic regression", "Fitted to training embeddings."),
)


def result_section(data: ReportData) -> Section:
    """Shows the evaluation of the classifier, or the command that makes it."""
    result = data.result
    if result is None:
        return Section("result", "Result", missing_part(data, "result"))
    note = tag("p", tag("strong", result.note)) if result.note else None
    if isinstance(result.predictions, Targets):
        body = [note, real_result.describe_targets(result, result.predictions)]
        return Section("result", "Result", joined(body))
    if result.predictions.labels.ndim == 2:
        body = [note, multi_label_result.describe_result(result)]
        return Section("result", "Result", joined(body))
    body = [
        note,
        _summary_table(result),
        tag("h3", "Classes"), _class_table(result.predictions),
        tag("h3", "Calibration"), _calibration(result),
        *_confusions_and_mistakes(result),
    ]  # fmt: skip
    return Section("result", "Result", joined(body))


def missing_part(data: ReportData, part: str) -> Html:
    """Says why a part of the report is missing, and the command that makes it."""
    reason, command = data.missing.get(part, ("This run has no such result.", None))
    return joined([*paragraphs(reason), code_block(command) if command else None])


def _summary_table(result):
    figures, limits = result.figures, result.figures.get("intervals_95", {})
    rows = [
        (title, with_interval(figures[name], limits.get(name)), meaning)
        for name, title, meaning in FIGURES
        if name in figures
    ]
    count = figures.get("num_examples", len(result.predictions.labels))
    text = f"{count:,} images of {figures.get('data', 'the test split')}."
    share = figures.get("majority_class_share")
    if share is not None:
        text += f" Always predicting the most frequent class would reach {percent(share)}."
    headers = ("Figure", "Value [95% interval]", "Meaning")
    return joined([tag("p", text), table(headers, rows, caption="Accuracy on the test images")])


def _class_table(predictions):
    predicted, labels = predictions.predicted(), predictions.labels
    rows = []
    for index, name in enumerate(predictions.class_names):
        is_class, is_predicted = labels == index, predicted == index
        hits, count = int(np.sum(is_class & is_predicted)), int(is_class.sum())
        recall = "no images"
        if count:
            recall = with_interval(hits / count, intervals.wilson_interval(hits, count))
        precision = percent(hits / is_predicted.sum()) if is_predicted.any() else "never predicted"
        rows.append((name_of(name), count, recall, precision))
    columns = ("Class", "Images", "Accuracy [95% interval]", "Precision")
    caption = "Accuracy (share of the class's images that are recognized) and precision per class"
    content = table(columns, rows, caption=caption)
    return content if len(rows) <= 30 else tag("div", content, class_="tall")


def _calibration(result):
    probabilities = result.predictions.probabilities.astype(np.float64)
    error = result.figures.get("expected_calibration_error")
    rows = reliability(probabilities.max(axis=1), result.predictions.is_correct())
    text = (
        "For test images grouped by the probability of the predicted class: the share that is "
        "right. On the diagonal the probabilities are accurate; below it the classifier is "
        "overconfident, above it underconfident. Larger dots hold more images."
    )
    if error is not None:
        text += f" Expected calibration error (ECE): {error:.4f} over {metrics.ECE_BINS} bins."
    return reliability_figure(rows, text)


def reliability(confidence: np.ndarray, is_right: np.ndarray) -> list[tuple]:
    """Returns (low, high, count, mean confidence, share that is right) of each bin with examples.

    The bins are those of `metrics.expected_calibration_error`.
    """
    count = metrics.ECE_BINS
    bins = np.clip(np.ceil(confidence * count).astype(int) - 1, 0, count - 1)
    return [
        (
            index / count, (index + 1) / count, int(np.sum(bins == index)),
            float(confidence[bins == index].mean()), float(is_right[bins == index].mean()),
        )
        for index in range(count)
        if np.any(bins == index)
    ]  # fmt: skip


def reliability_figure(rows: list[tuple], description: str) -> Html:
    """Draws the bins of `reliability`, with the number of examples below."""
    with drawing(4.6, 3.4) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":", label="calibrated")
        left = [row[0] for row in rows]
        widths = [row[1] - row[0] for row in rows]
        axes.bar(
            left, [row[4] for row in rows], widths, align="edge", color=SERIES[0], alpha=0.35,
            edgecolor=SERIES[0], label="share that is right",
        )  # fmt: skip
        total = sum(row[2] for row in rows)
        axes.scatter(
            [row[3] for row in rows], [row[4] for row in rows],
            [12 + 160 * row[2] / total for row in rows], color=SERIES[1], zorder=3,
            clip_on=False, label="mean probability of the bin",
        )  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="probability", ylabel="share that is right")
        figure.legend(fontsize=8, loc="outside upper left", ncols=2)
        picture = as_svg(figure)
    numbers = [
        (f"{low:.2f} to {high:.2f}", count, confidence, share)
        for low, high, count, confidence, share in rows
    ]
    columns = ("Probability", "Images", "Mean probability", "Share that is right")
    return with_table("Reliability diagram", description, picture, columns, numbers)


def _confusions_and_mistakes(result):
    predictions = result.predictions
    matrix = metrics.confusion_matrix(predictions.probabilities, predictions.labels)
    pairs, mistakes = _confused_pairs(predictions, matrix), _confident_mistakes(predictions)
    images = _load_all(result, [*(rows for *_, rows in pairs), mistakes])
    return [
        tag("h3", "Confusions"), _matrix_figure(matrix, predictions.class_names),
        _describe_pairs(predictions, matrix, pairs, images),
        tag("h3", "Most confident mistakes"), _describe_mistakes(predictions, mistakes, images),
    ]  # fmt: skip


def _load_all(result, groups):
    """Reads the images of all groups of rows at once; {} if they cannot be read."""
    rows = sorted({int(row) for group in groups for row in group})
    if result.load_images is None or not rows:
        return {}
    return dict(zip(rows, result.load_images(rows), strict=True))


def _matrix_figure(matrix, class_names):
    if len(matrix) > MAX_MATRIX_CLASSES:
        return tag(
            "p",
            f"The matrix of {len(matrix)} classes is too large to draw; "
            "eval/confusion_matrix.csv holds it.",
        )
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    names = [_shortened(name) for name in class_names]
    side = min(7.5, 2.6 + 0.22 * len(names))
    with drawing(side, side) as (figure, axes):
        # One color whose opacity grows with the share, so that it works on light and dark pages.
        for row, column in np.argwhere(matrix > 0):
            axes.add_patch(_cell_patch(row, column, shares[row, column], is_right=row == column))
            if len(names) <= 20:
                axes.text(
                    column, row, str(matrix[row, column]), ha="center", va="center", fontsize=7.5
                )
        axes.set(
            xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), xlabel="predicted",
            ylabel="label", xticks=range(len(names)), yticks=range(len(names)), aspect="equal",
        )  # fmt: skip
        axes.set_xticklabels(names, rotation=90 if max(map(len, names)) > 3 else 0, fontsize=8)
        axes.set_yticklabels(names, fontsize=8)
        axes.grid(visible=False)
        edges = np.arange(len(names) + 1) - 0.5
        axes.vlines(edges, -0.5, len(names) - 0.5, color=FAINT, linewidth=0.6)
        axes.hlines(edges, -0.5, len(names) - 0.5, color=FAINT, linewidth=0.6)
        picture = as_svg(figure)
    wrong = [
        (f"{class_names[row]} → {class_names[column]}", int(matrix[row, column]),
         percent(shares[row, column]))
        for row, column in np.argwhere(matrix > 0) if row != column
    ]  # fmt: skip
    wrong.sort(key=lambda row: -row[1])
    return with_table(
        "Confusion matrix",
        "Rows are labels, columns are predictions. A stronger color is a larger share of its row; "
        "the diagonal is what is right. The table lists the most frequent confusions.",
        picture, ("Label → prediction", "Images", "Share of the label"),
        [(name_of(row[0]), *row[1:]) for row in wrong[:MAX_TABLE_ROWS]],
    )  # fmt: skip


def _cell_patch(row, column, share, *, is_right):
    from matplotlib.patches import Rectangle

    color = SERIES[0] if is_right else SERIES[1]
    alpha = 0.12 + 0.43 * float(share)
    return Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=color, alpha=alpha, linewidth=0)


def _shortened(name, length=14):
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _confused_pairs(predictions, matrix):
    """Returns (label, prediction, rows of examples) of the most frequent confusions."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:NUM_PAIRS]
    predicted, pairs = predictions.predicted(), []
    for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[row, column]:
            chosen = np.flatnonzero((predictions.labels == row) & (predicted == column))
            pairs.append((row, column, chosen[:NUM_EXAMPLES]))
    return pairs


def _describe_pairs(predictions, matrix, pairs, images):
    parts = [tag("h4", "Most confused pairs")]
    for row, column, rows in pairs:
        first, second = predictions.class_names[row], predictions.class_names[column]
        text = joined([
            tag("strong", name_of(first)), " predicted as ", tag("strong", name_of(second)),
            f": {number(int(matrix[row, column]))} of {number(int(matrix[row].sum()))} images",
        ])  # fmt: skip
        parts += [tag("p", text), mistake_tiles(predictions, rows, images)]
    return joined(parts if pairs else [*parts, tag("p", "There are no mistakes.")])


def _confident_mistakes(predictions):
    wrong = np.flatnonzero(~predictions.is_correct())
    confidence = predictions.probabilities[wrong].max(axis=1)
    return wrong[np.argsort(-confidence, kind="stable")][:NUM_MISTAKES]


def _describe_mistakes(predictions, rows, images):
    if not len(rows):
        return tag("p", "There are no mistakes.")
    count = int(np.sum(~predictions.is_correct()))
    text = (
        f"The {len(rows)} mistakes with the highest probability, of {count:,}. Wrong labels and "
        "images of two classes are often among them."
    )
    return joined([tag("p", text), mistake_tiles(predictions, rows, images)])


def mistake_tiles(
    predictions: Predictions, rows: np.ndarray, images: dict[int, np.ndarray]
) -> Html:
    """Returns images with label, prediction and probability.

    Args:
        predictions: Of all test images.
        rows: Which of them to show.
        images: The images by row; without them, the names are listed.
    """
    predicted = predictions.predicted()
    captions = []
    for row in rows:
        label, found = predictions.labels[row], predicted[row]
        captions.append(joined([
            "label ", name_of(predictions.class_names[label]), tag("br"),
            "predicted ", name_of(predictions.class_names[found]), " ",
            percent(float(predictions.probabilities[row, found])), tag("br"),
            tag("small", name_of(file_name(predictions.names[row]))),
        ]))  # fmt: skip
    if not images:
        return tag("ul", [tag("li", caption) for caption in captions])
    return tiles([
        thumbnail(images[int(row)], f"Test image {file_name(predictions.names[row])}", caption)
        for row, caption in zip(rows, captions, strict=True)
    ])  # fmt: skip
