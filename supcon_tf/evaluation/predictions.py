"""Applies a Keras model to every example of a dataset exactly once, on any number of replicas."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from supcon_tf import collectives
from supcon_tf.evaluation import metrics
from supcon_tf.models import pixel_values


def evaluate_classifier(
    classifier: keras.Model,
    dataset: tf.data.Dataset,
    *,
    batch_size: int = 256,
    strategy: tf.distribute.Strategy | None = None,
) -> dict:
    """Computes `metrics.classification_metrics` over all examples of a dataset.

    Args:
        classifier: A model float32 [B, S, S, 3] in 0..255 -> logits [B, C].
        dataset: A dataset that `eval_batches` accepts.
        batch_size: The global batch size, divisible by the number of replicas.
        strategy: The strategy in whose scope the classifier was created. None means the current
            strategy.

    Raises:
        ValueError: If the dataset is empty, or the labels or logits are invalid.
    """
    logits, labels = predict(
        strategy or tf.distribute.get_strategy(),
        lambda images: classifier(images, training=False),
        eval_batches(dataset, batch_size=batch_size),
    )
    return metrics.classification_metrics(logits, labels)


def evaluate_embeddings(
    encoder: keras.Model,
    train_dataset: tf.data.Dataset,
    test_dataset: tf.data.Dataset,
    *,
    batch_size: int = 256,
    strategy: tf.distribute.Strategy | None = None,
) -> dict[str, float]:
    """Evaluates a frozen encoder with k-NN and a linear probe (`metrics.embedding_metrics`).

    Args:
        encoder: A model float32 [B, S, S, 3] in 0..255 -> float32 [B, F].
        train_dataset, test_dataset: Datasets that `eval_batches` accepts. All embeddings must fit
            in memory.
        batch_size, strategy: See `evaluate_classifier`.
    """
    sets: list[np.ndarray] = []
    for dataset in (train_dataset, test_dataset):
        sets += predict(
            strategy or tf.distribute.get_strategy(),
            lambda images: encoder(images, training=False),
            eval_batches(dataset, batch_size=batch_size),
        )
    return metrics.embedding_metrics(*sets)


def eval_batches(dataset: tf.data.Dataset, *, batch_size: int) -> tf.data.Dataset:
    """Creates batches of equal size, with example indices, from a finite dataset.

    Args:
        dataset: Examples ([S, S, 3], label) or batches ([B, S, S, 3], labels [B, ...]) with
            images in 0..255 and class numbers or multi-hot labels. The result of this function
            or of `pipeline.create_eval_batches` is returned unchanged.
        batch_size: B.

    Returns:
        A dataset of {"image": [B, S, S, 3], "label": [B, ...], "index": int32 [B]}. The last batch
        is padded with zeros, whose index is -1.

    Raises:
        ValueError: If the elements have another structure or shape.
    """
    spec = dataset.element_spec
    if isinstance(spec, dict) and {"image", "label", "index"} <= set(spec):
        return dataset
    is_pair = isinstance(spec, tuple) and len(spec) == 2
    shape = spec[0].shape if is_pair else None
    if shape is None or shape.rank not in (3, 4) or None in shape[-3:]:
        raise ValueError(
            "Expected a dataset of (image, label) or of batches of such pairs, with images "
            f"[S, S, 3] of one static size, got {spec}."
        )
    examples = dataset if shape.rank == 3 else dataset.unbatch()

    @tf.autograph.experimental.do_not_convert
    def fill(index, example):
        image, label = example
        missing = batch_size - tf.shape(index)[0]

        def pad(tensor, value=0):
            paddings = [[0, missing]] + [[0, 0]] * (tensor.shape.rank - 1)
            padded = tf.pad(tensor, paddings, constant_values=value)
            return tf.ensure_shape(padded, [batch_size, *tensor.shape[1:]])

        index = pad(tf.cast(index, tf.int32), value=-1)
        return {"image": pad(image), "label": pad(label), "index": index}

    batches = pixel_values.check_input(examples.enumerate().batch(batch_size).map(fill))
    return batches.prefetch(tf.data.AUTOTUNE)


def predict(
    strategy: tf.distribute.Strategy,
    function: Callable,
    batches: tf.data.Dataset | Callable,
    *,
    count: Callable[[int], None] | None = None,
) -> tuple:
    """Applies a function to every example of `eval_batches`, in order.

    Args:
        strategy: The strategy whose replicas share each batch.
        function: Maps images float32 [B, S, S, 3] in 0..255 to [B, K], or to a dict of such
            tensors.
        batches: A dataset of global batches, whose size the number of replicas divides. Or a
            function of `host` and `num_hosts` that returns one host's share of each batch, so
            that no host reads data that it does not need.

    Returns:
        The results [M, K], or a dict of such arrays, and the labels [M, ...].

    Raises:
        ValueError: If there are no examples.
    """
    parts = []
    for part in create_predictor(strategy, function)(batches):
        parts.append(part)
        if count is not None:
            count(len(part[0]))
    return in_order(parts)


def ordered(parts: Iterable[tuple]) -> Iterator[tuple]:
    """The parts that a predictor yields, each sorted by example.

    Yields:
        (index, results, labels), where the indices of all parts together are 0, 1, 2, ...
    """
    done = 0
    for part in parts:
        order = np.argsort(part[0])
        part = tf.nest.map_structure(lambda x: x[order], part)  # noqa: B023
        assert np.array_equal(part[0], np.arange(done, done + len(order)))
        done += len(order)
        yield part


def in_order(parts: Iterable[tuple]) -> tuple:
    """Concatenates the parts of a predictor: results and labels in the order of the examples."""
    parts = list(parts)
    if not parts:
        raise ValueError("There are no examples to evaluate: the dataset is empty.")
    index, outputs, labels = tf.nest.map_structure(lambda *x: np.concatenate(x), *parts)
    order = np.argsort(index)
    return tf.nest.map_structure(lambda x: x[order], (outputs, labels))


def create_predictor(strategy: tf.distribute.Strategy, function: Callable) -> Callable:
    """Returns a function from batches to parts (index [B], results, labels [B]).

    The function is traced once for batches of the same shapes and types, so it can be called
    repeatedly while a model trains. Pass the same `batches` object each time: every new object is
    distributed again, which leaks a little memory. The padding of the last batch is removed. The
    examples of a part can be in any order. See `predict` for the arguments.
    """

    @tf.function(autograph=False)
    def predict_batch(batch):
        def on_replica(batch):
            results = function(tf.cast(batch["image"], tf.float32))
            # Gather from the replicas of all workers, so that each worker has all results.
            parts = batch["index"], results, batch["label"]
            return tf.nest.map_structure(collectives.gather, parts)

        per_replica = strategy.run(on_replica, args=(batch,))
        return tf.nest.map_structure(
            lambda x: strategy.experimental_local_results(x)[0], per_replica
        )

    distribute_once = functools.cache(functools.partial(_distribute, strategy))

    def predictions(batches) -> Iterator[tuple]:
        distributed = distribute_once(batches)
        # Trace explicitly, because TensorFlow warns about functions that are retraced for datasets.
        traced = predict_batch.get_concrete_function(distributed.element_spec)
        for batch in distributed:
            gathered = tf.nest.map_structure(lambda x: x.numpy(), traced(batch))
            kept = gathered[0] >= 0
            if kept.any():
                yield tf.nest.map_structure(lambda x: x[kept], gathered)  # noqa: B023

    return predictions


def _distribute(strategy, batches):
    """Distributes a dataset, or a function of hosts, over the replicas."""
    if strategy.num_replicas_in_sync == 1:
        # Each pass over a distributed dataset leaks about 60 kB (TensorFlow 2.21). A plain dataset
        # does not.
        return batches() if callable(batches) else batches
    if callable(batches):

        def of_host(context):
            num_hosts = context.num_input_pipelines
            share = batches(host=context.input_pipeline_id, num_hosts=num_hosts)
            size = share.element_spec["label"].shape[0]
            replicas = strategy.num_replicas_in_sync // num_hosts
            return share.rebatch(size // replicas, drop_remainder=True)

        return strategy.distribute_datasets_from_function(of_host)
    # Shard by examples. Otherwise the hosts would share a TFDS dataset by files.
    options = tf.data.Options()
    sharding = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = sharding
    return strategy.experimental_distribute_dataset(batches.with_options(options))
