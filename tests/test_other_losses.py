import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import oracles
from helpers.replicas import split

from supcon_tf.losses import baselines
from supcon_tf.losses.features import l2_normalize

NUM_EXAMPLES = 8
LABELS = np.array([0, 1, 2, 0, 1, 1, 0, 3])  # 2 and 3 have one example each.


def draw_features(num_examples=NUM_EXAMPLES, num_views=2, size=3, seed=0):
    shape = (num_examples, num_views, size)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# The equations as loops.


def rows_of(labels, features):
    """Unit vectors by (example, view), and for each anchor its positives and negatives."""
    z = np.asarray(features, np.float64)
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    rows = list(itertools.product(range(z.shape[0]), range(z.shape[1])))
    for anchor in rows:
        others = [row for row in rows if row != anchor]
        positives = [row for row in others if oracles.share_a_class(labels, row[0], anchor[0])]
        yield anchor, z, positives, [row for row in others if row not in positives]


def mean_over_views(labels, features, loss_of_anchor):
    result = np.zeros(len(features))
    for anchor, z, positives, negatives in rows_of(labels, features):
        value = loss_of_anchor(anchor, z, positives, negatives)
        result[anchor[0]] += value / np.shape(features)[1]
    return result


def npairs(labels, features):
    def loss_of_anchor(anchor, z, positives, negatives):
        example, view = anchor
        others = [n for n in range(len(z)) if n != example and labels[n] == labels[example]]
        if not others:
            return 0.0
        following = min(others, key=lambda n: (n - example) % len(z))
        denominator = oracles.logsumexp([z[anchor] @ z[row] for row in positives + negatives])
        return denominator - z[anchor] @ z[following, view]

    return mean_over_views(labels, features, loss_of_anchor)


def triplet(labels, features, margin=0.2):
    def loss_of_anchor(anchor, z, positives, negatives):
        if not positives or not negatives:
            return 0.0
        far = [np.sum((z[anchor] - z[row]) ** 2) for row in negatives]
        values = []
        for row in positives:
            distance = np.sum((z[anchor] - z[row]) ** 2)
            farther = [d for d in far if d > distance]
            values.append(max(0.0, distance - (min(farther) if farther else max(far)) + margin))
        return np.mean(values)

    return mean_over_views(labels, features, loss_of_anchor)


def max_margin(labels, features, margin=1.0):
    def loss_of_anchor(anchor, z, positives, negatives):
        pull = sum(np.sum((z[anchor] - z[row]) ** 2) / 2 for row in positives)
        push = sum(
            max(0.0, margin - np.sqrt(np.sum((z[anchor] - z[row]) ** 2))) ** 2 / 2
            for row in negatives
        )
        return (pull + push) / len(positives + negatives)

    return mean_over_views(labels, features, loss_of_anchor)


