"""The supervised contrastive loss as a function and as a Keras loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from supcon_tf import collectives
from supcon_tf.losses import pair_weights as weights_of_pairs
from supcon_tf.losses.blockwise import (
    LARGEST_SAFE_LOGIT,
    is_safe_without_maximum,
    masked_logsumexp,
)
from supcon_tf.losses.class_labels import (
    are_numbers,
    as_class_labels,
    class_index,
    nan_where_label_is_nan,
)
from supcon_tf.losses.features import as_views, l2_normalize
from supcon_tf.losses.masked import Pairs, losses_with_masks
from supcon_tf.losses.options import SupConOptions
from supcon_tf.losses.pair_sums import class_shares, class_sums, log_denominator, weighted_sums
from supcon_tf.losses.row_blocks import length, recomputing_cond


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
    epsilon: float = 0.0,
    pair_weights: str | Callable | None = None,
    spread_weight: float = 0.0,
    denominator_weighting: str = "example",
    cache_mb: float = 192.0,
) -> tf.Tensor:
    """The supervised contrastive loss of each example, contrasted with the global batch.

    With anchor i, A(i) every other row, P(i) the rows of A(i) that share a class with i,
    and s_ia = z_i . z_a / temperature (Khosla et al. 2020, https://arxiv.org/abs/2004.11362):

        outside (Eq. 2):  L_i = -1/|P(i)| sum_{p in P(i)} log( exp(s_ip) / denominator )
        inside  (Eq. 3):  L_i = -log( 1/|P(i)| sum_{p in P(i)} exp(s_ip) / denominator )

        denominator "all":             sum_{a in A(i)} exp(s_ia)
                    "one_positive":    exp(s_ip) + sum_{a in A(i), a not in P(i)} exp(s_ia)
                    "only_negatives":  sum_{a in A(i), a not in P(i)} exp(s_ia)

    The similarities are computed in blocks, and again for the gradient if they do not fit into
    the cache, so memory is linear in the batch size for every option. Eq. 2 with all positives
    needs no mask:

        L_i = log sum_{a in A(i)} exp(s_ia)  -  z_i . (sum of z over the class of i  -  z_i)
                                                / (temperature |P(i)|)

    The other options change one factor each (docs/losses.md says when to use which):

        epsilon:                exp(s_ip - epsilon) for the positives in the denominator
        pair_weights w:         sum_p w_ip log(...) / sum_p w_ip  for  1/|P(i)| sum_p log(...)
        denominator_weighting:  "class" divides each exp(s_ia) in it by |B_c|, the number of rows
                                of the class of a in the batch
        spread_weight:          (1 - spread_weight) L_i  -  spread_weight
                                * log( exp(s_io) / sum_{p in P(i)} exp(s_ip) )
                                with o the other view of the example, the mean over several

    Inside a replica of a `tf.distribute` strategy the contrasts are the examples of all
    replicas, and gradients flow through the gather. An anchor without positives, or with an
    empty denominator, has a loss of 0 and still counts in the mean. The reference implementation
    divides by |P(i)| a second time when there is one view; that is an error and is not repeated
    here.

    Args:
        labels: Integers [B] or [B, 1] (or floats with integer values), one-hot or multi-hot
            [B, C] (positives share at least one nonzero entry), or None: the only positives of
            an example are its own other views (SimCLR). With `pair_weights`, what its function
            takes. An example with a NaN label has a NaN loss; the other examples treat it as the
            only member of its class.
        features: [B, V, D], or [B, D] for one view. Further axes are flattened into D. Any float
            type; the computation is in float32.
        temperature, contrast_mode, summation_location, denominator_mode, positives_cap,
            scale_by_temperature, normalize, block_size, epsilon, pair_weights, spread_weight,
            denominator_weighting, cache_mb: See `supcon_tf.losses.options.SupConOptions`.

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
        epsilon=epsilon,
        pair_weights=pair_weights,
        spread_weight=spread_weight,
        denominator_weighting=denominator_weighting,
        cache_mb=cache_mb,
    )
    return losses_of_examples(labels, features, options)


