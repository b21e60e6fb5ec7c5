"""Training batches of embeddings that were computed once."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from supcon_tf.data.batch_plan import BatchPlan


def create_feature_batches(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    class_balanced: bool = False,
    num_replicas: int = 1,
    host: int = 0,
    num_hosts: int = 1,
) -> tf.data.Dataset:
    """Creates endless shuffled batches in the order of `pipeline.create_train_batches`.

    Arrays and files come in that order. Streams do not.

    Args:
        features: float32 [M, F].
        labels: [M, ...].
        batch_size, seed, start_step, class_balanced, num_replicas, host, num_hosts: see
            `pipeline.create_train_batches`.

    Returns:
        A dataset of {"image": float32 [B, 1, F], "label": [B, ...]} with the features in place of
        the images.
    """
    rows = batch_size // num_hosts
    plan = BatchPlan(
        num_examples=len(features),
        batch_size=batch_size,
        first_row=host * rows,
        num_rows=rows,
        seed=seed,
        balanced_labels=labels if class_balanced else None,
    )
    kept_features, kept_labels = tf.constant(features), tf.constant(labels)

    @tf.autograph.experimental.do_not_convert
    def batch(step):
        index = plan.index(step)
        chosen = tf.gather(kept_features, index)[:, None]
        return {"image": chosen, "label": tf.gather(kept_labels, index)}

    batches = tf.data.Dataset.range(start_step, tf.int64.max).map(batch)
    if num_replicas > num_hosts:
        batches = batches.rebatch(batch_size // num_replicas, drop_remainder=True)
    return batches.prefetch(tf.data.AUTOTUNE)
