"""The losses of the literature beside Eq. 2, against their papers' equations in float64."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import oracles

from supcon_tf.losses import pair_weights
from supcon_tf.losses.options import LOSS_VARIANTS, SupConOptions
from supcon_tf.losses.supcon import SupConLoss, supcon_loss

LABELS = np.array([0, 1, 0, 2, 0, 1])
FEATURES = np.random.default_rng(5).normal(size=(6, 2, 3))
Z = FEATURES / np.linalg.norm(FEATURES, axis=-1, keepdims=True)
T = 0.3
# Every anchor (i, v), with the similarities to its positives, its negatives and its other view.
ROWS = list(itertools.product(range(6), range(2)))


def similarities(i, v):
    """s of the positives (the own other view first) and of each class of negatives."""
    s = {(j, w): Z[i, v] @ Z[j, w] / T for j, w in ROWS if (j, w) != (i, v)}
    own = s[i, 1 - v]
    positives = [own] + [s[j, w] for j, w in s if j != i and LABELS[j] == LABELS[i]]
    by_class = {c: [s[j, w] for j, w in s if LABELS[j] == c] for c in set(LABELS) - {LABELS[i]}}
    return own, np.array(positives), by_class


def mean_over_views(loss_of_anchor):
    return [np.mean([loss_of_anchor(*similarities(i, v)) for v in range(2)]) for i in range(6)]


def sincere(own, positives, by_class):
    """Feeney and Hughes 2023: each positive competes with the negatives alone."""
    noise = sum(np.exp(s).sum() for s in by_class.values())
    return -np.mean([np.log(np.exp(s) / (np.exp(s) + noise)) for s in positives])


def decoupled(own, positives, by_class):
    """Yeh et al. 2022, the loss without the positive in the denominator, for several positives."""
    noise = sum(np.exp(s).sum() for s in by_class.values())
    return np.mean([-s + np.log(noise) for s in positives])


def epsilon_supinfonce(own, positives, by_class):
    """Barbano et al. 2023: the margin is subtracted from the positive in the denominator."""
    noise = sum(np.exp(s).sum() for s in by_class.values())
    return -np.mean([np.log(np.exp(s) / (np.exp(s - 0.25) + noise)) for s in positives])


def epsilon_supcon(own, positives, by_class):
    """The same with all positives in the denominator, each with the margin."""
    noise = sum(np.exp(s).sum() for s in by_class.values()) + np.exp(positives - 0.25).sum()
    return -np.mean([np.log(np.exp(s) / noise) for s in positives])


def supcon_out(own, positives, by_class):
    """Khosla et al. 2020, Eq. 2."""
    everything = sum(np.exp(s).sum() for s in by_class.values()) + np.exp(positives).sum()
    return -np.mean([np.log(np.exp(s) / everything) for s in positives])


def supcon_in(own, positives, by_class):
    """Khosla et al. 2020, Eq. 3."""
    everything = sum(np.exp(s).sum() for s in by_class.values()) + np.exp(positives).sum()
    return -np.log(np.mean([np.exp(s) / everything for s in positives]))


def spread(own, positives, by_class):
    """Chen et al. 2022: alpha = 0.5 times the class-conditional InfoNCE loss."""
    conditional = -np.log(np.exp(own) / np.exp(positives).sum())
    return 0.5 * supcon_out(own, positives, by_class) + 0.5 * conditional


def class_averaged(own, positives, by_class):
    """Zhu et al. 2022 without prototypes: the denominator sums the mean of each class."""
    # The class of the anchor has one row more than the anchor has positives: itself.
    averages = [np.exp(s).sum() / len(s) for s in by_class.values()]
    averages.append(np.exp(positives).sum() / (len(positives) + 1))
    return -np.mean([np.log(np.exp(s) / sum(averages)) for s in positives])


def simclr(own, positives, by_class):
    """Chen et al. 2020: the other view against every other row."""
    everything = sum(np.exp(s).sum() for s in by_class.values()) + np.exp(positives).sum()
    return -np.log(np.exp(own) / everything)


EQUATIONS = {
    "supcon": supcon_out,
    "supcon_in": supcon_in,
    "simclr": simclr,
    "sincere": sincere,
    "decoupled": decoupled,
    "epsilon_supinfonce": epsilon_supinfonce,
    "spread": spread,
    "class_averaged": class_averaged,
}


def test_every_variant_has_an_equation():
    assert EQUATIONS.keys() == LOSS_VARIANTS.keys()


@pytest.mark.parametrize("name", EQUATIONS)
def test_variant_equals_the_equation_of_its_paper(name):
    loss = SupConLoss(
        temperature=T, scale_by_temperature=False, reduction=None, **LOSS_VARIANTS[name]
    )
    np.testing.assert_allclose(
        loss(LABELS, tf.constant(FEATURES)), mean_over_views(EQUATIONS[name]), rtol=2e-5
    )


def test_margin_with_all_positives_in_the_denominator():
    losses = supcon_loss(LABELS, FEATURES, temperature=T, epsilon=0.25, scale_by_temperature=False)
    np.testing.assert_allclose(losses, mean_over_views(epsilon_supcon), rtol=2e-5)


# Pair weights.

RANDOM = np.random.default_rng(7)
MULTI_HOT = np.array(
    [[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 1, 0]]
)
TREE = np.array([[0, 0, 0], [0, 0, 1], [0, 2, 0], [1, 0, 0], [0, 0, 0], [1, 3, 0]])
TARGETS = np.array([0.1, 0.4, 2.0, -1.0, 0.15, 0.9])
VOTES = RANDOM.dirichlet(np.ones(3), size=6)
MASK = np.round(RANDOM.random((6, 6)) * (RANDOM.random((6, 6)) < 0.6), 2)  # Asymmetric.


def jaccard_oracle(labels):
    sets = [set(np.flatnonzero(row)) for row in labels]
    return [[len(a & b) / len(a | b) if a | b else 0.0 for b in sets] for a in sets]


def hierarchy_oracle(labels):
    def depth(a, b):
        return next((level for level in range(3) if a[level] != b[level]), 3) / 3

    return [[depth(a, b) for b in labels] for a in labels]


def own_is_one(weights):
    weights = np.array(weights, np.float64)
    np.fill_diagonal(weights, 1.0)
    return weights


LABELS_AND_WEIGHTS = {
    "jaccard": (MULTI_HOT, own_is_one(jaccard_oracle(MULTI_HOT))),
    "hierarchy": (TREE, own_is_one(hierarchy_oracle(TREE))),
    "gaussian": (TARGETS, np.exp(-(np.subtract.outer(TARGETS, TARGETS) ** 2) / 2)),
    "soft": (VOTES, own_is_one(VOTES @ VOTES.T)),
    "mask": (MASK, MASK),
}


def value_and_gradient(labels, features, **options):
    features = tf.constant(features, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(features)
        losses = supcon_loss(labels, features, **options)
        total = tf.reduce_sum(losses)
    return losses.numpy(), tape.gradient(total, features).numpy()


def check_against_oracle(labels, weights, features=FEATURES, classes=None, **options):
    options = {"temperature": T, **options}
    pair = options.pop("pair_weights", None)
    block_size = options.pop("block_size", None)
    value, gradient = value_and_gradient(
        labels, features, pair_weights=pair, block_size=block_size, **options
    )

    def oracle(features):
        return oracles.weighted_loss(weights, features, classes=classes, **options)

    np.testing.assert_allclose(value, oracle(features), rtol=3e-5, atol=2e-6)
    expected = oracles.gradient(lambda x: np.sum(oracle(x)), features)
    np.testing.assert_allclose(gradient, expected, rtol=2e-3, atol=1e-5)


OTHER_OPTIONS = {
    "plain": {},
    "small blocks": {"block_size": 2},
    "one view": {"contrast_mode": "one_view"},
    "not normalized": {"normalize": False},
    "tiny temperature": {"temperature": 0.02},
    "inside": {"summation_location": "inside"},
    "one positive": {"denominator_mode": "one_positive"},
    "only negatives": {"denominator_mode": "only_negatives"},
    "capped": {"positives_cap": 2},
    "margin": {"epsilon": 0.7},
    "margin of one positive": {"epsilon": 0.7, "denominator_mode": "one_positive"},
    "spread": {"spread_weight": 0.3},
}


@pytest.mark.parametrize("options", OTHER_OPTIONS.values(), ids=OTHER_OPTIONS)
@pytest.mark.parametrize("name", LABELS_AND_WEIGHTS)
def test_pair_weights_equal_the_double_loop(name, options):
    labels, weights = LABELS_AND_WEIGHTS[name]
    if name == "gaussian" and not options.keys() <= {
        "block_size", "contrast_mode", "normalize", "temperature", "summation_location"
    }:  # fmt: skip
        with pytest.raises(ValueError, match="every pair a positive"):
            supcon_loss(labels, FEATURES, pair_weights=name, **options)
        return
    check_against_oracle(labels, weights, pair_weights=name, **options)


@pytest.mark.parametrize("name", LABELS_AND_WEIGHTS)
def test_one_view_per_example(name):
    labels, weights = LABELS_AND_WEIGHTS[name]
    check_against_oracle(labels, weights, FEATURES[:, :1], pair_weights=name)


def zero_one(labels_i, labels_j):
    return tf.cast(labels_i[:, None] == labels_j[None, :], tf.float32)


@pytest.mark.parametrize(
    "pair,labels",
    [
        (zero_one, LABELS),
        ("jaccard", np.eye(3)[LABELS]),
        ("soft", np.eye(3)[LABELS]),
        ("mask", np.equal.outer(LABELS, LABELS)),
        ("gaussian", 100.0 * LABELS),
    ],
    ids=["function", "jaccard", "soft", "mask", "gaussian"],
)
@pytest.mark.parametrize("num_views", [1, 2])
def test_weights_of_zero_and_one_are_equation_2(pair, labels, num_views):
    features = FEATURES[:, :num_views]
    value, gradient = value_and_gradient(labels, features, pair_weights=pair)
    expected, expected_gradient = value_and_gradient(LABELS, features)
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_the_two_oracles_agree_on_classes():
    weights = np.equal.outer(LABELS, LABELS).astype(float)
    for summation, denominator, cap in itertools.product(
        ("outside", "inside"), ("all", "one_positive", "only_negatives"), (-1, 2)
    ):
        options = {
            "summation_location": summation,
            "denominator_mode": denominator,
            "positives_cap": cap,
        }
        np.testing.assert_allclose(
            oracles.weighted_loss(weights, FEATURES, **options),
            oracles.supcon_loss(LABELS, FEATURES, **options),
            rtol=1e-10,
        )


def test_weights_far_below_one_do_not_vanish_without_other_views():
    """Only their ratios matter: dividing all of them by 1e8 changes nothing."""
    weights = MASK + 0.1
    np.fill_diagonal(weights, 1.0)
    features = FEATURES[:, :1]
    small = weights * np.where(np.eye(6) == 1, 1.0, 1e-8)
    np.testing.assert_allclose(
        supcon_loss(small.astype(np.float32), features, pair_weights="mask"),
        supcon_loss(weights.astype(np.float32), features, pair_weights="mask"),
        rtol=1e-5,
    )


def test_nan_labels_concern_only_their_own_example():
    """For the others, the example is a negative."""
    targets = np.array([0.1, np.nan, 0.3, 0.2, 0.0, 0.4])
    losses = supcon_loss(targets, FEATURES, pair_weights="gaussian", temperature=T).numpy()
    weights = np.exp(-(np.subtract.outer(targets, targets) ** 2) / 2)
    weights = own_is_one(np.nan_to_num(weights, nan=0.0))
    expected = oracles.weighted_loss(weights, FEATURES, temperature=T)
    assert np.isnan(losses[1])
    np.testing.assert_allclose(np.delete(losses, 1), np.delete(expected, 1), rtol=1e-5)


def test_angles_are_close_over_the_end_of_the_circle():
    angle = np.deg2rad([[1.0], [359.0], [180.0]])
    weights = pair_weights.GaussianWeights(0.5)
    circle = tf.constant(np.concatenate([np.cos(angle), np.sin(angle)], axis=1), tf.float32)
    found = weights(circle, circle).numpy()
    assert found[0, 1] > 0.99 and found[0, 2] < 0.01


@keras.saving.register_keras_serializable(package="test_loss_family")
def close_in_time(labels_i, labels_j):
    return tf.exp(-tf.abs(labels_i[:, None] - labels_j[None, :]))


@pytest.mark.parametrize(
    "pair",
    [None, "jaccard", close_in_time, pair_weights.GaussianWeights(2.5)],
    ids=["none", "name", "function", "object"],
)
def test_config_round_trips_names_and_registered_functions(pair):
    loss = SupConLoss(pair_weights=pair)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert restored.get_config() == loss.get_config()
    if isinstance(pair, pair_weights.GaussianWeights):
        assert restored.pair_weights.bandwidth == 2.5
    else:
        assert restored.pair_weights == pair


def test_an_unregistered_function_cannot_be_saved():
    loss = SupConLoss(pair_weights=zero_one)
    with pytest.raises(ValueError, match="register_keras_serializable"):
        loss.get_config()


# Spread and class averages.

SPREAD_OPTIONS = {
    "plain": {},
    "small blocks": {"block_size": 5},
    "one view": {"contrast_mode": "one_view"},
    "not normalized": {"normalize": False},
    "tiny temperature": {"temperature": 0.02},
    "inside": {"summation_location": "inside"},
    "one positive": {"denominator_mode": "one_positive"},
    "capped": {"positives_cap": 2},
    "class averages": {"denominator_weighting": "class"},
}


@pytest.mark.parametrize("num_views", [2, 3])
@pytest.mark.parametrize("options", SPREAD_OPTIONS.values(), ids=SPREAD_OPTIONS)
def test_spread_equals_the_double_loop(options, num_views):
    features = np.random.default_rng(2).normal(size=(6, num_views, 3))
    cap = {"positives_cap": num_views} if "positives_cap" in options else {}
    check_against_oracle(
        LABELS, np.equal.outer(LABELS, LABELS), features, LABELS,
        spread_weight=0.3, **{**options, **cap},
    )  # fmt: skip


def test_spread_of_several_labels_per_example():
    shared = own_is_one((MULTI_HOT @ MULTI_HOT.T) > 0)
    check_against_oracle(MULTI_HOT, shared, spread_weight=0.3)


CLASS_OPTIONS = {
    "plain": {},
    "small blocks": {"block_size": 5},
    "one view": {"contrast_mode": "one_view"},
    "not normalized": {"normalize": False},
    "tiny temperature": {"temperature": 0.02},
    "inside": {"summation_location": "inside"},
    "only negatives": {"denominator_mode": "only_negatives"},
    "margin": {"epsilon": 0.7},
}


@pytest.mark.parametrize("options", CLASS_OPTIONS.values(), ids=CLASS_OPTIONS)
def test_class_averages_equal_the_double_loop(options):
    weights = np.equal.outer(LABELS, LABELS)
    check_against_oracle(LABELS, weights, classes=LABELS, denominator_weighting="class", **options)


def test_class_averages_with_a_function_of_class_numbers():
    weights = own_is_one(np.exp(-np.abs(np.subtract.outer(LABELS, LABELS))))
    check_against_oracle(
        LABELS.astype(np.float32), weights, classes=LABELS,
        pair_weights=close_in_time, denominator_weighting="class",
    )  # fmt: skip


def test_class_averages_of_balanced_classes_shift_the_loss_by_a_constant():
    labels = np.array([0, 0, 1, 1, 2, 2])
    difference = supcon_loss(labels, FEATURES, scale_by_temperature=False) - supcon_loss(
        labels, FEATURES, scale_by_temperature=False, denominator_weighting="class"
    )
    np.testing.assert_allclose(difference, np.log(4), rtol=1e-5)


# Memory, compilation, refusals.


@pytest.mark.parametrize(
    "options",
    [
        {"pair_weights": "jaccard"},
        pytest.param(
            {"pair_weights": "jaccard", "spread_weight": 0.5, "epsilon": 0.3},
            marks=pytest.mark.slow,
        ),
        {"spread_weight": 0.5},
        pytest.param({"denominator_weighting": "class"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_no_tensor_of_all_pairs_exists(options):
    num_examples, block_size = 96, 8
    is_weighted = "pair_weights" in options
    labels = (
        tf.one_hot(tf.range(num_examples) % 5, 5) if is_weighted else tf.range(num_examples) % 5
    )

    def step(labels, features):
        with tf.GradientTape() as tape:
            tape.watch(features)
            total = tf.reduce_sum(supcon_loss(labels, features, block_size=block_size, **options))
        return tape.gradient(total, features)

    features = tf.random.stateless_normal([num_examples, 2, 3], [0, 1])
    graph = tf.function(step).get_concrete_function(labels, features).graph
    sizes = [
        np.prod(tensor.shape.as_list())
        for inner in (graph, *(function.graph for function in _functions(graph)))
        for operation in inner.get_operations()
        for tensor in operation.outputs
        if tensor.shape.rank is not None and None not in tensor.shape.as_list()
    ]
    assert max(sizes) <= block_size * num_examples * 2


def _functions(graph):
    return [graph._get_function(name) for name in graph._functions]


@pytest.mark.parametrize(
    "options",
    [{"pair_weights": "jaccard"}, {"spread_weight": 0.5}, {"denominator_weighting": "class"}],
    ids=str,
)
@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiled_equals_eager(options, jit_compile):
    labels = MULTI_HOT if "pair_weights" in options else LABELS
    compiled = tf.function(value_and_gradient_tensors, jit_compile=jit_compile)
    found = compiled(tf.constant(labels), tf.constant(FEATURES, tf.float32), **options)
    expected = value_and_gradient(labels, FEATURES, block_size=5, **options)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def value_and_gradient_tensors(labels, features, **options):
    with tf.GradientTape() as tape:
        tape.watch(features)
        losses = supcon_loss(labels, features, block_size=5, **options)
        total = tf.reduce_sum(losses)
    return losses, tape.gradient(total, features)


@pytest.mark.parametrize(
    "labels,options,message",
    [
        (LABELS, {"epsilon": -0.1}, "epsilon=-0.1 must be 0"),
        (LABELS, {"epsilon": 0.1, "denominator_mode": "only_negatives"}, "has no positive"),
        (LABELS, {"spread_weight": 1.5}, "from 0 to 1"),
        (None, {"spread_weight": 0.5}, "no labels"),
        (LABELS, {"pair_weights": "cosine"}, "jaccard, hierarchy, gaussian, soft, mask"),
        (None, {"pair_weights": "jaccard"}, "there are none"),
        (LABELS, {"pair_weights": "jaccard"}, r"multi-hot labels \[batch, classes\]"),
        (LABELS, {"pair_weights": lambda i, j: i}, "a weight for each pair"),
        (MASK[:, :5], {"pair_weights": "mask"}, "one column for each of the 6 examples"),
        (MULTI_HOT, {"denominator_weighting": "class"}, "one class per example"),
        (None, {"denominator_weighting": "class"}, "no labels"),
        (
            LABELS,
            {"denominator_weighting": "class", "denominator_mode": "one_positive"},
            "leaves some of the anchor's class out",
        ),
        (
            MULTI_HOT,
            {"denominator_weighting": "class", "pair_weights": "jaccard"},
            "one class per example",
        ),
        (
            TARGETS,
            {"pair_weights": pair_weights.GaussianWeights(2.0), "spread_weight": 0.5},
            "every pair a positive",
        ),
    ],
)
def test_impossible_options_say_why(labels, options, message):
    with pytest.raises(ValueError, match=message):
        supcon_loss(labels, tf.constant(FEATURES, tf.float32), **options)


def test_spread_needs_a_second_view():
    with pytest.raises(ValueError, match="only one view"):
        supcon_loss(LABELS, FEATURES[:, :1], spread_weight=0.5)


def test_variants_are_valid_options():
    for options in LOSS_VARIANTS.values():
        SupConOptions(**{name: value for name, value in options.items() if name != "use_labels"})
