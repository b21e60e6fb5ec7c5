"""Which examples and which random numbers the rows of a step use."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


class BatchPlan:
    """The order of examples and the random draws of one host, as functions of the step.

    An epoch has as many rows as there are examples. With balanced classes, every C consecutive
    rows contain each class once, and a class uses all of its examples before it repeats one. In
    an epoch, examples of rare classes then come several times and some examples of frequent
    classes not at all.

    Args:
        num_examples: size of the whole source.
        batch_size: N, the global batch.
        seed: determines every random number.
        first_row, num_rows: the rows of the global batch that this host makes. None means N rows.
        num_views, num_draws: V, and K, how many uniform numbers a view needs.
        balanced_labels: the label of every example, to balance the classes. None means that each
            example comes once per epoch.
    """

    def __init__(
        self,
        *,
        num_examples: int,
        batch_size: int,
        seed: int,
        first_row: int = 0,
        num_rows: int | None = None,
        num_views: int = 1,
        num_draws: int = 1,
        balanced_labels: np.ndarray | None = None,
    ):
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.first_row = first_row
        self.num_rows = batch_size if num_rows is None else num_rows
        self.num_views = num_views
        self.num_draws = num_draws
        self.seed = seed
        self._by_class = None
        if balanced_labels is not None:
            # The indices of the examples, class by class.
            self._by_class = np.argsort(balanced_labels, kind="stable")
            _, self._starts, self._counts = np.unique(
                balanced_labels[self._by_class], return_index=True, return_counts=True
            )

    @tf.autograph.experimental.do_not_convert
    def index(self, step: tf.Tensor) -> tf.Tensor:
        """The example of each row, int64 [B], in a new order every epoch."""
        position = tf.cast(step, tf.int64) * self.batch_size + self.first_row
        position += tf.range(self.num_rows, dtype=tf.int64)
        if self._by_class is None:
            count = self.num_examples
            return self._shuffle(position % count, position // count, count, stream=0)
        num_classes = len(self._starts)
        turn = position // num_classes  # How often each class came before these C rows.
        chosen = self._shuffle(position % num_classes, turn, num_classes, stream=1)
        start, count = tf.gather(self._starts, chosen), tf.gather(self._counts, chosen)
        place = self._shuffle(turn % count, turn // count, count, stream=2 + chosen)
        return tf.gather(self._by_class, start + place)

    @tf.autograph.experimental.do_not_convert
    def draws(self, step: tf.Tensor) -> tf.Tensor:
        """Uniform numbers in [0, 1) for the rows of this host, float32 [B, V, K].

        They are drawn for the whole global batch, because a draw of another shape would give other
        numbers.
        """
        draws = tf.random.stateless_uniform(
            [self.batch_size, self.num_views, self.num_draws],
            seed=tf.stack([tf.cast(self.seed, tf.int64), tf.cast(step, tf.int64)]),
            alg="philox",  # "auto" would give other numbers in compiled code.
        )
        return draws[self.first_row : self.first_row + self.num_rows]

    def _shuffle(self, place, epoch, count, *, stream):
        """Permutes positions 0..count-1 of an epoch. All int64, [B] or one for all rows."""
        count, stream = (
            tf.broadcast_to(tf.cast(x, tf.int64), place.shape) for x in (count, stream)
        )
        seed = tf.fill(place.shape, tf.cast(self.seed, tf.int64))
        # The raw op, because tf.random.experimental.index_shuffle pads one seed per row wrongly.
        return tf.raw_ops.RandomIndexShuffle(
            index=place,
            seed=tf.stack([seed, epoch, stream], axis=1),
            max_index=count - 1,
            rounds=16,  # The usual 4 hardly shuffle: 50 of 100 examples keep their place.
        )
