"""The supervised contrastive loss as a function and as a Keras loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import keras
import tensorflow as tf

from supcon_tf import collectives
from supcon_tf.losses.blockwise import (
    LARGEST_SAFE_LOGIT,
    cross_logsumexp,
    is_safe_without_maximum,
    length,
    map_row_blocks,
    masked_logsumexp,
    recomputing_cond,
    self_logsumexp,
)
from supcon_tf.losses.class_labels import (
    are_numbers,
    as_class_labels,
    class_index,
    nan_where_label_is_nan,
    relations,
)
from supcon_tf.losses.features import as_views, l2_normalize
from supcon_tf.losses.options import SupConOptions

# Maximum number of similarities in memory at a time where masks are needed: a float32 tensor of
# them takes 8 MB.
_MASKED_ELEMENTS = 2**21


def supcon_loss(
    labels: tf.Tensor | None,
    features: tf.Tensor,
    *,
    temperature: float = 0.1,
    contrast_mode: str = "all_views",
    summation_location: str = "outside",
    denominator_mode: str = "all",
    positives_cap: int = -1,
    scale_by_temperature: bool = True,
    normalize: bool = True,
    block_size: int | None = None,
) -> tf.Tensor:
    """The supervised contrastive loss of each example, contrasted with the global batch.

    With anchor i, A(i) every other row, P(i) the rows of A(i) that share a class with i,
    and s_ia = z_i . z_a / temperature (Khosla et al. 2020, https://arxiv.org/abs/2004.11362):

        outside (Eq. 2):  L_i = -1/|P(i)| sum_{p in P(i)} log( exp(s_ip) / denominator )
        inside  (Eq. 3):  L_i = -log( 1/|P(i)| sum_{p in P(i)} exp(s_ip) / denominator )

        denominator "all":             sum_{a in A(i)} exp(s_ia)
                    "one_positive":    exp(s_ip) + sum_{a in A(i), a not in P(i)} exp(s_ia)
                    "only_negatives":  sum_{a in A(i), a not in P(i)} exp(s_ia)

    The similarities are computed in blocks, and again for the gradient, so memory is linear in
    the batch size for every option. Eq. 2 with all positives needs no mask:

        L_i = log sum_{a in A(i)} exp(s_ia)  -  z_i . (sum of z over the class of i  -  z_i)
                                                / (temperature |P(i)|)

    Inside a replica of a `tf.distribute` strategy the contrasts are the examples of all
    replicas, and gradients flow through the gather. An anchor without positives, or with an
    empty denominator, has a loss of 0 and still counts in the mean. The reference implementation
    divides by |P(i)| a second time when there is one view; that is an error and is not repeated
    here.

    Args:
        labels: Integers [B] or [B, 1] (or floats with integer values), one-hot or multi-hot
            [B, C] (positives share at least one nonzero entry), or None: the only positives of
            an example are its own other views (SimCLR). An example with a NaN label has a NaN
            loss; the other examples treat it as the only member of its class.
        features: [B, V, D], or [B, D] for one view. Further axes are flattened into D. Any float
            type; the computation is in float32.
        temperature, contrast_mode, summation_location, denominator_mode, positives_cap,
            scale_by_temperature, normalize, block_size: See
            `supcon_tf.losses.options.SupConOptions`.

    Returns:
        float32 [B]: for each example, the mean over its anchor views.

    Raises:
        ValueError: Invalid shapes or options, or one view without labels.
    """
    options = SupConOptions(
        temperature=temperature,
        contrast_mode=contrast_mode,
        summation_location=summation_location,
        denominator_mode=denominator_mode,
        positives_cap=positives_cap,
        scale_by_temperature=scale_by_temperature,
        normalize=normalize,
        block_size=block_size,
    )
    return losses_of_examples(labels, features, options)


@keras.saving.register_keras_serializable(package="supcon_tf")
class SupConLoss(keras.losses.Loss):
    """`supcon_loss` as a Keras loss: `model.compile(loss=SupConLoss())`.

    The model outputs features [B, V, D] or [B, D]; labels are as for `supcon_loss`. Keras casts
    labels to float32 before the call, which is exact for class numbers below 2^24.

    Args:
        temperature, contrast_mode, summation_location, denominator_mode, positives_cap,
            scale_by_temperature, normalize, block_size: See
            `supcon_tf.losses.options.SupConOptions`. Each is also an attribute.
        use_labels: Whether to use the labels. False trains SimCLR.
        reduction: As for every Keras loss.
        name: As for every Keras loss.

    >>> model.compile(optimizer="adam", loss=SupConLoss(temperature=0.1))
    >>> model.fit(images, labels, batch_size=256)
    """

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        contrast_mode: str = "all_views",
        summation_location: str = "outside",
        denominator_mode: str = "all",
        positives_cap: int = -1,
        scale_by_temperature: bool = True,
        normalize: bool = True,
        block_size: int | None = None,
        use_labels: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "supcon_loss",
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        options = SupConOptions(
            temperature=temperature,
            contrast_mode=contrast_mode,
            summation_location=summation_location,
            denominator_mode=denominator_mode,
            positives_cap=positives_cap,
            scale_by_temperature=scale_by_temperature,
            normalize=normalize,
            block_size=block_size,
        )
        for option, value in dataclasses.asdict(options).items():
            setattr(self, option, value)
        self.use_labels = use_labels

    @property
    def options(self) -> SupConOptions:
        """The options as one object, read from the attributes of the same names."""
        names = (field.name for field in dataclasses.fields(SupConOptions))
        return SupConOptions(**{name: getattr(self, name) for name in names})

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return losses_of_examples(y_true if self.use_labels else None, y_pred, self.options)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            **dataclasses.asdict(self.options),
            "use_labels": self.use_labels,
        }


def losses_of_examples(
    labels: tf.Tensor | None, features: tf.Tensor, options: SupConOptions
) -> tf.Tensor:
    """`supcon_loss` with its options as one object. -> float32 [B]."""
    features, given_labels = as_views(features), labels
    labels = as_class_labels(given_labels, features)
    _check_views(features.shape[1], labels, options)
    if options.normalize:
        features = l2_normalize(features)
    # Both factors of a similarity are divided by the square root, so that they stay the same.
    features /= math.sqrt(options.temperature)
    losses = tf.reduce_mean(_losses_of_anchors(labels, features, options), axis=1)
    losses = nan_where_label_is_nan(losses, given_labels)  # [B]
    return losses * options.temperature if options.scale_by_temperature else losses


def collapse_loss(num_examples: int, num_views: int) -> float:
    """The loss of equal embeddings, before scaling by the temperature: ln(V N - 1).

    If all embeddings are equal, all similarities are equal too, so each positive has the
    probability 1 / (V N - 1) in Eq. 2. Holds for the denominator "all" without a cap on the
    positives.
    """
    return math.log(num_examples * num_views - 1)


def _check_views(num_views, labels, options):
    if labels is None and num_views == 1:
        raise ValueError(
            "Without labels the positives of an example are its other views, but there is only "
            "one view. Pass features [batch, views, features] with two or more views, as "
            "create_view_batches makes them, or pass labels (with SupConLoss: use_labels=True)."
        )
    cap = options.positives_cap
    if cap >= 0 and cap % num_views:
        raise ValueError(
            f"positives_cap={cap} must be -1 (no cap) or a multiple of the number of views, "
            f"{num_views}."
        )


def _losses_of_anchors(labels, features, options):
    """The loss of each anchor view, not scaled by the temperature. [B, V, D] -> [B, A]."""
    all_features = collectives.gather(features)  # [N, V, D]
    all_labels = None if labels is None else collectives.gather(labels)
    first = collectives.replica_offset(length(features))
    num_views = features.shape[1]
    num_anchors = 1 if options.contrast_mode == "one_view" else num_views
    cap = options.positives_cap
    # Computed outside the tf.cond below, in which tf.vectorized_map cannot sort.
    is_indexed = not options.needs_masks and are_numbers(all_labels)
    classes = class_index(all_labels) if is_indexed else all_labels

    def compare_without_masks(features, all_features):
        anchors = features[:, :num_anchors]  # [B, A, D]
        sums, counts = class_sums(classes, all_features, first, features, options.block_size)
        denominator = log_denominator(anchors, all_features, first, options.block_size)
        return _losses_from_sums(anchors, sums, counts, denominator)

    def compare_with_masks(features, all_features):
        return losses_with_masks(
            features[:, :num_anchors],
            all_features,
            all_labels,
            first,
            anchor_losses=_losses_from_logits,
            summation_location=options.summation_location,
            denominator_mode=options.denominator_mode,
            max_related=None if cap < 0 else cap // num_views,
            block_size=options.block_size,
        )

    if not options.normalize and not options.needs_masks:  # Similarities of any size.
        safe = is_safe_without_maximum(features, all_features)
        return recomputing_cond(
            safe, compare_without_masks, compare_with_masks, features, all_features
        )
    is_small = options.temperature * LARGEST_SAFE_LOGIT > 1
    if options.needs_masks or not is_small:
        return compare_with_masks(features, all_features)
    return compare_without_masks(features, all_features)


def log_denominator(
    anchors: tf.Tensor,
    all_features: tf.Tensor,
    first: int | tf.Tensor,
    block_size: int | None,
) -> tf.Tensor:
    """log sum_{a in A(i)} exp(s_ia) of each anchor. [B, A, D], [N, V, D] -> [B, A].

    Args:
        anchors: Views of this replica's examples.
        all_features: All views of the examples of all replicas.
        first: Index of this replica's first example among them.
        block_size: See `SupConOptions`.
    """
    batch, num_anchors, size = length(anchors), anchors.shape[1], anchors.shape[2]
    num_views = all_features.shape[1]
    rows = tf.reshape(anchors, [batch * num_anchors, size])
    if collectives.num_replicas() == 1 and num_anchors == num_views:
        denominator = self_logsumexp(rows, block_size=block_size)
    else:
        columns = tf.reshape(all_features, [length(all_features) * num_views, size])
        own = ((first + tf.range(batch)) * num_views)[:, None] + tf.range(num_anchors)
        denominator = cross_logsumexp(
            rows, columns, tf.reshape(own, [batch * num_anchors]), block_size=block_size
        )
    return tf.reshape(denominator, [batch, num_anchors])


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
    totals = tf.reduce_sum(all_features, axis=1)  # [N, D]
    # The last column counts the rows. tf.pad would not do: tf.vectorized_map ignores its
    # constant and pads with 0.
    totals = tf.concat([totals, tf.fill([length(all_features), 1], float(num_views))], axis=1)
    if are_numbers(classes):
        class_totals = tf.math.unsorted_segment_sum(totals, classes, length(classes))
        sums = tf.gather(class_totals, _local(classes, first, batch))
    else:

        def sum_related(local_labels, totals, example):
            own, same_class = relations(local_labels, classes, first + example, length(classes))
            return tf.matmul(tf.cast(own | same_class, tf.float32), totals)

        sums = map_row_blocks(
            sum_related,
            tf.cast(_local(classes, first, batch), tf.float32),
            totals,
            block_size=_examples_per_block(block_size, 1, length(classes)),
        )
    return sums[:, :-1], sums[:, -1]


def _local(tensor, first, batch):
    """This replica's examples of a gathered tensor. [N, ...] -> [B, ...]."""
    if collectives.num_replicas() == 1:
        return tensor
    return tf.slice(tensor, [first] + [0] * (tensor.shape.rank - 1), [batch, *tensor.shape[1:]])


def _losses_from_sums(anchors, sums, counts, denominator):
    """Eq. 2 of Khosla et al. 2020 from the sum of the rows of each example's class. -> [B, A].

        L_i = log sum_{a in A(i)} exp(s_ia)  -  1/|P(i)| sum_{p in P(i)} s_ip

    The anchor itself is in the sum of its class and is subtracted from it.
    """
    num_positives = counts[:, None] - 1.0  # [B, 1]
    similarity = tf.reduce_sum(anchors * (sums[:, None] - anchors), axis=-1)  # [B, A]
    mean_similarity = similarity / tf.maximum(num_positives, 1.0)
    return tf.where(num_positives > 0.0, denominator - mean_similarity, 0.0)


def losses_with_masks(
    anchors: tf.Tensor,
    all_features: tf.Tensor,
    all_labels: tf.Tensor | None,
    first: int | tf.Tensor,
    *,
    anchor_losses: Callable[..., tf.Tensor],
    max_related: int | None,
    block_size: int | None,
    **options,
) -> tf.Tensor:
    """Computes a loss from logits and masks, one block of examples at a time. -> [B, A].

    Args:
        anchors: Views of this replica's examples [B, A, D].
        all_features: All views of the examples of all replicas [N, V, D].
        all_labels: Their class numbers [N], memberships [N, C], or None.
        first: Index of this replica's first example among them.
        anchor_losses: Called with logits, positives and negatives [b, A, N V], and the options;
            returns [b, A].
        max_related: Maximum number of other examples that count as positives; None for all.
        block_size: Maximum number of anchors per block; None chooses.
        **options: Passed on to `anchor_losses`.
    """
    num_anchors, num_views = anchors.shape[1], all_features.shape[1]
    other_view = ~tf.linalg.eye(num_views, dtype=tf.bool)[:num_anchors]  # [A, V]

    def block_losses(anchors, all_features, example):
        labels = None if all_labels is None else tf.gather(all_labels, first + example)
        own, same_class = relations(labels, all_labels, first + example, length(all_features))
        related = same_class & ~own
        kept = related
        if max_related is not None:
            kept &= tf.cumsum(tf.cast(related, tf.int32), axis=1) <= max_related
        logits = tf.einsum("bad,nvd->banv", anchors, all_features)
        positive = kept[:, None, :, None] | (own[:, None, :, None] & other_view[:, None, :])
        negative = tf.broadcast_to(~(own | related)[:, None, :, None], tf.shape(logits))
        return anchor_losses(
            *(_flatten_contrasts(tensor) for tensor in (logits, positive, negative)), **options
        )

    per_block = _examples_per_block(block_size, num_anchors, length(all_features) * num_views)
    return map_row_blocks(block_losses, anchors, all_features, block_size=per_block)


def _examples_per_block(block_size, num_anchors, num_contrasts):
    """Number of examples to compare with all contrasts at a time."""
    if block_size is None:
        block_size = _MASKED_ELEMENTS // num_contrasts
    examples = block_size // num_anchors
    return max(examples, 1) if isinstance(examples, int) else tf.maximum(examples, 1)


def _flatten_contrasts(tensor):
    """[B, A, N, V] -> [B, A, N V]."""
    shape = tf.shape(tensor)
    return tf.reshape(tensor, [shape[0], shape[1], shape[2] * shape[3]])


def _losses_from_logits(logits, positive, negative, *, summation_location, denominator_mode):
    """Eq. 2 or Eq. 3 of Khosla et al. 2020 from logits and two disjoint masks.

    [B, A, K] -> [B, A]; `log_prob` is log( exp(s_ip) / denominator ).
    """
    num_positives = tf.reduce_sum(tf.cast(positive, tf.float32), axis=-1)  # [B, A]
    counts = num_positives > 0
    if denominator_mode == "all":
        denominator = masked_logsumexp(logits, positive | negative)[..., None]
    else:
        denominator = masked_logsumexp(logits, negative)[..., None]
        if denominator_mode == "one_positive":
            has_negatives = denominator != float("-inf")
            others = tf.where(has_negatives, denominator, 0.0)
            denominator = tf.where(
                has_negatives, others + tf.math.softplus(logits - others), logits
            )
    is_defined = denominator != float("-inf")  # True for NaN, which must appear in the loss.
    counts &= tf.reduce_any(is_defined, axis=-1)
    log_prob = logits - tf.where(is_defined, denominator, 0.0)  # [B, A, K]

    safe_count = tf.where(counts, num_positives, 1.0)
    if summation_location == "outside":  # Eq. 2
        losses = -tf.reduce_sum(tf.where(positive, log_prob, 0.0), axis=-1) / safe_count
    else:  # Eq. 3
        total = masked_logsumexp(log_prob, positive)
        losses = tf.math.log(safe_count) - tf.where(counts, total, 0.0)
    return tf.where(counts, losses, 0.0)
