"""Pictures of an evaluation for TensorBoard: the confusion matrix, and precision by recall."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

# More classes than this have neither names nor numbers in the matrix.
MAX_NAMED_CLASSES = 40
MAX_NUMBERED_CLASSES = 20
# Maximum number of curves: those of the classes with the lowest average precision are drawn.
MAX_CURVES = 10
DPI = 110


def draw_confusion_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Draws how often each class was predicted as each other.

    Args:
        matrix: Counts int [C, C]; rows are labels, columns are predictions.
        class_names: The C classes.

    Returns:
        uint8 [height, width, 3]. The color is the share of the row.
    """
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    count = len(matrix)
    side = min(12.0, 3.2 + 0.34 * count)
    figure, axes = _open_figure(side, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="prediction", ylabel="label", xticks=[], yticks=[])
    if count <= MAX_NAMED_CLASSES:
        names = [name if len(name) <= 14 else f"{name[:13]}…" for name in class_names]
        longest = max(map(len, names))
        axes.set_xticks(range(count), names, rotation=90 if longest > 3 else 0, fontsize=8)
        axes.set_yticks(range(count), names, fontsize=8)
    for row, column in np.argwhere(matrix > 0) if count <= MAX_NUMBERED_CLASSES else ():
        color = "white" if shares[row, column] > 0.5 else "black"
        text = str(matrix[row, column])
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=color)
    return _pixels(figure)


def draw_precision_recall(
    scores: np.ndarray, is_class: np.ndarray, class_names: Sequence[str]
) -> np.ndarray:
    """Draws precision by recall: each class against the others, and all decisions together.

    Args:
        scores: float [M, C], the higher the more probable.
        is_class: bool [M, C], which classes an example has.
        class_names: The C classes.

    Returns:
        uint8 [height, width, 3].
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    present = np.flatnonzero(is_class.any(axis=0)).tolist()
    averages = {c: average_precision_score(is_class[:, c], scores[:, c]) for c in present}
    shown = sorted(averages, key=lambda c: averages[c])[:MAX_CURVES]
    figure, axes = _open_figure(7.6, 4.6)
    everything = is_class[:, present].ravel(), scores[:, present].ravel()
    precision, recall, _ = precision_recall_curve(*everything)
    label = f"all classes together: {average_precision_score(*everything):.3f}"
    axes.step(recall, precision, where="post", color="black", linewidth=2, label=label)
    for position, c in enumerate(shown):
        precision, recall, _ = precision_recall_curve(is_class[:, c], scores[:, c])
        axes.step(
            recall, precision, where="post", linewidth=1.2,
            linestyle=("-", "--")[position // 5 % 2], color=f"C{position % 10}",
            label=f"{class_names[c][:20]}: {averages[c]:.3f}",
        )  # fmt: skip
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    lowest = "lowest " if len(shown) < len(present) else ""
    axes.legend(
        title=f"{lowest}average precision", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    return _pixels(figure)


def _open_figure(width, height) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    return figure, figure.subplots()


def _pixels(figure):
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
