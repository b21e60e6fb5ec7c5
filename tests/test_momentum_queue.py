"""The queue's loss is its equation, and its state moves as it says, on any number of replicas."""

import functools
import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import oracles
from helpers.replicas import split

from supcon_tf.losses import momentum_queue, supcon
from supcon_tf.models import contrastive
from supcon_tf.training import optimizers, steps
from supcon_tf.training.checkpoint import CheckpointFolder

B, V, D, Q = 8, 2, 4, 10
LABELS = np.array([0, 1, 2, 0, 1, 1, 0, 3], np.int32)  # 3 is alone in the batch.
QUEUE_LABELS = np.array([0, 0, 9, 9, 1, 3, 2, 5, 0, 1], np.int32)
IS_FILLED = np.arange(Q) >= 3


def unit_vectors(*shape, seed):
    vectors = np.random.default_rng(seed).normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def oracle(labels, queries, keys, queue, queue_labels, is_filled, *, temperature=0.1,
           contrast_mode="all_views", scale_by_temperature=True):  # fmt: skip
    """The equation of `momentum_queue_loss`, one query after the other in float64."""
    queries, keys, queue = (np.asarray(x, np.float64) for x in (queries, keys, queue))
    result = np.zeros(len(queries))
    for i, v in itertools.product(range(len(queries)), range(queries.shape[1])):
        every, positive = [], []
        for j, w in itertools.product(range(len(keys)), range(keys.shape[1])):
            if contrast_mode == "all_views" and (j, w) == (i, v):
                continue
            every.append(queries[i, v] @ keys[j, w] / temperature)
            if j == i or (labels is not None and labels[j] == labels[i]):
                positive.append(every[-1])
        for m in np.flatnonzero(is_filled):
            every.append(queries[i, v] @ queue[m] / temperature)
            if labels is not None and queue_labels[m] == labels[i]:
                positive.append(every[-1])
        if positive:
            loss = oracles.logsumexp(every) - np.mean(positive)
            result[i] += loss / queries.shape[1] * (temperature if scale_by_temperature else 1)
    return result


CASES = {
    "default": {},
    "one_view": {"contrast_mode": "one_view"},
    "not scaled": {"scale_by_temperature": False, "temperature": 0.5},
    "tiny temperature": {"temperature": 0.01},
    "without labels": {"labels": None},
    "without labels, one_view": {"labels": None, "contrast_mode": "one_view"},
    "empty queue": {"is_filled": np.zeros(Q, bool)},
    "full queue": {"is_filled": np.ones(Q, bool)},
}


def arguments_of(case):
    options = dict(CASES[case])
    labels, is_filled = options.pop("labels", LABELS), options.pop("is_filled", IS_FILLED)
    is_one_view = options.get("contrast_mode") == "one_view"
    queries = unit_vectors(B, 1 if is_one_view else V, D, seed=0)
    keys = unit_vectors(B, V - 1 if is_one_view else V, D, seed=1)
    return (labels, queries, keys, unit_vectors(Q, D, seed=2), QUEUE_LABELS, is_filled), options


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_equal_the_equation(case):
    (labels, queries, *others), options = arguments_of(case)
    x, keys, queue = tf.constant(queries), tf.constant(others[0]), tf.constant(others[1])
    with tf.GradientTape() as tape:
        tape.watch([x, keys, queue])
        values = momentum_queue.momentum_queue_loss(
            labels, x, keys, queue, *map(tf.constant, others[2:]), **options
        )
    gradient, *of_keys = tape.gradient(values, [x, keys, queue])
    np.testing.assert_allclose(values, oracle(labels, queries, *others, **options), atol=2e-5)
    expected = oracles.gradient(lambda x: oracle(labels, x, *others, **options).sum(), queries)
    np.testing.assert_allclose(gradient, expected, atol=2e-4)
    for unwanted in of_keys:  # Keys get no gradient.
        assert unwanted is None or not np.any(unwanted)


def test_empty_slots_count_for_nothing():
    """Whatever stands in them: the loss is that of the batch's keys alone."""
    (labels, queries, keys, queue, queue_labels, _), _ = arguments_of("default")
    empty = tf.zeros([Q], tf.bool)
    values = [
        momentum_queue.momentum_queue_loss(labels, queries, keys, content, queue_labels, empty)
        for content in (queue, 0 * queue, -3 * queue)
    ]
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_array_equal(values[0], values[2])


