"""The supervised contrastive loss as a function and as a Keras loss."""

from __future__ import annotations

import math

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

CONTRAST_MODES = ("all_views", "one_view")
SUMMATION_LOCATIONS = ("outside", "inside")
DENOMINATOR_MODES = ("all", "one_positive", "only_negatives")

# Similarities that exist at a time where a mask is needed: each tensor of them takes 8 MB.
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
    """The supervised contrastive loss of each example, against the global batch.

    With anchor i, A(i) every other row, P(i) the rows of A(i) that share a class with i,
    and s_ia = z_i . z_a / temperature (Khosla et al. 2020):

        outside (Eq. 2):  L_i = -1/|P(i)| sum_{p in P(i)} log( exp(s_ip) / denominator )
        inside  (Eq. 3):  L_i = -log( 1/|P(i)| sum_{p in P(i)} exp(s_ip) / denominator )

        denominator "all":             sum_{a in A(i)} exp(s_ia)
                    "one_positive":    exp(s_ip) + sum_{a in A(i), a not in P(i)} exp(s_ia)
                    "only_negatives":  sum_{a in A(i), a not in P(i)} exp(s_ia)

    The similarities are visited in blocks and computed again for the gradient, so that memory
    is linear in the batch for every option. Eq. 2 with all positives needs no mask at all:

        L_i = log sum_{a in A(i)} exp(s_ia)  -  z_i . (sum of z over the class of i  -  z_i)
                                                / (temperature |P(i)|)

    Inside a replica of a `tf.distribute` strategy the contrasts are the examples of all
    replicas, with gradients through the gather. An anchor without positives, or whose
    denominator is empty, contributes 0 and is counted. The reference implementation divides
    by |P(i)| a second time when there is one view; that is an error and is not repeated here.

    Args:
        labels: integers [B] or [B, 1] (floats that hold integers will do), one-hot or multi-hot
            [B, C] (any non-zero entry is a class; positives share at least one), or None: an
            example's only positives are its own other views (SimCLR). A NaN label makes the loss of
            its example NaN; for the others that example is one of a class of its own.
        features: [B, V, D], or [B, D] for one view; further axes are flattened into D. Any
            float type; the maths is float32.
        temperature: > 0.
        contrast_mode: "all_views" makes every view an anchor, "one_view" only view 0. The
            contrasts are all views in both.
        summation_location: "outside" or "inside" the logarithm.
        denominator_mode: "all", "one_positive" or "only_negatives".
        positives_cap: how many positives count beside the anchor's own other views: whole
            examples, lowest index in the global batch first, so a multiple of V; -1 for all.
            Positives beyond the cap leave the denominator too (Table 5).
        scale_by_temperature: multiply by the temperature, so that the size of the gradient does
            not depend on it.
        normalize: divide each feature vector by its L2 norm first; a zero vector stays zero.
        block_size: how many anchors (and, where no mask is needed, contrasts) are compared at a
            time; None chooses. It bounds the memory and changes nothing else.

    Returns:
        float32 [B]: per example, the mean over its anchor views.

    Raises:
        ValueError: for a shape or an option that does not fit, and for one view without labels.
    """
    _check_options(temperature, contrast_mode, summation_location, denominator_mode, block_size)
    features, given_labels = as_views(features), labels
    labels = as_class_labels(given_labels, features)
    num_views = features.shape[1]
    if labels is None and num_views == 1:
        raise ValueError(
            "Without labels the positives of an example are its other views, and there is only "
            "one view. Give features [batch, views, features] with two or more views, as "
            "create_view_batches makes them, or give labels (with SupConLoss: use_labels=True)."
        )
    if positives_cap < -1 or (positives_cap >= 0 and positives_cap % num_views):
        raise ValueError(
            f"positives_cap={positives_cap} must be -1 (no cap) or a multiple of the number of "
            f"views, {num_views}."
        )
    if normalize:
        features = l2_normalize(features)
    # Half of the temperature goes to each side of the product, so that both sides stay the same.
    features /= math.sqrt(temperature)
    all_features = collectives.gather(features)  # [N, V, D]
    all_labels = None if labels is None else collectives.gather(labels)
    first = collectives.replica_offset(length(features))
    num_anchors = 1 if contrast_mode == "one_view" else num_views

    is_plain = (summation_location, denominator_mode, positives_cap) == ("outside", "all", -1)
    # Outside of the condition below, in which tf.vectorized_map cannot sort.
    classes = class_index(all_labels) if is_plain and are_numbers(all_labels) else all_labels

    def compare_without_masks(features, all_features):
        anchors = features[:, :num_anchors]  # [B, A, D]
        sums, counts = class_sums(classes, all_features, first, features, block_size)
        denominator = log_denominator(anchors, all_features, first, block_size)
        return _losses_from_sums(anchors, sums, counts, denominator)

    def compare_with_masks(features, all_features):
        return losses_with_masks(
            features[:, :num_anchors],
            all_features,
            all_labels,
            first,
            anchor_losses=_anchor_losses,
            summation_location=summation_location,
            denominator_mode=denominator_mode,
            max_related=None if positives_cap < 0 else positives_cap // num_views,
            block_size=block_size,
        )

    if not is_plain or (normalize and temperature * LARGEST_SAFE_LOGIT <= 1):
        losses = compare_with_masks(features, all_features)
    elif normalize:
        losses = compare_without_masks(features, all_features)
    else:
        safe = is_safe_without_maximum(features, all_features)
        losses = recomputing_cond(
            safe, compare_without_masks, compare_with_masks, features, all_features
        )
    losses = nan_where_label_is_nan(tf.reduce_mean(losses, axis=1), given_labels)  # [B]
    return losses * temperature if scale_by_temperature else losses


