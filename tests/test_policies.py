"""Policies against Pillow, image by image, and what their draws mean."""

import functools
import hashlib

import numpy as np
import pytest
import tensorflow as tf
from helpers import pillow_ops
from helpers.shared_policies import shared_policy
from helpers.some_images import some_images
from PIL import Image

from supcon_tf.augment import color, jitter, levels, policies, tables
from supcon_tf.data import crops, views

BATCH = 96
TABLES = {
    "autoaugment": tables.AUTOAUGMENT_V0,
    "autoaugment_cifar10": tables.AUTOAUGMENT_CIFAR10,
    "autoaugment_svhn": tables.AUTOAUGMENT_SVHN,
}
# Hashes of the published tables, one line "operation probability level, ..." per sub-policy:
# policy_v0 of tensorflow/models v2.5.0, official/vision/image_classification/augment.py, and the
# tables of Cubuk et al. 2019, appendix.
TABLE_HASHES = {
    "autoaugment": "5df267eb81eb2eaa",
    "autoaugment_cifar10": "a72fd76a1a860098",
    "autoaugment_svhn": "3a4231c4e8185c51",
}
# What levels 0 to 10 mean: the ranges of Cubuk et al. 2019 (https://arxiv.org/abs/1805.09501, table
# 6), and for SolarizeAdd of tensorflow/models, in ten steps, with the fraction of integers dropped.
FACTORS = [0.1, 0.28, 0.46, 0.64, 0.82, 1.0, 1.18, 1.36, 1.54, 1.72, 1.9]
ARGUMENTS = {
    "Rotate": [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30],  # degrees
    "ShearX": [0, 0.03, 0.06, 0.09, 0.12, 0.15, 0.18, 0.21, 0.24, 0.27, 0.3],
    "ShearY": [0, 0.03, 0.06, 0.09, 0.12, 0.15, 0.18, 0.21, 0.24, 0.27, 0.3],
    "Color": FACTORS,
    "Contrast": FACTORS,
    "Brightness": FACTORS,
    "Sharpness": FACTORS,
    "Posterize": [4, 4, 4, 5, 5, 6, 6, 6, 7, 7, 8],  # bits
    "Solarize": [0, 25, 51, 76, 102, 128, 153, 179, 204, 230, 256],
    "SolarizeAdd": [0, 11, 22, 33, 44, 55, 66, 77, 88, 99, 110],
}
BETWEEN_4_AND_5 = {
    "Rotate": 13.5, "ShearX": 0.135, "ShearY": 0.135, "Color": 0.91, "Contrast": 0.91,
    "Brightness": 0.91, "Sharpness": 0.91, "Posterize": 5, "Solarize": 115, "SolarizeAdd": 49,
}  # fmt: skip


def argument_by_hand(operation, level, size):
    """The argument of an operation for images of one size, without its sign."""
    if operation in ("TranslateX", "TranslateY"):
        return int(level * 15 * size / 331)  # 150 of 331 pixels at level 10
    if operation == "Cutout":
        return int(level * 4 * size / 224)  # 40 of 224 pixels at level 10
    if operation not in ARGUMENTS:
        return 0
    return BETWEEN_4_AND_5[operation] if level == 4.5 else ARGUMENTS[operation][level]


def uniform(policy, *, seed, count=BATCH):
    return tf.random.stateless_uniform([count, policy.num_draws], [seed, 0], alg="philox").numpy()


def calls_by_hand(name, draws, magnitude):
    """What one image's draws choose, read from the tables: [(operation, level, sign, position)]."""
    if name == "randaugment":
        for which, sign, *position in draws.reshape(-1, 4):
            operation = tables.RANDAUGMENT[int(which * len(tables.RANDAUGMENT))]
            yield operation, magnitude, 1 if sign < 0.5 else -1, position
        return
    table = TABLES[name]
    for (operation, probability, level), (whether, sign, *position) in zip(
        table[int(draws[0] * len(table))], draws[1:].reshape(-1, 4), strict=True
    ):
        if whether < np.float32(probability):
            yield operation, level, 1 if sign < 0.5 else -1, position


def policy_by_hand(name, image, draws, magnitude):
    """The policy on one image with Pillow."""
    size = len(image)
    result = Image.fromarray(image)
    for operation, level, sign, position in calls_by_hand(name, draws, magnitude):
        argument = argument_by_hand(operation, level, size)
        if operation.startswith(("Rotate", "Shear", "Translate")):
            argument *= sign
        if operation == "Cutout":
            center = (np.array(position) * np.float32(size)).astype(np.int32).tolist()
            result = pillow_ops.cutout(result, argument, center)
        else:
            result = pillow_ops.OPS[operation](result, argument)
    return np.asarray(result)


