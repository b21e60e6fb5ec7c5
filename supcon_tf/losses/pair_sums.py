"""The sums over pairs that the loss needs: of its denominator, and of its positives.

Both are linear in the batch: `blockwise` computes the first block by block, and a sum over a class
needs no pairs.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from supcon_tf import collectives
from supcon_tf.losses.block_pairs import Share
from supcon_tf.losses.blockwise import cross_logsumexp, self_logsumexp
from supcon_tf.losses.class_labels import are_numbers, relations
from supcon_tf.losses.pair_weights import WeightsOfPairs
from supcon_tf.losses.row_blocks import BLOCK_ROWS, length, product_in_row_blocks

# Maximum number of pairs in memory at a time where each has a mask or a weight: a float32 tensor
# of them takes 8 MB.
MASKED_ELEMENTS = 2**21


def log_denominator(
    anchors: tf.Tensor,
    all_features: tf.Tensor,
    first: int | tf.Tensor,
    block_size: int | None,
    *,
    cache_mb: float = 0.0,
    column_weights: tf.Tensor | None = None,
    classes: tf.Tensor | None = None,
    is_shared: bool = True,
) -> tf.Tensor:
    """log sum_{a in A(i)} w_a exp(s_ia) of each anchor. [B, A, D], [N, V, D] -> [B, A].

    If all views are anchors, the similarity matrix is symmetric, and R replicas share its pairs:
    each computes 1/R of them. With few rows per replica each compares its own with all instead,
    which is more work in fewer and larger steps.

    Args:
        anchors: Views of this replica's examples.
        all_features: All views of the examples of all replicas.
        first: Index of this replica's first example among them.
        block_size, cache_mb: See `SupConOptions`.
        column_weights: float32 [N], the weight w of each example's views; None for 1.
        classes: int32 [N] as `class_index` numbers them. If given, the result is [2, B, A]: with
            the same sum over P(i), the contrasts of the anchor's class, with w = 1.
        is_shared: Whether the replicas may share the pairs. They exchange sums for it, which is
            not possible inside a tf.cond.
    """
    batch, num_anchors, size = length(anchors), anchors.shape[1], anchors.shape[2]
    num_views = all_features.shape[1]
    columns = tf.reshape(all_features, [length(all_features) * num_views, size])
    if column_weights is not None:
        column_weights = tf.repeat(column_weights, num_views)
    column_classes = None if classes is None else tf.repeat(classes, num_views)
    num_replicas = collectives.num_replicas()
    is_shared = is_shared and _are_many(batch, num_views, block_size)
    options: dict[str, Any] = {
        "column_weights": column_weights,
        "block_size": block_size,
        "cache_mb": cache_mb,
    }
    leading = [] if classes is None else [2]
    if num_anchors == num_views and (num_replicas == 1 or is_shared):
        share = Share(collectives.replica_index(), num_replicas, collectives.add_up)
        result = self_logsumexp(columns, classes=column_classes, share=share, **options)
        result = tf.reshape(result, [*leading, length(all_features), num_views])
        return _own_examples(result, first, batch)
    rows = tf.reshape(anchors, [batch * num_anchors, size])
    own = ((first + tf.range(batch)) * num_views)[:, None] + tf.range(num_anchors)
    if classes is not None:
        row_classes = tf.repeat(local_part(classes, first, batch), num_anchors)
        classes = row_classes, column_classes
    own = tf.reshape(own, [batch * num_anchors])
    result = cross_logsumexp(rows, columns, own, classes=classes, **options)
    return tf.reshape(result, [*leading, batch, num_anchors])


def _are_many(batch, num_views, block_size):
    """Whether this replica's rows fill half a block, which is where sharing needs no more steps."""
    largest = BLOCK_ROWS if block_size is None else block_size
    return isinstance(batch, int) and 2 * batch * num_views >= largest


def _own_examples(values, first, batch):
    """Selects this replica's examples. [..., N, V] -> [..., B, V]."""
    if collectives.num_replicas() == 1:
        return values
    begin = [0] * (values.shape.rank - 2) + [first, 0]
    return tf.slice(values, begin, [*values.shape[:-2], batch, values.shape[-1]])


