"""Replicas do not change the result: one device = four replicas = two worker processes."""

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

from supcon_tf import distribute
from supcon_tf.losses import SupConLoss, supcon_loss

NUM_EXAMPLES = 16
X = np.random.default_rng(0).normal(size=(NUM_EXAMPLES, 6)).astype(np.float32)
Y = np.arange(NUM_EXAMPLES) % 3
OPTIONS = {
    "default": {},
    "SimCLR": {"use_labels": False},
    "one_view": {"contrast_mode": "one_view"},
    "capped inside": {"summation_location": "inside", "positives_cap": 4},
    "one_positive": {"denominator_mode": "one_positive", "temperature": 0.5},
    "not normalized": {"normalize": False},
    "small blocks": {"block_size": 5},
    "tiny temperature": {"temperature": 0.01},
}


def create_model():
    keras.utils.set_random_seed(1)
    inputs = keras.Input([6])
    hidden = keras.layers.BatchNormalization(synchronized=True)(keras.layers.Dense(8)(inputs))
    return keras.Model(inputs, keras.layers.Reshape([2, 4])(hidden))


def train(strategy, *, labels=Y, num_steps=3, loss_of=None, **options):
    """Losses, first gradients and final weights of SGD steps on the same global batch."""
    with strategy.scope():
        model = create_model()
        optimizer = keras.optimizers.SGD(0.5)
        optimizer.build(model.trainable_variables)
    num_replicas = strategy.num_replicas_in_sync
    loss_of = loss_of or SupConLoss(reduction=None, **options)

    def share(context, array):
        size = NUM_EXAMPLES // num_replicas
        return array[context.replica_id_in_sync_group * size :][:size]

    def replica_step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(loss_of(y, model(x, training=True))) / num_replicas
        gradients = tape.gradient(loss, model.trainable_variables)
        context = tf.distribute.get_replica_context()
        gradients = context.all_reduce("SUM", gradients)
        optimizer.apply(gradients)
        return loss, gradients

    @tf.function
    def step(x, y):
        loss, gradients = strategy.run(replica_step, args=(x, y))
        first = [strategy.experimental_local_results(gradient)[0] for gradient in gradients]
        return strategy.reduce("SUM", loss, axis=None), first

    batch = [
        strategy.experimental_distribute_values_from_function(
            lambda context, array=array: tf.constant(share(context, array))
        )
        for array in (X, labels)
    ]
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


@pytest.mark.parametrize("name", OPTIONS)
def test_four_replicas_equal_one_device(mirrored, one_device, name):
    assert_all_close(train(mirrored, **OPTIONS[name]), train(one_device, **OPTIONS[name]))


@pytest.mark.parametrize(
    "labels", [np.eye(3)[Y] + np.eye(3)[Y // 2 % 3], Y.astype(np.int64) + 2**40]
)
def test_four_replicas_equal_one_device_for_other_labels(mirrored, one_device, labels):
    loss = {"loss_of": supcon_loss, "labels": labels, "num_steps": 2}
    assert_all_close(train(mirrored, **loss), train(one_device, **loss))


def test_independent_local_batches_would_differ(mirrored, monkeypatch):
    """So that the tests above can fail: without the gather the result is another one."""
    expected = train(mirrored)
    monkeypatch.setattr(distribute, "gather", lambda values: values)
    monkeypatch.setattr(distribute, "num_replicas", lambda: 1)
    local = train(mirrored)
    assert abs(local[0][0] - expected[0][0]) > 0.01
    assert np.max(np.abs(local[-1] - expected[-1])) > 0.001


def test_gather_keeps_order_type_and_static_shape(mirrored):
    shapes = []

    def replica(values):
        gathered = distribute.gather(values)
        shapes.append(gathered.shape)
        return gathered, distribute.replica_offset(2) + tf.zeros([], tf.int32)

    for array in (np.arange(8) + 2**40, np.arange(8.0)[:, None], np.arange(8) % 2 == 0):
        values = mirrored.experimental_distribute_values_from_function(
            lambda context, array=array: tf.constant(
                array[2 * context.replica_id_in_sync_group :][:2]
            )
        )
        results, offsets = tf.function(mirrored.run)(replica, args=(values,))
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


def test_fit_on_four_replicas_equals_one_device(mirrored, one_device):
    assert_all_close(fit(mirrored), fit(one_device))


def test_a_ragged_last_batch_is_refused(mirrored):
    with pytest.raises(tf.errors.InvalidArgumentError, match="drop_remainder=True"):
        fit(mirrored, num_examples=18)


def test_static_shares_that_differ_are_refused(mirrored):
    values = mirrored.experimental_distribute_values_from_function(
        lambda context: tf.ones([1 + context.replica_id_in_sync_group // 3, 2])
    )
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="drop_remainder"):
        tf.function(mirrored.run)(distribute.gather, args=(values,))


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.mark.slow
def test_two_worker_processes_equal_one_device(one_device, tmp_path):
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
        codes = [process.wait(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0]
    expected = {name: train(one_device, **options) for name, options in OPTIONS.items()}
    for index in range(2):
        saved = np.load(tmp_path / f"{index}.npz")
        for name in OPTIONS:
            results = [saved[f"{name} {i}"] for i in range(len(expected[name]))]
            assert_all_close(results, expected[name])


def run_worker(path):
    """What each of the two processes above does."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    results = {}
    for name, options in OPTIONS.items():
        for index, result in enumerate(train(strategy, **options)):
            results[f"{name} {index}"] = result
    np.savez(path, **results)


if __name__ == "__main__":
    run_worker(sys.argv[1])
