"""Images that are far from all others, or from all others of their class, in an embedding."""

from __future__ import annotations

import numpy as np

from supcon_tf.evaluation import retrieval

NUM_NEIGHBORS = 10
# Robust standard deviations above the median from which an image counts as an outlier. Of normal
# distances, one in 3.5 million is larger than 5.
MIN_DEVIATIONS = 5.0
# The median absolute deviation of a normal distribution, in standard deviations.
MAD_OF_NORMAL = 0.6745


def neighbor_distances(embeddings: np.ndarray, *, num_neighbors: int = NUM_NEIGHBORS) -> np.ndarray:
    """Returns the mean cosine distance of each example to its nearest other examples.

    Args:
        embeddings: [M, F], of any norm.
        num_neighbors: How many neighbors to average; at most M - 1.

    Returns:
        float64 [M], from 0 to 2; zeros for a single example.
    """
    k = min(num_neighbors, len(embeddings) - 1)
    if k < 1:
        return np.zeros(len(embeddings))
    _, similarities = retrieval.nearest(embeddings, None, k)
    return 1.0 - similarities.astype(np.float64).mean(axis=1)


def class_neighbor_distances(
    embeddings: np.ndarray, labels: np.ndarray, *, num_neighbors: int = NUM_NEIGHBORS
) -> np.ndarray:
    """As `neighbor_distances`, among the examples of the same class: float64 [M].

    Args:
        embeddings: [M, F].
        labels: int [M].
        num_neighbors: How many neighbors to average.
    """
    distances = np.zeros(len(labels))
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        distances[own] = neighbor_distances(embeddings[own], num_neighbors=num_neighbors)
    return distances


def robust_deviations(values: np.ndarray) -> np.ndarray:
    """Returns how many standard deviations each value is above the median: float64 [M].

    The standard deviation is estimated by the median absolute deviation, which outliers do not
    inflate. It is zero if more than half of the values are equal; then all results are zero.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return values
    centered = values - np.median(values)
    spread = np.median(np.abs(centered)) / MAD_OF_NORMAL
    return centered / spread if spread > 0 else np.zeros_like(values)


def class_deviations(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns `robust_deviations` within each class: float64 [M]."""
    deviations = np.zeros(len(labels))
    for label in np.unique(labels):
        deviations[labels == label] = robust_deviations(values[labels == label])
    return deviations
