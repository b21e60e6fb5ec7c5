import contextlib
import math
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from supcon_tf.models import contrastive
from supcon_tf.training import optimizers
from supcon_tf.training.optimizers import LARS, WarmUpThenDecay
from supcon_tf.training.steps import apply_gradients

RECIPES = pathlib.Path(__file__).parent.parent / "flags"
STEPS_PER_EPOCH = 100


def rate_at(step, **options):
    schedule = WarmUpThenDecay(1.0, steps_per_epoch=STEPS_PER_EPOCH, **options)
    return float(schedule(tf.constant(step, tf.int64)))


def lars_loop(weights, gradients, *, learning_rate, weight_decay=0.0, eta=0.001, adapted=True):
    """You et al. 2017 in float64, one gradient after the other."""
    weights, velocity = np.array(weights, np.float64), 0.0
    for gradient in gradients:
        gradient, trust = np.array(gradient, np.float64), 1.0
        if adapted:
            gradient = gradient + weight_decay * weights
            weight_norm, gradient_norm = np.linalg.norm(weights), np.linalg.norm(gradient)
            if weight_norm > 0 and gradient_norm > 0:
                trust = eta * weight_norm / gradient_norm
        velocity = 0.9 * velocity + learning_rate * trust * gradient
        weights = weights - velocity
    return weights


def apply_all(optimizer, variable, gradients):
    optimizer.build([variable])
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient, variable.dtype)], [variable])
    return variable.numpy()


def draw_steps(*shape, num_steps=5, seed=0):
    return np.random.default_rng(seed).normal(size=(num_steps, *shape))


@pytest.mark.parametrize("dtype,places", [("float16", 2e-3), ("float32", 1e-6), ("float64", 1e-6)])
@pytest.mark.parametrize(
    "weights,gradient,expected",
    [
        ([1.0, 2.0], [0.1, 0.1], [0.9952566, 1.9952566]),
        ([3.0, 4.0], [0.01, 0.01], [2.9893934, 3.9893934]),
    ],
)
def test_one_step_of_lars_equals_the_reference(weights, gradient, expected, dtype, places):
    """w - 3 * 0.001 * |w| / |g| * g: the length of the gradient does not matter."""
    optimizer = LARS(3.0)
    variable = keras.Variable(weights, dtype=dtype)
    result = apply_all(optimizer, variable, [gradient])
    assert result.dtype == dtype
    np.testing.assert_allclose(result, expected, atol=places)
    assert int(optimizer.iterations) == 1


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("shape", [(3, 4), (5,)])
def test_several_steps_of_lars_equal_the_loop(weight_decay, shape):
    weights, gradients = draw_steps(*shape, num_steps=1, seed=1)[0], draw_steps(*shape)
    options = {"learning_rate": 2.0, "weight_decay": weight_decay, "eta": 0.05}
    result = apply_all(LARS(**options), keras.Variable(weights), gradients)
    np.testing.assert_allclose(result, lars_loop(weights, gradients, **options), rtol=1e-4)


def test_lars_leaves_zero_weights_and_zero_gradients_unscaled():
    """The trust ratio is 1 where a norm is 0; a zero bias would otherwise never move."""
    gradients = draw_steps(3, num_steps=4)
    for weights, steps in (([0.0] * 3, gradients), ([1.0, 2.0, 3.0], np.zeros([2, 3]))):
        expected = lars_loop(weights, steps, learning_rate=0.5)
        result = apply_all(LARS(0.5), keras.Variable(weights), steps)
        np.testing.assert_allclose(result, expected, rtol=1e-5)
        assert np.all(np.isfinite(result))


def create_parts():
    """A projection head with batch norm, and an encoder whose batch norm has another name,
    as in keras.applications; every weight away from its start."""
    head = contrastive.ProjectionHead([4, 4], use_batch_norm=True)
    head.build((None, 3))
    inputs = keras.Input([3])
    x = keras.layers.Dense(4, name="mix")(inputs)
    x = keras.layers.BatchNormalization(name="mix_bn")(x)
    encoder = keras.Model(inputs, keras.layers.LayerNormalization(name="ln")(x))
    for index, variable in enumerate([*encoder.trainable_variables, *head.trainable_variables]):
        variable.assign(draw_steps(*variable.shape, num_steps=1, seed=index)[0])
    return encoder, head


