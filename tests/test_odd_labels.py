"""A label that is not a number spoils its own example and no other; losses in a vectorized map."""

import numpy as np
import pytest
import tensorflow as tf

from supcon_tf.losses import baselines
from supcon_tf.losses.class_labels import class_index
from supcon_tf.losses.supcon import SupConLoss, supcon_loss

NAN = float("nan")
LABELS = np.array([1, NAN, 0, 1, 2, NAN, 0, 1], np.float32)
NUMBERED = np.array([1, 7, 0, 1, 2, 8, 0, 1], np.float32)  # Classes of their own.
IS_NAN = np.isnan(LABELS)
FEATURES = np.random.default_rng(0).normal(size=(8, 2, 5)).astype(np.float32)
OPTIONS = [
    {},
    {"block_size": 3},
    {"normalize": False},
    {"contrast_mode": "one_view"},
    {"summation_location": "inside"},
    {"denominator_mode": "one_positive"},
    {"positives_cap": 2},
]
LOSSES = [baselines.npairs_loss, baselines.triplet_loss, baselines.max_margin_loss]


def one_hot(labels):
    return np.eye(9, dtype=np.float32)[NUMBERED.astype(int)] + np.where(
        np.isnan(labels)[:, None], NAN, 0
    ).astype(np.float32)


def check(losses, expected):
    losses, expected = np.array(losses), np.array(expected)
    assert np.all(np.isnan(losses[IS_NAN]))
    np.testing.assert_allclose(losses[~IS_NAN], expected[~IS_NAN], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_nan_label_makes_its_own_loss_nan_and_is_a_class_of_its_own(options):
    expected = supcon_loss(NUMBERED, FEATURES, **options)
    check(supcon_loss(LABELS, FEATURES, **options), expected)
    check(supcon_loss(LABELS.astype(np.float64), FEATURES, **options), expected)
    check(supcon_loss(LABELS[:, None], FEATURES, **options), expected)
    check(supcon_loss(one_hot(LABELS), FEATURES, **options), expected)
    graph = tf.function(lambda labels: supcon_loss(labels, FEATURES, **options))
    check(graph(LABELS), expected)


@pytest.mark.parametrize("options", [{}, {"block_size": 3}, {"denominator_mode": "one_positive"}])
def test_a_nan_label_means_the_same_to_xla(options):
    compiled = tf.function(
        lambda labels: supcon_loss(labels, FEATURES, **options), jit_compile=True
    )
    check(compiled(LABELS), supcon_loss(NUMBERED, FEATURES, **options))


def test_a_nan_label_means_the_same_on_four_replicas(mirrored):
    def part(array):
        def of(context):
            return tf.constant(array[2 * context.replica_id_in_sync_group :][:2])

        return mirrored.experimental_distribute_values_from_function(of)

    run = tf.function(lambda *args: mirrored.run(supcon_loss, args=args))
    shards = mirrored.experimental_local_results(run(part(LABELS), part(FEATURES)))
    check(tf.concat(shards, axis=0), supcon_loss(NUMBERED, FEATURES))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_nan_label_means_the_same_to_the_other_losses(loss):
    check(loss(LABELS, FEATURES), loss(NUMBERED, FEATURES))
    check(loss(one_hot(LABELS), FEATURES), loss(one_hot(NUMBERED), FEATURES))


def test_the_gradient_of_the_other_examples_stays_finite():
    def gradient(labels):
        features = tf.constant(FEATURES)
        with tf.GradientTape() as tape:
            tape.watch(features)
            losses = supcon_loss(labels, features)
            total = tf.reduce_sum(tf.boolean_mask(losses, ~IS_NAN))
        return tape.gradient(total, features)

    np.testing.assert_allclose(gradient(LABELS), gradient(NUMBERED), rtol=1e-4, atol=1e-6)


def test_keras_shows_a_nan_label_in_the_loss():
    assert np.isnan(SupConLoss()(LABELS, FEATURES))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.int64])
def test_classes_are_numbered_in_order_whatever_their_type(dtype):
    labels = np.array([3, -1, 3, 0, -5, 7, 0], dtype)
    np.testing.assert_array_equal(class_index(tf.constant(labels)), [3, 1, 3, 2, 0, 4, 2])


def test_infinite_and_negative_zero_labels_are_classes_like_others():
    inf = np.float32("inf")
    labels = tf.constant([inf, NAN, -inf, -0.0, inf, 0.0, -np.float32(NAN), -inf])
    index = class_index(labels).numpy()
    assert index[0] == index[4] and index[2] == index[7] and index[3] == index[5]
    assert len(set(index)) == 5


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_vectorized_map_equals_a_loop(options):
    check_vectorized(lambda labels, features: supcon_loss(labels, features, **options))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_vectorized_map_of_the_other_losses_equals_a_loop(loss):
    check_vectorized(loss)


def check_vectorized(loss):
    rng = np.random.default_rng(1)
    batches = (
        tf.constant(rng.integers(0, 3, [3, 8]).astype(np.int32)),
        tf.constant(rng.normal(size=(3, 8, 2, 5)).astype(np.float32)),
    )
    looped = [loss(labels, features) for labels, features in zip(*batches, strict=True)]
    mapped = tf.vectorized_map(lambda batch: loss(*batch), batches)
    assert np.all(np.abs(looped) > 0)
    np.testing.assert_allclose(mapped, looped, rtol=1e-5, atol=1e-6)


def test_labels_of_text_and_empty_batches_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"expected class numbers.*np.unique"):
        supcon_loss(np.array(["cat", "dog"]), FEATURES[:2])
    for options in ({}, {"summation_location": "inside"}):
        with pytest.raises(ValueError, match="batch is empty.*drop_remainder"):
            supcon_loss(LABELS[:0], FEATURES[:0], **options)
