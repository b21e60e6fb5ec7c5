"""Sums over all pairs of rows, computed in blocks without building the whole matrix.

The similarity matrix of a batch of N rows has N^2 entries. The functions in this module compute it
block by block, keep one number per row, and compute the blocks again for the gradient. (Rabe &
Staats 2021, https://arxiv.org/abs/2112.05682, do the same for attention.) Memory is proportional
to N times the block size.

* `self_logsumexp`: rows against themselves. The matrix is symmetric, so each pair of blocks is
  computed once.
* `cross_logsumexp`: rows against other columns, such as one replica's anchors against the global
  batch.
* `map_row_blocks`: any function of some rows and all columns, such as a loss with masks.
* `masked_logsumexp`: for a matrix that fits in memory, such as one block of rows.

The first two do not subtract the maximum before the exponential, which saves a pass over the
matrix. Check `is_safe_without_maximum` before calling them. `masked_logsumexp` subtracts the
maximum of each row.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

# exp(+-40), sums of it, and products of these with gradients are far within the float32 range.
LARGEST_SAFE_LOGIT = 40.0
# Small enough for the CPU caches, and large enough for fast matrix products.
_BLOCK_ROWS = 1024


def is_safe_without_maximum(rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Whether every inner product of a row and a column is within +-40: bool []."""
    largest = tf.reduce_max(tf.norm(rows, axis=-1)) * tf.reduce_max(tf.norm(columns, axis=-1))
    return largest < LARGEST_SAFE_LOGIT


def self_logsumexp(vectors: tf.Tensor, *, block_size: int | None = None) -> tf.Tensor:
    """log sum_{j != i} exp(v_i . v_j) for every row i; -inf for a single row.

    Args:
        vectors: float32 [N, D] with every |v_i . v_j| at most 40.
        block_size: Rows per block. None selects the size automatically.

    Returns:
        float32 [N].
    """
    num_rows = length(vectors)
    if block_size is None and isinstance(num_rows, int) and num_rows <= _BLOCK_ROWS:
        return _self_logsumexp_of_one_block(vectors)
    num_blocks, block = _divide(num_rows, block_size)

    def exponentials(blocks, i, j, diagonal):
        result = tf.exp(tf.matmul(blocks[i], blocks[j], transpose_b=True))
        return _zero_diagonal(result) if diagonal else result

    @tf.custom_gradient
    def logsumexp(vectors):
        blocks = _as_blocks(vectors, num_blocks, block)
        valid = _as_blocks(tf.ones([num_rows]), num_blocks, block)

        def add_sums(i, j, diagonal):
            pair = exponentials(blocks, i, j, diagonal)
            rows = [(0, i, tf.linalg.matvec(pair, valid[j]))]
            if diagonal:
                return rows
            return [*rows, (0, j, tf.linalg.matvec(pair, valid[i], transpose_a=True))]

        sums = _sum_over_pairs(add_sums, tf.zeros_like(valid), num_blocks)

        def gradient(upstream):
            weights = _divide_or_zero(_as_blocks(upstream, num_blocks, block), sums)

            def add_gradients(i, j, diagonal):
                pair = exponentials(blocks, i, j, diagonal)
                pair *= weights[i][:, None] + weights[j][None, :]
                rows = [(0, i, tf.matmul(pair, blocks[j]))]
                if diagonal:
                    return rows
                return [*rows, (0, j, tf.matmul(pair, blocks[i], transpose_a=True))]

            gradients = _sum_over_pairs(add_gradients, tf.zeros_like(blocks), num_blocks)
            return _as_rows(gradients, num_rows)

        return _log_or_minus_infinity(_as_rows(sums, num_rows)), gradient

    return logsumexp(vectors)


