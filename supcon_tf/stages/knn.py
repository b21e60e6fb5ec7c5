"""The k-NN figure that pretraining measures on the way."""

from __future__ import annotations

import keras
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf.data import sources
from supcon_tf.evaluation import multi_label, predictions
from supcon_tf.stages import chance, inputs
from supcon_tf.training import progress

# k-NN uses at most this many examples of each split, so that it stays fast on large datasets.
MAX_EXAMPLES = 10_000


class KnnEvaluation:
    """Measures the k-NN accuracy of an encoder: `evaluation()` -> {"knn_accuracy": ...}.

    For several labels per image, the figure is "knn_mean_average_precision", of the neighbors'
    vote for each class. For real targets there are "knn_mean_absolute_error" and "knn_r2", of the
    neighbors' weighted mean.

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

    @classmethod
    def of_splits(
        cls,
        flags: FlagValues,
        strategy: tf.distribute.Strategy,
        encoder: keras.Model,
        train_source: sources.Source,
        held_out: sources.Source | None,
    ) -> KnnEvaluation | None:
        """Returns the evaluation; or None, and prints why, if it cannot be measured."""
        reason = None
        if held_out is None:
            reason = "there are neither validation nor test images (--validation_split)"
        if reason is None and held_out is not None:
            return cls(flags, strategy, encoder, train_source, held_out)
        print(f"pretrain: skipping the k-NN figure, because {reason}.")
        return None

    def __call__(self) -> dict[str, float]:
        arrays: list = []
        for source, batches in self._parts:
            count = min(source.num_examples, MAX_EXAMPLES)
            waiting = progress.waiting(f"pretrain: computing {count:,} embeddings for k-NN")
            with inputs.naming_broken_images(source), waiting:
                arrays += predictions.in_order(self._embed(batches))
        with progress.waiting(f"pretrain: measuring k-NN on {len(arrays[0]):,} embeddings"):
            if arrays[3].dtype.kind == "i":
                self.test_labels = chance.of_labels(arrays[3])
            return multi_label.knn_figure(*arrays)