@keras.saving.register_keras_serializable(package="supcon_tf")
class SupConLoss(keras.losses.Loss):
    """`supcon_loss` as a Keras loss: `model.compile(loss=SupConLoss())`.

    The model outputs features [B, V, D] or [B, D]; labels are as for `supcon_loss`. Keras casts
    labels to float32 before the call, which is exact for class numbers below 2^24.

    Args:
        temperature, contrast_mode, summation_location, denominator_mode, positives_cap,
            scale_by_temperature, normalize, block_size, epsilon, pair_weights, spread_weight,
            denominator_weighting, cache_mb: See `supcon_tf.losses.options.SupConOptions`. Each is
            also an attribute.
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
        epsilon: float = 0.0,
        pair_weights: str | Callable | None = None,
        spread_weight: float = 0.0,
        denominator_weighting: str = "example",
        cache_mb: float = 192.0,
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
            epsilon=epsilon,
            pair_weights=weights_of_pairs.deserialized(pair_weights),
            spread_weight=spread_weight,
            denominator_weighting=denominator_weighting,
            cache_mb=cache_mb,
        )
        for field in dataclasses.fields(options):
            setattr(self, field.name, getattr(options, field.name))
        self.use_labels = use_labels

    @property
    def options(self) -> SupConOptions:
        """The options as one object, read from the attributes of the same names."""
        names = (field.name for field in dataclasses.fields(SupConOptions))
        return SupConOptions(**{name: getattr(self, name) for name in names})

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return losses_of_examples(y_true if self.use_labels else None, y_pred, self.options)

    def get_config(self) -> dict[str, Any]:
        options = self.options
        values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        values["pair_weights"] = weights_of_pairs.serialized(options.pair_weights)
        return {**super().get_config(), **values, "use_labels": self.use_labels}


def losses_of_examples(
    labels: tf.Tensor | None, features: tf.Tensor, options: SupConOptions
) -> tf.Tensor:
    """`supcon_loss` with its options as one object. -> float32 [B]."""
    features, given_labels = as_views(features), labels
    _check_views(features.shape[1], labels, options)
    if options.normalize:
        features = l2_normalize(features)
    # Both factors of a similarity are divided by the square root, so that they stay the same.
    features /= math.sqrt(options.temperature)
    losses = tf.reduce_mean(_losses_of_anchors(given_labels, features, options), axis=1)
    losses = nan_where_label_is_nan(losses, given_labels)  # [B]
    return losses * options.temperature if options.scale_by_temperature else losses


def collapse_loss(num_examples: int, num_views: int) -> float:
    """The loss of equal embeddings, before scaling by the temperature: ln(V N - 1).

    If all embeddings are equal, all similarities are equal too, so each positive has the
    probability 1 / (V N - 1) in Eq. 2. Holds if `SupConOptions.has_collapse_loss`.
    """
    return math.log(num_examples * num_views - 1)


def _check_views(num_views, labels, options):
    if labels is None and num_views == 1:
        raise ValueError(
            "Without labels the positives of an example are its other views, but there is only "
            "one view. Pass features [batch, views, features] with two or more views, as "
            "create_view_batches makes them, or pass labels (with SupConLoss: use_labels=True)."
        )
    if labels is None and options.pair_weights is not None:
        raise ValueError(
            f"pair_weights={options.pair_weights!r} weights pairs by their labels, but there are "
            "none. Pass labels (with SupConLoss: use_labels=True), or leave pair_weights out."
        )
    if options.spread_weight and (labels is None or num_views == 1):
        lacking = "there are no labels" if labels is None else "there is only one view"
        raise ValueError(
            f"spread_weight={options.spread_weight} contrasts the other views of an example with "
            f"its class, but {lacking}. Pass labels and features [batch, views, features] with "
            "two or more views, or use spread_weight=0."
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
    first = collectives.replica_offset(length(features))
    num_views = features.shape[1]
    num_anchors = 1 if options.contrast_mode == "one_view" else num_views
    classes, weights, column_weights = _what_labels_say(labels, features, all_features, options)
    is_spread_over_numbers = options.spread_weight > 0 and are_numbers(classes)
    needs_masks = options.needs_masks or (options.spread_weight > 0 and not is_spread_over_numbers)
    # If the features are not normalized, only their values tell whether the similarities are small.
    uses_cond = not options.normalize and not needs_masks

    def compare_without_masks(features, all_features):
        anchors = features[:, :num_anchors]  # [B, A, D]
        if weights is None:
            sums, counts = class_sums(classes, all_features, first, features, options.block_size)
            sums, counts = sums[:, None] - anchors, counts - 1.0  # Without the anchor itself.
        else:
            sums, counts = weighted_sums(weights, all_features, features, options.block_size)
            sums = sums[:, :num_anchors]
        denominator = log_denominator(
            anchors,
            all_features,
            first,
            options.block_size,
            cache_mb=options.cache_mb,
            column_weights=column_weights,
            classes=classes if is_spread_over_numbers else None,
            is_shared=not uses_cond,
        )
        if not is_spread_over_numbers:
            return _losses_from_sums(anchors, sums, counts, denominator)
        losses = _losses_from_sums(anchors, sums, counts, denominator[0])
        other_views = tf.reduce_sum(features, axis=1, keepdims=True) - anchors
        own = tf.reduce_sum(anchors * other_views, axis=-1) / (num_views - 1)  # [B, A]
        return _with_spread(losses, own, denominator[1], options.spread_weight)

    def compare_with_masks(features, all_features):
        cap = options.positives_cap
        return losses_with_masks(
            features[:, :num_anchors],
            all_features,
            classes,
            first,
            anchor_losses=_losses_from_logits,
            max_related=None if cap < 0 else cap // num_views,
            block_size=options.block_size,
            weights=weights,
            column_weights=column_weights,
            options=options,
        )

    if uses_cond:
        safe = is_safe_without_maximum(features, all_features)
        return recomputing_cond(
            safe, compare_without_masks, compare_with_masks, features, all_features
        )
    is_small = options.temperature * LARGEST_SAFE_LOGIT > 1
    if needs_masks or not is_small:
        return compare_with_masks(features, all_features)
    return compare_without_masks(features, all_features)


def _what_labels_say(labels, features, all_features, options):
    """What the loss takes from the labels.

    Returns:
        The classes of all examples, as `class_sums` takes them; the weights of pairs, or None;
        and the weight of each example's views in the denominator float32 [N], or None.
    """
    weights = None
    if options.pair_weights is not None:
        weights = weights_of_pairs.weights_by_block(
            options.pair_weights,
            labels,
            first=collectives.replica_offset(length(features)),
            num_examples=length(all_features),
        )
        if options.denominator_weighting == "example":
            return None, weights, None
    labels = as_class_labels(labels, features)
    classes = None if labels is None else collectives.gather(labels)
    is_by_class = options.denominator_weighting == "class"
    if is_by_class and not are_numbers(classes):
        raise ValueError(
            "denominator_weighting='class' averages over the examples of each class, so it needs "
            "one class per example: class numbers [batch], got "
            f"{'no labels' if labels is None else f'labels of shape {labels.shape}'}. Convert "
            "one-hot labels with np.argmax, or use denominator_weighting='example'."
        )
    # Here and not where it is needed, because in a tf.cond tf.vectorized_map cannot sort.
    if are_numbers(classes) and (is_by_class or not options.needs_masks):
        classes = class_index(classes)
    column_weights = class_shares(classes, features.shape[1]) if is_by_class else None
    return classes, weights, column_weights


def _losses_from_sums(anchors, sums, counts, denominator):
    """Eq. 2 of Khosla et al. 2020 from the sum of the positives of each anchor. -> [B, A].

        L_i = log sum_{a in A(i)} exp(s_ia)  -  1/|P(i)| sum_{p in P(i)} s_ip

    Args:
        anchors: [B, A, D].
        sums: Of the positives, or of all contrasts times their weights [B, A, D].
        counts: |P(i)|, or the sum of the weights [B].
        denominator: The first term [B, A].
    """
    counts = counts[:, None]
    similarity = tf.reduce_sum(anchors * sums, axis=-1)  # [B, A]
    mean_similarity = similarity / tf.where(counts > 0.0, counts, 1.0)
    return tf.where(counts > 0.0, denominator - mean_similarity, 0.0)


def _losses_from_logits(pairs: Pairs, *, options: SupConOptions) -> tf.Tensor:
    """Eq. 2 or Eq. 3 of Khosla et al. 2020 from logits and two disjoint masks.

    [B, A, K] -> [B, A]; `log_prob` is log( exp(s_ip) / denominator ).
    """
    logits, positive, negative = pairs.logits, pairs.positive, pairs.negative
    weights = tf.cast(positive, tf.float32)
    if pairs.weights is not None:
        weights *= pairs.weights
    total_weight = tf.reduce_sum(weights, axis=-1)  # |P(i)|, [B, A]
    counts = total_weight > 0

    terms = logits  # The logarithms of the terms of the denominator.
    if options.epsilon:
        terms = tf.where(positive, logits - options.epsilon, logits)
    if pairs.column_weights is not None:
        terms += tf.math.log(pairs.column_weights)
    if options.denominator_mode == "all":
        denominator = masked_logsumexp(terms, positive | negative)[..., None]
    else:
        denominator = masked_logsumexp(terms, negative)[..., None]
        if options.denominator_mode == "one_positive":
            has_negatives = denominator != float("-inf")
            others = tf.where(has_negatives, denominator, 0.0)
            denominator = tf.where(has_negatives, others + tf.math.softplus(terms - others), terms)
    is_defined = denominator != float("-inf")  # True for NaN, which must appear in the loss.
    counts &= tf.reduce_any(is_defined, axis=-1)
    log_prob = logits - tf.where(is_defined, denominator, 0.0)  # [B, A, K]

    safe_total = tf.where(counts, total_weight, 1.0)
    if options.summation_location == "outside":  # Eq. 2
        values = log_prob if pairs.weights is None else log_prob * pairs.weights
        losses = -tf.reduce_sum(tf.where(positive, values, 0.0), axis=-1) / safe_total
    else:  # Eq. 3
        if pairs.weights is not None:
            log_prob += tf.math.log(tf.where(positive, pairs.weights, 1.0))
        total = masked_logsumexp(log_prob, positive)
        losses = tf.math.log(safe_total) - tf.where(counts, total, 0.0)
    losses = tf.where(counts, losses, 0.0)
    if not options.spread_weight:
        return losses
    num_own = tf.reduce_sum(tf.cast(pairs.own_views, tf.float32), axis=-1)
    own = tf.reduce_sum(tf.where(pairs.own_views, logits, 0.0), axis=-1) / num_own
    of_class = masked_logsumexp(logits, positive | pairs.own_views)
    return _with_spread(losses, own, of_class, options.spread_weight)


def _with_spread(losses, own, log_class_sum, spread_weight):
    """Adds the class-conditional InfoNCE loss of Chen et al. 2022 (Section 4.1). -> [B, A].

        L_i = (1 - w) L_i  -  w log( exp(s_io) / sum_{p in P(i)} exp(s_ip) )

    Args:
        losses: Those of the supervised contrastive loss [B, A].
        own: s_io, the mean similarity to the other views of the example [B, A].
        log_class_sum: log sum_{p in P(i)} exp(s_ip) [B, A].
        spread_weight: w.
    """
    return (1.0 - spread_weight) * losses + spread_weight * (log_class_sum - own)