@keras.saving.register_keras_serializable(package="supcon_tf")
class SupConLoss(keras.losses.Loss):
    """`supcon_loss` as a Keras loss: `model.compile(loss=SupConLoss())`.

    The model gives features [B, V, D] or [B, D]; the labels are those of `supcon_loss`. Keras
    casts labels to float32 on the way, which is exact for class numbers below 2^24.

    Args:
        use_labels: False ignores the labels: SimCLR.
        reduction: as for every Keras loss.
        name: as for every Keras loss.
        The others: see `supcon_loss`.

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
    ):
        super().__init__(name=name, reduction=reduction)
        _check_options(temperature, contrast_mode, summation_location, denominator_mode, block_size)
        self.temperature = temperature
        self.contrast_mode = contrast_mode
        self.summation_location = summation_location
        self.denominator_mode = denominator_mode
        self.positives_cap = positives_cap
        self.scale_by_temperature = scale_by_temperature
        self.normalize = normalize
        self.block_size = block_size
        self.use_labels = use_labels

    def call(self, y_true, y_pred):
        return supcon_loss(
            y_true if self.use_labels else None,
            y_pred,
            temperature=self.temperature,
            contrast_mode=self.contrast_mode,
            summation_location=self.summation_location,
            denominator_mode=self.denominator_mode,
            positives_cap=self.positives_cap,
            scale_by_temperature=self.scale_by_temperature,
            normalize=self.normalize,
            block_size=self.block_size,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "contrast_mode": self.contrast_mode,
            "summation_location": self.summation_location,
            "denominator_mode": self.denominator_mode,
            "positives_cap": self.positives_cap,
            "scale_by_temperature": self.scale_by_temperature,
            "normalize": self.normalize,
            "block_size": self.block_size,
            "use_labels": self.use_labels,
        }


def l2_normalize(features: tf.Tensor) -> tf.Tensor:
    """Divides by the L2 norm of the last axis, in float32; a zero vector stays zero.

    The largest entry is divided out first, so that neither huge nor tiny vectors leave the
    range of float32; the gradient at a zero vector is zero.
    """
    features = tf.cast(features, tf.float32)
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(features), axis=-1, keepdims=True))
    is_zero = largest == 0.0
    features = features / tf.where(is_zero, 1.0, largest)
    square_norm = tf.reduce_sum(tf.square(features), axis=-1, keepdims=True)
    inverse = tf.math.rsqrt(tf.where(is_zero, 1.0, square_norm))
    return features * tf.where(is_zero, 0.0, inverse)


def collapse_loss(num_examples: int, num_views: int) -> float:
    """The loss per unit of temperature scale when all embeddings are equal: ln(V N - 1).

    Every similarity is then the same, so that each positive has probability 1 / (V N - 1) under
    Eq. 2. Holds for the denominator "all" without a cap.
    """
    return math.log(num_examples * num_views - 1)


def _check_options(temperature, contrast_mode, summation_location, denominator_mode, block_size):
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0; the paper uses 0.1.")
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size={block_size} must be at least 1, or None to choose one.")
    for name, value, allowed in (
        ("contrast_mode", contrast_mode, CONTRAST_MODES),
        ("summation_location", summation_location, SUMMATION_LOCATIONS),
        ("denominator_mode", denominator_mode, DENOMINATOR_MODES),
    ):
        if value not in allowed:
            raise ValueError(f"Invalid {name}={value!r}: choose one of {', '.join(allowed)}.")


def as_views(features) -> tf.Tensor:
    """Features as float32 [B, V, D]; refuses what is not."""
    features = tf.cast(tf.convert_to_tensor(features), tf.float32)
    rank = features.shape.rank
    if rank is None or rank < 2:
        raise ValueError(
            f"Invalid features rank: the shape is {features.shape}, expected [batch, views, "
            "features] or [batch, features]."
        )
    if features.shape[0] == 0:
        raise ValueError(
            f"The batch is empty: features have the shape {features.shape}. Leave empty batches "
            "out, for example with dataset.batch(batch_size, drop_remainder=True)."
        )
    if rank == 2:
        return features[:, None, :]
    for name, axes in (("num_views", features.shape[1:2]), ("size", features.shape[2:])):
        if None in axes:
            raise ValueError(
                f"features has unknown {name}: the shape is {features.shape}; only the batch may "
                "be unknown (tf.ensure_shape sets the others)."
            )
    if rank > 3:
        batch = tf.shape(features)[0]
        features = tf.reshape(features, [batch, features.shape[1], -1])  # [B, V, D]
    return features


def log_denominator(anchors, all_features, first, block_size):
    """log sum_{a in A(i)} exp(s_ia) of each anchor. [B, A, D], [N, V, D] -> [B, A]."""
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


def class_sums(classes, all_features, first, features, block_size):
    """Of each example's class, its own views included: the sum of the rows, and how many.

    `classes` are those of all examples as `class_index` numbers them, or bool [N, C], or None.
    Returns float32 [B, D] and [B].
    """
    batch, num_views = length(features), features.shape[1]
    if classes is None:
        return tf.reduce_sum(features, axis=1), tf.fill([batch], float(num_views))
    totals = tf.reduce_sum(all_features, axis=1)  # [N, D]
    # The last column counts. Not by tf.pad, whose constant tf.vectorized_map takes for 0.
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
    """Eq. 2 from the sum of the rows of each example's class. -> [B, A]."""
    num_positives = counts[:, None] - 1.0  # [B, 1]
    similarity = tf.reduce_sum(anchors * (sums[:, None] - anchors), axis=-1)  # [B, A]
    mean_similarity = similarity / tf.maximum(num_positives, 1.0)
    return tf.where(num_positives > 0.0, denominator - mean_similarity, 0.0)