@pytest.mark.parametrize(
    "name, size",
    [("autoaugment", 32), ("autoaugment_cifar10", 13), ("autoaugment_svhn", 1)]
    + [("randaugment", 2), ("randaugment", 32)],
)
def test_policy_inside_a_dataset_equals_pillow(name, size):
    policy = shared_policy(name, magnitude=9)
    images, draws = some_images(size, seed=1, count=BATCH), uniform(policy, seed=size)
    dataset = tf.data.Dataset.from_tensors((images, draws)).map(policy.apply)
    for image, draw, result in zip(images, draws, next(dataset.as_numpy_iterator()), strict=True):
        expected = policy_by_hand(name, image, draw, 9)
        np.testing.assert_array_equal(result, expected, err_msg=str(policy.describe(draw, size)))


@pytest.mark.slow
@pytest.mark.parametrize("level", [1, 4.5, 10])
@pytest.mark.parametrize("size", [3, 16, 64])
def test_randaugment_equals_pillow_at_more_sizes_and_levels(size, level):
    policy = policies.create_policy("randaugment", magnitude=level, num_layers=3)
    images, draws = some_images(size, seed=1, count=400), uniform(policy, seed=3, count=400)
    for image, draw, result in zip(images, draws, policy.apply(images, draws).numpy(), strict=True):
        np.testing.assert_array_equal(result, policy_by_hand("randaugment", image, draw, level))


@pytest.mark.parametrize("name", ["simclr", "stacked_randaugment"])
def test_steps_apply_in_order(name):
    policy = shared_policy(name, magnitude=0.5, warp_probability=0.3)
    images, draws = some_images(20, seed=2, count=BATCH), uniform(policy, seed=4)
    jitter_end = 1 + jitter.JITTER_DRAWS
    plan = jitter.plan_jitter(draws[:, 1:jitter_end], strength=0.5, variant="tensorflow")
    expected = np.where(
        (draws[:, 0] < 0.8)[:, None, None, None],
        jitter.apply_jitter(images, *plan, variant="tensorflow"),
        images,
    )
    if name == "stacked_randaugment":
        layers = shared_policy("randaugment", magnitude=10)
        layer_end = jitter_end + layers.num_draws
        expected = layers.apply(expected, draws[:, jitter_end:layer_end]).numpy()
        jitter_end = layer_end
    chosen = draws[:, jitter_end] < 0.2
    expected = color.grayscale(expected, chosen).numpy().astype(int)
    unwarped = draws[:, jitter_end + 1] >= 0.3
    result = policy.apply(images, draws).numpy()
    # Jitter is float arithmetic: compiled code may round a level to the other side, and the
    # steps after it (equalize, solarize) make more of that.
    assert np.mean(result[unwarped] != expected[unwarped]) < 0.01
    assert np.mean(result[~unwarped] != expected[~unwarped]) > 0.1


def test_the_strength_of_randaugment_within_stacked_randaugment():
    stacked = policies.create_policy("stacked_randaugment", magnitude=0.5, stacked_magnitude=3)
    layers = policies.create_policy("randaugment", magnitude=3)
    start = 1 + jitter.JITTER_DRAWS
    operations = set()
    for draws in uniform(stacked, seed=5):
        chosen = layers.describe(draws[start : start + layers.num_draws], 32)
        shown = stacked.describe(draws, 32)
        assert all(text in shown for text in chosen)
        operations |= {*chosen}
    other = policies.create_policy("randaugment", magnitude=10)
    strong = {
        text
        for draws in uniform(stacked, seed=5)
        for text in other.describe(draws[start : start + layers.num_draws], 32)
    }
    assert operations != strong


def test_views_are_crop_flip_and_policy():
    """Two views of each image in one compiled call, against the parts one after the other."""
    policy = shared_policy("autoaugment", magnitude=9)
    images = some_images(40, seed=5, count=24)
    draws = uniform(policy, seed=6, count=48)
    num_draws = crops.num_crop_draws("reference")
    crop_draws = tf.random.stateless_uniform([48, num_draws], [8, 0], alg="philox")
    boxes = crops.random_crop_boxes(crop_draws, tf.fill([48], 40), tf.fill([48], 40))
    flips = draws[:, 0] < 0.5
    result = views.make_views(
        images,
        tf.reshape(boxes, [24, 2, 4]),
        tf.reshape(flips, [24, 2]),
        tf.reshape(draws, [24, 2, -1]),
        policy=policy,
        size=24,
    )
    assert result.shape == [24, 2, 24, 24, 3] and result.dtype == tf.uint8
    top, left, height, width = tf.unstack(boxes, axis=1)
    down, right = crops.bilinear_taps(top, height, 24), crops.bilinear_taps(left, width, 24)
    cropped = crops.resample(np.repeat(images, 2, axis=0), down, right, compat="pillow").numpy()
    cropped[flips] = cropped[flips][:, :, ::-1]
    expected = policy.apply(cropped, draws).numpy()
    # The crop is float arithmetic: a level may round to the other side under XLA.
    assert np.mean(result.numpy().reshape(expected.shape) != expected) < 0.01


