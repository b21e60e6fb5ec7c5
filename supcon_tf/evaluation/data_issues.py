"""What may be wrong with a dataset, as rows: one issue of one image or class each."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence

import numpy as np

from supcon_tf.evaluation import label_errors, linear_fit, outliers, retrieval
from supcon_tf.evaluation.duplicates import DuplicatePairs
from supcon_tf.evaluation.image_prints import ImagePrints

KINDS = (
    "mislabeled", "contradiction", "duplicate", "leak", "outlier", "odd_image", "imbalance",
)  # fmt: skip
COLUMNS = ("file", "split", "kind", "score", "other_file", "evidence", "confirmed")
NUM_NEIGHBORS_SHOWN = 5
# An image is odd if its sides are this many times longer or shorter than usual in the dataset.
ODD_RATIO = 4.0
# A class is named if it has this many times fewer images than the median class.
IMBALANCE_RATIO = 5.0


@dataclasses.dataclass(frozen=True)
class Issue:
    """One row of `issues.csv`.

    Attributes:
        file: The image; empty for an imbalance, which concerns a class.
        split: "train", "validation" or "test".
        kind: One of `KINDS`.
        score: The larger, the more certain; the meaning depends on the kind (docs/inspect.md).
        other_file: The other image of a pair, or the nearest image; may be empty.
        evidence: Why the row is listed, in words.
        confirmed: "yes" once a person agrees; empty until then.
    """

    file: str
    split: str
    kind: str
    score: float
    other_file: str = ""
    evidence: str = ""
    confirmed: str = ""


@dataclasses.dataclass(frozen=True)
class InspectedImages:
    """M images of all splits, the training images first.

    Attributes:
        names: The name of each image.
        splits: The split of each image.
        labels: int [M]; None if the images do not have exactly one class each.
        class_names: The C classes.
        features: float32 [M, F], what images are compared by.
    """

    names: Sequence[str]
    splits: np.ndarray
    labels: np.ndarray | None
    class_names: Sequence[str]
    features: np.ndarray

    @property
    def is_training(self) -> np.ndarray:
        """bool [M]."""
        return self.splits == "train"

    def class_of(self, index: int) -> str:
        """The name of an image's class, or an empty text."""
        return "" if self.labels is None else self.class_names[self.labels[index]]


def find_mislabeled(images: InspectedImages, *, seed: int = 0) -> tuple[list[Issue], dict]:
    """Lists labels that are probably wrong, by confident learning in each split.

    Training images are judged by cross-validation, the images of other splits by a regression
    and by neighbors from the training images. The score is 1 - probability of the given label.

    Returns:
        The issues; and per split `agreement`, the share of labels that are the most probable
        class out of sample, and `estimated_error_rate`, the estimated share of wrong labels.
    """
    if images.labels is None:
        return [], {}
    issues, figures = [], {}
    train = np.flatnonzero(images.is_training)
    k = min(NUM_NEIGHBORS_SHOWN, len(train) - 1)
    for split in dict.fromkeys(images.splits.tolist()):
        own = np.flatnonzero(images.splits == split)
        probabilities = _probabilities(images, own, train, split, seed)
        found = label_errors.find_label_errors(probabilities, images.labels[own])
        figures[split] = {
            "agreement": float(np.mean(probabilities.argmax(axis=1) == images.labels[own])),
            "estimated_error_rate": found.estimated_error_rate,
        }
        ranked = found.ranked()
        if not len(ranked) or k < 1:
            continue
        near = _nearest_training(images, own[ranked], train, k)
        for at, neighbors in zip(ranked, near, strict=True):
            index = own[at]
            suggested = found.suggested[at]
            agree = np.count_nonzero(images.labels[neighbors] == images.labels[index])
            evidence = (
                f"labeled {images.class_of(index)}, seems {images.class_names[suggested]} "
                f"(probability {probabilities[at, suggested]:.2f}, of its label "
                f"{1 - found.scores[at]:.2f}); of the {k} nearest training images, {agree} have "
                f"its label: {'; '.join(images.names[other] for other in neighbors)}"
            )
            nearest = images.names[neighbors[0]]
            issues.append(
                Issue(images.names[index], split, "mislabeled", found.scores[at], nearest, evidence)
            )
    return issues, figures


