"""Embeddings in two dimensions, and their drawing with a color and a shape per class."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from supcon_tf.evaluation import retrieval
from supcon_tf.report.figures import MARKERS, NUM_COLORS
from supcon_tf.report.markup import Html, name_of, tag

# The maps are drawn in these units, whatever their size on the screen.
WIDTH, HEIGHT, MARGIN = 800, 600, 24
MIN_EXAMPLES, TSNE_DIMENSIONS = 5, 50
# With a larger share of errors, their rings are drawn faintly, so that the classes stay visible.
COMMON_ERRORS = 0.2
# Paths of the marks, relative to the point.
SHAPES = {
    "o": "m-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0",
    "s": "m-4.5-4.5h9v9h-9z",
    "^": "m0-6l5.6 10h-11.2z",
    "D": "m0-6.2l6.2 6.2l-6.2 6.2l-6.2-6.2z",
    "v": "m0 6l5.6-10h-11.2z",
}
RING = "m-9 0a9 9 0 1 0 18 0a9 9 0 1 0-18 0"


@dataclasses.dataclass(frozen=True)
class Maps:
    """Positions of M embeddings in the units of the drawing.

    Attributes:
        pca, tsne: float64 [M, 2].
        explained: The share of the variance that the two directions of PCA hold.
    """

    pca: np.ndarray
    tsne: np.ndarray
    explained: float


def project(embeddings: np.ndarray, *, seed: int = 0) -> Maps | None:
    """Projects unit-norm embeddings by PCA, and by t-SNE after PCA to 50 dimensions.

    Args:
        embeddings: [M, F] of any norm.
        seed: Of both methods.

    Returns:
        The positions; None for fewer than 5 embeddings.
    """
    import threadpoolctl
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = len(embeddings)
    if count < MIN_EXAMPLES:
        return None
    unit = retrieval.unit_norm(embeddings)
    if np.ptp(unit, axis=0).max() < 1e-6:  # Collapsed: there is no direction to draw.
        middle = np.tile([WIDTH / 2, HEIGHT / 2], (count, 1))
        return Maps(middle, middle, 1.0)
    dimensions = min(TSNE_DIMENSIONS, *unit.shape)
    reduced = PCA(dimensions, random_state=seed, svd_solver="full")
    points = reduced.fit_transform(unit)
    if dimensions < 2:
        points = np.hstack([points, np.zeros([count, 1])])
    perplexity = min(30.0, (count - 1) / 3)
    # Few stray pairs of equal points slow down the default start, so it starts from PCA.
    start = points[:, :2] / max(1e-12, points[:, 0].std()) * 1e-4
    # Of 3,000 embeddings, this angle takes 10.5 s instead of 13.0 s with the default of 0.5, at a
    # Kullback-Leibler divergence of 3.536 instead of 3.525.
    tsne = TSNE(
        2, perplexity=perplexity, init=start.astype(np.float32), angle=0.7, random_state=seed
    )
    # One thread: the threads of t-SNE wait for each other several times per iteration, so two of
    # them take more than three times the processor time if other programs run.
    with threadpoolctl.threadpool_limits(1):
        placed = tsne.fit_transform(points)
    explained = float(reduced.explained_variance_ratio_[:2].sum())
    return Maps(_fitted(points[:, :2]), _fitted(placed), explained)


def _fitted(points):
    """Scales positions to the drawing with one factor for both directions."""
    low, high = points.min(axis=0), points.max(axis=0)
    space = np.array([WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN])
    scale = (space / np.maximum(high - low, 1e-9)).min()
    centered = (points - (low + high) / 2) * scale * [1, -1]
    return centered.astype(np.float64) + [WIDTH / 2, HEIGHT / 2]


def one_class_each(labels: np.ndarray | None, count: int) -> np.ndarray:
    """Returns the number of a class per image, int [M]; of several, the first.

    An image without any class has the number after the last class; without labels all have 0.
    """
    if labels is None:
        return np.zeros(count, int)
    if labels.ndim == 1:
        return labels.astype(int)
    return np.where(labels.any(axis=1), labels.argmax(axis=1), labels.shape[1])


def names_of_classes(labels: np.ndarray | None, class_names: Sequence[str]) -> list[str]:
    """Returns the names that belong to the numbers of `one_class_each`."""
    if labels is None:
        return ["test images"]
    return [*class_names, "none"] if labels.ndim == 2 else list(class_names)


def draw_map(name: str, points: np.ndarray, classes: np.ndarray, wrong: np.ndarray | None) -> Html:
    """Draws one mark per image, and rings around those that are wrong.

    Args:
        name: The map's name for the script of the page.
        points: [M, 2] in the units of the drawing.
        classes: int [M].
        wrong: bool [M], or None.
    """
    groups = []
    for number in np.unique(classes):
        shape = SHAPES[MARKERS[number % len(MARKERS)]]
        path = "".join(f"M{x:.1f} {y:.1f}{shape}" for x, y in points[classes == number])
        groups.append(tag("path", d=path, class_=f"mark color-{number % NUM_COLORS}"))
    if wrong is not None and wrong.any():
        path = "".join(f"M{x:.1f} {y:.1f}{RING}" for x, y in points[wrong])
        is_common = wrong.mean() > COMMON_ERRORS
        groups.append(tag("path", d=path, class_="ring faint" if is_common else "ring"))
    groups.append(tag("circle", class_="selected", r=14, cx=-99, cy=-99))
    return tag(
        "svg", groups, viewBox=f"0 0 {WIDTH} {HEIGHT}", data_map=name, aria_hidden="true",
        focusable="false",
    )  # fmt: skip


def legend(names: Sequence[str]) -> Html:
    """Returns the mark of each class with its name."""
    items = []
    for number, name in enumerate(names):
        path = f"M10 10{SHAPES[MARKERS[number % len(MARKERS)]]}"
        mark = tag("path", d=path, class_=f"mark color-{number % NUM_COLORS}")
        icon = tag("svg", mark, viewBox="0 0 20 20", aria_hidden="true", focusable="false")
        items.append(tag("li", icon, " ", name_of(name)))
    return tag("ul", items, class_="legend")
