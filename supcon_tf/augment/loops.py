"""Control flow of compiled augmentation: a loop over images in which every operation is a branch.

XLA compiles one loop over the images of a batch. Only the operations that an image drew are
computed, while the image is in the cache. On CPUs this is many times faster than TensorFlow's
kernels over the batch with `tf.where`, which compute every operation for every image, and than
`Dataset.map` per image, which pays for the graph (benchmarks/input_pipeline.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def each_image(
    view: Callable[[tf.Tensor], tf.Tensor], total: tf.Tensor | int, size: int
) -> tf.Tensor:
    """Stacks view(0), ..., view(total - 1), each uint8 [1, S, S, 3]."""
    results = tf.TensorArray(tf.uint8, size=total, element_shape=[size, size, 3])
    _, results = tf.while_loop(
        lambda index, _: index < total,
        lambda index, results: (index + 1, results.write(index, view(index)[0])),
        (0, results),
    )
    return results.stack()


def row_of(nested: Any, index: tf.Tensor) -> Any:
    """Row `index` of every tensor of a nested structure, as a batch of one."""
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, index)[None], nested)


def select(index: tf.Tensor, branches: Sequence[Callable[[], tf.Tensor]]) -> tf.Tensor:
    """The result of branch number `index`, int32 [B], for each image.

    For a batch of one image, as in the loop over images, only that branch is computed.
    """
    if index.shape[0] == 1:
        return tf.switch_case(index[0], branches)
    result = branches[0]()
    for number, branch in enumerate(branches[1:], start=1):
        result = tf.where((index == number)[:, None, None, None], branch(), result)
    return result


def in_turn(
    step: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], images: tf.Tensor, count: int
) -> tf.Tensor:
    """Computes step(count - 1, ... step(0, images)) as a loop.

    If the loop were unrolled, TensorFlow's bridge to XLA would take minutes at 224 pixels: for
    every `tf.switch_case` of the chain it evaluates all inputs in search of constants.
    """
    return tf.while_loop(
        lambda turn, _: turn < count,
        lambda turn, values: (turn + 1, step(turn, values)),
        (0, images),
    )[1]
