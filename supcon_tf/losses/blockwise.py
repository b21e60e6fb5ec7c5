"""Sums over all pairs of rows, computed in blocks without building the whole matrix.

The similarity matrix of a batch of N rows has N^2 entries. The functions in this module compute it
block by block and keep one number per row. For the gradient, they use the blocks that `cache_mb`
had room for and compute the others again. (Rabe & Staats 2021, https://arxiv.org/abs/2112.05682,
do the same for attention, without the cache.) Memory is proportional to N times the block size,
plus the cache.

* `self_logsumexp`: rows against themselves. The matrix is symmetric, so each pair of blocks is
  computed once, by one of the replicas.
* `cross_logsumexp`: rows against other columns, such as a queue, anchors of one view against all
  views, or a replica's few rows against those of all.
* `masked_logsumexp`: for a matrix that fits in memory, such as one block of rows.

The first two do not subtract the maximum before the exponential, which saves a pass over the
matrix. Check `is_safe_without_maximum` before calling them. `masked_logsumexp` subtracts the
maximum of each row.
"""

from __future__ import annotations

import tensorflow as tf

from supcon_tf import xla
from supcon_tf.losses.block_pairs import WHOLE, PairsOfShare, Part, Share, smaller
from supcon_tf.losses.row_blocks import BLOCK_ROWS, as_blocks, as_rows, divide, length, while_less

# exp(+-40), sums of it, and products of these with gradients are far within the float32 range.
LARGEST_SAFE_LOGIT = 40.0
# In the additions of a step: the value is a block of exponentials to keep.
_KEEP = -1