def test_an_image_does_not_depend_on_its_batch():
    policy = shared_policy("stacked_randaugment", magnitude=0.5, warp_probability=0.3)
    images, draws = some_images(20, seed=8, count=BATCH), uniform(policy, seed=9)
    whole = policy.apply(images, draws).numpy()
    parts = [policy.apply(images[k : k + 32], draws[k : k + 32]).numpy() for k in (0, 32, 64)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_reference_policy_takes_absolute_pixels_and_few_bits():
    settings = {"constants": levels.AUTOAUGMENT_CONSTANTS, "size": 32}

    def both(name, level):
        call = levels.Call(name, level)
        return [levels.argument(call, compat=compat, **settings) for compat in color.COMPATS]

    assert both("TranslateY", 9) == [13, 225]
    assert both("Posterize", 2) == [4, 1]
    assert both("Posterize", 6) == [6, 2]
    assert both("Cutout", 10) == [5, 100]
    assert both("Color", 5) == [1.0, 1.0]
    # Rotate, then translate by 225 px: nothing of a 32-px image remains.
    policy = policies.create_policy("autoaugment", compat="reference")
    draws = np.array([[15.5 / 25, 0, 0, 0, 0, 0, 0, 0, 0]], np.float32)
    assert np.all(policy.apply(some_images(32, seed=0, count=1), draws) == 128)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_tables_are_those_that_were_published(name):
    lines = [", ".join(f"{n} {p:.1f} {level}" for n, p, level in pair) for pair in TABLES[name]]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == TABLE_HASHES[name]


def test_levels_mean_what_the_paper_says():
    for operation in tables.RANDAUGMENT:
        for level in (*range(11), 4.5):
            ours = levels.argument(
                levels.Call(operation, level),
                size=64,
                constants=levels.RANDAUGMENT_CONSTANTS,
                compat="pillow",
            )
            assert ours == pytest.approx(argument_by_hand(operation, level, 64)), operation


@pytest.mark.parametrize("name", sorted(TABLES))
def test_tables_have_25_pairs_of_known_operations(name):
    table = TABLES[name]
    assert len(table) == 25
    for operation, probability, level in (entry for pair in table for entry in pair):
        assert operation in tables.RANDAUGMENT and 0 <= probability <= 1 and 0 <= level <= 10


def test_describe_names_what_was_drawn():
    policy = shared_policy("autoaugment", magnitude=9)
    draws = np.array([15.5 / 25, 0, 0.9, 0, 0, 0.7, 0.1, 0, 0], np.float32)
    assert policy.describe(draws, 224) == ["Rotate -21", "TranslateY 91"]
    draws[5] = 0.9
    assert policy.describe(draws, 224) == ["Rotate -21"]
    policy = policies.create_policy("simclr", magnitude=1.0, jitter_variant="torchvision")
    draws = np.array([0.1, 0.5, 0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1], np.float32)
    assert policy.describe(draws, 32) == [
        "hue 0.00",
        "saturation 1.00",
        "contrast 1.00",
        "brightness 1.00",
        "grayscale",
    ]


def test_magnitude_zero_is_the_identity():
    images = some_images(8, seed=0, count=2)
    for name in policies.AUGMENTATION_TYPES:
        policy = policies.create_policy(name, magnitude=0)
        assert policy.num_draws == 0
        np.testing.assert_array_equal(policy.apply(images, np.zeros([2, 0], np.float32)), images)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"augmentation_type": "auto"}, "Unknown augmentation_type 'auto'"),
        ({"compat": "pil"}, "Unknown compat 'pil'"),
        ({"jitter_variant": "pytorch"}, "Unknown jitter_variant"),
        ({"warp_probability": 2}, "warp_probability must be from 0 to 1"),
        ({"augmentation_type": "simclr", "magnitude": 9}, "strength from 0 to 1.25"),
        ({"augmentation_type": "randaugment", "magnitude": 11}, "up to 10"),
        ({"augmentation_type": "randaugment", "num_layers": 0}, "at least 1 layer"),
        ({"augmentation_type": "stacked_randaugment", "stacked_magnitude": 0}, "above 0 and up to"),
    ],
)
def test_wrong_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        policies.create_policy(**arguments)


def test_a_batch_goes_through_a_compiled_loop():
    # Without XLA the same loop is about thirty times slower, and no other test would notice.
    policy = shared_policy("autoaugment", magnitude=9)
    images = tf.TensorSpec([2, 8, 8, 3], tf.uint8)
    boxes, flips = tf.TensorSpec([2, 1, 4], tf.int32), tf.TensorSpec([2, 1], tf.bool)
    draws = tf.TensorSpec([2, policy.num_draws], tf.float32)
    view_draws = tf.TensorSpec([2, 1, policy.num_draws], tf.float32)
    make_views = functools.partial(views.make_views, policy=policy, size=8)
    for function, specs in (
        (policy.apply, [images, draws]),
        (make_views, [images, boxes, flips, view_draws]),
    ):
        graph = tf.function(function, autograph=False).get_concrete_function(*specs).graph
        functions = graph.as_graph_def().library.function
        (compiled,) = (each for each in functions if each.attr["_XlaMustCompile"].b)
        assert any(node.op in ("While", "StatelessWhile") for node in compiled.node_def)