def is_norm(variable):
    return variable.path.split("/")[-1] in ("gamma", "beta")


@pytest.mark.parametrize("decay_biases", [True, False])
def test_normalisation_never_decays_whatever_its_name_and_biases_on_demand(decay_biases):
    encoder, head = create_parts()
    for model, num_norms in ((encoder, 4), (head, 2)):
        found = optimizers.undecayed_variables(model, decay_biases=decay_biases)
        kinds = [variable.path.split("/")[-1] for variable in found]
        assert kinds.count("gamma") + kinds.count("beta") == num_norms
        num_biases = 0 if decay_biases else (1 if model is encoder else 0)
        assert kinds.count("bias") == num_biases and len(kinds) == num_norms + num_biases


@pytest.mark.parametrize("decay_biases", [True, False])
def test_lars_leaves_what_does_not_decay_unadapted(decay_biases):
    """Those take plain momentum without decay, as in the reference."""
    encoder, head = create_parts()
    variables = [*encoder.trainable_variables, *head.trainable_variables]
    undecayed = [
        variable
        for model in (encoder, head)
        for variable in optimizers.undecayed_variables(model, decay_biases=decay_biases)
    ]
    before = [variable.numpy() for variable in variables]
    optimizer = optimizers.create_optimizer("lars", 0.5, weight_decay=0.1, undecayed=undecayed)
    optimizer.build(variables)
    gradients = [draw_steps(*variable.shape, num_steps=3) for variable in variables]
    for step in zip(*gradients, strict=True):
        optimizer.apply([tf.constant(gradient, tf.float32) for gradient in step], variables)
    adapted = []
    for variable, weights, steps in zip(variables, before, gradients, strict=True):
        kind = variable.path.split("/")[-1]
        adapted.append(kind == "kernel" or (kind == "bias" and decay_biases))
        expected = lars_loop(
            weights, steps, learning_rate=0.5, weight_decay=0.1, adapted=adapted[-1]
        )
        np.testing.assert_allclose(variable, expected, rtol=1e-4, atol=1e-6, err_msg=variable.path)
    assert sum(adapted) == (4 if decay_biases else 3)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_switching_off_the_decay_of_a_part_changes_that_part_alone(name):
    def train(*, weight_decay, undecayed_part=None):
        encoder, head = create_parts()
        undecayed = [
            variable
            for part in (encoder, head)
            for variable in (
                part.trainable_variables
                if part is (encoder, head)[undecayed_part or 0] and undecayed_part is not None
                else optimizers.undecayed_variables(part)
            )
        ]
        optimizer = optimizers.create_optimizer(
            name, 0.1, weight_decay=weight_decay, undecayed=undecayed
        )
        parts = [encoder.trainable_variables, head.trainable_variables]
        variables = [*parts[0], *parts[1]]
        optimizer.build(variables)
        for seed in range(2):
            steps = [draw_steps(*v.shape, num_steps=1, seed=seed)[0] for v in variables]
            optimizer.apply([tf.constant(step, tf.float32) for step in steps], variables)
        return [[(is_norm(v), v.numpy()) for v in part] for part in parts]

    both, none = train(weight_decay=0.3), train(weight_decay=0.0)
    for part in range(2):
        without = train(weight_decay=0.3, undecayed_part=part)
        for (_, value), (_, expected) in zip(without[1 - part], both[1 - part], strict=True):
            np.testing.assert_array_equal(value, expected)
        for (norm, value), (_, decayed), (_, free) in zip(
            without[part], both[part], none[part], strict=True
        ):
            assert np.array_equal(value, decayed) == norm
            if name != "lars":  # which does not adapt what does not decay
                np.testing.assert_array_equal(value, free)


