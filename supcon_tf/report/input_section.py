"""What pretraining reads: the views of sample images, and the class balance."""

from __future__ import annotations

import numpy as np

from supcon_tf.report.content import InputData, ReportData, Section
from supcon_tf.report.figures import SERIES, as_svg, drawing, with_table
from supcon_tf.report.markup import facts_list, joined, name_of, tag
from supcon_tf.report.pictures import thumbnail, tiles
from supcon_tf.report.result_section import missing_part

# With more classes, the balance is drawn over their rank, without names.
MAX_NAMED_CLASSES = 30


def input_section(data: ReportData) -> Section:
    """Shows views and class balance, or why they are missing."""
    found = data.input
    if found is None:
        return Section("input", "Input", missing_part(data, "input"))
    body = [
        tag("h3", "Views"), _views_html(found, data),
        tag("h3", "Class balance"), _balance(found),
    ]  # fmt: skip
    return Section("input", "Input", joined(body))


def _views_html(found: InputData, data: ReportData):
    if found.views is None or found.originals is None:
        return missing_part(data, "views")
    rows = []
    for index, label in enumerate(found.labels):
        items = [thumbnail(found.originals[index], "Original image", name_of(label))]
        for view, operations in zip(found.views[index], found.operations[index], strict=True):
            caption = tag("small", ", ".join(operations) or "crop only")
            items.append(thumbnail(view, "View of the image to its left", caption))
        rows.append(tiles(items))
    text = (
        "Each row starts with a training image as it is. Beside it are the views that the encoder "
        "receives in the first batch, with the operations that were drawn. The class should stay "
        "recognizable in every view."
    )
    policy = facts_list([(tag("code", f"--{key}"), name_of(value)) for key, value in found.policy])
    return joined([tag("p", text), *rows, policy])


def _balance(found: InputData):
    counts = {split: np.asarray(values) for split, values in found.class_counts.items()}
    if not counts or not found.class_names:
        return tag("p", "There are no classes to count, or counting would read all of them.")
    first = next(iter(counts.values()))
    largest, smallest = int(first.max()), int(first.min())
    text = f"Every class has {largest:,} training images."
    if smallest < largest:
        text = f"The largest class has {largest:,} training images and the smallest {smallest:,}."
    if largest > 3 * smallest:
        text += (
            " Rare classes have few positives per batch: consider --class_balanced, and read the "
            "mean accuracy per class beside top-1."
        )
    names = found.class_names
    rows = [
        (name_of(name), *(int(values[index]) for values in counts.values()))
        for index, name in enumerate(names)
    ]
    title = "Images per class"
    return with_table(title, text, _bars(names, counts), ("Class", *counts), rows)


def _bars(names, counts):
    is_named = len(names) <= MAX_NAMED_CLASSES
    width = 0.8 / len(counts)
    with drawing(5.4, 2.8) as (figure, axes):
        for index, (split, values) in enumerate(counts.items()):
            shown = values if is_named else np.sort(values)[::-1]
            places = np.arange(len(shown)) + (index - (len(counts) - 1) / 2) * width
            axes.bar(places, shown, width, label=split, color=SERIES[index])
        axes.set(ylabel="images", xlabel="class" if is_named else "rank of the class")
        if is_named:
            shortened = [name if len(name) <= 14 else f"{name[:13]}…" for name in names]
            rotation = 90 if max(map(len, shortened)) > 3 else 0
            axes.set_xticks(range(len(names)), shortened, rotation=rotation)
        axes.grid(axis="x", visible=False)
        figure.legend(fontsize=8, loc="outside upper left", ncols=len(counts))
        return as_svg(figure)
