"""The k-NN accuracy that pretraining measures on the way."""

from __future__ import annotations

import keras
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf.data import sources
from supcon_tf.evaluation import metrics, predictions
from supcon_tf.stages import chance, inputs
from supcon_tf.training import progress

# k-NN uses at most this many examples of each split, so that it stays fast on large datasets.
MAX_EXAMPLES = 10_000


class KnnEvaluation:
    """Measures the k-NN accuracy of an encoder: `evaluation()` -> {"knn_accuracy": ...}.

    Args:
        flags: The parsed flags.
        strategy: The strategy under whose scope the encoder was created.
        encoder: The encoder.
        train_source: The examples whose labels are known to k-NN.
        test_source: The examples to classify.

    Attributes:
        test_labels: What `chance.of_labels` says of the test labels; {} before the first call.
    """

    def __init__(
        self,
        flags: FlagValues,
        strategy: tf.distribute.Strategy,
        encoder: keras.Model,
        train_source: sources.Source,
        test_source: sources.Source,
    ):
        self.test_labels: dict = {}
        self._embed = predictions.create_predictor(
            strategy, lambda images: encoder(images, training=False)
        )
        size = encoder.input_shape[1]
        self._parts = [
            (
                source,
                inputs.eval_batches_from_flags(flags, source, image_size=size, limit=MAX_EXAMPLES),
            )
            for source in (train_source, test_source)
        ]

    def __call__(self) -> dict[str, float]:
        arrays: list = []
        for source, batches in self._parts:
            count = min(source.num_examples, MAX_EXAMPLES)
            waiting = progress.waiting(f"pretrain: computing {count:,} embeddings for k-NN")
            with inputs.naming_broken_images(source), waiting:
                arrays += predictions.in_order(self._embed(batches))
        self.test_labels = chance.of_labels(arrays[3])
        with progress.waiting(f"pretrain: measuring k-NN on {len(arrays[0]):,} embeddings"):
            return {"knn_accuracy": metrics.knn_accuracy(*arrays)}
