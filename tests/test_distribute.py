"""Replicas do not change the result: one device = four replicas = two worker processes."""

import functools
import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.replicas import split

from supcon_tf import collectives
from supcon_tf.losses.supcon import SupConLoss, supcon_loss

NUM_EXAMPLES = 16
X = np.random.default_rng(0).normal(size=(NUM_EXAMPLES, 6)).astype(np.float32)
Y = np.arange(NUM_EXAMPLES) % 3
MULTI_HOT = np.eye(3)[Y] + np.eye(3)[Y // 2 % 3]
OPTIONS = {
    "default": {},
    "one_view": {"contrast_mode": "one_view"},
    "capped inside": {"summation_location": "inside", "positives_cap": 4},
    "one_positive": {"denominator_mode": "one_positive", "temperature": 0.5},
    "not normalized": {"normalize": False},
    "small blocks": {"block_size": 5},
    "many small blocks": {"block_size": 3, "cache_mb": 0.0},
    "tiny temperature": {"temperature": 0.01},
    "multi-hot": {"labels": MULTI_HOT},
    "int64": {"labels": Y.astype(np.int64) + 2**40},
    "unique labels": {"labels": np.arange(NUM_EXAMPLES)},
    "jaccard": {"labels": MULTI_HOT, "pair_weights": "jaccard", "block_size": 5},
    "jaccard with masks": {
        "labels": MULTI_HOT, "pair_weights": "jaccard", "denominator_mode": "one_positive",
        "epsilon": 0.3, "spread_weight": 0.4,
    },
    "gaussian": {"labels": X[:, 0], "pair_weights": "gaussian"},
    "asymmetric mask": {"labels": np.abs(X @ X[::-1].T) % 1, "pair_weights": "mask"},
    "spread": {"spread_weight": 0.4, "block_size": 5},
    "class averages": {"denominator_weighting": "class", "contrast_mode": "one_view"},
    "class averages and spread": {
        "denominator_weighting": "class", "spread_weight": 0.4, "block_size": 3,
    },
}  # fmt: skip


def create_model():
    keras.utils.set_random_seed(1)
    inputs = keras.Input([6])
    hidden = keras.layers.BatchNormalization(synchronized=True)(keras.layers.Dense(8)(inputs))
    return keras.Model(inputs, keras.layers.Reshape([2, 4])(hidden))


def losses_and_gradients(strategy, labels=Y, **options):
    """The loss of each local example and the gradient of their global mean, per replica."""
    features = X.reshape(NUM_EXAMPLES, 2, 3)

    def replica(x, y):
        with tf.GradientTape() as tape:
            tape.watch(x)
            losses = supcon_loss(y, x, **options)
            mean = tf.reduce_sum(losses) / NUM_EXAMPLES
        return losses, tape.gradient(mean, x)

    results = tf.function(strategy.run, autograph=False)(
        replica, args=split(strategy, features, labels)
    )
    return [
        np.concatenate(strategy.experimental_local_results(result), axis=0) for result in results
    ]


@functools.cache
def of_one_device(name):
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    return train(strategy) if name == "train" else losses_and_gradients(strategy, **OPTIONS[name])


def train(strategy, *, num_steps=3):
    """Losses, first gradients and final weights of SGD steps on the same global batch."""
    with strategy.scope():
        model = create_model()
        optimizer = keras.optimizers.SGD(0.5)
        optimizer.build(model.trainable_variables)

    def replica_step(x, y):
        with tf.GradientTape() as tape:
            losses = SupConLoss(reduction=None)(y, model(x, training=True))
            loss = tf.reduce_sum(losses) / NUM_EXAMPLES
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients)  # sums the gradients over the replicas
        return loss, tf.distribute.get_replica_context().all_reduce("SUM", gradients)

    @tf.function(autograph=False)
    def step(x, y):
        loss, gradients = strategy.run(replica_step, args=(x, y))
        first = [strategy.experimental_local_results(gradient)[0] for gradient in gradients]
        return strategy.reduce("SUM", loss, axis=None), first

    batch = split(strategy, X, Y)
    losses, first_gradients = [], None
    for _ in range(num_steps):
        loss, gradients = step(*batch)
        losses.append(loss.numpy())
        first_gradients = first_gradients or [gradient.numpy() for gradient in gradients]
    return [np.array(losses), *first_gradients, *model.get_weights()]


def assert_all_close(results, expected):
    assert len(results) == len(expected)
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, value, rtol=2e-5, atol=2e-6)


@pytest.fixture(scope="module")
def one_device():
    return tf.distribute.OneDeviceStrategy("CPU:0")


