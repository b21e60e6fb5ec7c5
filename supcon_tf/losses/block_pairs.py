"""Divides the pairs of blocks among the replicas, so that each pair is computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of a computation over the global batch that this replica does.

    Attributes:
        index: Number of this replica, int or int32 [].
        count: Number of replicas. Each holds an equal part of the batch, in the order of their
            numbers.
        add_up: Sums a tensor over the replicas.
    """

    index: int | tf.Tensor = 0
    count: int = 1
    add_up: Callable[[tf.Tensor], tf.Tensor] = tf.identity

    def totals(self, tensors: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
        """Sums each tensor over the replicas. All have one shape, so one exchange is enough."""
        if self.count == 1:
            return tensors
        return tf.unstack(self.add_up(tf.stack(tensors)), num=len(tensors))


WHOLE = Share()


class Part(NamedTuple):
    """The steps of one loop, from `start` up to but not including `stop`.

    Attributes:
        is_diagonal: Whether each step compares a block with itself.
        is_kept: Whether the exponentials of the steps are kept for the gradient.
    """

    start: int | tf.Tensor
    stop: int | tf.Tensor
    is_diagonal: bool = False
    is_kept: bool = False


class PairsOfShare:
    """The pairs of blocks that a replica computes, one at each step.

    Every replica has the same number of blocks; together they have n, arranged in a ring. A replica
    pairs each of its blocks with itself, with the next block, and so on, half way around the ring:

        step                 0 .. own - 1    own .. 2 own - 1    ...
        first block          each own one    each own one
        second block         the same        1 further           2 further ...

    If n is even, two blocks that are n / 2 apart are opposite. They would be paired twice, once
    from each of them, so only one of the two computes the pair. Together the replicas compute every
    unordered pair once.

    Attributes:
        most_steps: The largest number of steps of any replica.
    """

    def __init__(self, share: Share, num_own: int | tf.Tensor):
        self._share, self._num_own = share, num_own
        self._num_blocks = num_own * share.count
        self._first = share.index * num_own
        whole = num_own * ((self._num_blocks + 1) // 2)  # Steps that are less than n / 2 apart.
        self._skipped: int | tf.Tensor = 0
        if share.count % 2:
            # Exactly one of two opposite blocks is in the first half of the blocks of its replica.
            # That replica computes the pair.
            self._num_steps = self.most_steps = whole + (1 - num_own % 2) * (num_own // 2)
        else:
            # Opposite blocks have the same position on two replicas. The replica with the lower
            # number computes the pairs of the first half of the positions, the other one those of
            # the second half.
            half = (num_own + 1) // 2
            is_lower = share.index < share.count // 2
            self._skipped = tf.where(is_lower, 0, half)
            self._num_steps = whole + tf.where(is_lower, half, num_own - half)
            self.most_steps = whole + half

    def parts(self, num_kept: int | tf.Tensor) -> list[Part]:
        """The steps in order: the diagonal, then the other pairs.

        In both, the steps whose exponentials are kept come first.
        """
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
        """The pair of a step.

        Returns:
            The number of the first block among this replica's blocks, and the numbers of both
            blocks among all.
        """
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


def smaller(a: int | tf.Tensor, b: int | tf.Tensor) -> int | tf.Tensor:
    """The smaller of two sizes, as an int if both are static."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else tf.minimum(a, b)


def larger(a: int | tf.Tensor, b: int | tf.Tensor) -> int | tf.Tensor:
    """The larger of two sizes, as an int if both are static."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else tf.maximum(a, b)
