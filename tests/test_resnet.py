import functools
import json
import math
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.src.backend.common import global_state

from supcon_tf.data import whitening
from supcon_tf.models import resnet

# Trainable parameters (gamma and beta, no moving statistics) of the reference's encoders; a
# CIFAR stem of 3x3 has 7 * 7 * 3 * 64 - 3 * 3 * 3 * 64 = 7,680 fewer.
PARAMETERS = {
    ("resnet_v1", 18): 11_180_736,
    ("resnet_v1", 34): 21_288_896,
    ("resnet_v1", 50): 23_508_032,
    ("resnet_v1", 101): 42_500_160,
    ("resnet_v1", 152): 58_143_808,
    ("resnet_v1", 200): 62_624_832,
    ("resnext", 50): 22_272_576,
    ("resnext", 101): 40_794_688,
    ("resnext", 152): 56_052_288,
    ("resnext", 200): 60_426_816,
}
CIFAR_STEM = {
    "first_conv_kernel_size": 3,
    "first_conv_stride": 1,
    "use_initial_max_pool": False,
}
SLOW_DEPTHS = (152, 200)


@functools.cache
def outline(architecture="resnet_v1", depth=50, **options):
    """An encoder whose variables have shapes but no values: quick and small at any depth."""
    waiting = list(global_state.get_global_attribute("uninitialized_variables", []))
    with keras.StatelessScope(initialize_variables=False):
        model = resnet.create_resnet(architecture=architecture, depth=depth, **options)
    # Else Keras would fill in the values at its next chance, in some later test.
    global_state.set_global_attribute("uninitialized_variables", waiting)
    return model


@pytest.fixture(scope="module")
def tiny():
    keras.utils.set_random_seed(0)
    return resnet.create_resnet(architecture="tiny", image_size=16, **CIFAR_STEM)


def draw_images(num_images, side, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (num_images, side, side, 3)).astype("f")


