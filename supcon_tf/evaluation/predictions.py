"""A Keras model over every example of a dataset, each once, on any number of replicas."""

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
    """The figures of `metrics.classification_metrics` over all examples of a dataset.

    Args:
        classifier: float32 [B, S, S, 3] in 0..255 -> logits [B, C].
        dataset: what `eval_batches` takes.
        batch_size: over all replicas, which divide it.
        strategy: under whose scope the classifier was made; None for the current one.

    Raises:
        ValueError: an empty dataset, or labels or logits that cannot be evaluated.
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
    """k-NN and linear probe on the frozen encoder: `metrics.embedding_metrics`.

    Args:
        encoder: float32 [B, S, S, 3] in 0..255 -> float32 [B, F].
        train_dataset, test_dataset: what `eval_batches` takes; all embeddings are in memory.
        batch_size, strategy: see `evaluate_classifier`.
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
    """Numbered batches of one shape from any finite dataset of (image, label).

    Args:
        dataset: examples ([S, S, 3], label) or batches ([B, S, S, 3], labels [B, ...]) of
            images in 0..255 and class numbers or multi-hot labels; or what this function or
            `pipeline.create_eval_batches` returns, which comes back as it is.
        batch_size: B.

    Returns:
        {"image": [B, S, S, 3], "label": [B, ...], "index": int32 [B]}. The last batch is filled
        up with zeros of index -1.

    Raises:
        ValueError: elements of another form.
    """
    spec = dataset.element_spec
    if isinstance(spec, dict) and {"image", "label", "index"} <= set(spec):
        return dataset
    is_pair = isinstance(spec, tuple) and len(spec) == 2
    shape = spec[0].shape if is_pair else None
    if shape is None or shape.rank not in (3, 4) or None in shape[-3:]:
        raise ValueError(
            "Expected a dataset of (image, label) or of batches of them, the images "
            f"[S, S, 3] of one static size; got {spec}."
        )
    examples = dataset if shape.rank == 3 else dataset.unbatch()

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
    strategy: tf.distribute.Strategy, function: Callable, batches: tf.data.Dataset | Callable
) -> tuple:
    """Applies a function to every example of `eval_batches`, in order.

    Args:
        strategy: splits each batch over its replicas.
        function: images float32 [B, S, S, 3] in 0..255 -> [B, K], or a dict of such.
        batches: of global batches that the replicas divide; or a function (host=, num_hosts=)
            -> that host's share of each, so that no host reads what it does not need.

    Returns:
        The results [M, K], or a dict of such, and the labels [M, ...].

    Raises:
        ValueError: there is no example.
    """
    return in_order(create_predictor(strategy, function)(batches))


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
    """Results and labels in the order of the examples, from what a predictor yields."""
    parts = list(parts)
    if not parts:
        raise ValueError("There is no example to evaluate: the dataset is empty.")
    index, outputs, labels = tf.nest.map_structure(lambda *x: np.concatenate(x), *parts)
    order = np.argsort(index)
    return tf.nest.map_structure(lambda x: x[order], (outputs, labels))


def create_predictor(strategy: tf.distribute.Strategy, function: Callable) -> Callable:
    """A function from the batches of `eval_batches` to parts (index [B], results, labels [B]).

    It is traced once for all calls on batches of one form, so it can be called on and on while
    a model trains; with the same `batches` each time, because a dataset is distributed once and
    every further one leaves some memory behind. What fills the last batch up is left out.
    Indices within a part come in any order. For the arguments see `predict`.
    """

    @tf.function
    def predict_batch(batch):
        def on_replica(batch):
            results = function(tf.cast(batch["image"], tf.float32))
            # Gathered from the replicas of all workers, so that each worker has all results.
            parts = batch["index"], results, batch["label"]
            return tf.nest.map_structure(collectives.gather, parts)

        per_replica = strategy.run(on_replica, args=(batch,))
        return tf.nest.map_structure(
            lambda x: strategy.experimental_local_results(x)[0], per_replica
        )

    distribute_once = functools.cache(functools.partial(_distribute, strategy))

    def predictions(batches) -> Iterator[tuple]:
        distributed = distribute_once(batches)
        # Traced here, because TensorFlow warns of functions that are traced anew for every dataset.
        traced = predict_batch.get_concrete_function(distributed.element_spec)
        for batch in distributed:
            gathered = tf.nest.map_structure(lambda x: x.numpy(), traced(batch))
            kept = gathered[0] >= 0
            if kept.any():
                yield tf.nest.map_structure(lambda x: x[kept], gathered)  # noqa: B023

    return predictions


def _distribute(strategy, batches):
    """Every replica's share of each batch, from one dataset or from a function of hosts."""
    if strategy.num_replicas_in_sync == 1:
        # Every pass over a distributed dataset leaves some 60 kB behind (TensorFlow 2.21), one
        # over a plain dataset nothing.
        return batches() if callable(batches) else batches
    if callable(batches):

        def of_host(context):
            num_hosts = context.num_input_pipelines
            share = batches(host=context.input_pipeline_id, num_hosts=num_hosts)
            size = share.element_spec["label"].shape[0]
            replicas = strategy.num_replicas_in_sync // num_hosts
            return share.rebatch(size // replicas, drop_remainder=True)

        return strategy.distribute_datasets_from_function(of_host)
    # By examples: the readers of TFDS would otherwise be split by files among hosts.
    options = tf.data.Options()
    sharding = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = sharding
    return strategy.experimental_distribute_dataset(batches.with_options(options))
