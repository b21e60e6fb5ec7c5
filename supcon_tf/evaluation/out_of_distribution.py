"""Scores that are larger for images unlike the training images, and how well they detect them."""

from __future__ import annotations

import contextlib

import numpy as np

from supcon_tf.evaluation import retrieval

NUM_NEIGHBORS = 50


def out_of_distribution_metrics(
    train_embeddings: np.ndarray,
    train_labels: np.ndarray,
    in_embeddings: np.ndarray,
    out_embeddings: np.ndarray,
    *,
    in_logits: np.ndarray | None = None,
    out_logits: np.ndarray | None = None,
    num_neighbors: int = NUM_NEIGHBORS,
) -> dict[str, dict[str, float]]:
    """How well each score of this module tells other images from test images of the known classes.

    Args:
        train_embeddings: [M, D], what the scores are fitted to.
        train_labels: int [M]; or multi-hot [M, C] or float [M], for which the Mahalanobis score
            is left out because it needs one class per example. It is also left out if all
            examples of each class have the same embedding.
        in_embeddings: [N, D] of test images of the known classes.
        out_embeddings: [K, D] of images of something else.
        in_logits, out_logits: [N, C] and [K, C] of a classifier, if there is one.
        num_neighbors: k of `knn_distances`.

    Returns:
        knn, mahalanobis and with logits max_softmax, each what `detection_metrics` returns.
    """
    sets = (in_embeddings, out_embeddings)
    scores = {"knn": [knn_distances(train_embeddings, x, k=num_neighbors) for x in sets]}
    if np.ndim(train_labels) == 1 and np.asarray(train_labels).dtype.kind != "f":
        with contextlib.suppress(NoVariationError):
            fitted = Mahalanobis(train_embeddings, train_labels)
            scores["mahalanobis"] = [fitted.distances(x) for x in sets]
    if (in_logits is None) != (out_logits is None):
        raise ValueError("Expected both of in_logits and out_logits, or neither.")
    if in_logits is not None and out_logits is not None:
        scores["max_softmax"] = [max_softmax_scores(x) for x in (in_logits, out_logits)]
    return {name: detection_metrics(*pair) for name, pair in scores.items()}


def knn_distances(
    train_embeddings: np.ndarray, embeddings: np.ndarray, *, k: int = NUM_NEIGHBORS
) -> np.ndarray:
    """Euclidean distance to the k-th nearest training example, of L2-normalized embeddings.

    Sun et al. 2022, https://arxiv.org/abs/2204.06507, section 3.

    Args:
        train_embeddings: [M, D] of any norm.
        embeddings: [N, D] of any norm.
        k: which neighbor; the farthest training example if there are fewer than k.

    Returns:
        float64 [N] in 0..2, larger for images unlike the training images.
    """
    k = min(k, len(train_embeddings))
    indices, _ = retrieval.nearest(embeddings, train_embeddings, k)
    neighbor = retrieval.unit_norm(np.asarray(train_embeddings)[indices[:, -1]])
    # Not sqrt(2 - 2 cosine), which loses the digits of small distances.
    return np.linalg.norm(retrieval.unit_norm(embeddings).astype(np.float64) - neighbor, axis=1)


class NoVariationError(ValueError):
    """Within each class the embeddings do not differ, or each class has one example."""


