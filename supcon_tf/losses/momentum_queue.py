"""Contrast with a queue of past keys, for small batches: the memory variant of the paper.

The momentum network, an exponential moving average of the trained network, computes the keys
(He et al. 2020, https://arxiv.org/abs/1911.05722). Keys of past batches are kept in a queue with
their labels, so they can be positives as well as negatives. Khosla et al. 2020 report 79.1 top-1
with 8,192 keys and a batch size of 256; they have not released code for it.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from supcon_tf import collectives
from supcon_tf.losses.blockwise import LARGEST_SAFE_LOGIT, cross_logsumexp, masked_logsumexp
from supcon_tf.losses.class_labels import class_index
from supcon_tf.losses.options import SupConOptions
from supcon_tf.losses.row_blocks import length, map_row_blocks
from supcon_tf.losses.supcon import SupConLoss
from supcon_tf.models.contrastive import ContrastiveModel

# Options of the loss that must keep their default with a queue.
NO_QUEUE_OPTIONS = (
    "summation_location", "denominator_mode", "positives_cap", "epsilon", "pair_weights",
    "spread_weight", "denominator_weighting",
)  # fmt: skip


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
    """Eq. 2 of Khosla et al. 2020 with keys as contrasts: those of the batch and of the queue.

    With q_iv the query of view v of example i, and k_a a key:

        L_iv = log sum_{a in A(i,v)} exp(q_iv . k_a / t)  -  q_iv . mean_{p in P(i,v)} k_p / t

    With contrast_mode "all_views", queries and keys come from the same views, and A(i, v)
    consists of the filled part of the queue and every key of the global batch except that of
    view v of example i itself. With "one_view", queries come from view 0 and keys from the other
    views, and A(i, 0) contains all keys. P(i, v) consists of the keys in A(i, v) with the label
    of example i; without labels, of the keys of its own other views, and the whole queue is
    negative. Keys receive no gradient. An anchor without positives has a loss of 0.

    Memory is linear in the batch size and in the queue size.

    Args:
        labels: int32 [B], or None.
        queries: Unit vectors float32 [B, A, D].
        keys: Unit vectors float32 [B, K, D]; A = K with "all_views".
        queue: Unit vectors float32 [Q, D].
        queue_labels: int32 [Q].
        is_filled: bool [Q], which rows of the queue hold keys.
        temperature, contrast_mode, scale_by_temperature: See `supcon_loss`.

    Returns:
        float32 [B]: for each example, the mean over its queries.

    Raises:
        ValueError: An option is out of range.
    """
    options = SupConOptions(
        temperature=temperature,
        contrast_mode=contrast_mode,
        scale_by_temperature=scale_by_temperature,
    )
    batch, num_anchors, size = length(queries), queries.shape[1], queries.shape[2]
    all_keys = tf.stop_gradient(collectives.gather(keys))  # [N, K, D]
    num_examples, num_keys = length(all_keys), all_keys.shape[1]
    queue = tf.stop_gradient(tf.where(is_filled[:, None], queue, 0.0))
    first = collectives.replica_offset(batch)
    excludes_own = options.contrast_mode == "all_views"

    columns = tf.concat([tf.reshape(all_keys, [num_examples * num_keys, size]), queue], axis=0)
    valid = tf.concat([tf.fill([num_examples * num_keys], True), is_filled], axis=0)
    own = None
    if excludes_own:
        own = ((first + tf.range(batch)) * num_keys)[:, None] + tf.range(num_anchors)
        own = tf.reshape(own, [batch * num_anchors])
    rows = tf.reshape(queries / temperature, [batch * num_anchors, size])
    denominator = tf.reshape(
        _log_denominator_of_keys(rows, columns, own, valid, temperature), [batch, num_anchors]
    )

    sums, counts = _positive_sums(labels, keys, all_keys, queue, queue_labels, is_filled, first)
    sums, counts = sums[:, None], counts[:, None]  # [B, 1, D], [B, 1]
    if excludes_own:
        sums, counts = sums - tf.stop_gradient(keys), counts - 1.0
    similarity = tf.reduce_sum(queries * sums, axis=-1) / temperature  # [B, A]
    losses = denominator - similarity / tf.maximum(counts, 1.0)
    losses = tf.reduce_mean(tf.where(counts > 0.0, losses, 0.0), axis=1)
    return losses * temperature if scale_by_temperature else losses


def _log_denominator_of_keys(rows, columns, own, valid, temperature):
    """log of the sum of exp(row . column) over all valid columns except the own one. -> [R]."""
    if temperature * LARGEST_SAFE_LOGIT > 1:
        return cross_logsumexp(rows, columns, own, column_weights=tf.cast(valid, tf.float32))

    def of_block(rows, columns, number):
        mask = tf.broadcast_to(valid[None, :], [length(rows), length(columns)])
        if own is not None:
            mask &= tf.gather(own, number)[:, None] != tf.range(length(columns))
        return masked_logsumexp(tf.matmul(rows, columns, transpose_b=True), mask)

    return map_row_blocks(of_block, rows, columns, block_size=256)


def _positive_sums(labels, keys, all_keys, queue, queue_labels, is_filled, first):
    """Sum and number of the keys with the label of each example. -> [B, D], [B]."""
    batch, num_keys = length(keys), float(all_keys.shape[1])
    if labels is None:
        return tf.reduce_sum(tf.stop_gradient(keys), axis=1), tf.fill([batch], num_keys)
    totals = tf.concat([tf.reduce_sum(all_keys, axis=1), queue], axis=0)  # [N + Q, D]
    counts = tf.concat([tf.fill([length(all_keys)], num_keys), tf.cast(is_filled, tf.float32)], 0)
    index = class_index(tf.concat([collectives.gather(labels), queue_labels], axis=0))
    num_classes = length(index)  # An upper bound.
    local = tf.gather(index, first + tf.range(batch))  # A slice would lose the static size.
    sums = tf.math.unsorted_segment_sum(totals, index, num_classes)
    counts = tf.math.unsorted_segment_sum(counts, index, num_classes)
    return tf.gather(sums, local), tf.gather(counts, local)


class MomentumQueue(keras.layers.Layer):
    """The momentum network, the queue of its keys, and the loss computed with both.

    The momentum network starts as a copy of the model. Its batch norm uses the statistics of its
    own batches, as in training. Under a strategy the statistics are over all replicas, as in the
    model, so examples need not be shuffled between replicas as in MoCo.

    Args:
        model: The model to train; must be built.
        loss: Supplies temperature, contrast_mode, scale_by_temperature and use_labels.
        queue_size: Q, the number of keys to keep. The oldest are dropped first.
        momentum: m in  w_key <- m w_key + (1 - m) w_model,  after every step.
        name: Name of the layer.

    Raises:
        ValueError: The loss has options that the queue does not support, or the size or the
            momentum is out of range.
    """

    def __init__(
        self,
        model: ContrastiveModel,
        loss: SupConLoss,
        *,
        queue_size: int,
        momentum: float = 0.999,
        name: str = "momentum_queue",
    ) -> None:
        super().__init__(name=name)
        _check_queue_settings(loss.options, queue_size, momentum)
        self.loss, self.queue_size, self.momentum = loss, queue_size, momentum
        self.key_model = ContrastiveModel.from_config(model.get_config())
        self.copy_weights(model)
        num_features = model.compute_output_shape((None, 1, 1, 1, 3))[-1]
        # Every replica computes the same values, so those of the first are used.
        variable_options = {
            "initializer": "zeros",
            "trainable": False,
            "autocast": False,
            "aggregation": "only_first_replica",
        }
        self.queue = self.add_weight(
            shape=(queue_size, num_features), dtype="float32", name="queue", **variable_options
        )
        self.queue_labels = self.add_weight(
            shape=(queue_size,), dtype="int32", name="queue_labels", **variable_options
        )
        self.num_filled = self.add_weight(
            shape=(), dtype="int32", name="num_filled", **variable_options
        )
        self.built = True

    def copy_weights(self, model: ContrastiveModel) -> None:
        """Copies the weights of the model to the momentum network."""
        for key, query in zip(self.key_model.variables, model.variables, strict=True):
            key.assign(query)

    def split(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Splits views [B, V, S, S, 3] into those for queries and those for keys."""
        if self.loss.contrast_mode == "one_view":
            return images[:, :1], images[:, 1:]
        return images, images

    def keys(self, images: tf.Tensor) -> tf.Tensor:
        """Computes keys [B, K, D], unit vectors of the momentum network, without a gradient."""
        return tf.stop_gradient(self.key_model(images, training=True))

    def losses_of(self, labels: tf.Tensor, queries: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        """`momentum_queue_loss` [B] with the keys of the batch and the current queue."""
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
        """Which slots hold a key: bool [Q]. The queue fills from its end."""
        return tf.range(self.queue_size) >= self.queue_size - tf.convert_to_tensor(self.num_filled)

    def advance(self, labels: tf.Tensor, keys: tf.Tensor, model: ContrastiveModel) -> None:
        """Appends the keys of the global batch and updates the momentum network.

        Call it in every replica after the model was updated. Keys are appended in the order of
        the global batch, the views of an example next to each other. The oldest keys are
        dropped when the queue is full.
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
        """Applies  w_key <- m w_key + (1 - m) w_model  once for all replicas."""
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


def _check_queue_settings(options, queue_size, momentum):
    plain = SupConOptions()
    unsupported = [
        f"{name}={getattr(options, name)!r}"
        for name in NO_QUEUE_OPTIONS
        if getattr(options, name) != getattr(plain, name)
    ]
    if unsupported:
        raise ValueError(
            f"A queue of keys does not support {', '.join(unsupported)}: it computes Eq. 2 with "
            "all positives. Leave out the queue or these options."
        )
    if queue_size < 1:
        raise ValueError(f"queue_size={queue_size} must be at least 1.")
    if not 0 <= momentum < 1:
        raise ValueError(
            f"momentum={momentum} must be at least 0 and less than 1; 0.999 is common."
        )
