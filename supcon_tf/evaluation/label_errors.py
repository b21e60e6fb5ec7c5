"""Which labels are probably wrong: confident learning on out-of-sample class probabilities.

The method is that of Northcutt et al. 2021, Confident Learning: Estimating Uncertainty in Dataset
Labels (https://arxiv.org/abs/1911.00068). The probabilities come from a logistic regression on
embeddings, fitted by cross-validation, and from the vote of the nearest neighbors.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from supcon_tf.evaluation import linear_fit, retrieval

NUM_FOLDS = 5
NUM_NEIGHBORS = 20
# No class is likely enough to suggest.
NO_SUGGESTION = -1


@dataclasses.dataclass(frozen=True)
class LabelErrors:
    """What confident learning says of M labels of C classes.

    Attributes:
        is_listed: bool [M], whether the label is probably wrong: another class passes its
            threshold and is the most probable of those that do.
        suggested: int [M], the class that the label seems to be; `NO_SUGGESTION` for an example
            of which no class passes its threshold.
        scores: float64 [M], 1 - probability of the given label; the larger, the more suspicious.
        thresholds: float64 [C], see `class_thresholds`.
        joint: float64 [C, C], the estimated share of examples with the given label i (row) and
            the true label j (column); it sums to 1.
    """

    is_listed: np.ndarray
    suggested: np.ndarray
    scores: np.ndarray
    thresholds: np.ndarray
    joint: np.ndarray

    @property
    def estimated_error_rate(self) -> float:
        """The estimated share of wrong labels: the mass of `joint` off its diagonal."""
        return float(1.0 - np.trace(self.joint))

    def ranked(self) -> np.ndarray:
        """Returns the places of the listed examples, the most suspicious first."""
        listed = np.flatnonzero(self.is_listed)
        return listed[np.argsort(-self.scores[listed], kind="stable")]


def find_label_errors(probabilities: np.ndarray, labels: np.ndarray) -> LabelErrors:
    """Finds labels that are probably wrong, by confident learning.

    Args:
        probabilities: [M, C], out of sample: the label of an example must have had no influence
            on its own row.
        labels: int [M] in 0..C-1, the given labels.

    Raises:
        ValueError: If the shapes do not fit each other, or if a label is out of range.
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    _check_shapes(probabilities, labels)
    thresholds = class_thresholds(probabilities, labels)
    passes = probabilities >= thresholds  # [M, C]
    suggested = np.argmax(np.where(passes, probabilities, -1.0), axis=1)
    suggested[~passes.any(axis=1)] = NO_SUGGESTION
    scores = 1.0 - probabilities[np.arange(len(labels)), labels]
    return LabelErrors(
        is_listed=(suggested != labels) & (suggested != NO_SUGGESTION),
        suggested=suggested,
        scores=scores,
        thresholds=thresholds,
        joint=_joint(suggested, labels, probabilities.shape[1]),
    )


