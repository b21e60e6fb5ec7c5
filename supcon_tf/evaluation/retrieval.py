"""Nearest neighbors by cosine similarity, and how well they retrieve examples of the same class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

# Similarities computed at a time. As float32 they take 32 MiB; sorting needs a few times that.
BLOCK_SIZE = 2**23


def unit_norm(embeddings: np.ndarray) -> np.ndarray:
    """Divides each embedding by its L2 norm; a zero vector stays zero.

    Args:
        embeddings: [N, D] of any real type.

    Returns:
        float32 [N, D].

    Raises:
        ValueError: not a matrix, or values that are not finite.
    """
    embeddings = np.asarray(embeddings, np.float32)
    if embeddings.ndim != 2:
        raise ValueError(f"Expected embeddings of shape [N, D], got {list(embeddings.shape)}.")
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    broken = np.count_nonzero(~np.isfinite(norms))
    if broken:
        raise ValueError(
            f"The embeddings of {broken:,} of {len(embeddings):,} examples are not finite: the "
            "encoder is broken; train it again with a lower learning rate."
        )
    return embeddings / np.maximum(norms, np.finfo(np.float32).tiny)


def row_blocks(
    num_rows: int, num_columns: int, block_size: int | None = None
) -> Iterator[tuple[int, int]]:
    """Splits the rows of a matrix into (start, stop) so that a block has about `BLOCK_SIZE` values.

    Args:
        block_size: values in a block, if not `BLOCK_SIZE`; a block has at least one row.
    """
    rows = max(1, (block_size or BLOCK_SIZE) // max(1, num_columns))
    for start in range(0, num_rows, rows):
        yield start, min(start + rows, num_rows)


def nearest(
    embeddings: np.ndarray, reference: np.ndarray | None, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k reference examples with the largest cosine similarity to each query.

    The search is exhaustive. Memory is linear in the number of examples, because similarities
    are computed in blocks of queries. They are float32; of equal ones, the lower index is first.
    A GPU that multiplies in TensorFloat-32 can swap nearly equal neighbors, unless
    `tf.config.experimental.enable_tensor_float_32_execution(False)` was called.

    Args:
        embeddings: queries [N, D], of any norm.
        reference: [M, D], of any norm; None searches the queries themselves and leaves each
            query out of its own neighbors.
        k: number of neighbors; at most M, or N - 1 without `reference`.

    Returns:
        Indices int64 [N, k] into `reference`, nearest first, and similarities float32 [N, k].

    Raises:
        ValueError: k out of range, or embeddings that do not fit each other.
    """
    queries = unit_norm(embeddings)
    others = queries if reference is None else unit_norm(reference)
    _check_sets(queries, others)
    available = len(others) - (reference is None)
    if not 1 <= k <= available:
        raise ValueError(f"Expected k between 1 and {available:,}, the neighbors; got {k:,}.")
    indices = np.zeros([len(queries), k], np.int64)
    similarities = np.zeros([len(queries), k], np.float32)
    for start, stop in row_blocks(len(queries), len(others)):
        own = np.arange(start, stop) if reference is None else None
        found = _nearest_in_block(queries[start:stop], others, k, own)
        indices[start:stop], similarities[start:stop] = found
    return indices, similarities


def _nearest_in_block(queries, others, k, own=None):
    """As `nearest`, for unit-norm embeddings; `own` [B] are the queries' places in `others`."""
    similarities = tf.matmul(queries, others, transpose_b=True)  # [B, M]
    # top_k documents that the lower index comes first among equal values.
    values, indices = tf.math.top_k(similarities, k + (own is not None))
    values, indices = values.numpy(), indices.numpy().astype(np.int64)
    if own is None:
        return indices, values
    kept = indices != own[:, None]
    kept[kept.all(axis=1), -1] = False  # k + 1 exact copies of the query have lower indices.
    return indices[kept].reshape(-1, k), values[kept].reshape(-1, k)


def _check_sets(queries, others):
    if queries.shape[1] != others.shape[1]:
        raise ValueError(
            f"The embeddings have {queries.shape[1]} features, those of the reference set "
            f"{others.shape[1]}: use the same encoder for both."
        )


