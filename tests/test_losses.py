import inspect
import itertools
from dataclasses import fields

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import oracles
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from supcon_tf.losses.options import (
    CONTRAST_MODES,
    DENOMINATOR_MODES,
    SUMMATION_LOCATIONS,
    SupConOptions,
)
from supcon_tf.losses.supcon import SupConLoss, collapse_loss, supcon_loss

F = [
    [[0.01, 0.02, 0.14], [0.38, 0.61, 0.50]],
    [[0.86, 0.97, 0.33], [0.26, 0.68, 0.45]],
    [[0.32, 0.64, 0.28], [0.45, 0.74, 0.73]],
]
# The values that the reference implementation's own tests assert (google-research/supcon,
# losses_test.py), at temperature 1 and without normalization.
REFERENCE_VALUES = [
    ("outside", "all", -1, (0, 0, 1), [1.6755852, 1.7973773, 1.58471]),
    ("outside", "one_positive", -1, (0, 0, 1), [1.1782627, 1.3435497, 1.58471]),
    ("outside", "only_negatives", -1, (0, 0, 1), [0.79652834, 1.0154991, 1.3529458]),
    ("outside", "all", 4, (0, 0, 1), [1.6755852, 1.7973773, 1.58471]),
    ("outside", "all", 2, (0, 0, 0), [1.1385298, 1.1824025, 1.1557417]),
    ("outside", "all", 0, (0, 0, 1), [1.3769293, 1.0785717, 1.58471]),
    ("inside", "all", -1, (0, 0, 1), [1.6356678, 1.7135872, 1.58471]),
    ("inside", "one_positive", -1, (0, 0, 1), [1.1571673, 1.2941568, 1.58471]),
    ("inside", "only_negatives", -1, (0, 0, 1), [0.756611, 0.93170905, 1.3529458]),
    ("inside", "all", 4, (0, 0, 1), [1.6356678, 1.7135872, 1.58471]),
    ("inside", "all", 2, (0, 0, 0), [1.0986123, 1.0986123, 1.0986123]),
    ("inside", "all", 0, (0, 0, 1), [1.3769293, 1.0785717, 1.58471]),
]
TETRAHEDRON = np.array(
    [
        [[0, 0, 1], [0, 2 * np.sqrt(2) / 3, -1 / 3]],
        [
            [np.sqrt(6) / 3, -np.sqrt(2) / 3, -1 / 3],
            [-np.sqrt(6) / 3, -np.sqrt(2) / 3, -1 / 3],
        ],
    ]
)
RAW = {"temperature": 1.0, "normalize": False}
ALL_OPTIONS = list(
    itertools.product(
        CONTRAST_MODES, SUMMATION_LOCATIONS, DENOMINATOR_MODES, (-1, 0, 2), (True, False)
    )
)


def draw_features(seed, num_examples=5, num_views=2, num_features=3):
    return np.random.default_rng(seed).normal(size=(num_examples, num_views, num_features))