def class_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the mean probability of each class over the examples that have its label.

    This is t_j of Northcutt et al. 2021, Eq. 2.

    Args:
        probabilities: [M, C].
        labels: int [M].

    Returns:
        float64 [C]; infinite for a class without examples, so that nothing passes.
    """
    num_classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=num_classes)
    own = probabilities[np.arange(len(labels)), labels]
    sums = np.bincount(labels, weights=own, minlength=num_classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)


def _joint(suggested, labels, num_classes):
    """The joint distribution of given and true labels: Northcutt et al. 2021, Eq. 1 and 3.

    The confident joint counts each example that passes a threshold. Each row is then scaled to
    the number of examples with its label. A row without a count is taken to be correct.
    """
    is_counted = suggested != NO_SUGGESTION
    confident = np.zeros([num_classes, num_classes])
    np.add.at(confident, (labels[is_counted], suggested[is_counted]), 1.0)
    is_empty = confident.sum(axis=1) == 0
    confident[is_empty, is_empty] = 1.0
    counts = np.bincount(labels, minlength=num_classes)
    joint = confident / confident.sum(axis=1, keepdims=True) * counts[:, None]
    return joint / joint.sum()


def label_probabilities(
    embeddings: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    num_folds: int = NUM_FOLDS,
    num_neighbors: int = NUM_NEIGHBORS,
    seed: int = 0,
) -> np.ndarray:
    """Returns the mean of `cross_validated_probabilities` and `neighbor_probabilities`.

    The regression sees directions that separate classes, the neighbors see small clusters: each
    finds errors that the other does not.

    Args:
        embeddings: [M, F], of any norm.
        labels: int [M].
        num_classes: C.
        num_folds, seed: See `cross_validated_probabilities`.
        num_neighbors: See `neighbor_probabilities`.

    Returns:
        float64 [M, C].
    """
    regression = cross_validated_probabilities(
        embeddings, labels, num_classes, num_folds=num_folds, seed=seed
    )
    neighbors = neighbor_probabilities(embeddings, labels, num_classes, num_neighbors=num_neighbors)
    return (regression + neighbors) / 2


def cross_validated_probabilities(
    embeddings: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
) -> np.ndarray:
    """Returns class probabilities of each example by a regression that did not see it.

    The examples are divided into folds. A logistic regression (`linear_fit.fit`) is fitted to all
    folds but one and predicts that one.

    Args:
        embeddings: [M, F], of any norm.
        labels: int [M].
        num_classes: C.
        num_folds: Number of parts; each class is divided evenly among them.
        seed: Decides which examples form a part.

    Returns:
        float64 [M, C].

    Raises:
        ValueError: If there are fewer than two folds or fewer examples than folds.
    """
    from scipy.special import softmax

    embeddings = np.asarray(embeddings, np.float32)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings = embeddings / np.maximum(norms, np.finfo(np.float32).tiny)
    folds = stratified_folds(labels, num_folds, seed=seed)
    probabilities = np.zeros([len(labels), num_classes])
    for fold in range(num_folds):
        is_held_out = folds == fold
        if not is_held_out.any():
            continue
        fitted = linear_fit.fit(embeddings[~is_held_out], labels[~is_held_out], num_classes)
        logits = embeddings[is_held_out] @ fitted.kernel + fitted.bias
        probabilities[is_held_out] = softmax(logits.astype(np.float64), axis=1)
    return probabilities


def stratified_folds(labels: np.ndarray, num_folds: int, *, seed: int = 0) -> np.ndarray:
    """Assigns each example to one of `num_folds` parts, each class evenly: int [M].

    Raises:
        ValueError: If there are fewer than two folds or fewer examples than folds.
    """
    labels = np.asarray(labels)
    if not 2 <= num_folds <= len(labels):
        raise ValueError(
            f"Expected a number of folds from 2 to the {len(labels):,} examples, got {num_folds}."
        )
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    folds = np.empty(len(labels), np.int64)
    folds[by_class] = np.arange(len(labels)) % num_folds
    return folds


def neighbor_probabilities(
    embeddings: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    num_neighbors: int = NUM_NEIGHBORS,
) -> np.ndarray:
    """Returns the vote of the nearest other examples for each class: float64 [M, C].

    The vote is `retrieval.neighbor_vote`. An example does not vote for itself.

    Args:
        embeddings: [M, F], of any norm.
        labels: int [M].
        num_classes: C.
        num_neighbors: How many vote; at most M - 1.
    """
    k = min(num_neighbors, len(labels) - 1)
    indices, similarities = retrieval.nearest(embeddings, None, k)
    votes = np.zeros([len(labels), num_classes])
    for start, stop in retrieval.row_blocks(len(labels), k * num_classes):
        one_hot = np.eye(num_classes)[labels[indices[start:stop]]]
        votes[start:stop] = retrieval.neighbor_vote(similarities[start:stop], one_hot)
    return votes


def _check_shapes(probabilities, labels):
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            "Expected probabilities [M, C] and labels [M], got shapes "
            f"{list(probabilities.shape)} and {list(labels.shape)}."
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < probabilities.shape[1]:
        raise ValueError(
            f"Expected labels from 0 to {probabilities.shape[1] - 1}, got {labels.min()} to "
            f"{labels.max()}."
        )
