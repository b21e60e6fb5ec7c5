"""Loops over blocks of rows, with one block in memory at a time.

* `map_row_blocks`: any function of some rows and all columns, such as a loss with masks.
* `product_in_row_blocks`: a matrix of constants, such as the weights of pairs, times columns.
* `recomputing_cond`: one of two functions.

All compute again for the gradient what they have computed for the result.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

# Small enough for the CPU caches, and large enough for fast matrix products.
BLOCK_ROWS = 1024


def map_row_blocks(
    function: Callable, rows: tf.Tensor, columns: tf.Tensor, *, block_size: int | tf.Tensor
) -> tf.Tensor:
    """Computes function(rows, columns, row indices) for one block of rows at a time.

    The gradient calls the function again for each block, so its intermediate results exist for one
    block only.

    Args:
        function: Takes rows [R, ...], all columns, and row indices int32 [R]. Returns float32
            [R, ...]. Each result must depend on its own row only and be finite for a row of
            zeros. The function may use other tensors, indexed by row, which get no gradient.
        rows: float32 [B, ...].
        columns: float32 [N, ...].
        block_size: Rows per block.

    Returns:
        float32 [B, ...].
    """
    num_rows = length(rows)
    if isinstance(num_rows, int) and isinstance(block_size, int) and num_rows <= block_size:
        return function(rows, columns, tf.range(num_rows))
    num_blocks, block = divide(num_rows, block_size)

    def apply(block_rows, columns, i):
        # The padding rows of the last block need valid indices too.
        return function(block_rows, columns, tf.minimum(i * block + tf.range(block), num_rows - 1))

    @tf.custom_gradient
    def mapped(rows, columns):
        blocks = as_blocks(rows, num_blocks, block)

        def step(i, results):
            return i + 1, results.write(i, apply(blocks[i], columns, i))

        loop = (0, tf.TensorArray(tf.float32, num_blocks))
        _, results = while_less(num_blocks, step, loop)

        def gradient(upstream):
            upstream = as_blocks(upstream, num_blocks, block)

            def step_back(i, row_gradients, column_gradient):
                inputs = [blocks[i], columns]
                with tf.GradientTape() as tape:
                    tape.watch(inputs)
                    result = apply(*inputs, i)
                of_rows, of_columns = tape.gradient(
                    result, inputs, upstream[i], unconnected_gradients="zero"
                )
                return i + 1, row_gradients.write(i, of_rows), column_gradient + of_columns

            loop = (0, tf.TensorArray(tf.float32, num_blocks), tf.zeros_like(columns))
            _, row_gradients, column_gradient = while_less(num_blocks, step_back, loop)
            return as_rows(row_gradients.stack(), num_rows), column_gradient

        return as_rows(results.stack(), num_rows), gradient

    return mapped(rows, columns)


def product_in_row_blocks(
    matrix_rows: Callable[[tf.Tensor], tf.Tensor],
    num_rows: int | tf.Tensor,
    columns: tf.Tensor,
    *,
    block_size: int | tf.Tensor,
) -> tf.Tensor:
    """The product of a matrix [B, N] and columns [N, D], with some rows of the matrix at a time.

    Args:
        matrix_rows: Takes row indices int32 [b] and returns float32 [b, N], which get no gradient.
        num_rows: B.
        columns: float32 [N, D].
        block_size: Rows per block.

    Returns:
        float32 [B, D].
    """
    if isinstance(num_rows, int) and isinstance(block_size, int) and num_rows <= block_size:
        return tf.matmul(tf.stop_gradient(matrix_rows(tf.range(num_rows))), columns)
    num_blocks, block = divide(num_rows, block_size)

    def matrix_block(i):  # The padding rows of the last block need valid indices too.
        return matrix_rows(tf.minimum(i * block + tf.range(block), num_rows - 1))

    @tf.custom_gradient
    def product(columns):
        def step(i, results):
            return i + 1, results.write(i, tf.matmul(matrix_block(i), columns))

        _, results = while_less(num_blocks, step, (0, tf.TensorArray(tf.float32, num_blocks)))

        def gradient(upstream):
            upstream = as_blocks(upstream, num_blocks, block)

            def step_back(i, total):
                return i + 1, total + tf.matmul(matrix_block(i), upstream[i], transpose_a=True)

            return while_less(num_blocks, step_back, (0, tf.zeros_like(columns)))[1]

        return as_rows(results.stack(), num_rows), gradient

    return product(columns)


def recomputing_cond(
    predicate: tf.Tensor, if_true: Callable, if_false: Callable, *inputs: tf.Tensor
) -> tf.Tensor:
    """tf.cond whose gradient computes the branch again.

    XLA cannot pass tensors of unknown size from a branch to its gradient.

    Args:
        predicate: bool [].
        if_true, if_false: Functions of the inputs.
        *inputs: The tensors that get a gradient.
    """

    def gradients_of(function, inputs, upstream):
        # Copies, because a tensor that is passed twice would get the sum of both gradients twice.
        inputs = [tf.identity(each) for each in inputs]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            result = function(*inputs)
        return tape.gradient(result, inputs, upstream, unconnected_gradients="zero")

    @tf.custom_gradient
    def chosen(*inputs):
        def gradient(upstream):
            return tf.cond(
                predicate,
                lambda: gradients_of(if_true, inputs, upstream),
                lambda: gradients_of(if_false, inputs, upstream),
            )

        return tf.cond(predicate, lambda: if_true(*inputs), lambda: if_false(*inputs)), gradient

    return chosen(*inputs)


def length(tensor: tf.Tensor) -> int | tf.Tensor:
    """The size of the first dimension, as an int if it is static."""
    return tf.shape(tensor)[0] if tensor.shape[0] is None else tensor.shape[0]


def divide(
    num_rows: int | tf.Tensor, block_size: int | tf.Tensor | None
) -> tuple[int | tf.Tensor, int | tf.Tensor]:
    """Returns the number of blocks and the rows per block, with little padding in the last."""
    num_blocks = -(-num_rows // (BLOCK_ROWS if block_size is None else block_size))
    num_blocks = max(num_blocks, 1) if isinstance(num_blocks, int) else tf.maximum(num_blocks, 1)
    return num_blocks, -(-num_rows // num_blocks)


def as_blocks(
    rows: tf.Tensor, num_blocks: int | tf.Tensor, block: int | tf.Tensor, *, shares: int = 1
) -> tf.Tensor:
    """[R, ...] -> [blocks, block, ...], padded with zeros.

    With several shares, the rows are that many equal parts, and each part is padded and divided
    into `num_blocks` blocks.
    """
    if shares > 1:
        rest = rows.shape[1:]
        rows = tf.reshape(rows, [shares, length(rows) // shares, *rest])
        padding = [[0, 0], [0, num_blocks * block - tf.shape(rows)[1]]] + [[0, 0]] * rest.rank
        return tf.reshape(tf.pad(rows, padding), [shares * num_blocks, block, *rest])
    padding = [[0, num_blocks * block - length(rows)]] + [[0, 0]] * (rows.shape.rank - 1)
    return tf.reshape(tf.pad(rows, padding), [num_blocks, block, *rows.shape[1:]])


def as_rows(blocks: tf.Tensor, num_rows: int | tf.Tensor, *, shares: int = 1) -> tf.Tensor:
    """[blocks, block, ...] -> [R, ...]. `num_rows` is the number of rows of each share."""
    rest = blocks.shape[2:]
    if shares > 1:
        rows = tf.reshape(blocks, [shares, -1, *rest])[:, :num_rows]
        return tf.reshape(rows, [shares * num_rows, *rest])
    return tf.reshape(blocks, [-1, *rest])[:num_rows]


def while_less(stop: int | tf.Tensor, step: Callable, loop: tuple) -> tuple:
    """Runs `step` while the first loop variable is below `stop`, one block in memory at a time."""
    return tf.while_loop(lambda i, *_: i < stop, step, loop, parallel_iterations=1)
