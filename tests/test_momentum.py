"""Momentum and Nesterov equal TensorFlow 1's and PyTorch's when the learning rate changes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.make_torch_momentum import PATH, STEPS, WEIGHT_DECAY, draw_problem, learning_rates

from supcon_tf.training import optimizers

SCHEDULES = learning_rates()
NAMES = ("momentum", "nesterov")


@keras.saving.register_keras_serializable(package="tests")
class Listed(keras.optimizers.schedules.LearningRateSchedule):
    """One learning rate per step."""

    def __init__(self, rates):
        self.rates = rates

    def __call__(self, step):
        return tf.gather(tf.constant(self.rates, tf.float32), step)

    def get_config(self):
        return {"rates": self.rates}


def create_optimizer(name, rates, **options):
    return optimizers.create_optimizer(name, Listed(rates), **options)


def train(optimizer, *, num_steps=STEPS, weight_decay=0.0, loss_scale=1.0):
    """The weights after every step; weight_decay is added here if the optimizer has none."""
    start, curvatures, targets = draw_problem()
    weights = keras.Variable(start)
    optimizer.build([weights])

    @tf.function(autograph=False)
    def step(target):
        gradient = curvatures * (weights.value - target) + weight_decay * weights.value
        optimizer.apply([loss_scale * gradient], [weights])

    history = []
    for target in targets[:num_steps]:
        step(tf.constant(target))
        history.append(weights.numpy())
    return np.stack(history)


def train_with_tensorflow_1(rates, *, use_nesterov):
    start, curvatures, targets = draw_problem()
    weights, rate = tf.Variable(start), tf.Variable(0.0)
    optimizer = tf.compat.v1.train.MomentumOptimizer(rate, 0.9, use_nesterov=use_nesterov)
    history = []
    for value, target in zip(rates, targets, strict=True):
        rate.assign(value)
        gradient = curvatures * (weights - target) + WEIGHT_DECAY * weights
        optimizer.apply_gradients([(gradient, weights)])
        history.append(weights.numpy())
    return np.stack(history)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_step_equals_tensorflow_1_and_pytorch(schedule, name):
    rates = SCHEDULES[schedule]
    ours = train(create_optimizer(name, rates, weight_decay=WEIGHT_DECAY))
    expected = train_with_tensorflow_1(rates, use_nesterov=name == "nesterov")
    with np.load(PATH) as stored:
        torch = stored[f"{schedule}, {name}"]
    assert len(ours) == len(expected) == len(torch) == STEPS
    np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-6)
    np.testing.assert_allclose(ours, torch, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", NAMES)
def test_keras_own_sgd_ends_elsewhere_unless_the_rate_is_constant(name):
    """Shows that the schedules of the test above tell the two kinds of momentum apart."""
    for schedule, rates in SCHEDULES.items():
        ours = train(create_optimizer(name, rates, weight_decay=WEIGHT_DECAY))
        sgd = keras.optimizers.SGD(Listed(rates), momentum=0.9, nesterov=name == "nesterov")
        difference = np.abs(train(sgd, weight_decay=WEIGHT_DECAY) - ours).max()
        print(f"{schedule}, {name}: {difference:.3g} of {np.abs(ours - ours[0]).max():.3g}")
        assert difference < 5e-6 if schedule == "constant" else difference > 0.1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_converted_settings_of_supcontrast_make_its_updates(schedule):
    """Its loss is ours / 0.07: the learning rate / 0.07 and 0.07 times the weight decay make up for
    that at every step, as docs/coming_from.md says."""
    rates = [rate / 0.07 for rate in SCHEDULES[schedule]]
    optimizer = create_optimizer("momentum", rates, weight_decay=0.07 * WEIGHT_DECAY)
    with np.load(PATH) as stored:
        expected = stored[f"{schedule}, momentum"]
    np.testing.assert_allclose(train(optimizer, loss_scale=0.07), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_optimizer_continues_with_the_same_bits(name, tmp_path):
    rates = SCHEDULES["warm-up and cosine"]
    whole = train(create_optimizer(name, rates, weight_decay=WEIGHT_DECAY))
    optimizer = create_optimizer(name, rates, weight_decay=WEIGHT_DECAY)
    train(optimizer, num_steps=25)
    start, curvatures, targets = draw_problem()
    path = tf.train.Checkpoint(optimizer=optimizer).write(str(tmp_path / "state"))
    config = keras.saving.serialize_keras_object(optimizer)
    loaded = keras.saving.deserialize_keras_object(config)
    weights = keras.Variable(whole[24])
    loaded.build([weights])
    tf.train.Checkpoint(optimizer=loaded).read(path).assert_existing_objects_matched()
    for target in targets[25:]:
        loaded.apply([curvatures * (weights.value - target)], [weights])
    np.testing.assert_allclose(weights.numpy(), whole[-1], rtol=0, atol=1e-6)
    assert loaded.get_config() == optimizer.get_config()


@pytest.mark.parametrize("name", NAMES)
def test_a_scaled_loss_changes_nothing(name):
    """Gradients come back to their size before the decay is added and the buffer is filled."""
    rates = SCHEDULES["warm-up, cosine and a drop"]
    expected = train(create_optimizer(name, rates, weight_decay=WEIGHT_DECAY))
    inner = create_optimizer(name, rates, weight_decay=WEIGHT_DECAY)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0)
    start, curvatures, targets = draw_problem()
    weights = keras.Variable(start)
    optimizer.build([weights])
    for target in targets:
        gradient = curvatures * (weights.value - target)
        optimizer.apply([gradient * 1024.0], [weights])
    np.testing.assert_allclose(weights.numpy(), expected[-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        optimizers.Momentum(0.1, momentum=momentum)