def value_and_gradient(labels, features, **options):
    features = tf.constant(features, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(features)
        losses = supcon_loss(labels, features, **options)
        total = tf.reduce_sum(losses)
    return losses.numpy(), tape.gradient(total, features).numpy()


@pytest.mark.parametrize("summation,denominator,cap,labels,expected", REFERENCE_VALUES)
def test_equals_the_reference_implementation(summation, denominator, cap, labels, expected):
    options = {
        "summation_location": summation,
        "denominator_mode": denominator,
        "positives_cap": cap,
        **RAW,
    }
    np.testing.assert_allclose(supcon_loss(labels, F, **options), expected, atol=1e-5)
    np.testing.assert_allclose(oracles.supcon_loss(labels, F, **options), expected, atol=1e-6)


@pytest.mark.parametrize("labels", [None, (0, 1), np.eye(2)])
def test_tetrahedron_has_a_loss_of_log_three(labels):
    """All six similarities are -1/3, so the positive's probability is 1 in 3."""
    losses = supcon_loss(labels, TETRAHEDRON, **RAW)
    np.testing.assert_allclose(np.mean(losses), np.log(3), atol=1e-6)
    for scale, expected in ((True, 0.1 * np.log(3)), (False, np.log(3))):
        losses = supcon_loss(labels, TETRAHEDRON, temperature=0.1, scale_by_temperature=scale)
        np.testing.assert_allclose(np.mean(losses), expected, atol=1e-5)


def test_one_view_takes_only_the_first_view_as_anchor():
    features = [[[0, 0, 1], [0, 1, 0]], [[1, 0, 0], [0, -1, 0]]]
    one = supcon_loss(None, tf.constant(features, tf.float32), contrast_mode="one_view", **RAW)
    both = supcon_loss(None, tf.constant(features, tf.float32), **RAW)
    np.testing.assert_allclose(np.mean(one), np.log(3), atol=1e-6)
    np.testing.assert_allclose(np.mean(both), 0.9803036, atol=1e-6)


def test_orthogonal_classes_have_their_closed_form():
    """Rows of the shared class: each anchor has 3 positives, one equal and two orthogonal."""
    eye = np.eye(3)[::-1]
    features = np.stack([eye, eye], axis=1)
    expected = [np.log(np.e + 4) - 1 / 3] * 2 + [np.log(np.e + 4) - 1]
    np.testing.assert_allclose(supcon_loss((0, 0, 2), features, **RAW), expected, atol=1e-6)
    np.testing.assert_allclose(expected, [1.57149910, 1.57149910, 0.90483244], atol=1e-8)


def test_one_view_per_example_divides_by_the_positives_once():
    features = np.array([[0.01, 0.02, 0.14], [0.86, 0.97, 0.33], [0.32, 0.64, 0.28]])
    np.testing.assert_allclose(
        supcon_loss((1, 1, 2), features, **RAW), [0.6836923, 1.2512700, 0.0], atol=1e-6
    )
    equal = np.ones((64, 8))
    np.testing.assert_allclose(
        supcon_loss([0] * 64, equal, scale_by_temperature=False), [np.log(63)] * 64, rtol=1e-5
    )


@pytest.mark.parametrize("contrast,summation,denominator,cap,scale", ALL_OPTIONS)
def test_every_option_equals_the_double_loop(contrast, summation, denominator, cap, scale):
    options = {
        "temperature": 0.5,
        "contrast_mode": contrast,
        "summation_location": summation,
        "denominator_mode": denominator,
        "positives_cap": cap,
        "scale_by_temperature": scale,
    }
    multi_hot = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]])
    for labels in ([0, 1, 0, 0, 2], multi_hot, None):
        features = draw_features(seed=1)
        value, gradient = value_and_gradient(labels, features, **options)
        label_array = None if labels is None else np.array(labels)
        np.testing.assert_allclose(
            value, oracles.supcon_loss(label_array, features, **options), rtol=1e-5, atol=1e-6
        )
        expected = oracles.gradient_at_once(
            lambda x, y=label_array: oracles.supcon_loss_by_rows(y, x, **options).sum(axis=-1),
            features,
        )
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(
    num_examples=st.integers(1, 24),
    num_views=st.integers(1, 3),
    num_classes=st.integers(1, 6),
    temperature=st.floats(0.05, 2.0),
    contrast=st.sampled_from(CONTRAST_MODES),
    summation=st.sampled_from(SUMMATION_LOCATIONS),
    denominator=st.sampled_from(DENOMINATOR_MODES),
    cap_examples=st.integers(-1, 3),
    normalize=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_random_batches_equal_the_double_loop(
    num_examples, num_views, num_classes, temperature, contrast, summation, denominator,
    cap_examples, normalize, seed,
):  # fmt: skip
    features = draw_features(seed, num_examples, num_views, num_features=4)
    labels = np.random.default_rng(seed).integers(num_classes, size=num_examples)
    options = {
        "temperature": temperature,
        "contrast_mode": contrast,
        "summation_location": summation,
        "denominator_mode": denominator,
        "positives_cap": -1 if cap_examples < 0 else cap_examples * num_views,
        "normalize": normalize,
    }
    np.testing.assert_allclose(
        supcon_loss(labels, features, **options),
        oracles.supcon_loss(labels, features, **options),
        rtol=1e-5,
        atol=1e-5,
    )


@settings(max_examples=40, deadline=None)
@given(
    num_examples=st.integers(1, 257),
    num_views=st.integers(1, 2),
    label_kind=st.sampled_from(["classes", "multi-hot", "none"]),
    temperature=st.floats(0.05, 2.0),
    contrast=st.sampled_from(CONTRAST_MODES),
    summation=st.sampled_from(SUMMATION_LOCATIONS),
    denominator=st.sampled_from(DENOMINATOR_MODES),
    cap_examples=st.integers(-1, 3),
    normalize=st.booleans(),
    block_size=st.one_of(st.none(), st.integers(60, 300)),
    seed=st.integers(0, 2**16),
)
def test_blocks_that_do_not_divide_the_batch_evenly(
    num_examples, num_views, label_kind, temperature, contrast, summation, denominator,
    cap_examples, normalize, block_size, seed,
):  # fmt: skip
    assume(label_kind != "none" or num_views > 1)
    features = draw_features(seed, num_examples, num_views, num_features=4)
    random = np.random.default_rng(seed)
    labels = {
        "classes": random.integers(9, size=num_examples),
        "multi-hot": (random.random((num_examples, 9)) < 0.1).astype(int),
        "none": None,
    }[label_kind]
    options = {
        "temperature": temperature,
        "contrast_mode": contrast,
        "summation_location": summation,
        "denominator_mode": denominator,
        "positives_cap": -1 if cap_examples < 0 else cap_examples * num_views,
        "normalize": normalize,
    }
    np.testing.assert_allclose(
        supcon_loss(labels, features, block_size=block_size, **options),
        oracles.supcon_loss_by_rows(labels, features, **options),
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_two_oracles_agree():
    features, labels = draw_features(seed=10), [0, 1, 0, 0, 2]
    for contrast, summation, denominator, cap, scale in ALL_OPTIONS:
        options = {
            "contrast_mode": contrast,
            "summation_location": summation,
            "denominator_mode": denominator,
            "positives_cap": cap,
            "scale_by_temperature": scale,
        }
        for each in (np.array(labels), np.eye(3)[labels], None):
            np.testing.assert_allclose(
                oracles.supcon_loss_by_rows(each, features, **options),
                oracles.supcon_loss(each, features, **options),
                rtol=1e-9,
            )


def test_many_batches_at_once_are_each_batch_by_itself():
    """What the gradients of the tests above are made of."""
    batches, labels = (
        np.stack([draw_features(seed) for seed in range(4)]),
        np.array([0, 1, 0, 0, 2]),
    )
    for options in ({}, {"summation_location": "inside", "denominator_mode": "one_positive"}):
        found = oracles.supcon_loss_by_rows(labels, batches, **options)
        expected = [oracles.supcon_loss(labels, batch, **options) for batch in batches]
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(
        oracles.gradient_at_once(
            lambda x: oracles.supcon_loss_by_rows(labels, x).sum(axis=-1), batches[0]
        ),
        oracles.gradient(lambda x: oracles.supcon_loss(labels, x).sum(), batches[0]),
        atol=1e-9,
    )


@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("contrast", CONTRAST_MODES)
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_gradients_in_blocks_equal_finite_differences(block_size, contrast, temperature):
    features, labels = draw_features(seed=11) / 3, np.array([0, 1, 0, 0, 2])
    for normalize in (True, False):
        options = {"temperature": temperature, "contrast_mode": contrast, "normalize": normalize}
        _, gradient = value_and_gradient(labels, features, block_size=block_size, **options)
        expected = oracles.gradient_at_once(
            lambda x, options=options: oracles.supcon_loss_by_rows(labels, x, **options).sum(
                axis=-1
            ),
            features,
        )
        np.testing.assert_allclose(gradient, expected, rtol=2e-4, atol=2e-6)


def largest_tensor(graph):
    """The most elements of any tensor in a graph, the bodies of its loops and its branches."""
    largest = 0
    for operation in graph.get_operations():
        for tensor in operation.outputs:
            largest = max(largest, tensor.shape.num_elements() or 0)
        for name in ("body", "then_branch", "else_branch", "f"):
            if name in operation.node_def.attr:
                function = graph._get_function(operation.get_attr(name).name)
                largest = max(largest, largest_tensor(function.graph))
    return largest


@pytest.mark.parametrize(
    "summation,denominator,cap,num_views,normalize,contrast",
    [
        ("outside", "all", -1, 2, True, "all_views"),
        ("outside", "all", -1, 2, True, "one_view"),
        ("outside", "all", -1, 2, False, "all_views"),
        pytest.param("outside", "all", -1, 2, False, "one_view", marks=pytest.mark.slow),
        ("outside", "all", 4, 2, True, "all_views"),
        pytest.param("outside", "all", 4, 2, True, "one_view", marks=pytest.mark.slow),
        ("outside", "one_positive", -1, 2, True, "all_views"),
        pytest.param("outside", "one_positive", -1, 2, True, "one_view", marks=pytest.mark.slow),
        ("inside", "only_negatives", -1, 2, True, "one_view"),
        pytest.param("inside", "only_negatives", -1, 2, True, "all_views", marks=pytest.mark.slow),
        ("inside", "one_positive", 3, 1, True, "all_views"),
        pytest.param("inside", "one_positive", 3, 1, True, "one_view", marks=pytest.mark.slow),
    ],
)
def test_no_tensor_of_all_pairs_exists(summation, denominator, cap, num_views, normalize, contrast):
    """Not even one of [examples, examples], in neither direction."""
    num_examples, block_size = 120, 8

    def step(labels, features, block_size):
        with tf.GradientTape() as tape:
            tape.watch(features)
            losses = supcon_loss(
                labels,
                features,
                contrast_mode=contrast,
                summation_location=summation,
                denominator_mode=denominator,
                positives_cap=cap,
                normalize=normalize,
                block_size=block_size,
            )
        return losses, tape.gradient(losses, features)

    features = tf.TensorSpec([num_examples, num_views, 4])
    for labels in (tf.TensorSpec([num_examples], tf.int32), tf.TensorSpec([num_examples, 3])):
        concrete = tf.function(step).get_concrete_function(labels, features, block_size)
        assert largest_tensor(concrete.graph) <= block_size * num_examples * num_views
    if cap == 4:  # The search can find one.
        whole = tf.function(step).get_concrete_function(labels, features, 10**6)
        assert largest_tensor(whole.graph) >= num_examples**2


def test_label_forms_are_equivalent():
    labels = np.array([0, 1, 0, 2, 1])
    features = draw_features(seed=2)
    expected = supcon_loss(labels, features)
    for form in (
        labels[:, None],
        np.eye(3)[labels],
        labels.astype(np.float32),
        tf.constant(labels),
    ):
        np.testing.assert_array_equal(supcon_loss(form, features), expected)
    large = labels.astype(np.int64) + 2**40  # equal in float32, different as integers
    np.testing.assert_array_equal(supcon_loss(large, features), expected)


def test_unique_labels_are_simclr():
    features = draw_features(seed=3)
    expected = supcon_loss(None, features)
    np.testing.assert_array_equal(supcon_loss(np.arange(5), features), expected)
    np.testing.assert_array_equal(supcon_loss(np.eye(5), features), expected)
    loss = SupConLoss(use_labels=False, reduction=None)
    np.testing.assert_array_equal(loss([0] * 5, tf.constant(features, tf.float32)), expected)


def test_permuting_the_batch_permutes_the_losses():
    features, labels = draw_features(seed=4), np.array([0, 1, 0, 2, 1])
    order = np.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(
        supcon_loss(labels[order], features[order]),
        supcon_loss(labels, features).numpy()[order],
        rtol=1e-5,
    )


def test_swapping_views_and_rotating_changes_nothing():
    features, labels = draw_features(seed=5), [0, 1, 0, 2, 1]
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    expected = supcon_loss(labels, features)
    np.testing.assert_allclose(supcon_loss(labels, features[:, ::-1]), expected, rtol=1e-5)
    np.testing.assert_allclose(supcon_loss(labels, features @ rotation), expected, rtol=1e-5)


def test_inside_is_at_most_outside():
    """Jensen's inequality for the concave logarithm (Khosla et al. 2020, section 3.2.2)."""
    for seed in range(20):
        features, labels = draw_features(seed, num_examples=8), [0, 0, 0, 0, 1, 1, 1, 2]
        inside = supcon_loss(labels, features, summation_location="inside")
        outside = supcon_loss(labels, features)
        assert np.all(inside.numpy() <= outside.numpy() + 1e-6)


def test_equal_embeddings_have_the_collapse_loss():
    """All similarities are equal, so each positive has probability 1 / (V N - 1)."""
    features = np.ones((16, 2, 8))
    losses, gradient = value_and_gradient([0] * 8 + [1] * 8, features, temperature=0.01)
    np.testing.assert_allclose(losses, 0.01 * np.log(31), rtol=1e-5)
    np.testing.assert_allclose(collapse_loss(16, 2), np.log(31), rtol=1e-6)
    assert np.all(np.isfinite(gradient))


EDGES = {
    "opposite vectors": ([0, 0, 1], [[[1.0, 0]] * 2, [[-1.0, 0]] * 2, [[-1.0, 0]] * 2]),
    "zero vectors": ([0, 0, 1], np.zeros((3, 2, 2))),
    "one zero view": ([0, 1], [[[0.0, 0], [1, 0]], [[0, 1], [1, 1]]]),
    "one class": ([0, 0, 0], draw_features(0, 3, 2, 2)),
    "no positives": ([0, 1, 2], draw_features(0, 3, 1, 2)),
    "one example": ([0], draw_features(0, 1, 1, 2)),
    "huge and tiny": ([0, 0, 1], draw_features(0, 3, 2, 2) * [[[1e30]], [[1e-30]], [[1.0]]]),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("summation", SUMMATION_LOCATIONS)
@pytest.mark.parametrize("denominator", DENOMINATOR_MODES)
def test_value_and_gradient_are_finite_at_the_edges(name, summation, denominator):
    labels, features = EDGES[name]
    options = {
        "temperature": 0.01,
        "summation_location": summation,
        "denominator_mode": denominator,
    }
    value, gradient = value_and_gradient(labels, features, **options)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(
        value,
        oracles.supcon_loss(np.array(labels), np.array(features), **options),
        rtol=1e-4,
        atol=1e-5,
    )


def test_an_anchor_without_positives_counts_as_zero():
    features = draw_features(seed=6, num_views=1)
    losses = supcon_loss([0, 0, 1, 2, 3], features).numpy()
    assert np.all(losses[2:] == 0) and np.all(losses[:2] > 0)
    mean = SupConLoss()(np.array([0, 0, 1, 2, 3]), features[:, 0])
    np.testing.assert_allclose(mean, losses.sum() / 5, rtol=1e-6)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_half_precision_features_are_computed_in_float32(dtype):
    features = tf.cast(draw_features(seed=7, num_examples=64, num_features=16), dtype)
    labels = np.arange(64) % 5
    losses = supcon_loss(labels, features, temperature=0.01)
    assert losses.dtype == tf.float32
    np.testing.assert_allclose(
        losses,
        oracles.supcon_loss(labels, tf.cast(features, tf.float64).numpy(), temperature=0.01),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_equals_eager_with_an_unknown_batch(jit_compile):
    signature = [tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, 2, 3], tf.float32)]
    compiled = tf.function(supcon_loss, input_signature=signature, jit_compile=jit_compile)
    for num_examples in (3, 5):
        features = tf.constant(draw_features(8, num_examples), tf.float32)
        labels = tf.constant([0, 1, 0, 0, 1][:num_examples])
        np.testing.assert_allclose(
            compiled(labels, features), supcon_loss(labels, features), rtol=1e-5
        )


def test_higher_ranks_are_flattened():
    features = draw_features(seed=9, num_features=12)
    labels = [0, 1, 0, 2, 1]
    np.testing.assert_allclose(
        supcon_loss(labels, features.reshape(5, 2, 3, 4)), supcon_loss(labels, features), rtol=1e-6
    )


@pytest.mark.parametrize(
    "labels,features,options,message",
    [
        (None, np.ones(3), {}, "Invalid features rank"),
        (None, np.ones((3, 4)), {}, "two or more views.*use_labels=True"),
        (None, np.ones((3, 1, 4)), {}, "two or more views.*use_labels=True"),
        ([0, 1], np.ones((3, 2, 4)), {}, "expected 3 labels.*got 2"),
        (np.ones((3, 2, 2)), np.ones((3, 2, 4)), {}, "Invalid labels shape"),
        (None, np.ones((3, 2, 4)), {"contrast_mode": "two"}, "Invalid contrast_mode"),
        (None, np.ones((3, 2, 4)), {"summation_location": "on"}, "Invalid summation_location"),
        (None, np.ones((3, 2, 4)), {"denominator_mode": "none"}, "Invalid denominator_mode"),
        (None, np.ones((3, 2, 4)), {"block_size": 0}, "must be at least 1"),
        (None, np.ones((3, 2, 4)), {"temperature": 0.0}, "must be greater than 0"),
        (None, np.ones((3, 2, 4)), {"temperature": float("nan")}, "must be greater than 0"),
        (None, np.ones((3, 2, 4)), {"positives_cap": 3}, "multiple of the number of views, 2"),
        (None, np.ones((3, 2, 4)), {"positives_cap": -2}, "positives_cap=-2 must be -1"),
    ],
)
def test_bad_arguments_say_how_to_fix_them(labels, features, options, message):
    with pytest.raises(ValueError, match=message):
        supcon_loss(labels, features, **options)


def test_unknown_views_are_refused():
    @tf.function(input_signature=[tf.TensorSpec([4, None, 3], tf.float32)])
    def loss(features):
        return supcon_loss(None, features)

    with pytest.raises(ValueError, match="unknown num_views"):
        loss(tf.ones([4, 2, 3]))


def create_model():
    inputs = keras.Input([6])
    outputs = keras.layers.Reshape([2, 4])(keras.layers.Dense(8)(inputs))
    return keras.Model(inputs, outputs)


def test_keras_loss_trains_and_survives_saving(tmp_path):
    keras.utils.set_random_seed(0)
    model = create_model()
    model.compile(
        optimizer=keras.optimizers.SGD(0.5), loss=SupConLoss(temperature=0.2, positives_cap=4)
    )
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    y = np.arange(64) % 4
    history = model.fit(x, y, batch_size=32, epochs=30, verbose=0, shuffle=False).history["loss"]
    assert history[-1] < 0.7 * history[0]
    expected = np.mean(
        supcon_loss(y, model.predict(x, verbose=0), temperature=0.2, positives_cap=4)
    )
    np.testing.assert_allclose(model.evaluate(x, y, batch_size=64, verbose=0), expected, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.loss.get_config() == model.loss.get_config()
    assert loaded.evaluate(x, y, batch_size=64, verbose=0) == pytest.approx(expected, rel=1e-5)


# A valid value for each option that differs from its default.
CHANGED_OPTIONS = {
    "temperature": 0.3,
    "contrast_mode": "one_view",
    "summation_location": "inside",
    "denominator_mode": "one_positive",
    "positives_cap": 2,
    "scale_by_temperature": False,
    "normalize": False,
    "block_size": 16,
    "epsilon": 0.5,
    "pair_weights": "soft",
    "spread_weight": 0.4,
    "cache_mb": 0.0,
    "denominator_weighting": "class",
}
# The last one excludes others.
ALL_BUT_LAST = dict(list(CHANGED_OPTIONS.items())[:-1])


@pytest.mark.parametrize("function", [supcon_loss, SupConLoss])
def test_signatures_offer_the_options_with_their_defaults(function):
    parameters = inspect.signature(function).parameters.values()
    found = [
        (parameter.name, parameter.annotation, parameter.default)
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    expected = [(field.name, field.type, field.default) for field in fields(SupConOptions)]
    assert found[: len(expected)] == expected
    others = {"use_labels", "reduction", "name"} if function is SupConLoss else set()
    assert {name for name, *_ in found[len(expected) :]} == others


def test_every_argument_is_in_the_config():
    assert CHANGED_OPTIONS.keys() == {field.name for field in fields(SupConOptions)}
    changed = {**ALL_BUT_LAST, "denominator_weighting": "example"}
    for options in (changed, {"denominator_weighting": "class"}):
        given = {**options, "use_labels": False, "reduction": "sum", "name": "mine"}
        config = SupConLoss(**given).get_config()
        assert given.items() <= config.items()
        assert config.keys() == {*CHANGED_OPTIONS, "use_labels", "reduction", "name"}
        assert SupConLoss.from_config(config).get_config() == config


def test_options_are_attributes():
    """Each can be read, and changed between calls, under the name of its argument."""
    loss = SupConLoss(**ALL_BUT_LAST)
    assert loss.options == SupConOptions(**ALL_BUT_LAST)
    for name, value in ALL_BUT_LAST.items():
        assert getattr(loss, name) == value
    features, labels = tf.constant(draw_features(seed=1), tf.float32), np.array([0, 1, 0, 0, 2])
    loss = SupConLoss(temperature=0.1)
    loss.temperature = 0.5
    np.testing.assert_array_equal(
        loss(labels, features), SupConLoss(temperature=0.5)(labels, features)
    )


@pytest.mark.parametrize("name", CHANGED_OPTIONS)
def test_every_option_reaches_the_loss(name):
    """The function and the class compute the same loss, which is not that of the defaults."""
    features = tf.constant(draw_features(seed=1, num_examples=6), tf.float32)
    labels = tf.constant([0, 1, 0, 0, 2, 0])
    if name == "pair_weights":
        labels = 0.8 * tf.one_hot(labels, 3) + 0.2 / 3
    option = {name: CHANGED_OPTIONS[name]}
    losses = supcon_loss(labels, features, **option)
    np.testing.assert_array_equal(SupConLoss(reduction=None, **option)(labels, features), losses)
    is_equal = np.allclose(losses, supcon_loss([0, 1, 0, 0, 2, 0], features), rtol=1e-3)
    assert is_equal is (name in ("block_size", "cache_mb"))


def test_a_loss_saved_before_the_options_were_one_class_still_loads():
    config = {
        "module": "supcon_tf.losses.supcon",
        "class_name": "SupConLoss",
        "config": {
            "name": "supcon_loss", "reduction": "sum_over_batch_size", "temperature": 0.2,
            "contrast_mode": "one_view", "summation_location": "outside",
            "denominator_mode": "all", "positives_cap": -1, "scale_by_temperature": True,
            "normalize": True, "block_size": None, "use_labels": True,
        },
        "registered_name": "supcon_tf>SupConLoss",
    }  # fmt: skip
    loss = keras.saving.deserialize_keras_object(config)
    assert isinstance(loss, SupConLoss)
    assert config["config"].items() <= loss.get_config().items()
    assert loss.pair_weights is None and loss.denominator_weighting == "example"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.01},
        {"normalize": False},
        {"contrast_mode": "one_view"},
        {"summation_location": "inside"},
        {"denominator_mode": "one_positive"},
        {"denominator_mode": "only_negatives"},
        {"positives_cap": 2},
        {"block_size": 3},
    ],
    ids=str,
)
def test_a_feature_that_is_not_a_number_makes_every_loss_that_meets_it_nan(options):
    """A loss of 0 would look like perfect convergence."""
    features = draw_features(seed=0, num_examples=6)
    features[2, 0, 0] = np.nan
    value, gradient = value_and_gradient([0, 0, 1, 1, 2, 2], features, **options)
    assert np.all(np.isnan(value))
    assert np.any(np.isnan(gradient))