def count_parameters(model):
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def layers_of(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


def producers(layer):
    """The layers whose outputs go into a layer."""
    (node,) = layer._inbound_nodes
    return [parent.operation for parent in node.parent_nodes]


@pytest.mark.parametrize(
    "architecture,depth",
    [
        pytest.param(*key, marks=pytest.mark.slow if key[1] in SLOW_DEPTHS else ())
        for key in PARAMETERS
    ],
)
def test_parameter_counts_equal_the_reference(architecture, depth):
    assert count_parameters(outline(architecture, depth)) == PARAMETERS[architecture, depth]


def test_width_and_stem_change_the_parameter_count_as_in_the_reference():
    assert count_parameters(outline(depth=50, width=2)) == 93_907_072
    cifar = outline(depth=50, image_size=32, **CIFAR_STEM)
    assert count_parameters(cifar) == 23_508_032 - 7_680


@pytest.mark.parametrize(
    "architecture,depth,num_features",
    [
        ("resnet_v1", 18, 512),
        ("resnet_v1", 34, 512),
        ("resnet_v1", 50, 2048),
        ("resnet_v1", 101, 2048),
        ("resnext", 50, 2048),
    ],
)
def test_output_shape_follows_from_the_depth(architecture, depth, num_features):
    model = outline(architecture, depth)
    assert model.input_shape == (None, 224, 224, 3)
    assert model.output_shape == (None, num_features)


def test_width_multiplies_the_features():
    assert outline(depth=18, width=2, image_size=32, **CIFAR_STEM).output_shape == (None, 1024)
    assert outline(depth=50, width=2, image_size=32, **CIFAR_STEM).output_shape == (None, 4096)
    tiny = resnet.create_resnet(architecture="tiny", width=2, image_size=8, **CIFAR_STEM)
    assert tiny.output_shape == (None, 128)


@pytest.mark.parametrize("depth,expansion", [(18, 1), (50, 4)])
def test_every_group_but_the_first_halves_the_side_and_doubles_the_channels(depth, expansion):
    """At 224 px the stem leaves 56, in steps of 112 (stride 2) and 56 (pool)."""
    model = outline(depth=depth)
    convs, pools = layers_of(model, layers.Conv2D), layers_of(model, layers.MaxPooling2D)
    assert convs[0].output.shape[1:] == (112, 112, 64)
    assert [pool.output.shape[1:] for pool in pools] == [(56, 56, 64)]
    ends = np.cumsum(resnet.GROUP_SIZES[depth]) - 1
    adds = layers_of(model, layers.Add)
    assert len(adds) == ends[-1] + 1
    assert [adds[end].output.shape[1:] for end in ends] == [
        (side, side, filters * expansion)
        for side, filters in ((56, 64), (28, 128), (14, 256), (7, 512))
    ]


@pytest.mark.parametrize(
    "architecture,depth",
    [("resnet_v1", 32), ("resnet_v1", 51), ("resnext", 34), ("resnext", 51)],
)
def test_bad_depths_are_refused_with_the_valid_ones(architecture, depth):
    with pytest.raises(
        ValueError, match=rf"{depth} is not a valid {architecture} depth: choose from .*50, 101"
    ):
        resnet.create_resnet(architecture=architecture, depth=depth)


def test_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'resnet_v2': choose one of resnet_v1, resnext, tiny"):
        resnet.create_resnet(architecture="resnet_v2")


@pytest.mark.parametrize("architecture", ["resnet_v1", "resnext"])
def test_stride_of_a_bottleneck_is_on_its_three_by_three_convolution(architecture):
    for add in layers_of(outline(architecture, 50), layers.Add):
        branch, _ = producers(add)
        strides, kernel_sizes = [], []
        layer = branch
        while len(kernel_sizes) < 3:
            if isinstance(layer, layers.Conv2D):
                strides.append(layer.strides)
                kernel_sizes.append(layer.kernel_size)
            (layer,) = producers(layer)
        assert kernel_sizes == [(1, 1), (3, 3), (1, 1)]
        assert strides[0] == strides[2] == (1, 1)
    strided = [c for c in layers_of(outline(architecture, 50), layers.Conv2D) if c.strides[0] == 2]
    assert sorted(conv.kernel_size[0] for conv in strided) == [1, 1, 1, 3, 3, 3, 7]


@pytest.mark.parametrize(
    "architecture,depth", [("resnet_v1", 18), ("resnet_v1", 50), ("resnext", 50), ("tiny", 0)]
)
def test_first_block_of_every_group_projects_and_no_other(architecture, depth):
    sizes = (1, 1, 1) if architecture == "tiny" else resnet.GROUP_SIZES[depth]
    projects = []
    for add in layers_of(outline(architecture, depth, image_size=32), layers.Add):
        _, shortcut = producers(add)
        projects.append(isinstance(shortcut, layers.BatchNormalization))
        if projects[-1]:
            (conv,) = producers(shortcut)
            assert conv.kernel_size == (1, 1)
        else:
            assert isinstance(shortcut, layers.ReLU)
    assert projects == [index == 0 for size in sizes for index in range(size)]


@pytest.mark.parametrize(
    "architecture,depth,last_gamma",
    [
        ("resnet_v1", 18, "Zeros"),
        ("resnet_v1", 50, "Zeros"),
        ("resnext", 50, "Ones"),
        ("tiny", 0, "Zeros"),
    ],
)
def test_only_the_last_gamma_of_a_branch_starts_at_zero(architecture, depth, last_gamma):
    model = outline(architecture, depth, image_size=32)
    last = [producers(add)[0] for add in layers_of(model, layers.Add)]
    for norm in layers_of(model, layers.BatchNormalization):
        expected = last_gamma if norm in last else "Ones"
        assert type(norm.gamma_initializer).__name__ == expected
    assert all(isinstance(norm, layers.BatchNormalization) for norm in last)


def test_a_fresh_tiny_encoder_is_its_shortcuts(tiny):
    """With every last gamma at 0, a block is relu(shortcut), whatever its branch computes."""
    adds = layers_of(tiny, layers.Add)
    pairs = keras.Model(tiny.input, [out for add in adds for out in (add.output, add.input[1])])
    outputs = [output.numpy() for output in pairs(draw_images(2, 16), training=True)]
    for total, shortcut in zip(outputs[::2], outputs[1::2], strict=True):
        np.testing.assert_array_equal(total, shortcut)
        assert np.std(total) > 0.1


def test_batch_norm_has_the_constants_of_the_reference():
    for synchronized in (True, False):
        model = outline(depth=18, image_size=32, use_global_batch_norm=synchronized)
        for norm in layers_of(model, layers.BatchNormalization):
            assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)
            assert norm.center and norm.scale
            assert norm.synchronized is synchronized


def test_moving_statistics_take_a_tenth_of_each_batch():
    model = resnet.create_resnet(architecture="tiny", image_size=8, **CIFAR_STEM)
    images = draw_images(4, 8)
    first = layers_of(model, layers.BatchNormalization)[0]
    inputs = keras.Model(model.input, first.input)(images).numpy()
    model(images, training=True)
    np.testing.assert_allclose(
        first.moving_mean, 0.1 * inputs.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        first.moving_variance, 0.9 + 0.1 * inputs.var(axis=(0, 1, 2)), rtol=1e-4
    )


