"""Changed backward passes of convolutions: what is kept and what is faster, not the results."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from supcon_tf.losses import supcon
from supcon_tf.models import contrastive, convolution
from supcon_tf.training import optimizers, steps

RNG = np.random.default_rng(0)


def create_pair(pad=((1, 1), (1, 1)), kernel_size=3, **options):
    """The same padded convolution in two models, one of which pads again."""
    pair = []
    for _ in range(2):
        inputs = keras.Input([9, 8, 4])
        padded = keras.layers.ZeroPadding2D(pad, dtype=options.get("dtype"))(inputs)
        conv = keras.layers.Conv2D(5, kernel_size, strides=2, activation="relu", **options)
        pair.append(keras.Model(inputs, conv(padded)))
    stock, changed = pair
    changed.set_weights(stock.get_weights())
    convolution.use_lean_gradients(changed)
    return stock, changed


def outputs_and_gradients(model, images):
    @tf.function(autograph=False)
    def compute(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = model(images, training=True)
            value = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 2)
        return [outputs, *tape.gradient(value, [images, *model.trainable_variables])]

    return compute(images)


def kept_paddings(model, shape):
    """How many padded tensors are inputs of the backward pass."""

    @tf.function(autograph=False)
    def compute(images):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(model(images, training=True))
        return tape.gradient(value, model.trainable_variables)

    operations = compute.get_concrete_function(tf.TensorSpec(shape)).graph.get_operations()
    inputs = [op.inputs[0].op for op in operations if op.type == "Conv2DBackpropFilter"]
    assert inputs
    # A padding of the backward pass has a control input that makes it wait for the gradient.
    return sum(op.type == "Pad" and not op.control_inputs for op in inputs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_bias": False, "kernel_size": 7, "pad": ((3, 3), (3, 3))},
        {"pad": ((0, 1), (2, 1))},
        {"kernel_size": (2, 3)},
        {"dtype": "mixed_bfloat16"},
    ],
    ids=str,
)
def test_outputs_and_gradients_are_the_same(options):
    stock, changed = create_pair(**options)
    images = tf.constant(RNG.normal(size=[6, 9, 8, 4]), tf.float32)
    expected = outputs_and_gradients(stock, images)
    tolerance = 1e-2 if "dtype" in options else 1e-5  # TensorFlow may fuse padding and convolution.
    for one, other in zip(outputs_and_gradients(changed, images), expected, strict=True):
        assert one.dtype == other.dtype
        other = np.float32(other)
        np.testing.assert_allclose(np.float32(one), other, atol=tolerance * np.abs(other).max())
    np.testing.assert_array_equal(changed(images), stock(images))  # Without a graph.
    assert kept_paddings(stock, images.shape) == 1 and kept_paddings(changed, images.shape) == 0


def test_a_residual_network_keeps_no_padded_copies():
    stock, changed = (contrastive.create_encoder("tiny", image_size=8) for _ in range(2))
    contrastive.ContrastiveModel(keras.Model(changed.inputs, changed(changed.inputs[0])))
    assert kept_paddings(stock, [2, 8, 8, 3]) == 2  # The first block of the second and third group.
    assert kept_paddings(changed, [2, 8, 8, 3]) == 0


def test_a_padded_output_can_be_used_by_other_layers():
    inputs = keras.Input([6, 6, 3])
    padded = keras.layers.ZeroPadding2D(1)(inputs)
    conv, pool = keras.layers.Conv2D(3, 3), keras.layers.MaxPooling2D(3, strides=1)
    model = keras.Model(inputs, [conv(padded), pool(padded), padded])
    images = RNG.normal(size=[2, 6, 6, 3]).astype(np.float32)
    expected = model.predict(images, verbose=0)
    convolution.use_lean_gradients(model)
    for one, other in zip(model.predict(images, verbose=0), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_saved_model_is_that_of_keras(tmp_path):
    _, changed = create_pair()
    changed.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = RNG.normal(size=[2, 9, 8, 4]).astype(np.float32)
    np.testing.assert_array_equal(loaded(images), changed(images))
    assert kept_paddings(loaded, [2, 9, 8, 4]) == 1 and kept_paddings(changed, [2, 9, 8, 4]) == 0


def test_weights_after_steps_are_the_same(monkeypatch):
    def train():
        step = create_step()
        batch = {"image": images, "label": tf.constant([0, 0, 1, 1])}
        run = tf.function(step, autograph=False)
        for _ in range(2):
            run(batch)
        return step.model.get_weights()

    def create_step():
        keras.utils.set_random_seed(0)
        encoder = contrastive.create_encoder("tiny", image_size=16)
        return steps.ContrastiveStep(
            model=contrastive.ContrastiveModel(encoder),
            loss=supcon.SupConLoss(reduction=None),
            optimizer=optimizers.create_optimizer("momentum", 0.1),
            global_batch_size=4,
        )

    images = tf.constant(RNG.integers(0, 256, [4, 2, 16, 16, 3]), tf.uint8)
    found = train()
    monkeypatch.setattr(convolution, "use_lean_gradients", lambda model: None)
    for one, other in zip(found, train(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1), (3, 2)], ids=str)
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (4, 9)], ids=str)
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 2), (1, 0)), ((3, 3), (3, 3)), None])
@pytest.mark.parametrize("kernel_size", [(3, 3), (1, 2), (4, 3)], ids=str)
def test_a_kernel_gradient_as_product_is_that_of_tensorflow(kernel_size, padding, size, strides):
    inputs = tf.constant(RNG.normal(size=[2, *size, 3]))
    kernel = tf.constant(RNG.normal(size=[*kernel_size, 3, 4]))
    padded = tf.pad(inputs, [[0, 0], *(padding or ((0, 0), (0, 0))), [0, 0]])
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        mode = "VALID" if padding else "SAME"
        outputs = tf.nn.conv2d(padded, kernel, strides, mode)
    upstream = tf.constant(RNG.normal(size=outputs.shape))
    expected = tape.gradient(outputs, kernel, upstream)
    if padding:
        before = [first for first, _ in padding]
    else:
        before = convolution._same_padding(inputs, kernel, strides)
    found = convolution.kernel_gradient_as_product(
        inputs, upstream, kernel_size=kernel_size, before=before, strides=strides
    )
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def create_small_maps(dtype="mixed_bfloat16"):
    """A convolution of 16 x 16 pixels, and two of 8 x 8 positions, one of them strided."""
    options = {"kernel_size": 3, "use_bias": False, "dtype": dtype}
    inputs = keras.Input([16, 16, 64])
    wide = keras.layers.Conv2D(64, padding="same", **options)(inputs)
    padded = keras.layers.ZeroPadding2D(1, dtype=dtype)(wide)
    strided = keras.layers.Conv2D(64, strides=2, **options)(padded)
    return keras.Model(inputs, keras.layers.Conv2D(64, padding="same", **options)(strided))


def count_operations(model, **options):
    """How many gradients of kernels a graph computes by TensorFlow's own operation."""

    @tf.function(autograph=False, **options)
    def compute(images):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(tf.cast(model(images, training=True), tf.float32))
        return tape.gradient(value, model.trainable_variables)

    images = tf.TensorSpec([None, 16, 16, 64])
    operations = compute.get_concrete_function(images).graph.get_operations()
    return sum(op.type == "Conv2DBackpropFilter" for op in operations)