def cross_logsumexp(
    rows: tf.Tensor,
    columns: tf.Tensor,
    own_column: tf.Tensor | None = None,
    *,
    is_valid: tf.Tensor | None = None,
    block_size: int | None = None,
) -> tf.Tensor:
    """log sum_{j != own(i)} exp(row_i . column_j) for every row i; -inf for an empty sum.

    Args:
        rows: float32 [R, D] with every |row . column| at most 40.
        columns: float32 [M, D].
        own_column: int32 [R], the column that each row excludes. None excludes no column.
        is_valid: bool [M], the columns to include. None includes all columns.
        block_size: Rows and columns per block. None selects the size automatically.

    Returns:
        float32 [R].
    """
    num_rows, num_columns = length(rows), length(columns)
    num_row_blocks, row_block = _divide(num_rows, block_size)
    num_column_blocks, column_block = _divide(num_columns, block_size)
    num_steps = num_row_blocks * num_column_blocks
    if own_column is not None:
        own_column = _as_blocks(own_column, num_row_blocks, row_block)
    ones = tf.ones([num_columns]) if is_valid is None else tf.cast(is_valid, tf.float32)
    valid = _as_blocks(ones, num_column_blocks, column_block)

    def exponentials(row_blocks, column_blocks, i, j):
        result = tf.exp(tf.matmul(row_blocks[i], column_blocks[j], transpose_b=True))
        if is_valid is not None:
            result *= valid[j][None, :]
        if own_column is None:
            return result
        column = j * column_block + tf.range(column_block)
        return tf.where(own_column[i][:, None] == column[None, :], 0.0, result)

    @tf.custom_gradient
    def logsumexp(rows, columns):
        row_blocks = _as_blocks(rows, num_row_blocks, row_block)
        column_blocks = _as_blocks(columns, num_column_blocks, column_block)
        valid_rows = _as_blocks(tf.ones([num_rows]), num_row_blocks, row_block)

        def add_sums(step):
            i, j = step // num_column_blocks, step % num_column_blocks
            pair = exponentials(row_blocks, column_blocks, i, j)
            return [(0, i, tf.linalg.matvec(pair, valid[j]))]

        (sums,) = _accumulate(add_sums, [tf.zeros_like(valid_rows)], 0, num_steps)

        def gradient(upstream):
            weights = _divide_or_zero(_as_blocks(upstream, num_row_blocks, row_block), sums)

            def add_gradients(step):
                i, j = step // num_column_blocks, step % num_column_blocks
                pair = exponentials(row_blocks, column_blocks, i, j) * weights[i][:, None]
                return [
                    (0, i, tf.matmul(pair, column_blocks[j])),
                    (1, j, tf.matmul(pair, row_blocks[i], transpose_a=True)),
                ]

            totals = [tf.zeros_like(row_blocks), tf.zeros_like(column_blocks)]
            row_gradients, column_gradients = _accumulate(add_gradients, totals, 0, num_steps)
            return _as_rows(row_gradients, num_rows), _as_rows(column_gradients, num_columns)

        return _log_or_minus_infinity(_as_rows(sums, num_rows)), gradient

    return logsumexp(rows, columns)


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
    num_blocks, block = _divide(num_rows, block_size)

    def apply(block_rows, columns, i):
        # The padding rows of the last block need valid indices too.
        return function(block_rows, columns, tf.minimum(i * block + tf.range(block), num_rows - 1))

    @tf.custom_gradient
    def mapped(rows, columns):
        blocks = _as_blocks(rows, num_blocks, block)

        def step(i, results):
            return i + 1, results.write(i, apply(blocks[i], columns, i))

        loop = (0, tf.TensorArray(tf.float32, num_blocks))
        _, results = _while_less(num_blocks, step, loop)

        def gradient(upstream):
            upstream = _as_blocks(upstream, num_blocks, block)

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
            _, row_gradients, column_gradient = _while_less(num_blocks, step_back, loop)
            return _as_rows(row_gradients.stack(), num_rows), column_gradient

        return _as_rows(results.stack(), num_rows), gradient

    return mapped(rows, columns)


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


