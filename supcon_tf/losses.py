"""The supervised contrastive loss as a function and as a Keras loss."""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from supcon_tf import distribute

CONTRAST_MODES = ("all_views", "one_view")
SUMMATION_LOCATIONS = ("outside", "inside")
DENOMINATOR_MODES = ("all", "one_positive", "only_negatives")


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
) -> tf.Tensor:
    """The supervised contrastive loss of each example, against the global batch.

    With anchor i, A(i) every other row, P(i) the rows of A(i) that share a class with i,
    and s_ia = z_i . z_a / temperature (Khosla et al. 2020):

        outside (Eq. 2):  L_i = -1/|P(i)| sum_{p in P(i)} log( exp(s_ip) / denominator )
        inside  (Eq. 3):  L_i = -log( 1/|P(i)| sum_{p in P(i)} exp(s_ip) / denominator )

        denominator "all":             sum_{a in A(i)} exp(s_ia)
                    "one_positive":    exp(s_ip) + sum_{a in A(i), a not in P(i)} exp(s_ia)
                    "only_negatives":  sum_{a in A(i), a not in P(i)} exp(s_ia)

    Inside a replica of a `tf.distribute` strategy the contrasts are the examples of all
    replicas, with gradients through the gather. An anchor without positives, or whose
    denominator is empty, contributes 0 and is counted. The reference implementation divides
    by |P(i)| a second time when there is one view; that is an error and is not repeated here.

    Args:
        labels: integers [B] or [B, 1] (floats that hold integers will do), one-hot or multi-hot
            [B, C] (any non-zero entry is a class; positives share at least one), or None: an
            example's only positives are its own other views (SimCLR).
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

    Returns:
        float32 [B]: per example, the mean over its anchor views.

    Raises:
        ValueError: for a shape or an option that does not fit.
    """
    _check_options(temperature, contrast_mode, summation_location, denominator_mode)
    features = _as_views(features)
    labels = _as_class_labels(labels, features)
    num_views = features.shape[1]
    if positives_cap != -1 and (positives_cap < 0 or positives_cap % num_views):
        raise ValueError(
            f"positives_cap={positives_cap} must be -1 (no cap) or a multiple of the number of "
            f"views, {num_views}."
        )
    if normalize:
        features = l2_normalize(features)

    all_features = distribute.gather(features)  # [N, V, D]
    own, same_class = _sample_relations(labels, features)  # both [B, N]
    positive = own | same_class
    negative = ~positive
    if positives_cap >= 0:
        rank = tf.cumsum(tf.cast(same_class & ~own, tf.int32), axis=1)  # 1 for the first
        positive = own | (same_class & (rank <= positives_cap // num_views))

    anchors = features[:, :1] if contrast_mode == "one_view" else features  # [B, A, D]
    logits = tf.einsum("bad,nvd->banv", anchors, all_features) / temperature
    other = ~tf.linalg.eye(num_views, dtype=tf.bool)[: anchors.shape[1]]  # [A, V]
    is_self = own[:, None, :, None] & ~other[None, :, None, :]
    positive = positive[:, None, :, None] & ~is_self  # [B, A, N, V]
    negative = tf.broadcast_to(negative[:, None, :, None], tf.shape(logits))
    losses = _anchor_losses(
        _flatten_contrasts(logits),
        _flatten_contrasts(positive),
        _flatten_contrasts(negative),
        summation_location=summation_location,
        denominator_mode=denominator_mode,
    )  # [B, A]
    losses = tf.reduce_mean(losses, axis=1)
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

    Example:

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
        use_labels: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "supcon_loss",
    ):
        super().__init__(name=name, reduction=reduction)
        _check_options(temperature, contrast_mode, summation_location, denominator_mode)
        self.temperature = temperature
        self.contrast_mode = contrast_mode
        self.summation_location = summation_location
        self.denominator_mode = denominator_mode
        self.positives_cap = positives_cap
        self.scale_by_temperature = scale_by_temperature
        self.normalize = normalize
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


def _check_options(temperature, contrast_mode, summation_location, denominator_mode):
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0; the paper uses 0.1.")
    for name, value, allowed in (
        ("contrast_mode", contrast_mode, CONTRAST_MODES),
        ("summation_location", summation_location, SUMMATION_LOCATIONS),
        ("denominator_mode", denominator_mode, DENOMINATOR_MODES),
    ):
        if value not in allowed:
            raise ValueError(f"Invalid {name}={value!r}: choose one of {', '.join(allowed)}.")


def _as_views(features) -> tf.Tensor:
    features = tf.cast(tf.convert_to_tensor(features), tf.float32)
    rank = features.shape.rank
    if rank is None or rank < 2:
        raise ValueError(
            f"Invalid features rank: the shape is {features.shape}, expected [batch, views, "
            "features] or [batch, features]."
        )
    if rank == 2:
        return features[:, None, :]
    if features.shape[1] is None:
        raise ValueError(
            f"features has unknown num_views: the shape is {features.shape}; use a fixed number "
            "of views (tf.ensure_shape sets it)."
        )
    if rank > 3:
        batch = tf.shape(features)[0]
        features = tf.reshape(features, [batch, features.shape[1], -1])  # [B, V, D]
    return features


def _as_class_labels(labels, features) -> tf.Tensor | None:
    """Class numbers [B], or memberships bool [B, C], or None."""
    if labels is None:
        return None
    labels = tf.convert_to_tensor(labels)
    rank = labels.shape.rank
    if rank not in (1, 2):
        raise ValueError(
            f"Invalid labels shape {labels.shape}: expected class numbers [batch] or [batch, 1], "
            "or one-hot or multi-hot [batch, classes]."
        )
    batch, num_labels = features.shape[0], labels.shape[0]
    if batch is not None and num_labels is not None and batch != num_labels:
        raise ValueError(
            f"Invalid labels shape {labels.shape}: features {features.shape} hold {batch} "
            f"examples, the labels {num_labels}."
        )
    if rank == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    return labels if rank == 1 else labels != 0


def _sample_relations(labels, features) -> tuple[tf.Tensor, tf.Tensor]:
    """For local example b and global example n: are they the same one, do they share a class?"""
    batch = tf.shape(features)[0]
    row = distribute.replica_offset(batch) + tf.range(batch)
    own = row[:, None] == tf.range(batch * distribute.num_replicas())  # [B, N]
    if labels is None:
        return own, own
    all_labels = distribute.gather(labels)
    if labels.shape.rank == 1:
        return own, labels[:, None] == all_labels[None, :]
    shared = tf.matmul(
        tf.cast(labels, tf.float32), tf.cast(all_labels, tf.float32), transpose_b=True
    )
    return own, shared > 0.0


def _flatten_contrasts(tensor):
    """[B, A, N, V] -> [B, A, N V]."""
    shape = tf.shape(tensor)
    return tf.reshape(tensor, [shape[0], shape[1], shape[2] * shape[3]])


def _masked_logsumexp(logits, mask):
    """Row-wise log sum exp over the entries of the mask; -inf for an empty row. [..., K] -> [...].

    Entries outside the mask take no part in the maximum, so a large one cannot hide the others.
    """
    largest = tf.reduce_max(tf.where(mask, logits, logits.dtype.min), axis=-1, keepdims=True)
    largest = tf.stop_gradient(largest)
    terms = tf.where(mask, tf.exp(tf.where(mask, logits - largest, 0.0)), 0.0)
    total = tf.reduce_sum(terms, axis=-1)
    is_empty = total == 0.0
    result = tf.math.log(tf.where(is_empty, 1.0, total)) + largest[..., 0]
    return tf.where(is_empty, float("-inf"), result)


def _anchor_losses(logits, positive, negative, *, summation_location, denominator_mode):
    """The loss of each anchor from its logits and two disjoint masks. [B, A, K] -> [B, A]."""
    num_positives = tf.reduce_sum(tf.cast(positive, tf.float32), axis=-1)  # [B, A]
    counts = num_positives > 0
    if denominator_mode == "all":
        denominator = _masked_logsumexp(logits, positive | negative)[..., None]
    else:
        denominator = _masked_logsumexp(logits, negative)[..., None]
        if denominator_mode == "one_positive":
            has_negatives = tf.math.is_finite(denominator)
            others = tf.where(has_negatives, denominator, 0.0)
            denominator = tf.where(
                has_negatives, others + tf.math.softplus(logits - others), logits
            )
    is_defined = tf.math.is_finite(denominator)
    counts &= tf.reduce_any(is_defined, axis=-1)
    log_prob = logits - tf.where(is_defined, denominator, 0.0)  # [B, A, K]

    safe_count = tf.where(counts, num_positives, 1.0)
    if summation_location == "outside":
        losses = -tf.reduce_sum(tf.where(positive, log_prob, 0.0), axis=-1) / safe_count
    else:
        total = _masked_logsumexp(log_prob, positive)
        losses = tf.math.log(safe_count) - tf.where(counts, total, 0.0)
    return tf.where(counts, losses, 0.0)
