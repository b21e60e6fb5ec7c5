"""Losses that tell positives from negatives for each pair of rows, one block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from supcon_tf.losses.class_labels import relations
from supcon_tf.losses.pair_sums import examples_per_block
from supcon_tf.losses.pair_weights import WeightsOfPairs
from supcon_tf.losses.row_blocks import length, map_row_blocks


class Pairs(NamedTuple):
    """Some anchors compared with all contrasts, of which there are K = N V.

    Attributes:
        logits: float32 [b, A, K].
        positive, negative: bool [b, A, K], disjoint; an anchor is neither to itself.
        own_views: bool [b, A, K], the other views of the anchor's example.
        weights: float32 [b, A, K], of the positives; None for 1.
        column_weights: float32 [K], of the contrasts in the denominator; None for 1.
    """

    logits: tf.Tensor
    positive: tf.Tensor
    negative: tf.Tensor
    own_views: tf.Tensor
    weights: tf.Tensor | None
    column_weights: tf.Tensor | None


def losses_with_masks(
    anchors: tf.Tensor,
    all_features: tf.Tensor,
    all_labels: tf.Tensor | None,
    first: int | tf.Tensor,
    *,
    anchor_losses: Callable[..., tf.Tensor],
    max_related: int | None,
    block_size: int | None,
    weights: WeightsOfPairs | None = None,
    column_weights: tf.Tensor | None = None,
    **options,
) -> tf.Tensor:
    """Computes a loss of `Pairs`, one block of examples at a time. -> [B, A].

    Args:
        anchors: Views of this replica's examples [B, A, D].
        all_features: All views of the examples of all replicas [N, V, D].
        all_labels: Their class numbers [N], memberships [N, C], or None.
        first: Index of this replica's first example among them.
        anchor_losses: Called with `Pairs` and the options; returns [b, A].
        max_related: Maximum number of other examples that count as positives; None for all.
        block_size: Maximum number of anchors per block; None chooses.
        weights: Weights of pairs, which decide instead of the labels: a positive is a pair with a
            weight above 0.
        column_weights: float32 [N], the weight of each example's views in the denominator.
        **options: Passed on to `anchor_losses`.
    """
    num_anchors, num_views = anchors.shape[1], all_features.shape[1]
    num_examples = length(all_features)
    other_view = ~tf.linalg.eye(num_views, dtype=tf.bool)[:num_anchors]  # [A, V]
    if column_weights is not None:
        column_weights = tf.repeat(column_weights, num_views)

    def block_pairs(logits, position):
        """Compares the examples at these positions of this replica with all examples."""
        example = first + position
        labels = (
            None if weights is not None or all_labels is None else tf.gather(all_labels, example)
        )
        own, same_class = relations(labels, all_labels, example, num_examples)
        own_views = own[:, None, :, None] & other_view[:, None, :]  # [b, A, N, V]
        own_positive, of_pairs = own_views, None
        if weights is not None:
            of_own = tf.gather(weights.of_own, position)
            of_others = weights.of_others(position)
            if weights.is_known is not None:
                of_others *= weights.is_known
            same_class = of_others > 0.0
            own_positive &= of_own[:, None, None, None] > 0.0
            of_pairs = tf.where(own, of_own[:, None], of_others)[:, None, :, None]
            of_pairs = _flatten_contrasts(tf.broadcast_to(of_pairs, tf.shape(logits)))
        related = same_class & ~own
        kept = related
        if max_related is not None:
            kept &= tf.cumsum(tf.cast(related, tf.int32), axis=1) <= max_related
        positive = kept[:, None, :, None] | own_positive
        unrelated = ~(own | related)[:, None, :, None]
        # A view of the own example that is no positive, of a mask with zeros on its diagonal.
        negative = unrelated | (own_views & ~own_positive)
        masks = (logits, positive, negative, own_views)
        return Pairs(*map(_flatten_contrasts, masks), of_pairs, column_weights)

    def block_losses(anchors, all_features, position):
        logits = tf.einsum("bad,nvd->banv", anchors, all_features)
        return anchor_losses(block_pairs(logits, position), **options)

    per_block = examples_per_block(block_size, num_anchors, num_examples * num_views)
    return map_row_blocks(block_losses, anchors, all_features, block_size=per_block)


def _flatten_contrasts(tensor):
    """[B, A, N, V] -> [B, A, N V]."""
    shape = tf.shape(tensor)
    return tf.reshape(tensor, [shape[0], shape[1], shape[2] * shape[3]])
