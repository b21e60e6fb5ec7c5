"""The result of a classifier whose images have any number of classes."""

from __future__ import annotations

import numpy as np

from supcon_tf.evaluation.prediction_files import PRESENT_FROM
from supcon_tf.report.content import Result
from supcon_tf.report.markup import Html, file_name, joined, name_of, number, percent, table, tag
from supcon_tf.report.pictures import thumbnail, tiles

NUM_SHOWN = 12


def describe_result(result: Result) -> Html:
    """Shows mAP and F1, the classes, and the most confident mistakes."""
    body = [
        _label_summary(result), tag("h3", "Classes"), _labels_table(result),
        tag("h3", "Most confident mistakes"), _mistakes(result),
    ]  # fmt: skip
    return joined(body)


def _label_summary(result):
    names = {
        "mean_average_precision": ("Mean average precision", "Over the classes that occur."),
        "micro_f1": ("F1, micro", "Every decision counts the same."),
        "macro_f1": ("F1, macro", "Every class counts the same."),
        "linear_probe_mean_average_precision": (
            "mAP of logistic regressions", "Fitted to training embeddings.",
        ),
    }  # fmt: skip
    figures = result.figures
    rows = [(title, figures[key], text) for key, (title, text) in names.items() if key in figures]
    count = len(result.predictions.labels)
    text = f"{count:,} images of {figures.get('data', 'the test split')}, with several labels."
    return joined(
        [
            tag("p", text),
            table(("Figure", "Value", "Meaning"), rows, caption="Figures on the test images"),
        ]
    )


def _labels_table(result):
    predictions = result.predictions
    labels, present = predictions.labels > 0, predictions.probabilities >= PRESENT_FROM
    average = result.figures.get("average_precision", {})
    rows = []
    for index, name in enumerate(predictions.class_names):
        hits = int(np.sum(labels[:, index] & present[:, index]))
        true, found = int(labels[:, index].sum()), int(present[:, index].sum())
        rows.append((
            name_of(name), true,
            number(average[name]) if average.get(name) is not None else "undefined",
            percent(hits / true) if true else "no images",
            percent(hits / found) if found else "never predicted",
        ))  # fmt: skip
    columns = ("Class", "Images", "Average precision", "Recall", "Precision")
    caption = f"Figures per class; a class is predicted from a probability of {PRESENT_FROM}"
    return table(columns, rows, caption=caption)


def _mistakes(result):
    predictions = result.predictions
    labels = predictions.labels > 0
    surprise = np.abs(predictions.probabilities - labels)
    order = np.argsort(-surprise, axis=None, kind="stable")[:NUM_SHOWN]
    rows, columns = np.unravel_index(order, surprise.shape)
    is_wrong = surprise[rows, columns] > 1 - PRESENT_FROM
    rows, columns = rows[is_wrong], columns[is_wrong]
    if not len(rows):
        return tag("p", "There are no mistakes.")
    captions = [
        joined([
            name_of(predictions.class_names[column]),
            " is labeled" if labels[row, column] else " is not labeled", ", predicted with ",
            percent(float(predictions.probabilities[row, column])), tag("br"),
            tag("small", name_of(file_name(predictions.names[row]))),
        ])
        for row, column in zip(rows, columns, strict=True)
    ]  # fmt: skip
    if result.load_images is None:
        return tag("ul", [tag("li", caption) for caption in captions])
    images = result.load_images([int(row) for row in rows])
    return tiles([
        thumbnail(image, f"Test image {file_name(predictions.names[row])}", caption)
        for image, row, caption in zip(images, rows, captions, strict=True)
    ])  # fmt: skip