@pytest.mark.parametrize(
    "path,exclude,expected",
    [
        ("batch_normalization_7/gamma", optimizers.NEVER_DECAYED, False),
        ("projection_head/batch_normalization/beta", optimizers.NEVER_DECAYED, False),
        ("conv2d/kernel", optimizers.NEVER_DECAYED, True),
        ("dense/bias", optimizers.NEVER_DECAYED, True),
        ("dense/bias", ("batch_normalization", "bias"), False),
        ("encoder/dense/kernel", ("^encoder",), False),
    ],
)
def test_patterns_of_paths_decide_on_decay(path, exclude, expected):
    assert optimizers.is_decayed(path, exclude) is expected


def test_lars_survives_serialisation_with_every_argument():
    changed = {
        "learning_rate": 0.7,
        "momentum": 0.8,
        "weight_decay": 0.02,
        "eta": 0.01,
        "exclude": ["gamma", "bias"],
        "name": "mine",
    }
    serialized = keras.saving.serialize_keras_object(LARS(**changed))
    config = keras.saving.deserialize_keras_object(serialized).get_config()
    assert config["learning_rate"] == pytest.approx(0.7)
    assert {name: config[name] for name in changed if name != "learning_rate"} == {
        name: value for name, value in changed.items() if name != "learning_rate"
    }
    weights, gradients = draw_steps(3, num_steps=1, seed=1)[0], draw_steps(3)
    np.testing.assert_array_equal(
        apply_all(LARS(**changed), keras.Variable(weights), gradients),
        apply_all(
            keras.saving.deserialize_keras_object(serialized), keras.Variable(weights), gradients
        ),
    )


def test_schedule_inside_an_optimizer_is_followed_and_survives_serialization():
    changed = {
        "peak_learning_rate": 0.5,
        "decay": "piecewise",
        "total_steps": 400,
        "warmup_steps": 2,
        "steps_per_epoch": 3.5,
        "decay_rate": 0.3,
        "epochs_per_decay": 1.5,
        "boundary_epochs": [1, 2],
        "warmup_start": 0.25,
    }
    optimizer = LARS(WarmUpThenDecay(**changed))
    loaded = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    schedule = loaded._learning_rate
    assert schedule.get_config() == changed
    weights, gradients = [1.0, 2.0], draw_steps(2, num_steps=4)
    velocity, expected = 0.0, np.array(weights)
    for step, gradient in enumerate(gradients):
        rate = float(schedule(step)) * 0.001 * np.linalg.norm(expected) / np.linalg.norm(gradient)
        velocity = 0.9 * velocity + rate * gradient
        expected = expected - velocity
    np.testing.assert_allclose(
        apply_all(loaded, keras.Variable(weights), gradients), expected, rtol=1e-6
    )


@pytest.mark.parametrize("name", ["momentum", "nesterov", "rmsprop", "adam"])
def test_weight_decay_is_that_of_a_loss(name):
    """Decay through the moments equals gradients to which weight_decay * w was added."""
    weights, gradients = draw_steps(3, num_steps=1, seed=1)[0], draw_steps(3)
    decayed = keras.Variable(weights)
    apply_all(optimizers.create_optimizer(name, 0.1, weight_decay=0.2), decayed, gradients)
    by_hand = keras.Variable(weights)
    optimizer = optimizers.create_optimizer(name, 0.1)
    for gradient in gradients:
        apply_all(optimizer, by_hand, [gradient + 0.2 * by_hand.numpy()])
    np.testing.assert_allclose(decayed, by_hand, rtol=1e-5)
    free = apply_all(optimizers.create_optimizer(name, 0.1), keras.Variable(weights), gradients)
    assert np.abs(decayed - free).max() > 1e-3


def momentum_loop(weights, gradients, learning_rate, nesterov):
    velocity = np.zeros_like(weights)
    for gradient in gradients:
        velocity = 0.9 * velocity + gradient
        weights = weights - learning_rate * (gradient + 0.9 * velocity if nesterov else velocity)
    return weights


def rmsprop_loop(weights, gradients, learning_rate, epsilon):
    """TensorFlow 1: epsilon inside the square root, and a mean square that starts at 1."""
    mean_square, velocity = np.ones_like(weights), np.zeros_like(weights)
    for gradient in gradients:
        mean_square = 0.9 * mean_square + 0.1 * gradient**2
        velocity = 0.9 * velocity + learning_rate * gradient / np.sqrt(mean_square + epsilon)
        weights = weights - velocity
    return weights


