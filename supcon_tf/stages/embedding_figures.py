"""The figures of eval that need embeddings alone: retrieval, geometry, out-of-distribution."""

from __future__ import annotations

import numpy as np

from supcon_tf.evaluation import intervals
from supcon_tf.evaluation.geometry import geometry_metrics
from supcon_tf.evaluation.out_of_distribution import out_of_distribution_metrics
from supcon_tf.evaluation.retrieval import retrieve
from supcon_tf.training import progress

SCORES = {"knn": "k-NN distance", "mahalanobis": "Mahalanobis", "max_softmax": "max softmax"}


def similarity(embeddings: np.ndarray, labels: np.ndarray, *, limit: int) -> dict:
    """Computes retrieval and geometry of labeled examples among themselves.

    Args:
        embeddings: [N, F], of any norm.
        labels: Int [N], or multi-hot [N, C].
        limit: Use at most this many examples, spread evenly, because the time grows with the
            square of their number; 0 computes nothing.

    Returns:
        retrieval, geometry and num_similarity_examples; {} if no two examples share a class.
    """
    count = min(limit, len(labels))
    chosen = np.arange(count) * len(labels) // max(1, count)
    embeddings, labels = embeddings[chosen], np.asarray(labels)[chosen]
    if not _have_pair(labels):
        return {}
    with progress.waiting(f"eval: comparing {count:,} embeddings with each other"):
        found = retrieve(embeddings, labels)
        return {
            "retrieval": {**found.means(), "intervals_95": intervals.retrieval_intervals(found)},
            "geometry": geometry_metrics(embeddings, labels),
            "num_similarity_examples": count,
        }


def _have_pair(labels):
    per_class = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels)
    return len(labels) > 0 and per_class.max() >= 2


def detection(train: tuple, known: dict, other: dict) -> dict:
    """Computes how well out-of-distribution scores tell other images from those of known classes.

    Args:
        train: The outputs of the training images and their labels; for real targets only the
            k-NN distance is computed, because the other scores need classes.
        known: unnormalized_embeddings and logits of the test images.
        other: The same of other images.
    """
    train_outputs, train_labels = train
    count = len(other["unnormalized_embeddings"])
    is_real = train_labels.dtype.kind == "f"
    with progress.waiting(f"eval: computing out-of-distribution scores of {count:,} images"):
        found = out_of_distribution_metrics(
            train_outputs["unnormalized_embeddings"],
            train_labels,
            known["unnormalized_embeddings"],
            other["unnormalized_embeddings"],
            in_logits=None if is_real else known["logits"],
            out_logits=None if is_real else other["logits"],
        )
    if "mahalanobis" not in found and train_labels.ndim == 1 and not is_real:
        is_single = np.bincount(train_labels).max() == 1
        reason = (
            "every class has one training image"
            if is_single
            else "within each class, all training images have the same embedding, which happens if "
            "the encoder has collapsed"
        )
        progress.inform(f"eval: the Mahalanobis score is left out, because {reason}.")
    return {**found, "num_examples": count}


def describe(result: dict) -> list[str]:
    """Returns a line for each group of figures in eval.json."""
    lines = []
    if "retrieval" in result:
        lines.append(_describe_retrieval("retrieval", result))
        geometry = result["geometry"]
        names = ("alignment", "uniformity", "within_class_cosine", "between_class_cosine")
        alignment, uniformity, within, between = (_show(geometry[name]) for name in names)
        lines.append(
            f"  geometry         alignment {alignment}, uniformity {uniformity}, cosine within "
            f"classes {within}, between {between}, effective rank {geometry['effective_rank']:.1f}"
        )
    held_out = result.get("held_out_classes", {})
    if "retrieval" in held_out:
        lines.append(_describe_retrieval("held-out classes", held_out))
    for name, found in result.get("out_of_distribution", {}).items():
        scores = [key for key in ("knn", "mahalanobis", "max_softmax") if key in found]
        figures = "; ".join(
            f"{SCORES[key]} {found[key]['auroc']:.4f} ({found[key]['fpr_at_95_tpr']:.4f})"
            for key in scores
        )
        lines.append(
            f"  unlike training  {found['num_examples']:,} images of {name}: AUROC (FPR95) "
            f"{figures}"
        )
    return lines


def _describe_retrieval(title, result):
    found = result["retrieval"]
    low, high = found["intervals_95"]["precision_at_1"]
    recall = ", ".join(f"recall@{k} {found[f'recall_at_{k}']:.4f}" for k in (5, 10))
    return (
        f"  {title:<16} precision@1 {found['precision_at_1']:.4f} [{low:.4f}, {high:.4f}], "
        f"R-precision {found['r_precision']:.4f}, MAP@R {found['map_at_r']:.4f}, {recall}, among "
        f"{result['num_similarity_examples']:,} images"
    )


def _show(value):
    return "undefined" if value is None else f"{value:.4f}"
