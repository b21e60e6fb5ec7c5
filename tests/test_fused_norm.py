"""The fused kernel changes how batch norm is computed, and nothing of what it computes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_training

from supcon_tf import collectives
from supcon_tf.losses import supcon
from supcon_tf.models import batch_norm, contrastive
from supcon_tf.training import steps

RNG = np.random.default_rng(0)


def create_pair(**options):
    """The same layer in two models, one of them fused."""
    pair = []
    for _ in range(2):
        inputs = keras.Input([6, 5, 4])
        layer = keras.layers.BatchNormalization(momentum=0.8, name="norm", **options)
        pair.append(keras.Model(inputs, layer(inputs)))
    stock, fused = pair
    for variable in stock.variables:
        variable.assign(RNG.uniform(0.5, 2.0, variable.shape))
    fused.set_weights(stock.get_weights())
    batch_norm.use_fused_batch_norm(fused)
    return stock, fused


def outputs_and_gradients(model, images, factor):
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = model(images, training=True)
        value = tf.reduce_sum(tf.cast(outputs, tf.float32) * factor)
    return [outputs, *tape.gradient(value, [images, *model.trainable_variables])]


def kernels_of(model, shape):
    function = tf.function(lambda x: model(x, training=True), autograph=False)
    graph = function.get_concrete_function(tf.TensorSpec(shape)).graph
    return {operation.type for operation in graph.get_operations()}


@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False}], ids=str)
def test_outputs_gradients_and_averages_equal_keras(options):
    stock, fused = create_pair(**options)
    images = tf.constant(RNG.normal(3, 2, [7, 6, 5, 4]), tf.float32)
    factor = tf.constant(RNG.normal(size=[7, 6, 5, 4]), tf.float32)
    assert "FusedBatchNormV3" in kernels_of(fused, [7, 6, 5, 4])
    assert "FusedBatchNormV3" not in kernels_of(stock, [7, 6, 5, 4])
    for _ in range(3):  # The averages move on from where they are.
        expected = outputs_and_gradients(stock, images, factor)
        found = outputs_and_gradients(fused, images, factor)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    for one, other in zip(fused.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_bfloat16_keeps_float32_statistics():
    stock, fused = create_pair(dtype="mixed_bfloat16")
    images = tf.constant(RNG.normal(3, 2, [64, 6, 5, 4]), tf.float32)
    assert fused(images, training=True).dtype == tf.bfloat16
    np.testing.assert_allclose(
        tf.cast(fused(images, training=True), tf.float32),
        tf.cast(stock(images, training=True), tf.float32),
        atol=0.05,
    )
    stock(images, training=True)
    for one, other in zip(fused.get_weights(), stock.get_weights(), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_inference_and_the_saved_model_are_those_of_keras(tmp_path):
    encoder = contrastive.create_encoder("tiny", image_size=8)
    images = tf.constant(RNG.uniform(0, 255, [4, 8, 8, 3]), tf.float32)
    before = encoder(images, training=False)
    batch_norm.use_fused_batch_norm(encoder)
    np.testing.assert_array_equal(encoder(images, training=False), before)
    encoder(images, training=True)
    encoder.save(tmp_path / "encoder.keras")
    loaded = keras.models.load_model(tmp_path / "encoder.keras")
    assert "FusedBatchNormV3" not in kernels_of(loaded, [4, 8, 8, 3])
    np.testing.assert_array_equal(loaded(images, training=False), encoder(images, training=False))


def test_models_inside_models_are_fused_too():
    encoder = contrastive.create_encoder("tiny", image_size=8)
    inputs = keras.Input([8, 8, 3])
    outer = keras.Model(inputs, encoder(inputs))
    batch_norm.use_fused_batch_norm(outer)
    kernels = kernels_of(outer, [4, 8, 8, 3])
    assert "FusedBatchNormV3" in kernels and "SquaredDifference" not in kernels


@pytest.mark.parametrize("synchronized", [True, False])
def test_the_kernel_computes_the_statistics_of_one_replica_only(two_replicas, synchronized):
    with two_replicas.scope():
        _, fused = create_pair(synchronized=synchronized)
        images = tf.constant(RNG.normal(size=[7, 6, 5, 4]), tf.float32)

        @tf.function(autograph=False)
        def step():
            return two_replicas.run(lambda: fused(images, training=True))

        kernels = {
            operation.type for operation in step.get_concrete_function().graph.get_operations()
        }
    assert ("FusedBatchNormV3" in kernels) is not synchronized


def on_replicas(strategy, model, shares):
    """Outputs and gradients of the images of all replicas, and the sums of those of the weights.

    Args:
        shares: (images, factor) of each replica.
    """

    def share(context):
        return shares[context.replica_id_in_sync_group]

    values = strategy.experimental_distribute_values_from_function(share)

    @tf.function(autograph=False)
    def step(values):
        def on_replica(values):
            images, factor = values
            return outputs_and_gradients(model, images, factor)

        return [
            strategy.experimental_local_results(result)
            for result in strategy.run(on_replica, args=(values,))
        ]

    outputs, of_images, *of_weights = step(values)
    sums = [tf.add_n([tf.convert_to_tensor(part) for part in parts]) for parts in of_weights]
    return [tf.concat(outputs, 0), tf.concat(of_images, 0), *sums]


@pytest.mark.parametrize(
    ("counts", "options"),
    [
        ((4, 4), {}),
        ((3, 5), {}),
        ((4, 4), {"dtype": "mixed_bfloat16"}),
        ((3, 5), {"dtype": "mixed_float16"}),
        ((3, 5), {"center": False}),
        ((3, 5), {"scale": False}),
    ],
    ids=str,
)
def test_replicas_together_are_one_with_the_whole_batch(two_replicas, counts, options):
    images = RNG.normal(3, 2, [8, 6, 5, 4]).astype(np.float32)
    factor = RNG.normal(size=[8, 6, 5, 4]).astype(np.float32)
    shares = [
        (tf.constant(images[part]), tf.constant(factor[part]))
        for part in (slice(0, counts[0]), slice(counts[0], None))
    ]
    stock, whole = create_pair(**options)
    expected = outputs_and_gradients(whole, tf.constant(images), tf.constant(factor))
    with two_replicas.scope():
        keras_pair, ours = create_pair(synchronized=True, **options)
    for model in (keras_pair, ours):
        model.set_weights(stock.get_weights())
    found = on_replicas(two_replicas, ours, shares)
    of_keras = on_replicas(two_replicas, keras_pair, shares)
    tolerance = 0.05 if "dtype" in options else 1e-4
    for one, other, third in zip(found, expected, of_keras, strict=True):
        one, other, third = (tf.cast(x, tf.float32) for x in (one, other, third))
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(one, third, rtol=tolerance, atol=tolerance)
    for one, other in zip(ours.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_replicas_exchange_once_in_each_direction(two_replicas, monkeypatch):
    exchanged, add_up = [], collectives.add_up

    def counting(values):
        exchanged.append(tuple(values.shape))
        return add_up(values)

    monkeypatch.setattr(collectives, "add_up", counting)
    with two_replicas.scope():
        _, ours = create_pair(synchronized=True)
    image = tf.constant(RNG.normal(size=[2, 6, 5, 4]), tf.float32)
    on_replicas(two_replicas, ours, [(image, image)] * 2)
    assert sorted(exchanged) == [(2, 4), (2, 4), (9,), (9,)]  # Of each replica.


def test_a_frozen_layer_keeps_its_averages():
    _, fused = create_pair()
    fused.get_layer("norm").trainable = False
    before = fused.get_weights()
    fused(tf.ones([2, 6, 5, 4]), training=True)
    for one, other in zip(fused.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


VIEWS = RNG.integers(0, 256, [16, 2, 8, 8, 3]).astype(np.uint8)
LABELS = np.arange(16) % 4


def create_model(**options):
    keras.utils.set_random_seed(0)
    encoder = tiny_training.create_encoder()
    return contrastive.ContrastiveModel(encoder, contrastive.ProjectionHead([8]), **options)


def train_with_fit(model):
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=supcon.SupConLoss())
    history = model.fit(VIEWS, LABELS, batch_size=16, epochs=3, shuffle=False, verbose=0)
    return history.history["loss"]


def train_with_steps(model):
    step = steps.ContrastiveStep(
        model=model,
        loss=supcon.SupConLoss(reduction=None),
        optimizer=keras.optimizers.SGD(0.1),
        global_batch_size=16,
    )
    run = tf.function(lambda: step({"image": tf.constant(VIEWS), "label": tf.constant(LABELS)}))
    return [float(run()["loss"]) for _ in range(3)]


@pytest.fixture
def kernel_calls(monkeypatch):
    """What is given to the fused kernel while something is traced."""
    calls, kernel = [], tf.raw_ops.FusedBatchNormV3

    def count(**arguments):
        calls.append(arguments)
        return kernel(**arguments)

    monkeypatch.setattr(tf.raw_ops, "FusedBatchNormV3", count)
    return calls


def test_the_model_chooses_the_kernel_however_it_trains(kernel_calls):
    """`fit` and the command's step use it, or not, as the model says; the weights are equal."""
    trained = []
    for train in (train_with_fit, train_with_steps):
        stock, fused = create_model(use_fused_batch_norm=False), create_model()
        kernel_calls.clear()
        trained.append((train(stock), stock.get_weights()))
        assert not kernel_calls
        trained.append((train(fused), fused.get_weights()))
        assert kernel_calls
    expected_losses, expected_weights = trained[0]
    for losses, weights in trained[1:]:
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
        for one, other in zip(weights, expected_weights, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("is_fused", [True, False])
def test_the_choice_is_saved_with_the_model(is_fused, tmp_path):
    model = create_model(use_fused_batch_norm=is_fused)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.use_fused_batch_norm is is_fused
    assert ("FusedBatchNormV3" in kernels_of(loaded.encoder, [4, 8, 8, 3])) is is_fused


def test_a_model_saved_without_the_choice_has_the_default():
    config = create_model(use_fused_batch_norm=False).get_config()
    del config["use_fused_batch_norm"]
    assert contrastive.ContrastiveModel.from_config(config).use_fused_batch_norm
