"""Metrics of predictions and embeddings."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import Pipeline

ECE_BINS = 15
# Limit for L-BFGS. The regressions behind the published tables took fewer than 400 iterations.
PROBE_MAX_ITERATIONS = 1_000


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict:
    """Computes all metrics of a classifier's predictions.

    Args:
        logits: [M, C].
        labels: int [M], or multi-hot [M, C] for images with several labels.

    Returns:
        For class numbers: top_1, top_5 (with six or more classes), mean_per_class_accuracy,
        expected_calibration_error, negative_log_likelihood and confusion_matrix [C, C]. For
        multi-hot labels: mean_average_precision. In both cases num_examples.

    Raises:
        ValueError: If the shapes do not match, a label is out of range, or logits are not finite.
    """
    labels = np.asarray(labels)
    _check_predictions(logits, labels)
    if labels.ndim == 2:
        found: dict = {"mean_average_precision": mean_average_precision(logits, labels)}
    else:
        found = {
            "top_1": top_k_accuracy(logits, labels),
            **({"top_5": top_k_accuracy(logits, labels, k=5)} if logits.shape[1] > 5 else {}),
            "mean_per_class_accuracy": mean_per_class_accuracy(logits, labels),
            "expected_calibration_error": expected_calibration_error(logits, labels),
            "negative_log_likelihood": negative_log_likelihood(logits, labels),
            "confusion_matrix": confusion_matrix(logits, labels),
        }
    return {**found, "num_examples": len(labels)}


def embedding_metrics(
    train_embeddings: np.ndarray,
    train_labels: np.ndarray,
    test_embeddings: np.ndarray,
    test_labels: np.ndarray,
) -> dict[str, float]:
    """Evaluates frozen embeddings [M, F] with k-NN and a linear probe.

    Returns:
        knn_top_1 and linear_probe_top_1 for class numbers [M], or
        linear_probe_mean_average_precision for multi-hot labels [M, C].
    """
    sets = (train_embeddings, train_labels, test_embeddings, test_labels)
    if np.ndim(train_labels) == 2:
        return {"linear_probe_mean_average_precision": linear_probe_average_precision(*sets)}
    return {
        "knn_top_1": knn_accuracy(*sets),
        "linear_probe_top_1": linear_probe_accuracy(*sets),
    }


def _check_predictions(logits, labels):
    num_classes = logits.shape[1]
    if labels.ndim == 2 and labels.shape != logits.shape:
        raise ValueError(
            f"Invalid multi-hot labels of shape {labels.shape}: expected the shape of the logits, "
            f"{logits.shape}."
        )
    if labels.ndim == 1 and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(
            f"Invalid labels from {labels.min()} to {labels.max()}: the classifier has "
            f"{num_classes} classes, so expected labels from 0 to {num_classes - 1}."
        )
    broken = np.count_nonzero(~np.isfinite(logits).all(axis=1))
    if broken:
        raise ValueError(
            f"The logits of {broken:,} of {len(labels):,} examples are not finite, so the "
            "classifier is unusable. Train it again with a lower learning rate."
        )


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Fraction of examples whose class is among the k largest logits; 1 if C <= k.

    In a tie, the true class ranks below the other classes with the same logit, so that constant
    logits do not count as correct.

    Args:
        logits: [M, C].
        labels: int [M].
    """
    own = np.take_along_axis(logits, np.asarray(labels)[:, None], axis=1)  # [M, 1]
    rank = np.sum(~(logits < own), axis=1)  # 1 for the largest logit without a tie; NaN ranks last.
    return float(np.mean(rank <= k)) if logits.shape[1] > k else 1.0


def knn_accuracy(
    train_embeddings: np.ndarray,
    train_labels: np.ndarray,
    test_embeddings: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_neighbors: int = 20,
    temperature: float = 0.07,
) -> float:
    """Accuracy of a weighted k-nearest-neighbor vote by cosine similarity.

    The weight of a neighbor is exp(cosine / temperature) (Wu et al. 2018,
    https://arxiv.org/abs/1805.01978, section 3.4).

    Args:
        train_embeddings, test_embeddings: [M, F]; they need not have unit norm.
        train_labels, test_labels: int [M].
    """
    vote = create_knn_vote(min(num_neighbors, len(train_labels)), temperature)
    vote.fit(train_embeddings, train_labels)
    return float(vote.score(test_embeddings, test_labels))


def create_knn_vote(num_neighbors: int = 20, temperature: float = 0.07) -> KNeighborsClassifier:
    """Creates the unfitted scikit-learn classifier of `knn_accuracy`."""
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(
        n_neighbors=num_neighbors,
        metric="cosine",
        algorithm="brute",
        weights=lambda distances: np.exp((1.0 - distances) / temperature),
    )