def test_an_empty_queue_with_the_model_itself_as_network_is_supcon():
    z = unit_vectors(B, V, D, seed=3)
    values = momentum_queue.momentum_queue_loss(
        LABELS, z, z, tf.zeros([Q, D]), QUEUE_LABELS, tf.zeros([Q], tf.bool)
    )
    np.testing.assert_allclose(values, supcon.supcon_loss(LABELS, z), rtol=1e-5)


def test_a_queued_key_of_the_class_is_a_positive():
    """Example 7 is alone in its class in the batch: with one view it has no other positive."""
    z = unit_vectors(B, 1, D, seed=3)
    queue = unit_vectors(Q, D, seed=2)

    def loss_of_last(queue_labels):
        return momentum_queue.momentum_queue_loss(
            LABELS, z, z, queue, queue_labels, tf.ones([Q], tf.bool)
        )[7]

    assert loss_of_last(np.full(Q, 9, np.int32)) == 0
    assert loss_of_last(np.full(Q, 3, np.int32)) > 0


# The state.

SIDE = 8


def create_model():
    keras.utils.set_random_seed(0)
    images = keras.Input([SIDE, SIDE, 3], dtype="float32")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(images)
    x = keras.layers.Conv2D(4, 3, strides=2, use_bias=False)(x)
    x = keras.layers.BatchNormalization(momentum=0.9, synchronized=True)(x)
    x = keras.layers.Flatten()(keras.layers.ReLU()(x))
    encoder = keras.Model(images, keras.layers.Dense(6)(x))
    return contrastive.ContrastiveModel(encoder, contrastive.ProjectionHead([D]))


def create_step(strategy, *, queue_size=20, momentum=0.9, **options):
    loss = supcon.SupConLoss(reduction=None, **options)
    with strategy.scope():
        model = create_model()
        return steps.ContrastiveStep(
            model=model,
            loss=loss,
            queue=momentum_queue.MomentumQueue(
                model, loss, queue_size=queue_size, momentum=momentum
            ),
            optimizer=optimizers.create_optimizer("momentum", 0.1),
            global_batch_size=B,
        )


def draw_batch(seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, [B, V, SIDE, SIDE, 3]).astype(np.uint8), rng.permutation(LABELS)


@functools.lru_cache(maxsize=1)  # A step is traced once, however often a test runs it.
def loss_after_step(strategy, step):
    @tf.function(autograph=False)
    def on_all(images, labels):
        metrics = strategy.run(lambda x, y: step({"image": x, "label": y}), args=(images, labels))
        return strategy.reduce("SUM", metrics["loss"], axis=None)

    return on_all


def run(strategy, step, num_steps, first=0):
    loss = loss_after_step(strategy, step)
    return [float(loss(*split(strategy, *draw_batch(seed)))) for seed in range(first, num_steps)]


def state(step):
    return {
        f"{name}/{index}/{re.sub(r'_[0-9]+', '', variable.path)}": variable.numpy()
        for name, holder in {**step.models, **step.optimizers}.items()
        for index, variable in enumerate(holder.variables)
    }


@pytest.fixture(scope="module")
def one_device():
    return tf.distribute.OneDeviceStrategy("CPU:0")


@pytest.fixture(scope="module")
def three_steps(one_device):
    step = create_step(one_device)
    return {"losses": run(one_device, step, 3), "state": state(step)}


@pytest.mark.parametrize(
    "replicas", ["two_replicas", pytest.param("mirrored", marks=pytest.mark.slow)]
)
def test_replicas_end_with_the_weights_and_the_queue_of_one_device(request, replicas, three_steps):
    mirrored = request.getfixturevalue(replicas)
    step = create_step(mirrored)
    np.testing.assert_allclose(run(mirrored, step, 3), three_steps["losses"], rtol=1e-4)
    found = state(step)
    assert found.keys() == three_steps["state"].keys()
    for name, expected in three_steps["state"].items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=2e-4, err_msg=name)
    queue = step.queue.queue.value
    for replica in mirrored.experimental_local_results(queue):  # Each replica has the same one.
        np.testing.assert_array_equal(replica, mirrored.experimental_local_results(queue)[0])