def is_safe_without_maximum(rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Whether every inner product of a row and a column is within +-40: bool []."""
    largest = tf.reduce_max(tf.norm(rows, axis=-1)) * tf.reduce_max(tf.norm(columns, axis=-1))
    return largest < LARGEST_SAFE_LOGIT


def self_logsumexp(
    vectors: tf.Tensor,
    *,
    column_weights: tf.Tensor | None = None,
    classes: tf.Tensor | None = None,
    block_size: int | None = None,
    cache_mb: float = 0.0,
    share: Share = WHOLE,
) -> tf.Tensor:
    """log sum_{j != i} w_j exp(v_i . v_j) for every row i; -inf for a single row.

    With several replicas, each holds all rows and computes 1 / count of the pairs. They add up
    their sums, so that each returns the whole result. In the backward pass they first add up the
    upstream gradients, because the loss of every replica depends on the result. Each then returns
    the part of the gradient that comes from its own pairs. The gradient is the sum of these parts,
    which the gradient of `collectives.gather` computes.

    Args:
        vectors: float32 [N, D] with every |v_i . v_j| at most 40.
        column_weights: float32 [N], the w_j. None weights every row with 1.
        classes: int32 [N]. If given, the same sum over the rows of the class of i, with w_j = 1,
            is computed from the same exponentials.
        block_size: Rows per block. None selects the size automatically.
        cache_mb: Megabytes of exponentials to keep for the gradient, which does not change the
            result.
        share: Which pairs this replica computes; by default all.

    Returns:
        float32 [N]; with `classes` [2, N]: over all rows, and over those of the same class.
    """
    num_rows = length(vectors) // share.count  # Of each replica.
    is_plain = column_weights is None and classes is None and share.count == 1
    if is_plain and block_size is None and isinstance(num_rows, int) and num_rows <= BLOCK_ROWS:
        return _self_logsumexp_of_one_block(vectors)
    num_own, block = divide(num_rows, block_size)
    pairs = PairsOfShare(share, num_own)

    def blocks_of(rows):
        return as_blocks(rows, num_own, block, shares=share.count)

    ones = blocks_of(tf.ones([num_rows * share.count]))
    weights = ones if column_weights is None else blocks_of(column_weights)
    class_blocks = None if classes is None else blocks_of(classes)
    num_kept = _num_kept(cache_mb, pairs.most_steps, block, block, block_size)
    parts = pairs.parts(num_kept)

    def exponentials(blocks, i, j, diagonal):
        result = tf.exp(tf.matmul(blocks[i], blocks[j], transpose_b=True))
        return _zero_diagonal(result) if diagonal else result

    def of_same_class(values, i, j):
        return tf.where(class_blocks[i][:, None] == class_blocks[j][None, :], values, 0.0)

    @tf.custom_gradient
    def logsumexp(vectors):
        blocks = blocks_of(vectors)

        def add_sums(step, part):
            own, i, j = pairs.blocks(step)
            pair = exponentials(blocks, i, j, part.is_diagonal)
            sums = [(0, own, tf.linalg.matvec(pair, weights[j]))]
            if part.is_kept:
                sums.append((_KEEP, step, pair))
            if not part.is_diagonal:
                sums.append((1, j, tf.linalg.matvec(pair, weights[i], transpose_a=True)))
            if classes is not None:
                pair = of_same_class(pair, i, j)
                sums.append((2, own, tf.linalg.matvec(pair, ones[j])))
                if not part.is_diagonal:
                    sums.append((3, j, tf.linalg.matvec(pair, ones[i], transpose_a=True)))
            return sums

        zeros = [tf.zeros([num_own, block]), tf.zeros_like(ones)] * (1 if classes is None else 2)
        totals, kept = _accumulate(add_sums, zeros, parts, keep=(num_kept, block, block))
        all_sums = share.totals(
            [pairs.merge(*both) for both in zip(totals[::2], totals[1::2], strict=True)]
        )

        def gradient(*upstream):
            upstream = share.totals([blocks_of(each) for each in upstream])
            scales = [
                _divide_or_zero(each, sums) for each, sums in zip(upstream, all_sums, strict=True)
            ]

            def scale_of(i, j):
                """The derivative of the result by the inner products, over the exponentials."""
                of_i, of_j = scales[0][i][:, None], scales[0][j][None, :]
                if column_weights is not None:
                    of_i, of_j = of_i * weights[j][None, :], of_j * weights[i][:, None]
                scale = of_i + of_j
                if classes is not None:
                    scale += of_same_class(scales[1][i][:, None] + scales[1][j][None, :], i, j)
                return scale

            def add_gradients(step, part):
                own, i, j = pairs.blocks(step)
                if part.is_kept:
                    pair = _kept_block(kept, step)
                else:
                    pair = exponentials(blocks, i, j, part.is_diagonal)
                pair *= scale_of(i, j)
                rows = [(0, own, tf.matmul(pair, blocks[j]))]
                if part.is_diagonal:
                    return rows
                return [*rows, (1, j, tf.matmul(pair, blocks[i], transpose_a=True))]

            size = vectors.shape[1]
            zeros = [tf.zeros([num_own, block, size]), tf.zeros_like(blocks)]
            totals, _ = _accumulate(add_gradients, zeros, parts)
            return as_rows(pairs.merge(*totals), num_rows, shares=share.count)

        logs = [
            _log_or_minus_infinity(as_rows(sums, num_rows, shares=share.count)) for sums in all_sums
        ]
        return logs, gradient

    results = logsumexp(vectors)
    return results[0] if classes is None else tf.stack(results)


def cross_logsumexp(
    rows: tf.Tensor,
    columns: tf.Tensor,
    own_column: tf.Tensor | None = None,
    *,
    column_weights: tf.Tensor | None = None,
    classes: tuple[tf.Tensor, tf.Tensor] | None = None,
    block_size: int | None = None,
    cache_mb: float = 0.0,
) -> tf.Tensor:
    """log sum_{j != own(i)} w_j exp(row_i . column_j) for every row i; -inf for an empty sum.

    Args:
        rows: float32 [R, D] with every |row . column| at most 40.
        columns: float32 [M, D].
        own_column: int32 [R], the column that each row excludes. None excludes no column.
        column_weights: float32 [M], the w_j; 0 leaves a column out. None weights each with 1.
        classes: int32 [R] and [M]. If given, the same sum over the columns of the class of the
            row, with w_j = 1, is computed from the same exponentials.
        block_size: Rows and columns per block. None selects the size automatically.
        cache_mb: Megabytes of exponentials to keep for the gradient, which does not change the
            result.

    Returns:
        float32 [R]; with `classes` [2, R]: over all columns, and over those of the same class.
    """
    num_rows, num_columns = length(rows), length(columns)
    num_row_blocks, row_block = divide(num_rows, block_size)
    num_column_blocks, column_block = divide(num_columns, block_size)
    num_steps = num_row_blocks * num_column_blocks
    num_kept = _num_kept(cache_mb, num_steps, row_block, column_block, block_size)
    parts = [Part(0, num_kept, is_kept=True), Part(num_kept, num_steps)]
    if own_column is not None:
        own_column = as_blocks(own_column, num_row_blocks, row_block)
    ones = as_blocks(tf.ones([num_columns]), num_column_blocks, column_block)
    weights = ones
    if column_weights is not None:
        weights = as_blocks(column_weights, num_column_blocks, column_block)
    if classes is not None:
        row_classes = as_blocks(classes[0], num_row_blocks, row_block)
        column_classes = as_blocks(classes[1], num_column_blocks, column_block)

    def exponentials(row_blocks, column_blocks, i, j):
        result = tf.exp(tf.matmul(row_blocks[i], column_blocks[j], transpose_b=True))
        if own_column is None:
            return result
        column = j * column_block + tf.range(column_block)
        return tf.where(own_column[i][:, None] == column[None, :], 0.0, result)

    def of_same_class(values, i, j):
        return tf.where(row_classes[i][:, None] == column_classes[j][None, :], values, 0.0)

    @tf.custom_gradient
    def logsumexp(rows, columns):
        row_blocks = as_blocks(rows, num_row_blocks, row_block)
        column_blocks = as_blocks(columns, num_column_blocks, column_block)

        def add_sums(step, part):
            i, j = step // num_column_blocks, step % num_column_blocks
            pair = exponentials(row_blocks, column_blocks, i, j)
            sums = [(0, i, tf.linalg.matvec(pair, weights[j]))]
            if part.is_kept:
                sums.append((_KEEP, step, pair))
            if classes is not None:
                sums.append((1, i, tf.linalg.matvec(of_same_class(pair, i, j), ones[j])))
            return sums

        zeros = tf.zeros([num_row_blocks, row_block])
        totals = [zeros] * (1 if classes is None else 2)
        keep = (num_kept, row_block, column_block)
        all_sums, kept = _accumulate(add_sums, totals, parts, keep=keep)

        def gradient(*upstream):
            scales = [
                _divide_or_zero(as_blocks(each, num_row_blocks, row_block), sums)
                for each, sums in zip(upstream, all_sums, strict=True)
            ]

            def add_gradients(step, part):
                i, j = step // num_column_blocks, step % num_column_blocks
                if part.is_kept:
                    pair = _kept_block(kept, step)
                else:
                    pair = exponentials(row_blocks, column_blocks, i, j)
                scale = scales[0][i][:, None]
                if column_weights is not None:
                    scale *= weights[j][None, :]
                if classes is not None:
                    scale += of_same_class(scales[1][i][:, None], i, j)
                pair *= scale
                return [
                    (0, i, tf.matmul(pair, column_blocks[j])),
                    (1, j, tf.matmul(pair, row_blocks[i], transpose_a=True)),
                ]

            totals = [tf.zeros_like(row_blocks), tf.zeros_like(column_blocks)]
            (row_gradients, column_gradients), _ = _accumulate(add_gradients, totals, parts)
            return as_rows(row_gradients, num_rows), as_rows(column_gradients, num_columns)

        return [_log_or_minus_infinity(as_rows(sums, num_rows)) for sums in all_sums], gradient

    results = logsumexp(rows, columns)
    return results[0] if classes is None else tf.stack(results)


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


def _zero_diagonal(square):
    return tf.linalg.set_diag(square, tf.zeros(tf.shape(square)[:1]))


# Both functions compare with 0 exactly, so that NaN sums stay NaN.
def _divide_or_zero(numerator, sums):
    return tf.where(sums == 0.0, 0.0, numerator / tf.where(sums == 0.0, 1.0, sums))


def _log_or_minus_infinity(sums):
    return tf.where(sums == 0.0, float("-inf"), tf.math.log(tf.where(sums == 0.0, 1.0, sums)))


def _num_kept(cache_mb, num_pairs, rows, columns, block_size):
    """How many pairs of blocks, of rows x columns float32 each, fit into the cache."""
    largest = block_size or BLOCK_ROWS
    rows, columns = (size if isinstance(size, int) else largest for size in (rows, columns))
    count = int(cache_mb * 1e6) // (4 * rows * columns)
    if count == 0:
        return 0
    return smaller(count, num_pairs)


def _accumulate(additions, totals, parts, *, keep=None):
    """Adds values to blocks of the totals.

    The totals are kept in TensorArrays, which a loop updates in place. tensor_scatter_nd_add would
    copy the whole total at every step, and so would XLA if a step added to two blocks of one total.

    Args:
        additions: A function of the step and its part that returns triples (index of the total,
            block, value), and (_KEEP, step, value) for a value to keep.
        totals: Tensors [blocks, block, ...].
        parts: The steps.
        keep: The shape of all values to keep: their number, rows and columns.

    Returns:
        The totals, and the kept values for `_kept_block`, or None.
    """
    arrays = [
        tf.TensorArray(
            total.dtype, tf.shape(total)[0], clear_after_read=False, element_shape=total.shape[1:]
        ).unstack(total)
        for total in totals
    ]
    parts = [part for part in parts if not _is_empty(part)]
    if keep is not None and any(part.is_kept for part in parts):
        num_kept, *shape = keep
        shape = shape if all(isinstance(size, int) for size in shape) else None
        arrays.append(
            tf.TensorArray(tf.float32, num_kept, clear_after_read=False, element_shape=shape)
        )
    for part in parts:

        def step_once(step, *arrays, part=part):
            arrays = list(arrays)
            for which, block, value in additions(step, part):
                if which != _KEEP:
                    value += arrays[which].read(block)
                arrays[which] = arrays[which].write(block, value)
            return step + 1, *arrays

        _, *arrays = while_less(part.stop, step_once, (part.start, *arrays))
    kept = arrays.pop() if len(arrays) > len(totals) else None
    if kept is not None and xla.is_compiling():
        # A TensorArray cannot leave a compiled function, whose gradient may be computed by another.
        # Compiled code stores it as one tensor, so that nothing is copied here.
        kept = kept.stack()
    return [array.stack() for array in arrays], kept


def _kept_block(kept, step):
    return kept[step] if isinstance(kept, tf.Tensor) else kept.read(step)


def _is_empty(part):
    if part.start is part.stop:
        return True
    return isinstance(part.start, int) and isinstance(part.stop, int) and part.start >= part.stop