def class_sums(
    classes: tf.Tensor | None,
    all_features: tf.Tensor,
    first: int | tf.Tensor,
    features: tf.Tensor,
    block_size: int | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """For each example, the sum and the number of all rows of its class, including its own.

    Args:
        classes: Of all examples: as `class_index` numbers them [N], memberships bool [N, C], or
            None, where the views of an example are its class.
        all_features: [N, V, D].
        first: Index of this replica's first example among all.
        features: Of this replica [B, V, D].
        block_size: See `SupConOptions`.

    Returns:
        Sums float32 [B, D] and counts float32 [B].
    """
    batch, num_views = length(features), features.shape[1]
    if classes is None:
        return tf.reduce_sum(features, axis=1), tf.fill([batch], float(num_views))
    totals = _totals_of_examples(all_features)
    if are_numbers(classes):
        class_totals = tf.math.unsorted_segment_sum(totals, classes, length(classes))
        sums = tf.gather(class_totals, local_part(classes, first, batch))
    else:
        local = local_part(classes, first, batch)

        def related(position):
            labels = tf.gather(local, position)
            own, same_class = relations(labels, classes, first + position, length(classes))
            return tf.cast(own | same_class, tf.float32)

        sums = product_in_row_blocks(
            related, batch, totals, block_size=examples_per_block(block_size, 1, length(classes))
        )
    return sums[:, :-1], sums[:, -1]


def weighted_sums(
    weights: WeightsOfPairs,
    all_features: tf.Tensor,
    features: tf.Tensor,
    block_size: int | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """For each anchor, the sum of all other rows times their weights, and that of the weights.

    Args:
        weights: From `pair_weights.weights_by_block`.
        all_features: [N, V, D].
        features: Of this replica [B, V, D].
        block_size: See `SupConOptions`.

    Returns:
        Sums float32 [B, V, D] and weights float32 [B].
    """
    batch, num_views = length(features), features.shape[1]
    totals = _totals_of_examples(all_features)
    if weights.is_known is not None:
        totals *= weights.is_known[:, None]
    others = product_in_row_blocks(
        weights.of_others,
        batch,
        totals,
        block_size=examples_per_block(block_size, 1, length(all_features)),
    )
    other_views = tf.reduce_sum(features, axis=1, keepdims=True) - features  # [B, V, D]
    sums = others[:, None, :-1] + weights.of_own[:, None, None] * other_views
    return sums, others[:, -1] + weights.of_own * float(num_views - 1)


def local_part(tensor: tf.Tensor, first: int | tf.Tensor, batch: int | tf.Tensor) -> tf.Tensor:
    """This replica's examples of a gathered tensor. [N, ...] -> [B, ...]."""
    if collectives.num_replicas() == 1:
        return tensor
    return tf.slice(tensor, [first] + [0] * (tensor.shape.rank - 1), [batch, *tensor.shape[1:]])


def _totals_of_examples(all_features):
    """The sum of the views of each example, and their number. [N, V, D] -> [N, D + 1]."""
    totals = tf.reduce_sum(all_features, axis=1)  # [N, D]
    # tf.pad would not do: tf.vectorized_map ignores its constant and pads with 0.
    num_views = tf.fill([length(all_features), 1], float(all_features.shape[1]))
    return tf.concat([totals, num_views], axis=1)


def class_shares(classes: tf.Tensor, num_views: int) -> tf.Tensor:
    """1 / the number of rows in the class of each example. int32 [N] -> float32 [N]."""
    ones = tf.ones([length(classes)])
    sizes = tf.math.unsorted_segment_sum(ones, classes, length(classes)) * num_views
    return 1.0 / tf.gather(sizes, classes)


def examples_per_block(
    block_size: int | None, num_anchors: int, num_contrasts: int | tf.Tensor
) -> int | tf.Tensor:
    """Number of examples to compare with all contrasts at a time."""
    size = MASKED_ELEMENTS // num_contrasts if block_size is None else block_size
    examples = size // num_anchors
    return max(examples, 1) if isinstance(examples, int) else tf.maximum(examples, 1)
