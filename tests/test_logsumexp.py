import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from supcon_tf.losses.block_pairs import PairsOfShare, Share
from supcon_tf.losses.blockwise import (
    cross_logsumexp,
    is_safe_without_maximum,
    masked_logsumexp,
    self_logsumexp,
)
from supcon_tf.losses.row_blocks import map_row_blocks, recomputing_cond


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def oracle(rows, columns, own, upstream):
    """Values and gradients in float64: d lse_i / d s_ij is the softmax of row i."""
    rows, columns = rows.astype(np.float64), columns.astype(np.float64)
    exponentials = np.exp(rows @ columns.T)
    if own is not None:
        exponentials[np.arange(len(rows)), own] = 0
    sums = exponentials.sum(axis=1)
    with np.errstate(divide="ignore"):
        values = np.log(sums)
    weights = exponentials * np.divide(upstream, sums, where=sums > 0, out=0 * sums)[:, None]
    return values, weights @ columns, weights.T @ rows


def value_and_gradients(function, inputs, upstream):
    inputs = [tf.constant(each) for each in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        values = function(*inputs)
    return values, *tape.gradient(values, inputs, tf.convert_to_tensor(upstream))


def assert_all_close(results, expected):
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, value, rtol=1e-5, atol=1e-5)


# Room for nothing, a part of the blocks, or all of them.
CACHES = st.sampled_from([0.0, 0.004, 0.02, 0.1, 10.0])


@settings(max_examples=25, deadline=None)
@given(
    num_rows=st.integers(1, 257),
    block_size=st.one_of(st.none(), st.integers(20, 300)),
    cache_mb=CACHES,
    seed=st.integers(0, 999),
)
def test_rows_against_themselves_in_any_blocks(num_rows, block_size, cache_mb, seed):
    vectors, upstream = draw(seed, num_rows, 5), draw(seed + 1, num_rows)
    own = np.arange(num_rows)
    values, of_rows, of_columns = oracle(vectors, vectors, own, upstream)
    results = value_and_gradients(
        lambda v: self_logsumexp(v, block_size=block_size, cache_mb=cache_mb), [vectors], upstream
    )
    assert_all_close(results, [values, of_rows + of_columns])


@settings(max_examples=25, deadline=None)
@given(
    num_rows=st.integers(1, 100),
    num_columns=st.integers(1, 257),
    has_own=st.booleans(),
    block_size=st.one_of(st.none(), st.integers(20, 300)),
    cache_mb=CACHES,
    seed=st.integers(0, 999),
)
def test_rows_against_other_columns_in_any_blocks(
    num_rows, num_columns, has_own, block_size, cache_mb, seed
):
    rows, columns = draw(seed, num_rows, 5), draw(seed + 1, num_columns, 5)
    upstream = draw(seed + 2, num_rows)
    own = np.random.default_rng(seed).integers(num_columns, size=num_rows) if has_own else None
    own_column = None if own is None else tf.constant(own, tf.int32)
    results = value_and_gradients(
        lambda r, c: cross_logsumexp(r, c, own_column, block_size=block_size, cache_mb=cache_mb),
        [rows, columns],
        upstream,
    )
    assert_all_close(results, oracle(rows, columns, own, upstream))


COMPILED = [(False, size, cache_mb) for size in (None, 7) for cache_mb in (0.0, 0.0004, 1.0)]
COMPILED_BY_XLA = [
    pytest.param(True, block_size, cache_mb, marks=pytest.mark.slow)
    for block_size in (None, 7)
    for cache_mb in (0.0, 0.0004, 1.0)  # At 0.0004 some blocks are kept and some computed again.
]


@pytest.mark.parametrize("jit_compile, block_size, cache_mb", COMPILED + COMPILED_BY_XLA)
def test_compiled_with_unknown_sizes(jit_compile, block_size, cache_mb):
    options = {"block_size": block_size, "cache_mb": cache_mb}
    signature = [tf.TensorSpec([None, 5]), tf.TensorSpec([None, 5]), tf.TensorSpec([None])]

    @tf.function(input_signature=signature, jit_compile=jit_compile)
    def both(rows, columns, upstream):
        with tf.GradientTape() as tape:
            tape.watch([rows, columns])
            own = tf.range(tf.shape(rows)[0])
            values = cross_logsumexp(rows, columns, own, **options)
            values += self_logsumexp(rows, **options)
        return values, *tape.gradient(values, [rows, columns], upstream)

    for num_rows, num_columns in ((9, 23), (16, 16)):
        rows, columns, upstream = draw(0, num_rows, 5), draw(1, num_columns, 5), draw(2, num_rows)
        own = np.arange(num_rows)
        values, of_rows, of_columns = oracle(rows, columns, own, upstream)
        self_values, of_self, also_of_self = oracle(rows, rows, own, upstream)
        expected = [values + self_values, of_rows + of_self + also_of_self, of_columns]
        assert_all_close(both(rows, columns, upstream), expected)


