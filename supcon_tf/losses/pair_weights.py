"""How much two examples are positives of each other: a weight from 0 to 1 instead of yes or no.

`pair_weights` of `supcon_loss` is one of `PAIR_WEIGHTS` or any function

    weights(labels_i [b, ...], labels_j [n, ...]) -> [b, n], float32 from 0 to 1

It is called for one block of examples at a time, so that the matrix of all weights never exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from supcon_tf import collectives
from supcon_tf.losses.class_labels import is_nan_label
from supcon_tf.losses.row_blocks import length

PairWeights = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class WeightsOfPairs(NamedTuple):
    """The weights of a batch.

    Attributes:
        of_others: Takes positions int32 [b] among this replica's examples and returns their
            weights with all examples float32 [b, N]; 0 for an example with itself.
        of_own: float32 [B], the weight of two views of the same example.
        is_known: float32 [N], 0 for examples with a NaN label, whose weights with others do not
            count; or None.
    """

    of_others: Callable[[tf.Tensor], tf.Tensor]
    of_own: tf.Tensor
    is_known: tf.Tensor | None


@keras.saving.register_keras_serializable(package="supcon_tf")
def jaccard(labels_i: tf.Tensor, labels_j: tf.Tensor) -> tf.Tensor:
    """Several labels per example: the labels that two examples share, over those that either has.

    Two examples without labels share nothing: 0.

    Args:
        labels_i: Multi-hot [b, C]; an entry counts if it is not zero.
        labels_j: Multi-hot [n, C].
    """
    return _jaccard_of_memberships(_memberships(labels_i), _memberships(labels_j))


def _memberships(labels):
    return tf.cast(tf.cast(labels, tf.bool), tf.float32)


def _jaccard_of_memberships(i, j):
    shared = tf.matmul(i, j, transpose_b=True)
    either = tf.reduce_sum(i, axis=1)[:, None] + tf.reduce_sum(j, axis=1)[None, :] - shared
    return shared / tf.maximum(either, 1.0)


@keras.saving.register_keras_serializable(package="supcon_tf")
def hierarchy(labels_i: tf.Tensor, labels_j: tf.Tensor) -> tf.Tensor:
    """A tree of classes: the depth of the common ancestor, over the number of levels.

    Args:
        labels_i: Class numbers [b, levels], from coarse to fine.
        labels_j: Class numbers [n, levels].
    """
    num_levels = labels_i.shape[1]
    share_all = depth = None
    for level in range(num_levels):
        same = tf.equal(labels_i[:, level][:, None], labels_j[:, level][None, :])
        share_all = same if share_all is None else share_all & same
        one = tf.cast(share_all, tf.int8)  # A quarter of the memory of float32 is faster.
        depth = one if depth is None else depth + one
    return tf.cast(depth, tf.float32) / num_levels


@keras.saving.register_keras_serializable(package="supcon_tf")
class HierarchyOfClasses:
    """`hierarchy` for labels that are numbers of classes at the finest level.

    Args:
        levels: For each class, its class at every level, from coarse to fine [C, levels].
    """

    def __init__(self, levels: Sequence[Sequence[int]]) -> None:
        self.levels = [list(map(int, of_class)) for of_class in levels]

    def __call__(self, labels_i: tf.Tensor, labels_j: tf.Tensor) -> tf.Tensor:
        """Class numbers [b] and [n] -> [b, n]."""
        levels = tf.constant(self.levels, tf.int32)
        i, j = (tf.gather(levels, tf.cast(labels, tf.int32)) for labels in (labels_i, labels_j))
        return hierarchy(i, j)

    def get_config(self) -> dict:
        return {"levels": self.levels}

    @classmethod
    def from_config(cls, config: dict) -> HierarchyOfClasses:
        """The weights of a config of `get_config`."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="supcon_tf")
