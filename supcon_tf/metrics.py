"""Numbers from predictions and embeddings."""

from __future__ import annotations

import numpy as np


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Share of the examples whose class is among the k largest logits; all if C <= k.

    A class counts as ranked below every class of an equal or larger logit, so that constant
    logits earn nothing by chance.

    Args:
        logits: [M, C].
        labels: int [M].
    """
    own = np.take_along_axis(logits, np.asarray(labels)[:, None], axis=1)  # [M, 1]
    rank = np.sum(~(logits < own), axis=1)  # 1 for a clear winner; NaN ranks below everything
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
    """Accuracy of the weighted k-nearest-neighbour vote by cosine similarity.

    A neighbour's vote weighs exp(cosine / temperature) (Wu et al. 2018,
    https://arxiv.org/abs/1805.01978, section 3.4).

    Args:
        train_embeddings, test_embeddings: [M, F], of any length.
        train_labels, test_labels: int [M].
    """
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(
        n_neighbors=min(num_neighbors, len(train_labels)),
        metric="cosine",
        algorithm="brute",
        weights=lambda distances: np.exp((1.0 - distances) / temperature),
    )
    classifier.fit(train_embeddings, train_labels)
    return float(classifier.score(test_embeddings, test_labels))