QUICK = ("capped inside", "multi-hot", "jaccard", "spread")
# One for each kind of labels that replicas exchange, and what depends on their order.
EXCHANGES = (
    "default", "capped inside", "multi-hot", "int64", "jaccard with masks", "gaussian",
    "asymmetric mask", "class averages", "many small blocks",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", ["default", *(pytest.param(x, marks=pytest.mark.slow) for x in EXCHANGES[1:])]
)
def test_losses_and_gradients_of_four_replicas_equal_one_device(mirrored, name):
    assert_all_close(losses_and_gradients(mirrored, **OPTIONS[name]), of_one_device(name))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in OPTIONS
        if name in QUICK or name not in EXCHANGES
    ],
)
def test_losses_and_gradients_of_two_replicas_equal_one_device(two_replicas, name):
    assert_all_close(losses_and_gradients(two_replicas, **OPTIONS[name]), of_one_device(name))


def test_three_steps_on_two_replicas_equal_one_device(two_replicas):
    assert_all_close(train(two_replicas), of_one_device("train"))


@pytest.mark.slow
def test_three_steps_on_four_replicas_equal_one_device(mirrored):
    assert_all_close(train(mirrored), of_one_device("train"))


def test_independent_local_batches_would_differ(two_replicas, monkeypatch):
    """So that the tests above can fail: without the gather the result is another one."""
    losses, gradients = of_one_device("default")
    monkeypatch.setattr(collectives, "gather", lambda values: values)
    monkeypatch.setattr(collectives, "num_replicas", lambda: 1)
    local_losses, local_gradients = losses_and_gradients(two_replicas)
    assert abs(local_losses.mean() - losses.mean()) > 0.01
    assert np.max(np.abs(local_gradients - gradients)) > 1e-4


def test_gather_keeps_order_type_and_static_shape(mirrored):
    shapes = []

    def replica(values):
        gathered = collectives.gather(values)
        shapes.append(gathered.shape)
        return gathered, collectives.replica_offset(2) + tf.zeros([], tf.int32)

    for array in (np.arange(8) + 2**40, np.arange(8.0)[:, None], np.arange(8) % 2 == 0):
        (values,) = split(mirrored, array)
        results, offsets = tf.function(mirrored.run, autograph=False)(replica, args=(values,))
        for result in mirrored.experimental_local_results(results):
            assert result.dtype == array.dtype
            np.testing.assert_array_equal(result, array)
        assert [int(offset) for offset in offsets.values] == [0, 2, 4, 6]
        assert all(shape == array.shape for shape in shapes[-4:])


def fit(strategy, *, num_examples=NUM_EXAMPLES, batch_size=NUM_EXAMPLES):
    with strategy.scope():
        model = create_model()
        model.compile(optimizer=keras.optimizers.SGD(0.5), loss=SupConLoss())
    x, y = np.resize(X, (num_examples, 6)), np.resize(Y, num_examples)
    history = model.fit(x, y, batch_size=batch_size, epochs=3, shuffle=False, verbose=0)
    return [np.array(history.history["loss"]), *model.get_weights()]


def test_fit_on_two_replicas_equals_one_device(two_replicas, one_device):
    assert_all_close(fit(two_replicas), fit(one_device))


@pytest.mark.slow
def test_fit_refuses_a_ragged_last_batch(mirrored):
    with pytest.raises(tf.errors.InvalidArgumentError, match="drop_remainder=True"):
        fit(mirrored, num_examples=18)


@pytest.mark.parametrize("is_static", [True, False])
def test_unequal_shares_are_refused(mirrored, is_static):
    def replica(values):
        return collectives.gather(
            values if is_static else tf.boolean_mask(values, values[:, 0] > 0)
        )

    values = mirrored.experimental_distribute_values_from_function(
        lambda context: tf.ones([1 + context.replica_id_in_sync_group // 3, 2])
    )
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="drop_remainder"):
        tf.function(mirrored.run, autograph=False)(replica, args=(values,))


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.mark.slow
def test_two_worker_processes_equal_one_device(tmp_path):
    workers = [f"localhost:{port}" for port in free_ports(2)]
    root = pathlib.Path(__file__).parents[1]
    processes = []
    for index in range(2):
        cluster = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment = {
            **os.environ,
            "TF_CONFIG": json.dumps(cluster),
            "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]),
        }
        command = [sys.executable, __file__, str(tmp_path / f"{index}.npz")]
        processes.append(subprocess.Popen(command, env=environment))
    try:
        codes = [process.wait(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0]
    expected = {name: of_one_device(name) for name in ("train", *EXCHANGES)}
    for index in range(2):
        saved = np.load(tmp_path / f"{index}.npz")
        for name, values in expected.items():
            if name != "train":  # a worker sees the losses and gradients of its own examples
                values = [np.split(value, 2)[index] for value in values]
            assert_all_close([saved[f"{name} {i}"] for i in range(len(values))], values)


def run_worker(path):
    """What each of the two processes above does."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    results = {"train": train(strategy)}
    for name in EXCHANGES:
        results[name] = losses_and_gradients(strategy, **OPTIONS[name])
    flat = {
        f"{name} {i}": value for name, values in results.items() for i, value in enumerate(values)
    }
    np.savez(path, **flat)


if __name__ == "__main__":
    run_worker(sys.argv[1])