LOSSES = {
    "npairs": (baselines.npairs_loss, npairs, {}),
    "triplet": (baselines.triplet_loss, triplet, {}),
    "triplet with a wide margin": (baselines.triplet_loss, triplet, {"margin": 1.5}),
    "max_margin": (baselines.max_margin_loss, max_margin, {}),
    "max_margin with a wide margin": (baselines.max_margin_loss, max_margin, {"margin": 1.8}),
}
CLASSES = (baselines.NPairsLoss, baselines.TripletLoss, baselines.MaxMarginLoss)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("block_size", [None, 4])
def test_value_and_gradient_equal_the_equation(name, num_views, block_size):
    function, oracle, options = LOSSES[name]
    features = draw_features(num_views=num_views)
    x = tf.constant(features)
    with tf.GradientTape() as tape:
        tape.watch(x)
        values = function(LABELS, x, block_size=block_size, **options)
        total = tf.reduce_sum(values)
    np.testing.assert_allclose(values, oracle(LABELS, features, **options), atol=2e-6)
    expected = oracles.gradient(lambda x: oracle(LABELS, x, **options).sum(), features)
    np.testing.assert_allclose(tape.gradient(total, x), expected, atol=2e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_labels_may_be_class_numbers_of_any_form(name):
    function, features = LOSSES[name][0], draw_features()
    expected = function(LABELS, features)
    for labels in (LABELS[:, None], LABELS.astype(np.float32), np.eye(4)[LABELS], LABELS - 7):
        np.testing.assert_allclose(function(labels, features), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["triplet", "max_margin"])
def test_multi_hot_positives_share_a_class(name):
    function, oracle, _ = LOSSES[name]
    labels = np.eye(4)[LABELS] + np.eye(4)[LABELS[::-1]]
    features = draw_features()
    np.testing.assert_allclose(function(labels, features), oracle(labels, features), atol=2e-6)


def test_every_example_is_the_positive_of_one_other_of_its_class():
    """Following it visits a whole class and comes back."""
    following = baselines._next_of_class(tf.constant(LABELS)).numpy()
    assert sorted(following) == list(range(NUM_EXAMPLES))
    assert list(LABELS[following]) == list(LABELS)
    assert following[0] == 3 and following[6] == 0 and following[7] == 7


@pytest.mark.parametrize("name", LOSSES)
def test_classes_of_one_example_and_a_single_class_are_finite(name):
    function, oracle, options = LOSSES[name]
    features = draw_features(num_views=1)
    for labels in (np.arange(NUM_EXAMPLES), np.zeros(NUM_EXAMPLES, int)):
        x = tf.constant(features)
        with tf.GradientTape() as tape:
            tape.watch(x)
            values = function(labels, x, **options)
        np.testing.assert_allclose(values, oracle(labels, features, **options), atol=2e-6)
        assert np.all(np.isfinite(tape.gradient(values, x)))


@pytest.mark.parametrize("name", LOSSES)
def test_equal_embeddings_and_zeros_are_finite(name):
    function, _, options = LOSSES[name]
    for features in (np.ones((NUM_EXAMPLES, 2, 3), "f"), np.zeros((NUM_EXAMPLES, 2, 3), "f")):
        x = tf.constant(features)
        with tf.GradientTape() as tape:
            tape.watch(x)
            values = function(LABELS, x, **options)
        assert np.all(np.isfinite(values)) and np.all(np.isfinite(tape.gradient(values, x)))


@pytest.mark.parametrize("name", LOSSES)
def test_a_feature_that_is_not_a_number_shows_in_the_loss(name):
    function, _, options = LOSSES[name]
    features = draw_features()
    features[0, 0, 0] = np.nan
    assert np.isnan(function(LABELS, features, **options)[0])


@pytest.mark.parametrize(
    "name,replicas",
    [
        *((name, "two_replicas") for name in ("npairs", "triplet", "max_margin")),
        pytest.param("triplet", "mirrored", marks=pytest.mark.slow),
    ],
)
def test_replicas_equal_one_device(request, replicas, name):
    mirrored = request.getfixturevalue(replicas)
    function, features = LOSSES[name][0], draw_features()

    def values_and_gradients(strategy):
        def replica(x, y):
            with tf.GradientTape() as tape:
                tape.watch(x)
                values = function(y, x)
                mean = tf.reduce_sum(values) / NUM_EXAMPLES
            return values, tape.gradient(mean, x)

        results = tf.function(strategy.run, autograph=False)(
            replica, args=split(strategy, features, LABELS)
        )
        return [
            np.concatenate(strategy.experimental_local_results(result), axis=0)
            for result in results
        ]

    expected = values_and_gradients(tf.distribute.OneDeviceStrategy("CPU:0"))
    for result, value in zip(values_and_gradients(mirrored), expected, strict=True):
        np.testing.assert_allclose(result, value, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("loss_class", CLASSES)
def test_the_keras_loss_is_the_function_and_can_be_saved(loss_class):
    options = {"block_size": 5}
    if loss_class is not baselines.NPairsLoss:
        options["margin"] = 0.7
    loss, features = loss_class(**options), draw_features()
    function = getattr(baselines, loss.name)
    expected = function(LABELS, features, **options)
    np.testing.assert_allclose(loss(LABELS, features), np.mean(expected), rtol=1e-5)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config()
    np.testing.assert_allclose(again(LABELS, features), np.mean(expected), rtol=1e-5)


@pytest.mark.parametrize("loss_class", CLASSES)
def test_descent_brings_classes_together(loss_class):
    features = tf.Variable(draw_features(size=8))
    loss, optimizer = loss_class(), keras.optimizers.Adam(0.05)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            value = loss(LABELS, features)
        optimizer.apply_gradients([(tape.gradient(value, features), features)])
        return value

    values = [float(step()) for _ in range(60)]
    assert values[-1] < 0.7 * values[0]
    z = l2_normalize(features)[:, 0].numpy()
    same = (LABELS[:, None] == LABELS) & ~np.eye(NUM_EXAMPLES, dtype=bool)
    assert (z @ z.T)[same].mean() > (z @ z.T)[
        ~same & ~np.eye(NUM_EXAMPLES, dtype=bool)
    ].mean() + 0.3


def test_missing_labels_and_a_margin_of_0_are_refused():
    with pytest.raises(ValueError, match="needs labels"):
        baselines.triplet_loss(None, draw_features())
    with pytest.raises(ValueError, match="margin=0: "):
        baselines.MaxMarginLoss(margin=0)
    with pytest.raises(ValueError, match="margin=-1: "):
        baselines.triplet_loss(LABELS, draw_features(), margin=-1)
