"""Embeddings of the training images, for a linear stage in steps whose views are not random.

Without augmentation, the frozen encoder would compute the same embedding of an image in every
epoch. It is computed once instead, and the steps train on the embeddings.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf.data import crops, feature_batches, sources, streams
from supcon_tf.evaluation import linear_fit
from supcon_tf.stages import inputs


@dataclasses.dataclass(frozen=True)
class FrozenFeatures:
    """The embeddings [M, F] of all training examples, and their labels [M, ...]."""

    embeddings: np.ndarray
    labels: np.ndarray

    def create_batches(
        self,
        flags: FlagValues,
        strategy: tf.distribute.Strategy,
        start_step: int,
        host: int,
        num_hosts: int,
    ) -> tf.data.Dataset:
        """Creates the training batches of one host, starting at a step."""
        return feature_batches.create_feature_batches(
            self.embeddings,
            self.labels,
            batch_size=flags.batch_size,
            seed=flags.seed,
            start_step=start_step,
            class_balanced=flags.class_balanced,
            num_replicas=strategy.num_replicas_in_sync,
            host=host,
            num_hosts=num_hosts,
        )


def can_be_used(
    flags: FlagValues,
    encoder: keras.Model,
    source: sources.Source,
    views: inputs.Views,
    *,
    num_classes: int,
    steps_left: int,
) -> bool:
    """Returns whether a linear stage can train on embeddings, and is shorter that way.

    The views must not be random, the embeddings must fit in memory, and more than an epoch must be
    left. Streams are shuffled in another way than embeddings would be, so they are not embedded.
    """
    is_stream = isinstance(source, streams.StreamSource)
    if is_stream or flags.data_service or (flags.class_balanced and source.label_type != "class"):
        return False
    is_random = views.policy.steps or inputs.horizontal_flip_from_flags(flags)
    is_random = is_random or tuple(views.crop_area_range) != (1.0, 1.0)
    is_random = is_random or flags.crop_compat != "reference"  # See `crops.central_train_crop`.
    count, num_features = source.num_examples, encoder.output_shape[-1]
    return (
        not is_random
        and steps_left * flags.batch_size > count
        and linear_fit.fit_bytes(count, num_features, num_classes) <= linear_fit.MAX_BYTES
    )


def training_crop(views: inputs.Views) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the crop of training, uint8 [H, W, 3] -> uint8 [S, S, 3].

    Where arrays are resized, the result is within one level of the views of training.
    """
    return functools.partial(
        crops.central_train_crop, size=views.image_size, compat=views.policy.compat
    )