def _probabilities(images, own, train, split, seed):
    count = len(images.class_names)
    if split == "train":
        features, labels = images.features[own], images.labels[own]
        folds = min(label_errors.NUM_FOLDS, len(own))
        return label_errors.label_probabilities(features, labels, count, num_folds=folds, seed=seed)
    from scipy.special import softmax

    features = retrieval.unit_norm(images.features)
    fitted = linear_fit.fit(features[train], images.labels[train], count)
    logits = features[own] @ fitted.kernel + fitted.bias
    k = min(label_errors.NUM_NEIGHBORS, len(train))
    indices, similarities = retrieval.nearest(features[own], features[train], k)
    votes = retrieval.neighbor_vote(similarities, np.eye(count)[images.labels[train][indices]])
    return (softmax(logits.astype(np.float64), axis=1) + votes) / 2


def _nearest_training(images, queries, train, k):
    """The k nearest training images of each image, without itself: places [Q, k]."""
    indices, _ = retrieval.nearest(
        images.features[queries], images.features[train], min(k + 1, len(train))
    )
    return [[place for place in row if place != at][:k] for row, at in
            zip(train[indices], queries, strict=True)]  # fmt: skip


def find_duplicate_issues(images: InspectedImages, pairs: DuplicatePairs) -> list[Issue]:
    """Turns pairs of duplicates into contradictions, duplicates and leaks.

    * Across splits, the image of the earlier split is listed as a leak: a training image that
      shows what a validation or test image shows.
    * Within a split, with different labels: both images are contradictions.
    * Within a split, with the same label: every copy but the first is a duplicate.

    An image is listed once per kind, with its most similar copy. The score is the correlation.
    """
    best: dict[tuple[str, int], tuple[float, int, str]] = {}

    def add(kind, index, other, at, more=""):
        score = float(pairs.similarities[at])
        if score > best.get((kind, index), (-1.0,))[0]:
            best[kind, index] = (score, other, pairs.describe(at) + more)

    for at, (first, second) in enumerate(zip(pairs.first, pairs.second, strict=True)):
        labels = [images.class_of(first), images.class_of(second)]
        differ = labels[0] != labels[1]
        more = f"; labeled {labels[0]} and {labels[1]}" if differ else ""
        if images.splits[first] != images.splits[second]:
            add("leak", first, second, at, f"; the other image is in {images.splits[second]}{more}")
        elif differ:
            add("contradiction", first, second, at, more)
            reverse = f"; labeled {labels[1]} and {labels[0]}"
            add("contradiction", second, first, at, reverse)
        else:
            add("duplicate", second, first, at)
    return [
        Issue(images.names[index], images.splits[index], kind, score, images.names[other], text)
        for (kind, index), (score, other, text) in best.items()
    ]


def leaked_places(images: InspectedImages, pairs: DuplicatePairs, split: str) -> np.ndarray:
    """Returns the places of the images of a split that a training image shows too: int [L]."""
    is_leak = images.is_training[pairs.first] & (images.splits[pairs.second] == split)
    return np.unique(pairs.second[is_leak])


def find_outliers(images: InspectedImages, is_listed: np.ndarray) -> list[Issue]:
    """Lists images that are far from all others, or from all others of their class.

    The score is the number of robust standard deviations of the distance to the 10 nearest images
    above the median of the split, or of the class in the split.

    Args:
        images: The images.
        is_listed: bool [M], images that are listed as mislabeled. They are far from their class
            for that reason, and are not listed again.
    """
    issues = []
    for split in dict.fromkeys(images.splits.tolist()):
        own = np.flatnonzero(images.splits == split)
        features = images.features[own]
        overall = outliers.robust_deviations(outliers.neighbor_distances(features))
        within = np.zeros(len(own))
        if images.labels is not None:
            labels = images.labels[own]
            distances = outliers.class_neighbor_distances(features, labels)
            within = outliers.class_deviations(distances, labels) * ~is_listed[own]
        for at in np.flatnonzero(np.maximum(overall, within) >= outliers.MIN_DEVIATIONS):
            index, is_overall = own[at], overall[at] >= within[at]
            name = images.class_of(index)
            what = f"all images of {split}" if is_overall else f"the images of {name}"
            score = max(overall[at], within[at])
            evidence = f"labeled {name}, f" if name else "f"
            evidence += f"ar from {what}: {score:.1f} deviations above the median distance"
            issues.append(Issue(images.names[index], split, "outlier", score, "", evidence))
    return issues


