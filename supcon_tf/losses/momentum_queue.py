"""Contrast with a queue of past keys, for batches that are small: the paper's memory variant.

A second network, the momentum network, follows the trained one as an exponential average and
makes the keys (He et al. 2020, https://arxiv.org/abs/1911.05722). The keys of past batches stay
in a queue with their labels, so that they are positives too, not only negatives (Khosla et al.
2020, who report 79.1 top-1 with 8,192 keys and a batch of 256, and released no code for it).
"""

from __future__ import annotations

import keras
import tensorflow as tf

from supcon_tf import collectives
from supcon_tf.losses.blockwise import (
    LARGEST_SAFE_LOGIT,
    cross_logsumexp,
    length,
    map_row_blocks,
    masked_logsumexp,
)
from supcon_tf.losses.class_labels import class_index
from supcon_tf.losses.supcon import SupConLoss
from supcon_tf.models.contrastive import ContrastiveModel


def momentum_queue_loss(
    labels: tf.Tensor | None,
    queries: tf.Tensor,
    keys: tf.Tensor,
    queue: tf.Tensor,
    queue_labels: tf.Tensor,
    is_filled: tf.Tensor,
    *,
    temperature: float = 0.1,
    contrast_mode: str = "all_views",
    scale_by_temperature: bool = True,
) -> tf.Tensor:
    """Eq. 2 with keys as contrasts: those of the batch, and those of the queue.

    With q_iv the query of view v of example i, and k_a a key:

        L_iv = log sum_{a in A(i,v)} exp(q_iv . k_a / t)  -  q_iv . mean_{p in P(i,v)} k_p / t

    contrast_mode "all_views": queries and keys are of the same views, and A(i, v) holds every
    key of the global batch but that of view v of example i itself, and the filled part of the
    queue. "one_view": queries are of view 0, keys of the others, and A(i, 0) holds all of them.
    P(i, v) are the keys of A(i, v) with the label of i; without labels, its own other views, and
    the whole queue is negative. Keys get no gradient. An anchor without positives contributes 0.

    Memory is linear in the batch and in the queue.

    Args:
        labels: int32 [B], or None.
        queries: unit vectors float32 [B, A, D].
        keys: unit vectors float32 [B, K, D]; A = K with "all_views".
        queue: unit vectors float32 [Q, D].
        queue_labels: int32 [Q].
        is_filled: bool [Q], which rows of the queue hold keys.
        temperature, scale_by_temperature: see `supcon_loss`.

    Returns:
        float32 [B]: per example, the mean over its queries.
    """
    batch, num_anchors, size = length(queries), queries.shape[1], queries.shape[2]
    all_keys = tf.stop_gradient(collectives.gather(keys))  # [N, K, D]
    num_examples, num_keys = length(all_keys), all_keys.shape[1]
    queue = tf.stop_gradient(tf.where(is_filled[:, None], queue, 0.0))
    first = collectives.replica_offset(batch)
    excludes_own = contrast_mode == "all_views"

    columns = tf.concat([tf.reshape(all_keys, [num_examples * num_keys, size]), queue], axis=0)
    valid = tf.concat([tf.fill([num_examples * num_keys], True), is_filled], axis=0)
    own = None
    if excludes_own:
        own = ((first + tf.range(batch)) * num_keys)[:, None] + tf.range(num_anchors)
        own = tf.reshape(own, [batch * num_anchors])
    rows = tf.reshape(queries / temperature, [batch * num_anchors, size])
    denominator = tf.reshape(
        _log_denominator(rows, columns, own, valid, temperature), [batch, num_anchors]
    )

    sums, counts = _positive_sums(labels, keys, all_keys, queue, queue_labels, is_filled, first)
    sums, counts = sums[:, None], counts[:, None]  # [B, 1, D], [B, 1]
    if excludes_own:
        sums, counts = sums - tf.stop_gradient(keys), counts - 1.0
    similarity = tf.reduce_sum(queries * sums, axis=-1) / temperature  # [B, A]
    losses = denominator - similarity / tf.maximum(counts, 1.0)
    losses = tf.reduce_mean(tf.where(counts > 0.0, losses, 0.0), axis=1)
    return losses * temperature if scale_by_temperature else losses


def _log_denominator(rows, columns, own, valid, temperature):
    """log of the sum of exp(row . column) over the valid columns but the own one. [R]."""
    if temperature * LARGEST_SAFE_LOGIT > 1:
        return cross_logsumexp(rows, columns, own, is_valid=valid)

    def of_block(rows, columns, number):
        mask = tf.broadcast_to(valid[None, :], [length(rows), length(columns)])
        if own is not None:
            mask &= tf.gather(own, number)[:, None] != tf.range(length(columns))
        return masked_logsumexp(tf.matmul(rows, columns, transpose_b=True), mask)

    return map_row_blocks(of_block, rows, columns, block_size=256)


def _positive_sums(labels, keys, all_keys, queue, queue_labels, is_filled, first):
    """The sum of the keys with each example's label, and how many. [B, D], [B]."""
    batch, num_keys = length(keys), float(all_keys.shape[1])
    if labels is None:
        return tf.reduce_sum(tf.stop_gradient(keys), axis=1), tf.fill([batch], num_keys)
    totals = tf.concat([tf.reduce_sum(all_keys, axis=1), queue], axis=0)  # [N + Q, D]
    counts = tf.concat([tf.fill([length(all_keys)], num_keys), tf.cast(is_filled, tf.float32)], 0)
    index = class_index(tf.concat([collectives.gather(labels), queue_labels], axis=0))
    num_classes = length(index)  # at most
    local = tf.gather(index, first + tf.range(batch))  # A slice would have no static size.
    sums = tf.math.unsorted_segment_sum(totals, index, num_classes)
    counts = tf.math.unsorted_segment_sum(counts, index, num_classes)
    return tf.gather(sums, local), tf.gather(counts, local)


