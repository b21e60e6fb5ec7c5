"""Which pairs of blocks each of several replicas computes, so that together they have each once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf


class Share(NamedTuple):
    """The part of a computation over the global batch that this replica does.

    Attributes:
        index: Number of this replica, int or int32 [].
        count: Number of replicas, which hold equal parts of the batch in this order.
        add_up: Sums a tensor over the replicas.
    """

    index: int | tf.Tensor = 0
    count: int = 1
    add_up: Callable[[tf.Tensor], tf.Tensor] = tf.identity

    def totals(self, tensors: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
        """Adds up tensors of one shape over the replicas, in one exchange."""
        return tensors if self.count == 1 else tf.unstack(self.add_up(tf.stack(tensors)))


WHOLE = Share()


class Part(NamedTuple):
    """The steps of one loop, from `start` to before `stop`."""

    start: int | tf.Tensor
    stop: int | tf.Tensor
    is_diagonal: bool = False
    is_kept: bool = False


class PairsOfShare:
    """The pairs of blocks that a replica computes, one at each step.

    Every replica has the same number of blocks, and n is that of all. A replica pairs each of its
    blocks with itself, with the next block, and so on around the ring, until half of it:

        step                 0 .. own - 1    own .. 2 own - 1    ...
        first block          each own one    each own one
        second block         the same        1 further           2 further ...

    If n is even, the blocks that are n / 2 apart would meet twice, so that only one of the two
    replicas has each of these pairs. All replicas together have every unordered pair once.

    Attributes:
        most_steps: Number of steps of the replica that has most of them.
    """

    def __init__(self, share: Share, num_own: int | tf.Tensor):
        self._share, self._num_own = share, num_own
        self._num_blocks = num_own * share.count
        self._first = share.index * num_own
        whole = num_own * ((self._num_blocks + 1) // 2)  # Steps that are less than n / 2 apart.
        if share.count % 2:
            # Of two opposite blocks, one is in the first half of its replica, which has the pair.
            self._skipped = 0
            self._num_steps = self.most_steps = whole + (1 - num_own % 2) * (num_own // 2)
        else:
            # Opposite blocks have the same place on two replicas: the lower replica has the pairs
            # of the first half of its blocks, the other one those of the second half.
            half = (num_own + 1) // 2
            is_lower = share.index < share.count // 2
            self.most_steps = whole + half
            if isinstance(is_lower, bool) and isinstance(num_own, int):
                self._skipped = 0 if is_lower else half
                self._num_steps = whole + (half if is_lower else num_own - half)
            else:
                self._skipped = tf.where(is_lower, 0, half)
                self._num_steps = whole + tf.where(is_lower, half, num_own - half)

    def parts(self, num_kept: int | tf.Tensor) -> list[Part]:
        """The steps: the diagonal first, and in each part those first whose blocks are kept."""
        diagonal = self._num_own
        if isinstance(num_kept, int) and not num_kept:
            kept_diagonal, kept_others = 0, diagonal
        else:
            kept_diagonal = smaller(num_kept, diagonal)
            kept_others = smaller(larger(num_kept, diagonal), self._num_steps)
        return [
            Part(0, kept_diagonal, is_diagonal=True, is_kept=True),
            Part(kept_diagonal, diagonal, is_diagonal=True),
            Part(diagonal, kept_others, is_kept=True),
            Part(kept_others, self._num_steps),
        ]

    def blocks(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The first block of a step among this replica's, and both blocks among all."""
        distance, own = step // self._num_own, step % self._num_own
        if self._share.count == 1:
            return own, own, (own + distance) % self._num_blocks
        if self._share.count % 2 == 0:
            is_opposite = tf.equal(distance, self._num_blocks // 2)
            own += self._skipped * tf.cast(is_opposite, tf.int32)
        i = self._first + own
        return own, i, (i + distance) % self._num_blocks

    def merge(self, of_own: tf.Tensor, of_all: tf.Tensor) -> tf.Tensor:
        """Adds totals of this replica's blocks to those of all blocks. -> [blocks, block, ...]."""
        if self._share.count == 1:
            return of_own + of_all
        places = self._first + tf.range(self._num_own)
        return tf.tensor_scatter_nd_add(of_all, places[:, None], of_own)


def smaller(a, b):
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else tf.minimum(a, b)


def larger(a, b):
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else tf.maximum(a, b)
