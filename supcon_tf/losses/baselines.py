"""Losses that the paper measures supervised contrastive learning against.

Each function takes labels and features [B, V, D] like `supcon.supcon_loss`, L2-normalizes the
features, compares the local examples with the examples of all replicas, and returns one value per
local example. The similarity matrix is computed in blocks of rows, so memory is linear in the
batch size.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from supcon_tf import collectives
from supcon_tf.losses.class_labels import as_class_labels, class_index, nan_where_label_is_nan
from supcon_tf.losses.features import as_views, l2_normalize
from supcon_tf.losses.masked import losses_with_masks
from supcon_tf.losses.pair_sums import log_denominator
from supcon_tf.losses.row_blocks import length


def npairs_loss(
    labels: tf.Tensor, features: tf.Tensor, *, block_size: int | None = None
) -> tf.Tensor:
    """The N-pairs loss: one positive per anchor, from the same class, at temperature 1.

        L_i = -log( exp(z_i . z_k(i)) / sum_{a in A(i)} exp(z_i . z_a) )

    (Khosla et al. 2020, Eq. 27, after Sohn 2016.) The positive k(i) is the same view of the next
    example of the class in the global batch; the first example follows the last. Every example
    is therefore the positive of exactly one other example. An example that is alone in its class
    contributes 0. Time and memory are those of `supcon_loss`.

    Args:
        labels: Class numbers [B] or [B, 1], or one-hot labels [B, C].
        features: [B, V, D] or [B, D].
        block_size: Rows and columns per block. None selects the size automatically.

    Returns:
        float32 [B]: the loss of each example, averaged over its views.

    Raises:
        ValueError: If there are no labels or a shape is invalid.
    """
    features, all_features, all_labels, first = _gather(labels, features)
    if all_labels.shape.rank == 2:
        number = tf.cast(tf.argmax(tf.cast(all_labels, tf.float32), axis=1), tf.float32)
        all_labels = tf.where(tf.reduce_any(all_labels, axis=1), number, float("nan"))
    following = _next_of_class(all_labels)
    examples = first + tf.range(length(features))
    positive = tf.gather(following, examples)  # [B]
    similarity = tf.reduce_sum(features * tf.gather(all_features, positive), axis=-1)  # [B, V]
    losses = log_denominator(features, all_features, first, block_size) - similarity
    losses = tf.reduce_mean(tf.where((positive != examples)[:, None], losses, 0.0), axis=1)
    return nan_where_label_is_nan(losses, labels)


def triplet_loss(
    labels: tf.Tensor,
    features: tf.Tensor,
    *,
    margin: float = 0.2,
    block_size: int | None = None,
) -> tf.Tensor:
    """The triplet loss with semi-hard negatives (Schroff et al. 2015, Eq. 4).

        L_i = 1/|P(i)| sum_{p in P(i)} max(0, d_ip - d_in(p) + margin),  d_ij = |z_i - z_j|^2

    where n(i, p) is the nearest negative that is farther from i than p is. If no negative is
    farther than p, it is the farthest negative. An anchor without positives or negatives
    contributes 0. The distances of each of the V B rows are sorted, which takes O(N log N) time
    per row. The default margin is that of https://arxiv.org/abs/1503.03832.

    Args:
        labels: The labels that `supcon_loss` accepts, including multi-hot labels.
        features: [B, V, D] or [B, D].
        margin: A squared distance. The squared distance of unit vectors is at most 4.
        block_size: Rows per block. None selects the size automatically.

    Returns:
        float32 [B]: the loss of each example, averaged over its views.

    Raises:
        ValueError: If there are no labels, a shape is invalid, or the margin is not positive.
    """
    return _compare(labels, features, _semi_hard, margin, block_size)


def max_margin_loss(
    labels: tf.Tensor,
    features: tf.Tensor,
    *,
    margin: float = 1.0,
    block_size: int | None = None,
) -> tf.Tensor:
    """The max-margin contrastive loss over pairs (Hadsell et al. 2006, Eq. 4).

        L_i = 1/|A(i)| ( sum_{p in P(i)} d_ip^2 / 2 + sum_{n in N(i)} max(0, margin - d_in)^2 / 2 )

    with d_ij = |z_i - z_j|. The max-margin results in Khosla et al. 2020, Table 2, are quoted from
    another publication, so they were not computed with this exact loss.
    http://yann.lecun.com/exdb/publis/pdf/hadsell-chopra-lecun-06.pdf

    Args:
        labels: The labels that `supcon_loss` accepts, including multi-hot labels.
        features: [B, V, D] or [B, D].
        margin: A distance. The distance of unit vectors is at most 2.
        block_size: Rows per block. None selects the size automatically.

    Returns:
        float32 [B]: the loss of each example, averaged over its views.

    Raises:
        ValueError: If there are no labels, a shape is invalid, or the margin is not positive.
    """
    return _compare(labels, features, _max_margin, margin, block_size)


@keras.saving.register_keras_serializable(package="supcon_tf")
class NPairsLoss(keras.losses.Loss):
    """`npairs_loss` as a Keras loss."""

    def __init__(
        self,
        *,
        block_size: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "npairs_loss",
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        self.block_size = block_size

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return npairs_loss(y_true, y_pred, block_size=self.block_size)

    def get_config(self) -> dict:
        return {**super().get_config(), "block_size": self.block_size}


@keras.saving.register_keras_serializable(package="supcon_tf")
class TripletLoss(keras.losses.Loss):
    """`triplet_loss` as a Keras loss."""

    def __init__(
        self,
        *,
        margin: float = 0.2,
        block_size: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "triplet_loss",
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        self.margin, self.block_size = _checked(margin), block_size

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return triplet_loss(y_true, y_pred, margin=self.margin, block_size=self.block_size)

    def get_config(self) -> dict:
        return {**super().get_config(), "margin": self.margin, "block_size": self.block_size}


@keras.saving.register_keras_serializable(package="supcon_tf")
class MaxMarginLoss(keras.losses.Loss):
    """`max_margin_loss` as a Keras loss."""

    def __init__(
        self,
        *,
        margin: float = 1.0,
        block_size: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "max_margin_loss",
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        self.margin, self.block_size = _checked(margin), block_size

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return max_margin_loss(y_true, y_pred, margin=self.margin, block_size=self.block_size)

    def get_config(self) -> dict:
        return {**super().get_config(), "margin": self.margin, "block_size": self.block_size}


def _checked(margin):
    if not margin > 0:
        raise ValueError(f"Invalid margin={margin}: expected a value above 0.")
    return margin


def _gather(labels, features):
    """Normalizes the features and gathers features and labels from all replicas.

    Returns:
        Local unit vectors [B, V, D], global unit vectors [N, V, D], global labels [N] or [N, C],
        and the global index of the first local example.
    """
    if labels is None:
        raise ValueError(
            "This loss needs labels. Without labels, use supcon_loss, the SimCLR loss."
        )
    features = as_views(features)
    labels = as_class_labels(labels, features)
    features = l2_normalize(features)
    first = collectives.replica_offset(length(features))
    return features, collectives.gather(features), collectives.gather(labels), first


def _compare(labels, features, anchor_losses, margin, block_size):
    """Averages anchor_losses(pairs, margin) over the views. -> [B]."""
    margin = _checked(margin)
    features, all_features, all_labels, first = _gather(labels, features)
    losses = losses_with_masks(
        features,
        all_features,
        all_labels,
        first,
        anchor_losses=anchor_losses,
        max_related=None,
        block_size=block_size,
        margin=margin,
    )
    return nan_where_label_is_nan(tf.reduce_mean(losses, axis=1), labels)


def _next_of_class(labels):
    """The index of the next example of the same class, cyclically. [N] -> int32 [N]."""
    num_examples = length(labels)
    index = class_index(labels)
    order = tf.argsort(index, stable=True)
    index = tf.gather(index, order)  # Class numbers from 0, in ascending order.
    position = tf.range(num_examples)
    start = tf.math.unsorted_segment_min(position, index, num_examples)
    end = tf.math.unsorted_segment_max(position, index, num_examples)
    following = tf.where(position == tf.gather(end, index), tf.gather(start, index), position + 1)
    return tf.scatter_nd(order[:, None], tf.gather(order, following), tf.shape(order))


def _semi_hard(pairs, *, margin):
    """The triplet loss of each anchor. `Pairs` -> [b, A]."""
    similarity, positive, negative = pairs[:3]
    distance = 2.0 - 2.0 * similarity  # |a - b|^2 of unit vectors
    of_negatives = tf.where(negative, distance, float("inf"))
    order = tf.argsort(of_negatives, axis=-1)  # Negatives come first, by increasing distance.
    ordered = tf.gather(of_negatives, order, batch_dims=2)
    num_negatives = tf.reduce_sum(tf.cast(negative, tf.int32), axis=-1, keepdims=True)
    num_contrasts = tf.shape(distance)[-1]
    farther = tf.searchsorted(
        tf.reshape(ordered, [-1, num_contrasts]),
        tf.reshape(distance, [-1, num_contrasts]),
        side="right",
    )
    farther = tf.reshape(farther, tf.shape(distance))
    rank = tf.clip_by_value(farther, 0, tf.maximum(num_negatives - 1, 0))
    chosen = tf.gather(order, rank, batch_dims=2)
    hinge = tf.maximum(distance - tf.gather(distance, chosen, batch_dims=2) + margin, 0.0)
    num_positives = tf.reduce_sum(tf.cast(positive, tf.float32), axis=-1)
    mean = tf.reduce_sum(tf.where(positive, hinge, 0.0), axis=-1) / tf.maximum(num_positives, 1.0)
    return tf.where(num_negatives[..., 0] > 0, mean, 0.0)


def _max_margin(pairs, *, margin):
    """The max-margin loss of each anchor. `Pairs` -> [b, A]."""
    similarity, positive, negative = pairs[:3]
    square = tf.maximum(2.0 - 2.0 * similarity, 0.0)  # |a - b|^2 of unit vectors
    is_zero = square == 0.0  # The square root has no gradient at 0.
    distance = tf.where(is_zero, 0.0, tf.sqrt(tf.where(is_zero, 1.0, square)))
    pull, push = square / 2.0, tf.square(tf.maximum(margin - distance, 0.0)) / 2.0
    values = tf.where(positive, pull, 0.0) + tf.where(negative, push, 0.0)
    num_contrasts = tf.reduce_sum(tf.cast(positive | negative, tf.float32), axis=-1)
    return tf.reduce_sum(values, axis=-1) / tf.maximum(num_contrasts, 1.0)