class GaussianWeights:
    """Real targets, such as an age or a dose: exp(-|y_i - y_j|^2 / (2 bandwidth^2)).

    This is the kernel of y-aware InfoNCE (Dufumier et al. 2021,
    https://arxiv.org/abs/2106.08808). Pass an angle as its cosine and sine [B, 2], so that 359
    degrees and 1 degree are close.

    Args:
        bandwidth: In the units of the targets. At this distance the weight is 0.61.
    """

    has_no_zeros = True  # No pair is a negative.

    def __init__(self, bandwidth: float = 1.0) -> None:
        if not bandwidth > 0:
            raise ValueError(
                f"bandwidth={bandwidth} must be greater than 0, in the units of the targets."
            )
        self.bandwidth = float(bandwidth)

    def __call__(self, labels_i: tf.Tensor, labels_j: tf.Tensor) -> tf.Tensor:
        """Targets [b] and [n], or [b, T] and [n, T] -> [b, n]."""
        i, j = (
            tf.cast(labels, tf.float32) / (math.sqrt(2.0) * self.bandwidth)
            for labels in (labels_i, labels_j)
        )
        if i.shape.rank == 1:
            return tf.exp(-tf.math.squared_difference(i[:, None], j[None, :]))
        squares = [
            tf.math.squared_difference(i[:, target][:, None], j[:, target][None, :])
            for target in range(i.shape[1])
        ]
        return tf.exp(-tf.add_n(squares))

    def get_config(self) -> dict:
        return {"bandwidth": self.bandwidth}

    @classmethod
    def from_config(cls, config: dict) -> GaussianWeights:
        """The weights of a config of `get_config`."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="supcon_tf")
def soft(labels_i: tf.Tensor, labels_j: tf.Tensor) -> tf.Tensor:
    """Distributions over classes: the probability that two examples have the same class.

    For mixup, label smoothing, or the votes of several annotators.

    Args:
        labels_i: Probabilities [b, C].
        labels_j: Probabilities [n, C].
    """
    i, j = (tf.cast(labels, tf.float32) for labels in (labels_i, labels_j))
    return tf.matmul(i, j, transpose_b=True)


# "mask" is not a function of two labels: its labels are the weights themselves.
_FUNCTIONS = {
    "jaccard": _jaccard_of_memberships,
    "hierarchy": hierarchy,
    "gaussian": GaussianWeights(),
    "soft": soft,
}
_EXPECTED = {
    "jaccard": "multi-hot labels [batch, classes]",
    "hierarchy": "class numbers [batch, levels], from coarse to fine",
    "gaussian": "real targets [batch] or [batch, targets]",
    "soft": "probabilities [batch, classes]",
    "mask": "a mask [batch, global batch]",
}


def weights_by_block(
    pair_weights: str | PairWeights,
    labels: tf.Tensor,
    *,
    first: int | tf.Tensor,
    num_examples: int | tf.Tensor,
) -> WeightsOfPairs:
    """Prepares the weights of a batch, to be computed for one block of examples at a time.

    An example whose label is or contains NaN has a weight of 0 with every other example. Two views
    of one example have the weight 1; a mask says it itself.

    Args:
        pair_weights: A name or a function, see above. With "mask" the labels of an example are
            its row of the mask, whose columns are the examples of the global batch.
        labels: [B, ...] of this replica.
        first: Index of this replica's first example in the global batch.
        num_examples: N.

    Raises:
        ValueError: The labels do not have the form that the weights need.
    """
    labels = tf.convert_to_tensor(labels)
    _check_labels_for(pair_weights, labels)
    is_known = None
    if pair_weights == "mask":
        weights_of, of_own = _rows_of_mask(labels, first, num_examples)
    else:
        of_own = tf.ones([length(labels)])
        if labels.dtype.is_floating:
            is_known = tf.cast(~is_nan_label(collectives.gather(labels)), tf.float32)
            labels = _without_nan(labels)
        if pair_weights == "jaccard":  # Once, and not for every block.
            labels = _memberships(labels)
        function = _FUNCTIONS[pair_weights] if isinstance(pair_weights, str) else pair_weights
        weights_of = _rows_of_function(function, labels, first)

    def of_others(position):
        weights = weights_of(position)
        own = tf.stack([tf.range(length(position)), first + position], axis=1)
        # Faster than tf.where with a mask of all pairs.
        return tf.tensor_scatter_nd_update(weights, own, tf.zeros([length(position)]))

    return WeightsOfPairs(of_others, of_own, is_known)


def _rows_of_mask(mask, first, num_examples):
    if isinstance(num_examples, int) and mask.shape[1] not in (None, num_examples):
        raise ValueError(
            f"Invalid mask of shape {mask.shape}: with pair_weights='mask' it needs one column "
            f"for each of the {num_examples} examples of the global batch."
        )
    mask = tf.cast(mask, tf.float32)
    mask = _without_nan(mask)
    own = first + tf.range(length(mask))
    return lambda position: tf.gather(mask, position), tf.gather(mask, own, axis=1, batch_dims=1)


def _rows_of_function(function, labels, first):
    all_labels = collectives.gather(labels)

    def weights_of(position):
        labels = tf.gather(all_labels, first + position)
        weights = tf.cast(function(labels, all_labels), tf.float32)
        if weights.shape.rank != 2:
            raise ValueError(
                f"pair_weights={function!r} returned the shape {weights.shape}: expected a weight "
                "for each pair, [b, n]."
            )
        return weights

    return weights_of


def _without_nan(labels):
    return tf.where(tf.math.is_nan(labels), tf.zeros_like(labels), labels)


def _check_labels_for(pair_weights, labels):
    if labels.dtype == tf.string:
        raise ValueError("Invalid labels of type string: expected numbers.")
    if not isinstance(pair_weights, str):
        return
    ranks = (1, 2) if pair_weights == "gaussian" else (2,)
    if labels.shape.rank not in ranks:
        raise ValueError(
            f"Invalid labels shape {labels.shape}: pair_weights={pair_weights!r} needs "
            f"{_EXPECTED[pair_weights]}."
        )


def serialized(pair_weights: str | PairWeights | None) -> str | dict | None:
    """The weights as a config of Keras: a name unchanged, a registered function by its name.

    Raises:
        ValueError: Keras could not find the function again.
    """
    if pair_weights is None or isinstance(pair_weights, str):
        return pair_weights
    kind = pair_weights if hasattr(pair_weights, "__name__") else type(pair_weights)
    if ">" not in keras.saving.get_registered_name(kind):
        raise ValueError(
            f"pair_weights={pair_weights!r} cannot be saved, because Keras could not find it "
            "again. Define it with @keras.saving.register_keras_serializable(package='my_package')."
        )
    return keras.saving.serialize_keras_object(pair_weights)


def deserialized(config: str | dict | PairWeights | None) -> str | PairWeights | None:
    """The weights that `serialized` turned into a config."""
    return keras.saving.deserialize_keras_object(config) if isinstance(config, dict) else config