class MomentumQueue(keras.layers.Layer):
    """The momentum network, the queue of its keys, and the loss against both.

    It starts as a copy of the model. Its batch norm runs on its own batches, in training mode;
    under a strategy, with statistics over all replicas as the model's, so that nothing of a
    batch needs to be shuffled between replicas.

    Args:
        model: what is trained; built.
        loss: whose temperature, contrast_mode, scale_by_temperature and use_labels count.
        queue_size: Q, how many keys are kept; the oldest leave first.
        momentum: m in  w_key <- m w_key + (1 - m) w_model,  after every step.

    Raises:
        ValueError: an option of the loss that the queue does not know, or a size or momentum out
            of range.
    """

    def __init__(
        self,
        model: ContrastiveModel,
        loss: SupConLoss,
        *,
        queue_size: int,
        momentum: float = 0.999,
        name: str = "momentum_queue",
    ):
        super().__init__(name=name)
        _check_options(loss, queue_size, momentum)
        self.loss, self.queue_size, self.momentum = loss, queue_size, momentum
        self.key_model = ContrastiveModel.from_config(model.get_config())
        self.copy_weights(model)
        num_features = model.compute_output_shape((None, 1, 1, 1, 3))[-1]
        # Every replica computes the same values, so those of the first count.
        options = {
            "initializer": "zeros",
            "trainable": False,
            "autocast": False,
            "aggregation": "only_first_replica",
        }
        self.queue = self.add_weight(
            shape=(queue_size, num_features), dtype="float32", name="queue", **options
        )
        self.queue_labels = self.add_weight(
            shape=(queue_size,), dtype="int32", name="queue_labels", **options
        )
        self.num_filled = self.add_weight(shape=(), dtype="int32", name="num_filled", **options)
        self.built = True

    def copy_weights(self, model: ContrastiveModel) -> None:
        """Makes the momentum network equal to the model, as at the start."""
        for key, query in zip(self.key_model.variables, model.variables, strict=True):
            key.assign(query)

    def split(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The views [B, V, S, S, 3] that make queries, and those that make keys."""
        if self.loss.contrast_mode == "one_view":
            return images[:, :1], images[:, 1:]
        return images, images

    def keys(self, images: tf.Tensor) -> tf.Tensor:
        """Unit vectors [B, K, D] of the momentum network, without gradient."""
        return tf.stop_gradient(self.key_model(images, training=True))

    def losses_of(self, labels: tf.Tensor, queries: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        """`momentum_queue_loss` [B] against the keys of the batch and the queue as it stands."""
        return momentum_queue_loss(
            labels if self.loss.use_labels else None,
            queries,
            keys,
            tf.convert_to_tensor(self.queue),
            tf.convert_to_tensor(self.queue_labels),
            self.is_filled(),
            temperature=self.loss.temperature,
            contrast_mode=self.loss.contrast_mode,
            scale_by_temperature=self.loss.scale_by_temperature,
        )

    def is_filled(self) -> tf.Tensor:
        """bool [Q]: the queue fills from its end."""
        return tf.range(self.queue_size) >= self.queue_size - tf.convert_to_tensor(self.num_filled)

    def advance(self, labels: tf.Tensor, keys: tf.Tensor, model: ContrastiveModel) -> None:
        """Appends the keys of the global batch and lets the momentum network follow the model.

        To be called after the update of the model, by every replica. Keys are in the order of
        the global batch, the views of an example together; what no longer fits leaves, the
        oldest first.
        """
        keys = collectives.gather(keys)  # [N, K, D]
        labels = collectives.gather(tf.cast(labels, tf.int32))
        num_keys = length(keys) * keys.shape[1]
        keys = tf.reshape(keys, [num_keys, keys.shape[2]])
        labels = tf.repeat(labels, num_keys // length(labels))
        for variable, new in ((self.queue, keys), (self.queue_labels, labels)):
            whole = tf.concat([tf.convert_to_tensor(variable), new], axis=0)
            variable.assign(whole[num_keys:])
        filled = tf.minimum(tf.convert_to_tensor(self.num_filled) + num_keys, self.queue_size)
        self.num_filled.assign(filled)
        self._follow(model)

    def _follow(self, model):
        """w_key <- m w_key + (1 - m) w_model, once for all replicas."""
        pairs = [
            (key.value, query.value)
            for key, query in zip(
                self.key_model.trainable_variables, model.trainable_variables, strict=True
            )
        ]

        def average(key, query):
            key.assign(self.momentum * key + (1.0 - self.momentum) * tf.cast(query, key.dtype))

        def follow(strategy):
            for key, query in pairs:
                strategy.extended.update(key, average, args=(query,))

        tf.distribute.get_replica_context().merge_call(follow)


def _check_options(loss, queue_size, momentum):
    is_plain = (loss.summation_location, loss.denominator_mode, loss.positives_cap) == (
        "outside", "all", -1,
    )  # fmt: skip
    if not is_plain:
        raise ValueError(
            "A queue goes with summation_location='outside', denominator_mode='all' and "
            f"positives_cap=-1, not {loss.summation_location!r}, {loss.denominator_mode!r} and "
            f"{loss.positives_cap}."
        )
    if queue_size < 1:
        raise ValueError(f"queue_size={queue_size} must be at least 1.")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum} must be at least 0 and below 1; usual is 0.999.")