def test_products_give_the_gradients_of_small_maps_in_bfloat16():
    stock, changed = create_small_maps(), create_small_maps()
    changed.set_weights(stock.get_weights())
    convolution.use_lean_gradients(changed)
    assert count_operations(stock) == 3 and count_operations(changed) == 1
    images = tf.constant(RNG.normal(size=[4, 16, 16, 64]), tf.float32)
    expected = outputs_and_gradients(stock, images)
    for one, other in zip(outputs_and_gradients(changed, images), expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        other = np.float32(other)
        np.testing.assert_allclose(np.float32(one), other, atol=2e-2 * np.abs(other).max())


def test_products_are_computed_in_the_backward_pass():
    """Slices of the inputs that wait for nothing would be kept from the forward pass."""
    changed = create_small_maps()
    convolution.use_lean_gradients(changed)

    @tf.function(autograph=False)
    def compute(images):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(changed(images, training=True))
        return tape.gradient(value, changed.trainable_variables)

    graph = compute.get_concrete_function(tf.TensorSpec([2, 16, 16, 64])).graph
    pads = [op for op in graph.get_operations() if op.type == "Pad"]
    # An operation waits if it has a control input, or if its constant has one.
    waiting = [op for op in pads if any(o.control_inputs for o in (op, *(x.op for x in op.inputs)))]
    assert len(waiting) == 2
    assert len(pads) - len(waiting) == 2  # Of the padding layer, and of the convolution after it.


def test_products_are_only_used_where_they_are_faster(monkeypatch):
    for dtype, options in (("float32", {}), ("mixed_bfloat16", {"jit_compile": True})):
        changed = create_small_maps(dtype)
        convolution.use_lean_gradients(changed)
        assert count_operations(changed, **options) == 3
    devices = [*tf.config.list_logical_devices("CPU"), tf.config.LogicalDevice("GPU:0", "GPU")]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda: devices)
    changed = create_small_maps()
    convolution.use_lean_gradients(changed)
    assert count_operations(changed) == 3