def masked_logsumexp(logits: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Row-wise logsumexp over the entries in the mask; -inf for an empty row. [..., K] -> [...].

    The maximum is taken over the mask only, so a large entry outside cannot cause an underflow.
    """
    largest = tf.reduce_max(tf.where(mask, logits, logits.dtype.min), axis=-1, keepdims=True)
    largest = tf.stop_gradient(largest)
    terms = tf.where(mask, tf.exp(tf.where(mask, logits - largest, 0.0)), 0.0)
    total = tf.reduce_sum(terms, axis=-1)
    is_empty = total == 0.0
    result = tf.math.log(tf.where(is_empty, 1.0, total)) + largest[..., 0]
    return tf.where(is_empty, float("-inf"), result)


def _self_logsumexp_of_one_block(vectors):
    """`self_logsumexp` for a single block, which keeps the exponentials. [N, D] -> [N]."""

    @tf.custom_gradient
    def logsumexp(vectors):
        exponentials = _zero_diagonal(tf.exp(tf.matmul(vectors, vectors, transpose_b=True)))
        sums = tf.reduce_sum(exponentials, axis=1)

        def gradient(upstream):
            weights = _divide_or_zero(upstream, sums)
            return tf.matmul(exponentials * (weights[:, None] + weights[None, :]), vectors)

        return _log_or_minus_infinity(sums), gradient

    return logsumexp(vectors)


def length(tensor: tf.Tensor) -> int | tf.Tensor:
    """The size of the first dimension, as an int if it is static."""
    return tf.shape(tensor)[0] if tensor.shape[0] is None else tensor.shape[0]


def _divide(num_rows, block_size):
    """Returns the number of blocks and the rows per block, with little padding in the last."""
    num_blocks = -(-num_rows // (_BLOCK_ROWS if block_size is None else block_size))
    num_blocks = max(num_blocks, 1) if isinstance(num_blocks, int) else tf.maximum(num_blocks, 1)
    return num_blocks, -(-num_rows // num_blocks)


def _as_blocks(rows, num_blocks, block):
    """[R, ...] -> [blocks, block, ...], padded with zeros."""
    padding = [[0, num_blocks * block - length(rows)]] + [[0, 0]] * (rows.shape.rank - 1)
    return tf.reshape(tf.pad(rows, padding), [num_blocks, block, *rows.shape[1:]])


def _as_rows(blocks, num_rows):
    """[blocks, block, ...] -> [R, ...]."""
    return tf.reshape(blocks, [-1, *blocks.shape[2:]])[:num_rows]


def _zero_diagonal(square):
    return tf.linalg.set_diag(square, tf.zeros(tf.shape(square)[:1]))


# Both functions compare with 0 exactly, so that NaN sums stay NaN.
def _divide_or_zero(numerator, sums):
    return tf.where(sums == 0.0, 0.0, numerator / tf.where(sums == 0.0, 1.0, sums))


def _log_or_minus_infinity(sums):
    return tf.where(sums == 0.0, float("-inf"), tf.math.log(tf.where(sums == 0.0, 1.0, sums)))


def _while_less(stop, step, loop):
    """Runs `step` while the first loop variable is below `stop`, one block in memory at a time."""
    return tf.while_loop(lambda i, *_: i < stop, step, loop, parallel_iterations=1)


def _sum_over_pairs(additions, zeros, num_blocks):
    """Processes each unordered pair of blocks once: the diagonal first, then the other pairs.

    Step p pairs block i = p mod n with block (i + p div n) mod n. For even and odd n, n (n + 1) / 2
    steps cover each pair exactly once.
    """
    (totals,) = _accumulate(lambda i: additions(i, i, True), [zeros], 0, num_blocks)

    def pair(step):
        i = step % num_blocks
        return additions(i, (i + step // num_blocks) % num_blocks, False)

    num_pairs = num_blocks * (num_blocks + 1) // 2
    (totals,) = _accumulate(pair, [totals], num_blocks, num_pairs)
    return totals


def _accumulate(additions, totals, start, stop):
    """Adds values to blocks of the totals.

    The totals are kept in TensorArrays, which a loop updates in place. tensor_scatter_nd_add would
    copy the whole total at every step.

    Args:
        additions: A function of the step that returns triples (index of the total, block, value).
        totals: Tensors [blocks, block, ...].
        start: The first step.
        stop: The step to stop before.
    """

    def step_once(step, *arrays):
        arrays = list(arrays)
        for which, block, value in additions(step):
            array = arrays[which]
            arrays[which] = array.write(block, array.read(block) + value)
        return step + 1, *arrays

    arrays = [
        tf.TensorArray(
            total.dtype, tf.shape(total)[0], clear_after_read=False, element_shape=total.shape[1:]
        ).unstack(total)
        for total in totals
    ]
    _, *arrays = _while_less(stop, step_once, (start, *arrays))
    return [array.stack() for array in arrays]