def test_convolutions_have_no_bias_and_keep_the_variance():
    """Truncated normal of variance 1 / fan_in, TensorFlow 1's default variance scaling."""
    model = resnet.create_resnet(architecture="tiny", width=4, image_size=8, **CIFAR_STEM)
    convs = layers_of(model, layers.Conv2D)
    assert not any(conv.use_bias for conv in convs)
    for conv in convs[1:]:
        kernel = conv.kernel.numpy()
        fan_in = math.prod(kernel.shape[:3])
        np.testing.assert_allclose(kernel.std(), fan_in**-0.5, rtol=0.05)
        assert np.abs(kernel).max() < 2.3 * fan_in**-0.5  # truncated at two deviations, rescaled


@pytest.mark.parametrize("kernel_size,before,after", [(3, 1, 1), (4, 1, 2), (7, 3, 3)])
def test_a_stride_pads_explicitly_and_not_as_same_does(kernel_size, before, after):
    """SAME would pad an even side by one pixel less before than after."""
    model = resnet.create_resnet(
        architecture="tiny",
        image_size=16,
        first_conv_kernel_size=kernel_size,
        first_conv_stride=2,
        use_initial_max_pool=False,
    )
    conv = layers_of(model, layers.Conv2D)[0]
    images = draw_images(2, 16)
    padded = tf.pad(images / 127.5 - 1, [[0, 0], [before, after], [before, after], [0, 0]])
    expected = tf.nn.conv2d(padded, conv.kernel, strides=2, padding="VALID")
    np.testing.assert_allclose(
        keras.Model(model.input, conv.output)(images), expected, rtol=1e-4, atol=1e-5
    )
    assert expected.shape == (2, 8, 8, 16)


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("padding", resnet.MAX_POOL_PADDINGS)
def test_the_initial_max_pool_pads_as_tensorflow_or_as_pytorch(padding, side):
    """PyTorch pads one pixel before; SAME does so for odd sides only."""
    pool = {"use_initial_max_pool": True, "initial_max_pool_padding": padding}
    model = resnet.create_resnet(architecture="tiny", image_size=side, **{**CIFAR_STEM, **pool})
    (layer,) = layers_of(model, layers.MaxPooling2D)
    before = keras.Model(model.input, layers_of(model, layers.ReLU)[0].output)
    images = draw_images(2, side)
    x = before(images).numpy()
    first = 1 if padding == "symmetric" or side % 2 else 0
    padded = np.pad(x, [(0, 0), (first, 2), (first, 2), (0, 0)], constant_values=-np.inf)
    half = (side + 1) // 2
    windows = [
        padded[:, row : row + 2 * half : 2, column : column + 2 * half : 2]
        for row in range(3)
        for column in range(3)
    ]
    output = keras.Model(model.input, layer.output)(images)
    np.testing.assert_array_equal(output, np.max(windows, axis=0)[:, :half, :half])


@pytest.mark.parametrize("size,kernel,stride,num_pools", [(63, 3, 1, 0), (64, 7, 2, 1)])
def test_the_stem_follows_the_image_size(size, kernel, stride, num_pools):
    for architecture in ("tiny", "resnet_v1"):
        model = outline(architecture, 18, image_size=size)
        stem = model.get_layer("stem_conv")
        assert (stem.kernel_size, stem.strides) == ((kernel, kernel), (stride, stride))
        assert len(layers_of(model, layers.MaxPooling2D)) == num_pools
    given = outline("resnet_v1", 18, image_size=size, first_conv_stride=4)
    assert given.get_layer("stem_conv").strides == (4, 4)


def test_a_max_pool_padding_is_refused_where_it_does_nothing():
    with pytest.raises(ValueError, match="add use_initial_max_pool=True"):
        resnet.create_resnet(
            architecture="tiny", image_size=63, initial_max_pool_padding="symmetric"
        )
    with pytest.raises(ValueError, match="'torch': choose one of same, symmetric"):
        resnet.create_resnet(architecture="tiny", initial_max_pool_padding="torch")


def test_grouped_convolutions_have_64_groups_and_pad_as_same():
    grouped = [
        conv
        for conv in layers_of(outline("resnext", 50), layers.Conv2D)
        if conv.kernel_size == (3, 3)
    ]
    assert len(grouped) == 16
    for conv in grouped:
        assert conv.groups == 64
        assert conv.padding == "same"
        assert not any(isinstance(layer, layers.ZeroPadding2D) for layer in producers(conv))