def neighbor_vote(
    similarities: np.ndarray, values: np.ndarray, *, temperature: float = 0.07
) -> np.ndarray:
    """The mean of the neighbors' values, weighted by exp(similarity / temperature).

    This is the vote of `metrics.knn_accuracy` (Wu et al. 2018,
    https://arxiv.org/abs/1805.01978, section 3.4), normalized to sum to one. The values decide
    what it predicts: one-hot labels give class probabilities, multi-hot labels give a
    probability per class, and real targets give k-NN regression.

    Args:
        similarities: [N, k], the second result of `nearest`.
        values: [N, k, ...], what the neighbors have, such as `one_hot[indices]`.

    Returns:
        float64 [N, ...].
    """
    from scipy.special import softmax

    weights = softmax(np.asarray(similarities, np.float64) / temperature, axis=1)  # [N, k]
    return np.einsum("nk,nk...->n...", weights, np.asarray(values, np.float64))


def select_classes(labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Marks the examples of some classes, for example those held out from pretraining.

    Args:
        labels: int [N], or multi-hot [N, C], where one of the classes is enough.
        classes: class numbers.

    Returns:
        bool [N].

    Raises:
        ValueError: a class without an example.
    """
    labels, classes = np.asarray(labels), list(classes)
    if labels.ndim == 2:
        known = [c for c in classes if 0 <= c < labels.shape[1] and np.any(labels[:, c])]
        selected = np.any(labels[:, known] > 0, axis=1)
    else:
        known = [c for c in classes if np.any(labels == c)]
        selected = np.isin(labels, known)
    if missing := [c for c in classes if c not in known]:
        raise ValueError(f"No example has class {', '.join(map(str, missing))}.")
    return selected


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Retrieval figures of each query that has a relevant reference example.

    Attributes:
        queries: int [Q], the places of these queries among all N.
        precision_at_1: [Q], whether the nearest reference example is relevant.
        r_precision: [Q], share of relevant examples among the R nearest, where R is the number
            of reference examples that are relevant to the query.
        map_at_r: [Q], 1/R sum_{i=1..R} [the i-th is relevant] (share of relevant ones among the
            first i), from Musgrave et al. 2020, https://arxiv.org/abs/2003.08505, section 3.2.
        recall_at: k to [Q], whether at least one of the k nearest is relevant (Oh Song et al.
            2016, https://arxiv.org/abs/1511.06452).
        num_left_out: number of queries without any relevant reference example.
    """

    queries: np.ndarray
    precision_at_1: np.ndarray
    r_precision: np.ndarray
    map_at_r: np.ndarray
    recall_at: dict[int, np.ndarray]
    num_left_out: int

    def means(self) -> dict[str, float | int]:
        """The mean of each figure over the queries, and how many queries were counted."""
        return {
            "precision_at_1": float(np.mean(self.precision_at_1)),
            "r_precision": float(np.mean(self.r_precision)),
            "map_at_r": float(np.mean(self.map_at_r)),
            **{f"recall_at_{k}": float(np.mean(x)) for k, x in self.recall_at.items()},
            "num_queries": len(self.queries),
            "num_queries_left_out": self.num_left_out,
        }


def retrieve(
    embeddings: np.ndarray,
    labels: np.ndarray,
    reference: np.ndarray | None = None,
    reference_labels: np.ndarray | None = None,
    *,
    recall_ks: Sequence[int] = (1, 5, 10),
) -> Retrieval:
    """Retrieves examples of the same class by cosine similarity; see `Retrieval`.

    The search is exhaustive, as in `nearest`, and memory is linear in the number of examples.

    Args:
        embeddings: queries [N, D], of any norm.
        labels: int [N]; or multi-hot [N, C], where a reference example is relevant if it shares
            at least one class with the query.
        reference, reference_labels: the set to search, [M, D] and [M] or [M, C]; by default the
            queries themselves, each without its own example.
        recall_ks: the values of k of `recall_at`; one larger than the reference set counts all.

    Raises:
        ValueError: shapes that do not fit, or no query has a relevant reference example.
    """
    queries, labels = unit_norm(embeddings), np.asarray(labels)
    if (reference is None) != (reference_labels is None):
        raise ValueError("Expected both of reference and reference_labels, or neither.")
    is_self = reference is None
    others = queries if reference is None else unit_norm(reference)
    other_labels = labels if reference_labels is None else np.asarray(reference_labels)
    _check_sets(queries, others)
    _check_labels(queries, labels, others, other_labels)
    if len(others) - is_self < 1:
        raise ValueError("Retrieval needs at least one reference example besides the query.")
    parts = []
    for start, stop in row_blocks(len(queries), len(others)):
        own = np.arange(start, stop) if is_self else None
        relevant = relevance(labels[start:stop], other_labels)  # [B, M]
        if own is not None:
            relevant[np.arange(len(own)), own] = False
        parts.append(_block_figures(queries[start:stop], others, relevant, own, recall_ks))
    num_relevant, *figures = (np.concatenate(part) for part in zip(*parts, strict=True))
    kept = num_relevant > 0
    if not kept.any():
        raise ValueError(
            f"None of {len(queries):,} queries has a reference example of its class: retrieval "
            "needs at least two examples of one class."
        )
    precision, r_precision, map_at_r, *recalls = (figure[kept] for figure in figures)
    recall_at = dict(zip(recall_ks, recalls, strict=True))
    left_out = int(np.count_nonzero(~kept))
    return Retrieval(np.flatnonzero(kept), precision, r_precision, map_at_r, recall_at, left_out)


def retrieval_metrics(
    embeddings: np.ndarray,
    labels: np.ndarray,
    reference: np.ndarray | None = None,
    reference_labels: np.ndarray | None = None,
    *,
    recall_ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float | int]:
    """The means of `retrieve`: precision_at_1, r_precision, map_at_r, recall_at_k and counts."""
    return retrieve(embeddings, labels, reference, reference_labels, recall_ks=recall_ks).means()


def relevance(labels: np.ndarray, other_labels: np.ndarray) -> np.ndarray:
    """Whether two examples share a class: bool [B, M].

    Args:
        labels, other_labels: int [B] and [M], or multi-hot [B, C] and [M, C].
    """
    if labels.ndim == 1:
        return labels[:, None] == other_labels
    return (labels > 0).astype(np.float32) @ (other_labels > 0).astype(np.float32).T > 0


def _block_figures(queries, others, relevant, own, recall_ks):
    """R, precision@1, R-precision, MAP@R and recall@k of each query of a block, all [B]."""
    num_relevant = np.count_nonzero(relevant, axis=1)
    available = len(others) - (own is not None)
    depth = min(available, max(1, num_relevant.max(), *recall_ks))
    indices, _ = _nearest_in_block(queries, others, depth, own)
    hits = np.take_along_axis(relevant, indices, axis=1)  # [B, depth]
    ranks = np.arange(1, depth + 1)
    in_r = hits & (ranks <= num_relevant[:, None])
    divisor = np.maximum(num_relevant, 1)
    precision_at_rank = np.cumsum(hits, axis=1) / ranks
    return (
        num_relevant,
        hits[:, 0].astype(np.float64),
        np.count_nonzero(in_r, axis=1) / divisor,
        np.sum(precision_at_rank, axis=1, where=in_r) / divisor,
        *(hits[:, :k].any(axis=1).astype(np.float64) for k in recall_ks),
    )


def _check_labels(queries, labels, others, other_labels):
    sets = (("embeddings", queries, labels), ("reference", others, other_labels))
    for name, vectors, own in sets:
        if own.ndim not in (1, 2) or len(own) != len(vectors):
            raise ValueError(
                f"{name}: expected labels [N] or [N, C] for {len(vectors):,} embeddings, got "
                f"shape {list(own.shape)}."
            )
    if labels.shape[1:] != other_labels.shape[1:]:
        raise ValueError(
            f"Labels of shape {list(labels.shape)} do not fit reference labels of shape "
            f"{list(other_labels.shape)}."
        )