def adam_loop(weights, gradients, learning_rate, decoupled_decay=0.0, epsilon=1e-8):
    """Kingma and Ba 2015 with "epsilon hat"; the decay of Loshchilov and Hutter 2019."""
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    for step, gradient in enumerate(gradients, start=1):
        weights = weights - learning_rate * decoupled_decay * weights
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        rate = learning_rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        weights = weights - rate * mean / (np.sqrt(square) + epsilon)
    return weights


def lamb_loop(weights, gradients, learning_rate, decoupled_decay):
    """You et al. 2020 as Keras has it, with the decay beside the trust ratio."""
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    for step, gradient in enumerate(gradients, start=1):
        weights = weights - learning_rate * decoupled_decay * weights
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        update = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-7)
        ratio = np.linalg.norm(weights) / np.linalg.norm(update)
        weights = weights - learning_rate * ratio * update
    return weights


@pytest.mark.parametrize(
    "name,loop",
    [
        ("momentum", lambda w, g: momentum_loop(w, g, 0.1, nesterov=False)),
        ("nesterov", lambda w, g: momentum_loop(w, g, 0.1, nesterov=True)),
        ("rmsprop", lambda w, g: rmsprop_loop(w, g, 0.1, epsilon=0.5)),
        ("lars", lambda w, g: lars_loop(w, g, learning_rate=0.1, weight_decay=0.2)),
        ("adam", lambda w, g: adam_loop(w, g, 0.1)),
        ("adamw", lambda w, g: adam_loop(w, g, 0.1, decoupled_decay=0.2)),
        ("lamb", lambda w, g: lamb_loop(w, g, 0.1, decoupled_decay=0.2)),
    ],
)
def test_every_optimizer_equals_its_loop(name, loop):
    weights, gradients = draw_steps(3, num_steps=1, seed=1)[0], draw_steps(3)
    decay = 0.2 if name in ("lars", "adamw", "lamb") else 0.0
    optimizer = optimizers.create_optimizer(name, 0.1, rmsprop_epsilon=0.5, weight_decay=decay)
    result = apply_all(optimizer, keras.Variable(weights), gradients)
    # 1 - 0.999 in float32 is off by 2e-5, in Keras' Adam as in TensorFlow 1.
    np.testing.assert_allclose(result, loop(weights, gradients), rtol=1e-4)


@pytest.mark.parametrize("name", ["momentum", "nesterov", "rmsprop", "adam"])
def test_an_optimizer_survives_serialisation_with_its_decay(name):
    optimizer = optimizers.create_optimizer(name, 0.1, weight_decay=0.2, rmsprop_epsilon=0.3)
    loaded = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert loaded.get_config() == optimizer.get_config() and loaded.l2 == 0.2


def test_adam_moves_every_weight_by_its_learning_rate_at_first():
    optimizer = optimizers.create_optimizer("adam", 0.01)
    result = apply_all(optimizer, keras.Variable([1.0, 2.0]), [[0.3, -5.0]])
    np.testing.assert_allclose(result, [0.99, 2.01], atol=1e-5)