@pytest.mark.parametrize("queue_size", [5, 20, 40])
def test_the_queue_holds_the_last_keys_in_order(one_device, queue_size):
    """Smaller than a batch of 16 keys, not a multiple of it, and larger than two batches."""
    step = create_step(one_device, queue_size=queue_size)
    queued, labels = np.zeros([0, D]), np.zeros([0])
    for seed in range(3):
        images, batch_labels = draw_batch(seed)
        # Batch statistics, so that asking for the keys changes none of them.
        weights = step.queue.key_model.get_weights()
        keys = step.queue.key_model(images, training=True).numpy()
        step.queue.key_model.set_weights(weights)
        queued = np.concatenate([queued, keys.reshape(-1, D)])
        labels = np.concatenate([labels, np.repeat(batch_labels, V)])
        run(one_device, step, seed + 1, first=seed)
        kept = min(len(queued), queue_size)
        assert int(step.queue.num_filled) == kept
        assert step.queue.is_filled().numpy().sum() == kept and step.queue.is_filled()[-1]
        np.testing.assert_allclose(step.queue.queue.numpy()[-kept:], queued[-kept:], atol=1e-5)
        np.testing.assert_array_equal(step.queue.queue_labels.numpy()[-kept:], labels[-kept:])


def test_the_momentum_network_follows_exactly(one_device):
    step = create_step(one_device, momentum=0.75)
    key_model, model = step.queue.key_model, step.model
    for key, query in zip(key_model.variables, model.variables, strict=True):
        np.testing.assert_array_equal(key.numpy(), query.numpy())  # It starts as a copy.
    keys = [variable.numpy() for variable in key_model.trainable_variables]
    run(one_device, step, 1)
    for key, old, query in zip(
        key_model.trainable_variables, keys, model.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(key.numpy(), 0.75 * old + 0.25 * query.numpy(), rtol=1e-6)
        assert np.any(query.numpy() != old)


def test_the_queue_changes_what_is_learned(one_device, three_steps):
    without = create_step(one_device, queue_size=1)
    assert abs(run(one_device, without, 3)[-1] - three_steps["losses"][-1]) > 1e-3


def test_one_view_makes_queries_of_the_first_and_keys_of_the_others(one_device):
    step = create_step(one_device, contrast_mode="one_view")
    run(one_device, step, 1)
    assert int(step.queue.num_filled) == B * (V - 1)
    images, _ = draw_batch(0)
    queries, keys = step.queue.split(tf.constant(images))
    np.testing.assert_array_equal(queries, images[:, :1])
    np.testing.assert_array_equal(keys, images[:, 1:])


def test_a_restored_step_continues_to_the_same_bits(one_device, tmp_path, three_steps):
    def checkpoints(step):
        return CheckpointFolder(str(tmp_path), **step.models, **step.optimizers)

    first = create_step(one_device)
    run(one_device, first, 2)
    checkpoints(first).save(2)
    continued = create_step(one_device)
    continued.queue.queue.assign(continued.queue.queue + 1.0)  # What counts is in the checkpoint.
    assert checkpoints(continued).restore_latest() == 2
    run(one_device, continued, 3, first=2)
    for name, expected in three_steps["state"].items():
        np.testing.assert_array_equal(state(continued)[name], expected, err_msg=name)


@pytest.mark.parametrize(
    "options,loss_options,message",
    [
        ({"queue_size": 0}, {}, "queue_size=0 must be at least 1"),
        ({"queue_size": 4, "momentum": 1.0}, {}, "momentum=1.0 must be"),
        ({"queue_size": 4}, {"positives_cap": 2}, "does not support positives_cap=2"),
        ({"queue_size": 4}, {"spread_weight": 0.5}, "does not support spread_weight=0.5"),
    ],
)
def test_bad_options_are_refused(options, loss_options, message):
    with pytest.raises(ValueError, match=message):
        momentum_queue.MomentumQueue(create_model(), supcon.SupConLoss(**loss_options), **options)
