"""Cosine similarity within and between classes, and the detection of collapsed embeddings."""

from __future__ import annotations

import tensorflow as tf

from supcon_tf import collectives
from supcon_tf.losses import pair_sums
from supcon_tf.losses.class_labels import are_numbers, as_class_labels, class_index
from supcon_tf.losses.row_blocks import length

# Embeddings count as collapsed if, in COLLAPSED_LINES log lines in a row after the warm-up, the
# mean cosine similarity of positives and of negatives is at least COLLAPSED_SIMILARITY (a variance
# of the embeddings of at most 0.01) or zero (all embeddings are zero), and the loss is at least
# COLLAPSED_RATIO times that of equal embeddings. A healthy run can look like this during the
# warm-up: on the digits both similarities reach 0.99 then, with a ratio of 1.00, and later
# separate.
COLLAPSED_SIMILARITY, ZERO_SIMILARITY = 0.99, 1e-6
COLLAPSED_RATIO, COLLAPSED_LINES = 0.99, 5

NAMES = ("positive_similarity", "positive_pairs", "negative_similarity", "negative_pairs")


def similarity_sums(labels: tf.Tensor | None, projections: tf.Tensor) -> dict[str, tf.Tensor]:
    """Computes this replica's sums of cosine similarity over all pairs of rows, and their counts.

    The pairs are those of the rows of this replica with all other rows of the global batch. They
    are summed by class: with S_c the sum of the rows z of class c and S that of all rows, the
    pairs of row i within its class add up to z_i . (S_c - z_i), and those with other classes to
    z_i . (S - S_c). Memory is linear in the batch. There is no gradient.

    Args:
        labels: As for `supcon_loss`: class numbers [B], multi-hot [B, C], or None, in which case
            only the other views of the same example are positives.
        projections: Unit vectors float32 [B, V, D].

    Returns:
        Scalars named by `NAMES`. Sum them over the replicas, then call `mean_similarities`.
    """
    projections = tf.stop_gradient(projections)
    labels = as_class_labels(labels, projections)
    batch, num_views = length(projections), float(projections.shape[1])
    sums = tf.reduce_sum(projections, axis=1, keepdims=True)  # [B, 1, D]
    all_sums = collectives.gather(sums)  # [N, 1, D]
    classes = None if labels is None else collectives.gather(labels)
    classes = class_index(classes) if are_numbers(classes) else classes
    first = collectives.replica_offset(batch)
    class_sums, class_sizes = pair_sums.class_sums(classes, all_sums, first, sums, None)
    sums = sums[:, 0]
    own_pairs = tf.reduce_sum(tf.square(projections))  # Each row with itself.
    rest = tf.reduce_sum(all_sums, axis=(0, 1)) - class_sums  # [B, D]
    num_examples = tf.cast(length(all_sums), tf.float32)
    pairs = num_views**2 * class_sizes - num_views  # [B]
    return {
        "positive_similarity": tf.reduce_sum(sums * class_sums) - own_pairs,
        "positive_pairs": tf.reduce_sum(pairs),
        "negative_similarity": tf.reduce_sum(sums * rest),
        "negative_pairs": tf.reduce_sum(num_views**2 * (num_examples - class_sizes)),
    }


def mean_similarities(sums: dict[str, float]) -> dict[str, float]:
    """Returns positive_similarity and negative_similarity, if the batch has such pairs."""
    means = {}
    for kind in ("positive", "negative"):
        if sums[f"{kind}_pairs"] > 0:
            means[f"{kind}_similarity"] = sums[f"{kind}_similarity"] / sums[f"{kind}_pairs"]
    return means


class CollapseWatch:
    """Detects from the logged metrics that the embeddings have collapsed, and warns once."""

    def __init__(self) -> None:
        self._lines, self._learning_rate = 0, 0.0

    def look(self, metrics: dict[str, float]) -> str | None:
        """Returns a warning after COLLAPSED_LINES collapsed log lines in a row, else None."""
        kinds = ("positive_similarity", "negative_similarity")
        similarities = [metrics[kind] for kind in kinds if kind in metrics]
        is_collapsed = (
            len(similarities) == 2
            and metrics.get("collapse_ratio", 1.0) >= COLLAPSED_RATIO
            and (
                min(similarities) >= COLLAPSED_SIMILARITY
                or max(map(abs, similarities)) <= ZERO_SIMILARITY
            )
        )
        is_warming_up = metrics["learning_rate"] > self._learning_rate
        self._learning_rate = metrics["learning_rate"]
        self._lines = self._lines + 1 if is_collapsed and not is_warming_up else 0
        if self._lines != COLLAPSED_LINES:
            return None
        return (
            f"WARNING: the embeddings have collapsed: in the last {COLLAPSED_LINES} log lines all "
            "images had nearly the same embedding (mean cosine similarity between different "
            f"classes {metrics['negative_similarity']:.4f}), so the encoder is not learning."
        )