def find_odd_images(images: InspectedImages, prints: ImagePrints) -> list[Issue]:
    """Lists images of one color, and of an unusual size or shape.

    The score of a blank image is 1. Otherwise it is how many times the short side, or the ratio
    of width to height, differs from the median of the dataset.
    """
    if not len(prints):
        return []
    heights, widths = prints.sizes.astype(np.float64).T
    sides, ratios = np.minimum(heights, widths), widths / heights
    usual_side, usual_ratio = np.median(sides), np.median(ratios)
    issues = []

    def add(index, score, evidence):
        name, split = images.names[index], images.splits[index]
        issues.append(Issue(name, split, "odd_image", float(score), "", evidence))

    for index in range(len(prints)):
        size = f"{widths[index]:.0f} x {heights[index]:.0f} pixels"
        smaller = usual_side / sides[index]
        longer = max(ratios[index] / usual_ratio, usual_ratio / ratios[index])
        if prints.is_blank[index]:
            add(index, 1.0, f"blank: one color, or nearly so; {size}")
        elif smaller >= ODD_RATIO:
            add(index, smaller, f"small: {size}; the median short side is {usual_side:.0f}")
        elif longer >= ODD_RATIO:
            add(index, longer, f"unusual shape: {size}")
    return issues


def find_imbalance(images: InspectedImages) -> list[Issue]:
    """Lists classes with far fewer training images than the median class.

    The score is how many times fewer.
    """
    if images.labels is None:
        return []
    counts = np.bincount(images.labels[images.is_training], minlength=len(images.class_names))
    median = np.median(counts)
    return [
        Issue(
            "", "train", "imbalance", float(median / max(count, 1)), "",
            f"class {name}: {count:,} training images; the median class has {median:,.0f}",
        )
        for name, count in zip(images.class_names, counts.tolist(), strict=True)
        if median >= IMBALANCE_RATIO * count
    ]  # fmt: skip


def sort_issues(issues: Iterable[Issue]) -> list[Issue]:
    """Sorts by kind in the order of `KINDS`, then by score, the largest first."""
    return sorted(issues, key=lambda issue: (KINDS.index(issue.kind), -issue.score, issue.file))


def to_csv(issues: Iterable[Issue]) -> str:
    """Returns the issues as the text of a CSV file with the header `COLUMNS`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for issue in issues:
        values = dataclasses.asdict(issue) | {"score": f"{issue.score:.4f}"}
        writer.writerow([values[column] for column in COLUMNS])
    return text.getvalue()


def keep_confirmed(issues: Sequence[Issue], old_rows: Iterable[dict[str, str]]) -> list[Issue]:
    """Copies what a person wrote in the column `confirmed` of an earlier list.

    Rows that were confirmed, rejected or otherwise marked and are not found again are kept as
    they were.

    Args:
        issues: The new list.
        old_rows: The rows of the earlier list, by column.
    """
    marked = {(row["file"], row["kind"]): row for row in old_rows if row.get("confirmed")}
    kept = []
    for issue in issues:
        row = marked.pop((issue.file, issue.kind), None)
        kept.append(dataclasses.replace(issue, confirmed=row["confirmed"]) if row else issue)
    for row in marked.values():
        if row["kind"] in KINDS:
            texts = [row.get(column) or "" for column in COLUMNS]
            file, split, kind, score, *others = texts
            kept.append(Issue(file, split, kind, float(score or 0), *others))
    return kept