def adam_steps(kind, *, compiled=False, rate=None, scaled=False, strategy=None, **options):
    """All variables after two steps of Adam in each of three calls."""
    with strategy.scope() if strategy else contextlib.nullcontext():
        variables = [keras.Variable(np.float32([1.0, -2.0])), keras.Variable(np.float32([[0.5]]))]
        schedule = keras.optimizers.schedules.CosineDecay(0.1, 5)
        optimizer = kind(rate or schedule, epsilon=1e-8, **options)
        if scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0)
        optimizer.build(variables)

    def two_steps(first, second):
        for gradient in (first, second):
            optimizer.apply([gradient[:2], gradient[None, 2:]], variables)

    def call(*gradients):
        strategy.run(two_steps, gradients) if strategy else two_steps(*gradients)

    call = tf.function(call, autograph=False) if compiled else call
    for number, pair in enumerate(draw_steps(2, 3, num_steps=3).astype(np.float32)):
        call(*map(tf.constant, pair))
        if rate and not compiled:
            optimizer.learning_rate = rate / (number + 2)
    return [np.array(v) for v in [*variables, *optimizer.variables]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compiled": True},
        {"rate": 0.1},
        {"compiled": True, "rate": 0.1},
        {"compiled": True, "scaled": True},
        {"compiled": True, "gradient_accumulation_steps": 2},
        {"amsgrad": True},
    ],
)
def test_adam_gives_the_bits_of_keras(options):
    """It computes once per step what Keras' Adam computes for each variable."""
    expected = adam_steps(keras.optimizers.Adam, **options)
    for one, other in zip(adam_steps(optimizers.Adam, **options), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_adam_on_two_replicas_gives_the_bits_of_keras(two_replicas):
    options = {"strategy": two_replicas, "compiled": True}
    expected = adam_steps(keras.optimizers.Adam, **options)
    for one, other in zip(adam_steps(optimizers.Adam, **options), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_unknown_optimizer_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'sgd': choose one of momentum, nesterov, lars"):
        optimizers.create_optimizer("sgd", 0.1)


def shared(rows, strategy):
    """Gives each replica its part of the rows."""
    share = len(rows) // strategy.num_replicas_in_sync
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(rows[context.replica_id_in_sync_group * share :][:share])
    )


# Four replicas for one whose update is of each weight and one whose update is of each layer.
@pytest.mark.parametrize(
    "name,replicas",
    [
        *((name, "two_replicas") for name in optimizers.OPTIMIZERS),
        pytest.param("momentum", "mirrored", marks=pytest.mark.slow),
        pytest.param("lars", "mirrored", marks=pytest.mark.slow),
    ],
)
def test_replicas_do_not_change_the_weights(name, replicas, request):
    """The optimizer sums over replicas, each of which has its part of the loss and the decay."""
    x = draw_steps(8, 5, num_steps=3).astype(np.float32)
    kernel = draw_steps(5, 2, num_steps=1, seed=1)[0].astype(np.float32)

    def train(strategy):
        with strategy.scope():
            weights = keras.Variable(kernel, name="kernel")
            bias = keras.Variable([0.1, 0.2], name="bias")
            optimizer = optimizers.create_optimizer(name, 0.5, weight_decay=0.1)
            optimizer.build([weights, bias])

        @tf.function(autograph=False)
        def step(batch):
            with tf.GradientTape() as tape:
                outputs = tf.matmul(batch, weights.value) + bias.value
                loss = tf.reduce_sum(outputs**2) / 8
            gradients = tape.gradient(loss, [weights.value, bias.value])
            optimizer.apply(gradients, [weights, bias])

        for batch in x:
            strategy.run(step, args=(shared(batch, strategy),))
        return np.concatenate([weights.numpy().ravel(), bias.numpy()])

    single = train(tf.distribute.OneDeviceStrategy("CPU:0"))
    several = train(request.getfixturevalue(replicas))
    np.testing.assert_allclose(several, single, rtol=1e-5, atol=1e-6)
    assert np.abs(single[:10] - kernel.ravel()).max() > 1e-4


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_gradients_of_single_rows_equal_whole_ones_and_replicas_do_not_change_them(
    name, two_replicas
):
    """The gradient of a table of embeddings holds the rows that were looked up, some twice."""
    values = draw_steps(5, 2, num_steps=1, seed=1)[0].astype(np.float32)
    lookups = [[0, 3, 3, 1], [1, 3, 4, 3]]

    def train(strategy, as_rows):
        with strategy.scope():
            table = keras.Variable(values, name="table")
            optimizer = optimizers.create_optimizer(name, 0.1, weight_decay=0.1)
            optimizer.build([table])

        @tf.function(autograph=False)
        def step(rows):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.gather(table.value, rows) ** 3) / 4
            gradient = tape.gradient(loss, table.value)
            assert isinstance(gradient, tf.IndexedSlices)
            gradient = gradient if as_rows else tf.convert_to_tensor(gradient)
            apply_gradients([gradient], optimizer, [table])

        for lookup in lookups:
            strategy.run(step, args=(shared(lookup, strategy),))
        return table.numpy()

    one = tf.distribute.OneDeviceStrategy("CPU:0")
    whole = train(one, as_rows=False)
    np.testing.assert_allclose(train(one, as_rows=True), whole, rtol=1e-6)
    np.testing.assert_allclose(train(two_replicas, as_rows=True), whole, rtol=1e-5)