@pytest.mark.parametrize("num_own", range(1, 7))
@pytest.mark.parametrize("count", range(1, 7))
def test_replicas_have_every_pair_of_blocks_once(count, num_own):
    found, loads = [], []
    for index in range(count):
        pairs = PairsOfShare(Share(index, count), num_own)
        parts = pairs.parts(num_kept=num_own + 1)
        steps = [step for part in parts for step in range(int(part.start), int(part.stop))]
        assert steps == list(range(len(steps)))  # A block is kept under the number of its step.
        for part in parts:
            for step in range(int(part.start), int(part.stop)):
                own, i, j = (int(block) for block in pairs.blocks(step))
                assert i == index * num_own + own and 0 <= own < num_own
                assert part.is_diagonal == (i == j) and part.is_kept == (step <= num_own)
                found.append((min(i, j), max(i, j)))
        loads.append(len(steps))
        assert len(steps) <= pairs.most_steps
    num_blocks = count * num_own
    assert sorted(found) == [(i, j) for i in range(num_blocks) for j in range(i, num_blocks)]
    assert max(loads) == pairs.most_steps and max(loads) - min(loads) <= 1


def of_replicas(vectors, upstream, count, *, jit_compile=False, **options):
    """Values and gradients of `self_logsumexp` over replicas, one after the other.

    Each replica runs twice. The first run records the values that the forward pass sums over the
    replicas, and the second run uses the sums. The gradients are those of each replica's own rows.
    """
    is_own = np.repeat(np.eye(count, dtype=np.float32), len(vectors) // count, axis=1)

    def compute(index, own_upstream, total, all_upstream):
        recorded = []

        def add_up(values):
            recorded.append(values)
            if total is None:
                return values
            return total if len(recorded) == 1 else tf.reshape(all_upstream, tf.shape(values))

        share = Share(index, count, add_up)
        results = value_and_gradients(
            lambda v: self_logsumexp(v, share=share, **options), [vectors], own_upstream
        )
        return results, recorded

    def run(total, all_upstream):
        each = tf.function(compute, jit_compile=True, autograph=False) if jit_compile else compute
        return [
            each(tf.constant(index), tf.constant(upstream * is_own[index]), total, all_upstream)
            for index in range(count)
        ]

    first = [recorded for _, recorded in run(None, None)]
    total, all_upstream = (sum(parts) for parts in zip(*first, strict=True))
    results = [results for results, _ in run(total, all_upstream)]
    return results[0][0], sum(gradient for _, gradient in results)


@pytest.mark.parametrize("has_options", [False, True])
@pytest.mark.parametrize(
    ("count", "num_rows", "block_size", "cache_mb", "jit_compile"),
    [
        (2, 7, 3, 0.0001, False),
        (2, 5, None, 0.0, False),
        (3, 4, 2, 1.0, False),
        (4, 7, 3, 0.0, False),
        # Kept pairs beside the diagonal, and one replica has more of them than the other.
        pytest.param(2, 7, 3, 1.0, True, marks=pytest.mark.slow),
    ],
)
def test_replicas_that_share_the_pairs_have_the_whole_result(
    count, num_rows, block_size, cache_mb, jit_compile, has_options
):
    num_all = count * num_rows
    vectors, upstream = draw(0, num_all, 5), draw(1, 2 * num_all).reshape(2, num_all)
    options = {"block_size": block_size}
    if has_options:
        options["column_weights"] = tf.linspace(0.5, 2.0, num_all)
        options["classes"] = tf.range(num_all) % 3
    upstream = upstream if has_options else upstream[0]
    whole = value_and_gradients(lambda v: self_logsumexp(v, **options), [vectors], upstream)
    options["cache_mb"] = cache_mb
    shared = of_replicas(vectors, upstream, count, jit_compile=jit_compile, **options)
    assert_all_close(shared, whole)


@pytest.mark.parametrize("has_options", [False, True])
def test_the_cache_changes_no_bit(has_options):
    rows, columns, upstream = draw(0, 50, 5), draw(1, 70, 5), draw(2, 2 * 50).reshape(2, 50)
    weights, classes = tf.linspace(0.5, 2.0, 70), tf.range(70) % 3
    of_self, of_cross = {}, {}
    if has_options:
        of_self = {"column_weights": weights[:50], "classes": classes[:50]}
        of_cross = {
            "column_weights": weights,
            "classes": (classes[:50], classes),
        }
    upstream = upstream if has_options else upstream[0]

    def everything(cache_mb):
        options = {"block_size": 8, "cache_mb": cache_mb}
        return value_and_gradients(
            lambda r: self_logsumexp(r, **options, **of_self), [rows], upstream
        ) + value_and_gradients(
            lambda r, c: cross_logsumexp(r, c, **options, **of_cross), [rows, columns], upstream
        )

    expected = everything(0.0)
    # 3, 12 and all of the 28 or 63 pairs of blocks, which have at most 8 x 8 numbers.
    for cache_mb in (0.0008, 0.0031, 1.0):
        for value, other in zip(everything(cache_mb), expected, strict=True):
            np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_gradient_outside_of_the_function_that_has_the_loss(jit_compile):
    rows, upstream = draw(0, 50, 5), draw(1, 50)

    def loss(rows):
        return self_logsumexp(rows, block_size=8, cache_mb=1.0)

    compiled = tf.function(loss, jit_compile=jit_compile)
    assert_all_close(
        value_and_gradients(compiled, [rows], upstream),
        value_and_gradients(loss, [rows], upstream),
    )


def test_the_whole_safe_range_is_exact():
    """Products from -39 to 39: the smallest sums and the largest stay inside float32."""
    angles = np.linspace(0, np.pi, 50, dtype=np.float32)
    vectors = np.sqrt(np.float32(39)) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert is_safe_without_maximum(vectors, vectors)
    assert not is_safe_without_maximum(vectors * 1.1, vectors)
    upstream = draw(0, 50)
    for rows, columns in ((vectors, vectors), (vectors[:1], -vectors[:1]), (vectors, vectors[:7])):
        results = value_and_gradients(
            lambda r, c: cross_logsumexp(r, c, block_size=16),
            [rows, columns],
            upstream[: len(rows)],
        )
        expected = oracle(rows, columns, None, upstream[: len(rows)])
        for result, value in zip(results, expected, strict=True):
            np.testing.assert_allclose(result, value, rtol=2e-5, atol=2e-4)


def test_a_single_row_has_an_empty_sum_and_no_gradient():
    values, gradient = value_and_gradients(self_logsumexp, [draw(0, 1, 3)], np.ones(1, np.float32))
    np.testing.assert_array_equal(values, [-np.inf])
    np.testing.assert_array_equal(gradient, np.zeros((1, 3)))


@pytest.mark.parametrize("block_size", [1, 4, 11, 30])
def test_a_function_of_rows_is_the_same_in_blocks(block_size):
    scale = tf.constant(draw(3, 11))

    def function(rows, columns, numbers):
        return (
            tf.nn.softmax(tf.matmul(rows, columns, transpose_b=True))
            @ columns
            * (tf.gather(scale, numbers)[:, None])
        )

    inputs, upstream = [draw(0, 11, 4), draw(1, 6, 4)], draw(2, 11, 4)
    assert_all_close(
        value_and_gradients(
            lambda r, c: map_row_blocks(function, r, c, block_size=block_size), inputs, upstream
        ),
        value_and_gradients(lambda r, c: function(r, c, tf.range(11)), inputs, upstream),
    )


def test_masked_entries_take_no_part_in_the_maximum():
    logits = tf.constant([[1000.0, -1000.0, -1001.0], [0.0, 1.0, 2.0]])
    mask = tf.constant([[False, True, True], [False, False, False]])
    values = masked_logsumexp(logits, mask)
    np.testing.assert_allclose(values[0], -1000 + np.log1p(np.exp(-1)), rtol=1e-6)
    assert values[1] == -np.inf


@pytest.mark.parametrize("predicate", [True, False])
def test_recomputing_cond_is_cond(predicate):
    inputs, upstream = [draw(0, 3), draw(1, 3)], draw(2, 3)
    results = value_and_gradients(
        lambda x, y: recomputing_cond(
            tf.constant(predicate), lambda x, y: x * y, lambda x, y: tf.square(x), x, y
        ),
        inputs,
        upstream,
    )
    x, y = inputs
    if predicate:
        assert_all_close(results, [x * y, upstream * y, upstream * x])
    else:
        assert_all_close(results, [x**2, 2 * upstream * x, 0 * y])
