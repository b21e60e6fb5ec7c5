"""What a model says about images without labels: class or number, and similar training images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from supcon_tf.evaluation import multi_label, predictions, retrieval
from supcon_tf.evaluation.prediction_files import PredictedFile, predicted_files

# Neighbors that vote where there is no classifier, as in `metrics.knn_accuracy`.
NUM_VOTERS = 20


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Labeled images among which the nearest neighbors of other images are found.

    Attributes:
        embeddings: Float32 [M, F], of any norm.
        labels: Int [M], multi-hot [M, C], or float [M] for real targets.
        names: Of the M images, such as the paths of their files.
        class_names: The C classes.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    names: Sequence[str]
    class_names: tuple[str, ...]

    def nearest(self, embeddings: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns what `retrieval.nearest` finds here for embeddings [N, F]; at most M neighbors.

        Returns:
            Indices int64 [N, k], nearest first, and cosine similarities float32 [N, k].
        """
        return retrieval.nearest(embeddings, self.embeddings, min(k, len(self.embeddings)))

    def vote(self, embeddings: np.ndarray) -> np.ndarray:
        """Returns class probabilities float64 [N, C] by the vote of the `NUM_VOTERS` nearest."""
        indices, similarities = self.nearest(embeddings, NUM_VOTERS)
        labels = self.labels[indices]
        if labels.ndim == 2:
            labels = np.eye(len(self.class_names))[labels]
        return retrieval.neighbor_vote(similarities, labels)

    def mean_target(self, embeddings: np.ndarray) -> np.ndarray:
        """Returns the weighted mean of the real targets of the `NUM_VOTERS` nearest: [N]."""
        return multi_label.knn_regression(
            self.embeddings, self.labels, embeddings, num_neighbors=NUM_VOTERS
        )


def predict_images(
    outputs: Callable[[tf.Tensor], dict[str, tf.Tensor]],
    batches: tf.data.Dataset | Callable,
    names: Sequence[str],
    *,
    class_names: Sequence[str],
    gallery: Gallery | None = None,
    top_k: int = 5,
    num_neighbors: int = 5,
    is_multi_label: bool = False,
    strategy: tf.distribute.Strategy | None = None,
) -> Iterator[PredictedFile]:
    """Predicts the class of each image and finds the most similar images of a gallery.

    The probabilities are the softmax of the logits, or the sigmoid with several labels per image;
    without logits, they are the vote of the nearest images of the gallery.

    Args:
        outputs: From images float32 [B, S, S, 3] in 0..255 to unnormalized_embeddings [B, F] and,
            with a classifier, logits [B, C].
        batches: What `predictions.predict` takes, such as `predictions.eval_batches(dataset)`.
        names: The name of each image, in the order of the dataset.
        class_names: The C classes.
        gallery: The training images; needed for neighbors, and if there are no logits.
        top_k: Number of classes to list.
        num_neighbors: Number of similar images to list; none without a gallery.
        is_multi_label: Whether an image may show any number of classes.
        strategy: The strategy under whose scope the model was created; None for the current one.

    Yields:
        One row per image, in the order of the dataset. The embeddings of one batch at a time are
        in memory.

    Raises:
        ValueError: If there is neither a classifier nor a gallery, or if logits or embeddings are
            not finite.
    """
    strategy = strategy or tf.distribute.get_strategy()
    parts = predictions.create_predictor(strategy, outputs)(batches)
    for index, results, _ in predictions.ordered(parts):
        embeddings = results["unnormalized_embeddings"]
        near = gallery.nearest(embeddings, num_neighbors) if gallery and num_neighbors else None
        yield from predicted_files(
            [names[i] for i in index],
            class_probabilities(embeddings, results.get("logits"), gallery, is_multi_label),
            class_names,
            k=top_k,
            neighbor_names=gallery.names if gallery else (),
            neighbor_indices=near[0] if near else None,
            similarities=near[1] if near else None,
            is_multi_label=is_multi_label,
        )


def predict_targets(
    outputs: Callable[[tf.Tensor], dict[str, tf.Tensor]],
    batches: tf.data.Dataset | Callable,
    names: Sequence[str],
    *,
    gallery: Gallery | None = None,
    num_neighbors: int = 5,
    strategy: tf.distribute.Strategy | None = None,
) -> Iterator[PredictedFile]:
    """Predicts a number for each image, and finds the most similar images of a gallery.

    Args:
        outputs: As for `predict_images`; the logits [B, 1] are the predicted numbers.
        batches: As for `predict_images`.
        names: The name of each image, in the order of the dataset.
        gallery: The training images; needed for neighbors, and if there are no logits.
        num_neighbors: Number of similar images to list; none without a gallery.
        strategy: As for `predict_images`.

    Yields:
        One row per image, in the order of the dataset.

    Raises:
        ValueError: If there is neither a regression nor a gallery, or if a number is not finite.
    """
    strategy = strategy or tf.distribute.get_strategy()
    parts = predictions.create_predictor(strategy, outputs)(batches)
    for index, results, _ in predictions.ordered(parts):
        embeddings = results["unnormalized_embeddings"]
        values = target_values(embeddings, results.get("logits"), gallery)
        indices = similarities = np.zeros([len(values), 0], np.int64)
        if gallery and num_neighbors:
            indices, similarities = gallery.nearest(embeddings, num_neighbors)
        for row, value in enumerate(values):
            near = [gallery.names[i] for i in indices[row]] if gallery else []
            yield PredictedFile(
                names[index[row]], (), (), near, similarities[row].tolist(), value=float(value)
            )


def target_values(
    embeddings: np.ndarray, logits: np.ndarray | None, gallery: Gallery | None
) -> np.ndarray:
    """Returns predicted numbers [N]: logits [N, 1], or the mean of the nearest neighbors.

    Raises:
        ValueError: If there is neither a regression nor a gallery, or if a number is not finite.
    """
    if logits is None:
        if gallery is None:
            raise ValueError("Without a regression, predictions need the training images.")
        return gallery.mean_target(embeddings)
    _check_finite(logits)
    return logits[:, 0]


def class_probabilities(
    embeddings: np.ndarray,
    logits: np.ndarray | None,
    gallery: Gallery | None,
    is_multi_label: bool = False,
) -> np.ndarray:
    """Returns the softmax of logits [N, C]; without logits, the vote of the nearest neighbors.

    With `is_multi_label`, the sigmoid of the logits.

    Raises:
        ValueError: If there is neither a classifier nor a gallery, or if logits are not finite.
    """
    from scipy.special import expit, softmax

    if logits is None:
        if gallery is None:
            raise ValueError("Without a classifier, predictions need the training images.")
        return gallery.vote(embeddings)
    _check_finite(logits)
    logits = np.asarray(logits, np.float64)
    return expit(logits) if is_multi_label else softmax(logits, axis=1)


def _check_finite(logits):
    broken = np.count_nonzero(~np.isfinite(logits).all(axis=1))
    if broken:
        raise ValueError(
            f"The logits of {broken:,} of {len(logits):,} images are not finite: the classifier is "
            "broken; train it again with a lower learning rate."
        )