def test_cosine_equals_the_reference():
    expected = {0: 1.0, 250: 0.8535534, 500: 0.5, 1000: 0.0}
    for step, rate in expected.items():
        assert rate_at(step, decay="cosine", total_steps=1000) == pytest.approx(rate, abs=1e-6)
    expected = {0: 0.0, 250: 0.5, 500: 1.0, 750: 0.5, 1000: 0.0}
    for step, rate in expected.items():
        options = {"decay": "cosine", "total_steps": 1000, "warmup_steps": 500}
        assert rate_at(step, **options) == pytest.approx(rate, abs=1e-6)


def test_exponential_stairs_end_where_the_reference_has_them():
    """In float32, 2.4 epochs of 100 steps are a little more than 240 steps."""
    options = {
        "decay": "exponential",
        "decay_rate": 0.97,
        "epochs_per_decay": 2.4,
        "total_steps": 2400,
    }
    assert rate_at(0, **options) == 1.0
    for stair in range(1, 10):
        assert rate_at(240 * stair, **options) == pytest.approx(0.97 ** (stair - 1), rel=1e-5)
        assert rate_at(240 * stair + 1, **options) == pytest.approx(0.97**stair, rel=1e-5)
    assert rate_at(2400, **options) == pytest.approx(0.97**9, rel=1e-5)


@pytest.mark.parametrize(
    "decay_rate,epochs_per_decay,last",
    [(0.97, 2.4, 0.97**2), (0.97, 3.4, 0.97), (0.99, 2.4, 0.9801)],
)
def test_exponential_after_a_warm_up_equals_the_reference(decay_rate, epochs_per_decay, last):
    for step, rate in {0: 0.0, 250: 0.5, 500: 1.0, 1000: last}.items():
        result = rate_at(
            step,
            decay="exponential",
            decay_rate=decay_rate,
            epochs_per_decay=epochs_per_decay,
            total_steps=1000,
            warmup_steps=500,
        )
        assert result == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize("warmup_epochs", [0, 5])
def test_piecewise_drops_after_its_boundaries_counted_from_the_warm_up(warmup_epochs):
    options = {
        "decay": "piecewise",
        "total_steps": 10_000,
        "warmup_steps": warmup_epochs * STEPS_PER_EPOCH,
    }
    for drops, epoch in enumerate((30, 60, 80, 90)):
        step = (epoch + warmup_epochs) * STEPS_PER_EPOCH
        assert rate_at(step, **options) == pytest.approx(0.1**drops, rel=1e-5)
        assert rate_at(step + 1, **options) == pytest.approx(0.1 ** (drops + 1), rel=1e-5)


def test_piecewise_with_other_boundaries_equals_the_reference():
    options = {"decay": "piecewise", "total_steps": 1000, "boundary_epochs": (1, 2, 3, 4)}
    for drops in range(4):
        step = (drops + 1) * STEPS_PER_EPOCH
        assert rate_at(step, **options) == pytest.approx(0.1**drops, rel=1e-5)
        assert rate_at(step + 1, **options) == pytest.approx(0.1 ** (drops + 1), rel=1e-5)
    assert rate_at(1000, **options) == pytest.approx(1e-4, rel=1e-5)


@pytest.mark.parametrize("decay", optimizers.SCHEDULES)
def test_rate_is_zero_beyond_the_stage_and_the_peak_within_a_stage_of_no_length(decay):
    assert rate_at(1001, decay=decay, total_steps=1000) == 0.0
    # In SupContrast the first of ten epochs is the cosine's first, not its zeroth.
    first = 0.001 + 0.999 * (1 + np.cos(np.pi / 10)) / 2 if decay == "cosine_per_epoch" else 1.0
    assert rate_at(0, decay=decay, total_steps=1000) == pytest.approx(first, rel=1e-6)
    for step in (0, 1, 1000):
        assert rate_at(step, decay=decay, total_steps=0) == 1.0


