"""How embeddings lie on the unit sphere: alignment, uniformity, class cosines, effective rank."""

from __future__ import annotations

import numpy as np

from supcon_tf.evaluation import retrieval


def geometry_metrics(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Every figure of this module for the unit-norm embeddings of labeled examples.

    Args:
        embeddings: [N, D] of any norm; N >= 2.
        labels: int [N], or multi-hot [N, C], where two examples with a common class are a
            positive pair.

    Returns:
        alignment: the mean squared distance of two examples of one class (`alignment` over all
            positive pairs).
        uniformity, effective_rank: see the functions.
        within_class_cosine, between_class_cosine: see `class_cosines`.
        What needs a pair of a kind that does not occur is None.
    """
    unit = retrieval.unit_norm(embeddings)
    pairs = _PairSums(unit, np.asarray(labels))
    within, between = pairs.mean_cosines()
    return {
        "alignment": None if within is None else 2.0 - 2.0 * within,  # |x - y|^2 of unit vectors
        "uniformity": pairs.uniformity(),
        "within_class_cosine": within,
        "between_class_cosine": between,
        "effective_rank": effective_rank(unit),
    }


def alignment(first: np.ndarray, second: np.ndarray, *, alpha: float = 2.0) -> float:
    """The mean of |x - y|^alpha over positive pairs; 0 if both of each pair coincide.

    Wang & Isola 2020, https://arxiv.org/abs/2005.10242, section 4.1, for given pairs such as two
    views of each image.

    Args:
        first, second: [M, D] of any norm; row m of both is a positive pair.
    """
    difference = retrieval.unit_norm(first) - retrieval.unit_norm(second)
    return float(np.mean(np.linalg.norm(difference.astype(np.float64), axis=1) ** alpha))


def uniformity(embeddings: np.ndarray, *, t: float = 2.0) -> float:
    """The logarithm of the mean of exp(-t |x - y|^2) over all pairs of different examples.

    Wang & Isola 2020, https://arxiv.org/abs/2005.10242, section 4.1. It is 0 if all embeddings
    coincide and about -2t + 2t^2/D if they cover the sphere of a large dimension D evenly.

    Args:
        embeddings: [N, D] of any norm; N >= 2.
    """
    return _PairSums(retrieval.unit_norm(embeddings), None, t=t).uniformity()


def class_cosines(embeddings: np.ndarray, labels: np.ndarray) -> tuple[float | None, float | None]:
    """The mean cosine similarity of pairs of one class, and of pairs of different classes.

    Args:
        embeddings: [N, D] of any norm.
        labels: int [N], or multi-hot [N, C], where a common class makes a pair "of one class".

    Returns:
        (within, between), over all pairs of different examples; None without such a pair.
    """
    return _PairSums(retrieval.unit_norm(embeddings), np.asarray(labels)).mean_cosines()


def effective_rank(embeddings: np.ndarray) -> float:
    """exp(-sum_i p_i ln p_i) of the singular values, normalized to sum to one.

    Roy & Vetterli 2007 ("The effective rank", EUSIPCO): from 1, if all rows are multiples of one
    vector, to min(N, D), if all singular values are equal. The rows are not centered. The
    singular values come from the Gram matrix in float64, so those below about 1e-8 of the largest
    are inexact, which changes the figure by less than 1e-4.

    Args:
        embeddings: [N, D], used as they are.
    """
    matrix = np.asarray(embeddings)
    if len(matrix) < matrix.shape[1]:
        matrix = matrix.T
    gram = np.zeros([matrix.shape[1]] * 2)
    for start, stop in retrieval.row_blocks(*matrix.shape):
        block = matrix[start:stop].astype(np.float64)
        gram += block.T @ block
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))
    if not singular.any():
        raise ValueError("The effective rank of embeddings that are all zero is not defined.")
    shares = singular / singular.sum()
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares))))


class _PairSums:
    """Sums over all pairs i < j of unit-norm embeddings [N, D], in blocks and in float64."""

    def __init__(self, unit, labels, *, t=2.0):
        if len(unit) < 2:
            raise ValueError(f"Geometry needs at least two embeddings, got {len(unit)}.")
        if labels is not None and len(labels) != len(unit):
            raise ValueError(f"Expected labels of {len(unit):,} embeddings, got {len(labels):,}.")
        self._num_pairs = len(unit) * (len(unit) - 1) // 2
        self._potential = 0.0
        self._cosine = {True: 0.0, False: 0.0}  # Of pairs of one class, and of the others.
        self._count = {True: 0, False: 0}
        for start, stop in retrieval.row_blocks(len(unit), len(unit)):
            cosine = unit[start:stop] @ unit[start:].T  # Every pair once: columns from `start`.
            is_pair = np.triu(np.ones(cosine.shape, bool), 1)
            # Rounding can make the cosine of equal vectors larger than one.
            squared_distance = np.maximum(2.0 - 2.0 * cosine, 0.0)
            potential = np.exp(-t * squared_distance)
            self._potential += np.sum(potential, dtype=np.float64, where=is_pair)
            if labels is not None:
                is_same = retrieval.relevance(labels[start:stop], labels[start:])
                self._add_cosines(cosine, is_pair, is_same)

    def _add_cosines(self, cosine, is_pair, is_same):
        for same in (True, False):
            kept = is_pair & (is_same == same)
            self._cosine[same] += np.sum(cosine, dtype=np.float64, where=kept)
            self._count[same] += np.count_nonzero(kept)

    def uniformity(self):
        return float(np.log(self._potential / self._num_pairs))

    def mean_cosines(self):
        return tuple(
            float(self._cosine[same] / self._count[same]) if self._count[same] else None
            for same in (True, False)
        )