def test_images_are_scaled_and_whitened_by_the_formula():
    mean, std = whitening.CIFAR10_MEAN, whitening.CIFAR10_STD
    inputs = keras.Input([4, 4, 3])
    images = draw_images(2, 4)
    images[0, 0, 0] = [0, 127.5, 255]
    for constants in ({}, {"mean": mean, "std": std}):
        outputs = keras.Model(inputs, resnet.scale_and_whiten(inputs, **constants))(images)
        expected = images.astype(np.float64) / 127.5 - 1
        if constants:
            expected = (expected - np.array(mean)) / np.array(std)
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_whitening_of_cifar_is_that_of_the_usual_constants():
    """2 m - 1 and 2 s of the mean and deviation of images in [0, 1]."""
    usual = {
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    }
    for dataset, (mean, std) in usual.items():
        ours = whitening.choose_whitening(dataset, pytest.fail)
        np.testing.assert_allclose(ours[0], 2 * np.array(mean) - 1, atol=1e-4)
        np.testing.assert_allclose(ours[1], 2 * np.array(std), atol=1e-4)
    assert whitening.choose_whitening("digits", pytest.fail) == (None, None)


def test_whitening_reaches_the_encoder():
    constants = {"mean": whitening.CIFAR10_MEAN, "std": whitening.CIFAR10_STD}
    model = resnet.create_resnet(architecture="tiny", image_size=8, **CIFAR_STEM, **constants)
    images = draw_images(2, 8)
    conv = layers_of(model, layers.Conv2D)[0]
    values = (images / 127.5 - 1 - whitening.CIFAR10_MEAN) / whitening.CIFAR10_STD
    np.testing.assert_allclose(
        keras.Model(model.input, conv.input)(images), values, rtol=1e-4, atol=1e-5
    )


def test_input_and_output_are_float32_whatever_the_precision_policy():
    """A uint8 input would cut off the fractions of floats; features stay exact for the loss."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = resnet.create_resnet(architecture="tiny", image_size=8, **CIFAR_STEM)
    finally:
        keras.config.set_dtype_policy("float32")
    assert layers_of(model, layers.Conv2D)[0].compute_dtype == "bfloat16"
    assert model.input.dtype == "float32"
    features = model(draw_images(2, 8))
    assert features.dtype == tf.float32
    assert np.all(np.isfinite(features))


def test_integer_and_float_images_give_the_same_features(tiny):
    images = draw_images(2, 16).astype(np.uint8)
    np.testing.assert_array_equal(tiny(images), tiny(images.astype(np.float32)))
    assert np.any(tiny(images.astype(np.float32)) != tiny(images + np.float32(0.4)))


LOAD_AND_EMBED = """
import json, sys
import keras, numpy as np
encoder = keras.models.load_model("encoder.keras")
features = encoder(np.load("images.npy")).numpy()
np.save("features.npy", features)
print(json.dumps([name for name in sys.modules if name.startswith("supcon_tf")]))
"""


@pytest.fixture
def saved_encoder(tmp_path):
    """A saved encoder that whitens and pools, in a folder with images; and its features of them."""
    constants = {"mean": whitening.CIFAR10_MEAN, "std": whitening.CIFAR10_STD}
    pool = {"use_initial_max_pool": True, "initial_max_pool_padding": "symmetric"}
    model = resnet.create_resnet(
        architecture="tiny", image_size=8, **{**CIFAR_STEM, **pool}, **constants
    )
    images = draw_images(3, 8)
    model(images, training=True)  # moving statistics that are not those of a fresh model
    model.save(tmp_path / "encoder.keras")
    np.save(tmp_path / "images.npy", images)
    return tmp_path, images, model(images)


def test_a_saved_encoder_has_layers_of_keras_alone(saved_encoder):
    folder, images, features = saved_encoder
    with zipfile.ZipFile(folder / "encoder.keras") as archive:
        assert b"supcon_tf" not in archive.read("config.json")
    loaded = keras.models.load_model(folder / "encoder.keras")
    np.testing.assert_allclose(loaded(images), features, rtol=1e-5)


@pytest.mark.slow  # test_main.py loads the encoder of a run in a process without this package.
def test_a_saved_encoder_loads_without_this_package(saved_encoder):
    folder, _, features = saved_encoder
    result = subprocess.run(
        [sys.executable, "-c", LOAD_AND_EMBED],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == []
    np.testing.assert_allclose(np.load(folder / "features.npy"), features, rtol=1e-5)


@pytest.mark.parametrize("architecture,depth", [("resnet_v1", 18), ("resnext", 50)])
def test_deep_encoders_give_finite_features_in_training_and_inference(architecture, depth):
    model = resnet.create_resnet(
        architecture=architecture, depth=depth, image_size=16, **CIFAR_STEM
    )
    for training in (True, False):
        features = model(draw_images(4, 16), training=training).numpy()
        assert features.shape == (4, model.output_shape[1])
        assert np.all(np.isfinite(features))
        assert np.all(features.std(axis=0).max() > 0)