def test_no_decay_keeps_the_peak():
    assert rate_at(1000, decay="none", total_steps=1000, warmup_steps=10) == 1.0
    assert rate_at(1000, decay="cosine", total_steps=1000, warmup_steps=1000) == 1.0


@pytest.mark.parametrize("total_steps", [0, 99])
def test_a_warm_up_longer_than_the_stage_is_refused(total_steps):
    with pytest.raises(ValueError, match=f"100 steps is longer .* {total_steps} steps"):
        WarmUpThenDecay(1.0, total_steps=total_steps, warmup_steps=100)


def test_unknown_decay_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'linear': choose one of cosine, .*exponential"):
        WarmUpThenDecay(1.0, decay="linear", total_steps=10)


@pytest.mark.parametrize(
    "base_learning_rate,batch_size,peak",
    [(0.4, 6144, 9.6), (0.4, 4096, 6.4), (0.2, 4096, 3.2), (0.5, 4096, 8.0), (0.05, 6144, 1.2),
     (2.5, 4096, 40.0), (0.3, 6144, 7.2), (0.5, 1024, 2.0)],
)  # fmt: skip
def test_learning_rate_grows_with_the_examples_of_a_batch(base_learning_rate, batch_size, peak):
    """The peak rates of the reference's scripts, per 256 examples."""
    assert optimizers.scaled_learning_rate(base_learning_rate, batch_size) == pytest.approx(peak)


@pytest.mark.parametrize(
    "recipe,pretrain_peak,linear_peak",
    [("supcon_imagenet_resnet50", 9.6, 1.2), ("supcon_cifar10_resnet50", 8.0, 40.0)],
)
def test_recipes_reach_the_peak_learning_rates_of_the_reference(recipe, pretrain_peak, linear_peak):
    lines = (RECIPES / f"{recipe}.flags").read_text().splitlines()
    flags = dict(line.split("=", 1) for line in lines if line.startswith("--") and "=" in line)
    for stage, peak in (("pretrain", pretrain_peak), ("linear", linear_peak)):
        rate = float(flags[f"--{stage}_base_learning_rate"])
        result = optimizers.scaled_learning_rate(rate, int(flags["--batch_size"]))
        assert result == pytest.approx(peak)


@pytest.mark.parametrize("decay_rate", [0.1, 0.2])
def test_cosine_per_epoch_is_supcontrasts(decay_rate):
    """Its definition (util.py and main_supcon.py), for epochs e = 1..E of n batches b = 0..n-1:

    eta_min = lr decay_rate^3;  cosine(e) = eta_min + (lr - eta_min) (1 + cos(pi e / E)) / 2;
    within 10 epochs of warm-up 0.01 + (b + (e - 1) n) / (10 n) (cosine(10) - 0.01), then cosine(e).
    """
    peak, num_epochs, num_batches, start = 0.5, 25, 49, 0.01
    lowest = peak * decay_rate**3

    def cosine(epoch):
        return lowest + (peak - lowest) * (1 + math.cos(math.pi * epoch / num_epochs)) / 2

    expected = []
    for epoch in range(1, num_epochs + 1):
        for batch in range(num_batches):
            share = (batch + (epoch - 1) * num_batches) / (10 * num_batches)
            warming = start + share * (cosine(10) - start)
            expected.append(warming if epoch <= 10 else cosine(epoch))
    schedule = WarmUpThenDecay(
        peak,
        decay="cosine_per_epoch",
        total_steps=num_epochs * num_batches,
        warmup_steps=10 * num_batches,
        warmup_start=start / peak,
        steps_per_epoch=num_batches,
        decay_rate=decay_rate,
    )
    rates = [float(schedule(step)) for step in range(num_epochs * num_batches)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    again = WarmUpThenDecay.from_config(schedule.get_config())
    assert float(again(3)) == rates[3] > rates[0]