def mean_per_class_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the per-class accuracies, over the classes that occur in the labels.

    Args:
        logits: [M, C].
        labels: int [M].
    """
    from sklearn.metrics import recall_score

    return float(
        recall_score(labels, np.argmax(logits, axis=1), labels=np.unique(labels), average="macro")
    )


def confusion_matrix(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Number of examples of class i (row) that were predicted as class j (column): int [C, C].

    Args:
        logits: [M, C].
        labels: int [M].
    """
    from sklearn import metrics

    classes = np.arange(logits.shape[1])
    return metrics.confusion_matrix(labels, np.argmax(logits, axis=1), labels=classes)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean of `negative_log_likelihoods`, in nats."""
    return float(np.mean(negative_log_likelihoods(logits, labels)))


def negative_log_likelihoods(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-ln softmax(logits)[label] of each example, float64 [M], in nats.

    `sklearn.metrics.log_loss` takes probabilities and clips them at the smallest float, which
    understates the loss of confident mistakes. This function uses the logits instead.

    Args:
        logits: [M, C].
        labels: int [M].
    """
    from scipy.special import log_softmax

    own = np.take_along_axis(_float64(log_softmax, logits), np.asarray(labels)[:, None], axis=1)
    return -own[:, 0]


def expected_calibration_error(
    logits: np.ndarray, labels: np.ndarray, *, num_bins: int = ECE_BINS
) -> float:
    """Gap between confidence and accuracy, over bins of equal width: sum_b |b|/M |acc_b - conf_b|.

    The confidence of an example is the probability of its most probable class. Bin b contains
    the examples with a confidence in ((b - 1) / num_bins, b / num_bins] (Guo et al. 2017,
    https://arxiv.org/abs/1706.04599, Eq. 3).

    Args:
        logits: [M, C].
        labels: int [M].
    """
    from scipy.special import softmax

    probabilities = _float64(softmax, logits)
    confidence = np.max(probabilities, axis=1)
    is_right = np.argmax(probabilities, axis=1) == labels
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gap = np.bincount(bins, weights=is_right - confidence, minlength=num_bins)
    return float(np.sum(np.abs(gap)) / len(labels))


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the average precision of each class, over the classes that occur in the labels.

    Args:
        scores: [M, C], larger for a more likely class. Only their order within a class matters.
        labels: Multi-hot [M, C].

    Raises:
        ValueError: If no label is set.
    """
    from sklearn.metrics import average_precision_score

    labels = np.asarray(labels) > 0
    occurs = labels.any(axis=0)
    if not occurs.any():
        raise ValueError("mean_average_precision needs at least one label that is set.")
    return float(average_precision_score(labels[:, occurs], scores[:, occurs], average="macro"))


def linear_probe_accuracy(
    train_embeddings: np.ndarray,
    train_labels: np.ndarray,
    test_embeddings: np.ndarray,
    test_labels: np.ndarray,
    *,
    inverse_regularization: float = 1.0,
) -> float:
    """Accuracy of a logistic regression on frozen embeddings.

    Features are standardized with the statistics of the training embeddings. scikit-learn's
    L-BFGS solver finds the optimum, so no learning rate is needed.

    Args:
        train_embeddings, test_embeddings: [M, F].
        train_labels, test_labels: int [M].
        inverse_regularization: `C` of `sklearn.linear_model.LogisticRegression`.

    Raises:
        ValueError: If the training labels contain fewer than two classes.
    """
    probe = create_linear_probe(inverse_regularization)
    probe.fit(train_embeddings, train_labels)
    return float(probe.score(test_embeddings, test_labels))


def linear_probe_average_precision(
    train_embeddings: np.ndarray,
    train_labels: np.ndarray,
    test_embeddings: np.ndarray,
    test_labels: np.ndarray,
    *,
    inverse_regularization: float = 1.0,
) -> float:
    """Mean average precision of one logistic regression per class, for multi-hot labels [M, C].

    Otherwise like `linear_probe_accuracy`. If all or none of the training examples have a class,
    every test image gets the same score for it.
    """
    from sklearn.multiclass import OneVsRestClassifier

    probe = OneVsRestClassifier(create_linear_probe(inverse_regularization))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Label .* is present in all training examples")
        probe.fit(train_embeddings, np.asarray(train_labels) > 0)
    return mean_average_precision(probe.decision_function(test_embeddings), test_labels)


def create_linear_probe(
    inverse_regularization: float = 1.0, *, class_weight: str | None = None
) -> Pipeline:
    """Creates an unfitted scikit-learn pipeline: `StandardScaler`, then `LogisticRegression`.

    Args:
        inverse_regularization: `C` of `sklearn.linear_model.LogisticRegression`.
        class_weight: "balanced" gives every class the same total weight; None gives every
            example the same weight.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(
        C=inverse_regularization, max_iter=PROBE_MAX_ITERATIONS, class_weight=class_weight
    )
    return make_pipeline(StandardScaler(), regression)


def _float64(function, logits):
    return function(np.asarray(logits, np.float64), axis=1)