class Mahalanobis:
    """Distance to the nearest class mean under the covariance that all classes share.

    min_c (x - mean_c)^T P (x - mean_c) with P the pseudo-inverse of
    1/M sum_m (x_m - mean_{y_m}) (x_m - mean_{y_m})^T, from Lee et al. 2018,
    https://arxiv.org/abs/1807.03888, Eqs. 1 and 2. The covariance is not shrunk: directions in
    which the training examples of a class do not vary (eigenvalues below D times the float64
    rounding error of the largest) have no weight.

    Args:
        embeddings: [M, D] of the training examples, used as they are.
        labels: int [M].

    Raises:
        ValueError: labels that are not one class per example.
        NoVariationError: the examples of each class do not differ.
    """

    def __init__(self, embeddings: np.ndarray, labels: np.ndarray):
        features, labels = np.asarray(embeddings, np.float64), np.asarray(labels)
        if labels.shape != features.shape[:1]:
            raise ValueError(
                f"The Mahalanobis score needs one class per example: labels of shape "
                f"{list(features.shape[:1])}, got {list(labels.shape)}."
            )
        _, index = np.unique(labels, return_inverse=True)
        counts = np.bincount(index)
        means = np.zeros([len(counts), features.shape[1]])
        np.add.at(means, index, features)
        means /= counts[:, None]
        centered = features - means[index]
        values, vectors = np.linalg.eigh(centered.T @ centered / len(features))
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        if not kept.any():
            raise NoVariationError(
                "The Mahalanobis score needs classes whose examples differ: all training "
                "embeddings equal the mean of their class."
            )
        self._whitening = vectors[:, kept] / np.sqrt(values[kept])  # P = W W^T
        self._means = means @ self._whitening  # [C, rank]

    def distances(self, embeddings: np.ndarray) -> np.ndarray:
        """Squared distances float64 [N] of [N, D], larger for images unlike the training images."""
        result = np.zeros(len(embeddings))
        width = max(self._whitening.shape[0], len(self._means))
        for start, stop in retrieval.row_blocks(len(embeddings), width):
            block = np.asarray(embeddings[start:stop], np.float64) @ self._whitening
            squared = np.full(len(block), np.inf)
            for mean in self._means:
                np.minimum(squared, np.sum((block - mean) ** 2, axis=1), out=squared)
            result[start:stop] = squared
        return result


def max_softmax_scores(logits: np.ndarray) -> np.ndarray:
    """One minus the probability of the most probable class.

    Hendrycks & Gimpel 2017, https://arxiv.org/abs/1610.02136, section 2.

    Args:
        logits: [N, C].

    Returns:
        float64 [N] in 0..1, larger for images unlike the training images.
    """
    logits = np.asarray(logits, np.float64)
    others = np.exp(logits - logits.max(axis=1, keepdims=True))  # 1 for the most probable class
    np.put_along_axis(others, np.argmax(logits, axis=1)[:, None], 0.0, axis=1)
    total = others.sum(axis=1)
    return total / (1.0 + total)  # 1 - 1 / (1 + total), without losing the digits of a sure class


def detection_metrics(in_scores: np.ndarray, out_scores: np.ndarray) -> dict[str, float]:
    """How well a score tells out-of-distribution images (larger scores) from the others.

    Args:
        in_scores: [N] of images of the known classes.
        out_scores: [K] of other images.

    Returns:
        auroc: the probability that an image of something else has the larger score; 0.5 by
            chance (`sklearn.metrics.roc_auc_score`).
        fpr_at_95_tpr: share of the other images that are accepted by the lowest threshold that
            accepts at least 95% of the images of the known classes; 0 is best.

    Raises:
        ValueError: an empty set, or scores that are not finite.
    """
    from sklearn.metrics import roc_auc_score

    in_scores, out_scores = np.asarray(in_scores), np.asarray(out_scores)
    scores = np.concatenate([in_scores, out_scores])
    if not (len(in_scores) and len(out_scores) and np.isfinite(scores).all()):
        raise ValueError(
            f"Expected finite scores of at least one image on either side, got {len(in_scores):,} "
            f"in-distribution and {len(out_scores):,} out-of-distribution scores, "
            f"{np.count_nonzero(~np.isfinite(scores)):,} not finite."
        )
    is_out = np.repeat([0, 1], [len(in_scores), len(out_scores)])
    num_accepted = -(-95 * len(in_scores) // 100)  # 95%, rounded up
    threshold = np.sort(in_scores)[num_accepted - 1]
    return {
        "auroc": float(roc_auc_score(is_out, scores)),
        "fpr_at_95_tpr": float(np.mean(out_scores <= threshold)),
    }