def losses_with_masks(
    anchors, all_features, all_labels, first, *, anchor_losses, max_related, block_size, **options
):
    """anchor_losses(logits, positive, negative, **options), for as many examples as fit: [B, A]."""
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
    """How many examples to compare with all contrasts at a time."""
    if block_size is None:
        block_size = _MASKED_ELEMENTS // num_contrasts
    examples = block_size // num_anchors
    return max(examples, 1) if isinstance(examples, int) else tf.maximum(examples, 1)


def _flatten_contrasts(tensor):
    """[B, A, N, V] -> [B, A, N V]."""
    shape = tf.shape(tensor)
    return tf.reshape(tensor, [shape[0], shape[1], shape[2] * shape[3]])


def _anchor_losses(logits, positive, negative, *, summation_location, denominator_mode):
    """The loss of each anchor from its logits and two disjoint masks. [B, A, K] -> [B, A]."""
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
    is_defined = denominator != float("-inf")  # True for NaN, which must show in the loss
    counts &= tf.reduce_any(is_defined, axis=-1)
    log_prob = logits - tf.where(is_defined, denominator, 0.0)  # [B, A, K]

    safe_count = tf.where(counts, num_positives, 1.0)
    if summation_location == "outside":
        losses = -tf.reduce_sum(tf.where(positive, log_prob, 0.0), axis=-1) / safe_count
    else:
        total = masked_logsumexp(log_prob, positive)
        losses = tf.math.log(safe_count) - tf.where(counts, total, 0.0)
    return tf.where(counts, losses, 0.0)
