"""Every op against Pillow, pixel for pixel, and against the library of the reference."""

import pathlib

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from helpers import pillow_ops
from helpers.some_images import some_images
from hypothesis import strategies as st

from supcon_tf.augment import blur, color, geometry, jitter
from supcon_tf.data import crops

LEVELS = np.arange(0, 10.5, 0.5)
FACTORS = (LEVELS / 10 * 1.8 + 0.1).astype(np.float32)
MAP_SIZES = (1, 2, 3, 7, 32, 64)


def affine(images, matrix):
    return geometry.sample(images, geometry.affine_grid(matrix, images.shape[1]))


def rotate(images, degrees, compat="pillow"):
    return affine(images, geometry.rotation(degrees, images.shape[1], compat))


def shear_x(images, amounts, compat="pillow"):
    return affine(images, geometry.shearing(amounts, 0.0, compat))


def shear_y(images, amounts, compat="pillow"):
    return affine(images, geometry.shearing(0.0, amounts, compat))


def translate_x(images, pixels, compat="pillow"):
    return affine(images, geometry.translation(pixels, 0.0, compat))


def translate_y(images, pixels, compat="pillow"):
    return affine(images, geometry.translation(0.0, pixels, compat))


# name: (our op, (what Pillow's op takes, as our op does), one entry per level)
LEVEL_OPS = {
    "AutoContrast": (lambda x, _: color.autocontrast(x), LEVELS),
    "Equalize": (lambda x, _: color.equalize(x), LEVELS),
    "Invert": (lambda x, _: color.invert(x), LEVELS),
    "Posterize": (color.posterize, np.arange(len(LEVELS), dtype=np.int32) % 8 + 1),
    "Solarize": (color.solarize, (LEVELS / 10 * 256).astype(np.int32)),
    "SolarizeAdd": (color.solarize_add, (LEVELS / 10 * 110).astype(np.int32)),
    "Color": (color.color, FACTORS),
    "Contrast": (color.contrast, FACTORS),
    "Brightness": (color.brightness, FACTORS),
    "Sharpness": (color.sharpness, FACTORS),
    "Rotate": (rotate, np.concatenate([LEVELS * 3, -LEVELS * 3, [90.0, 180.0, 270.0]])),
    "ShearX": (shear_x, np.concatenate([LEVELS * 0.03, -LEVELS * 0.03])),
    "ShearY": (shear_y, np.concatenate([LEVELS * 0.03, -LEVELS * 0.03])),
    "TranslateX": (translate_x, np.concatenate([LEVELS * 2.9, -LEVELS * 2.9])),
    "TranslateY": (translate_y, np.concatenate([LEVELS * 2.9, -LEVELS * 2.9])),
}


def assert_all_equal_pillow(results, images_of, arguments_of):
    for name, result in results.items():
        images, arguments = images_of[name], arguments_of[name]
        expected = pillow_ops.each(pillow_ops.OPS[name], images, [float(a) for a in arguments])
        np.testing.assert_array_equal(result, expected, err_msg=name)


def inputs(size, seed):
    arguments = {name: argument for name, (_, argument) in LEVEL_OPS.items()}
    images = {name: some_images(size, seed, len(a)) for name, a in arguments.items()}
    return images, arguments


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(size=st.integers(1, 64), seed=st.integers(0, 2**32 - 1))
def test_ops_equal_pillow_eagerly(size, seed):
    images, arguments = inputs(size, seed)
    results = {name: op(images[name], arguments[name]) for name, (op, _) in LEVEL_OPS.items()}
    assert_all_equal_pillow(results, images, arguments)


@pytest.mark.parametrize("size", MAP_SIZES)
def test_ops_equal_pillow_inside_a_dataset(size):
    images, arguments = inputs(size, seed=size)

    def apply(images):
        return {name: op(images[name], arguments[name]) for name, (op, _) in LEVEL_OPS.items()}

    dataset = tf.data.Dataset.from_tensors(images).map(apply, num_parallel_calls=2)
    assert_all_equal_pillow(next(dataset.as_numpy_iterator()), images, arguments)


@pytest.mark.slow
def test_ops_equal_pillow_at_every_size():
    for size in range(1, 65):
        images, arguments = inputs(size, seed=size)
        results = {name: op(images[name], arguments[name]) for name, (op, _) in LEVEL_OPS.items()}
        assert_all_equal_pillow(results, images, arguments)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(degrees=st.floats(-400, 400), shift=st.floats(-70, 70), size=st.integers(1, 64))
def test_geometry_equals_pillow_for_any_argument(degrees, shift, size):
    images = some_images(size, seed=0, count=1)
    rotated = rotate(images, np.array([degrees]))
    expected = pillow_ops.each(pillow_ops.OPS["Rotate"], images, [degrees])
    np.testing.assert_array_equal(rotated, expected)
    for op, name in ((translate_x, "TranslateX"), (translate_y, "TranslateY")):
        expected = pillow_ops.each(pillow_ops.OPS[name], images, [shift])
        np.testing.assert_array_equal(op(images, np.array([shift])), expected)


def test_cutout_equals_pillow():
    images = some_images(16, seed=0, count=10)
    halves = np.arange(10, dtype=np.int32)
    centers = np.random.default_rng(0).integers(0, 16, [10, 2]).astype(np.int32)
    expected = pillow_ops.each(pillow_ops.cutout, images, halves.tolist(), centers.tolist())
    np.testing.assert_array_equal(geometry.cutout(images, halves, centers), expected)


def test_flip_and_grayscale_equal_pillow():
    from PIL import ImageOps

    images = some_images(33, seed=0, count=10)
    chosen = np.arange(10) % 2 == 0
    flipped = np.stack([crops.flip_if(*pair) for pair in zip(chosen, images, strict=True)])
    for ours, theirs in (
        (flipped, lambda image: ImageOps.mirror(image)),
        (color.grayscale(images, chosen), lambda image: image.convert("L").convert("RGB")),
    ):
        expected = np.where(chosen[:, None, None, None], pillow_ops.each(theirs, images), images)
        np.testing.assert_array_equal(ours, expected)


def test_crop_and_resize_is_slice_and_resize_within_one_level():
    images = some_images(40, seed=1, count=8)
    boxes = np.random.default_rng(0).integers(1, 21, [8, 4]).astype(np.int32)
    top, left, height, width = boxes.T
    down, right = crops.bilinear_taps(top, height, 24), crops.bilinear_taps(left, width, 24)
    result = crops.resample(images, down, right, compat="pillow").numpy()
    for image, (top, left, height, width), ours in zip(images, boxes, result, strict=True):
        crop = image[top : top + height, left : left + width]
        expected = tf.image.resize(crop, [24, 24]).numpy()
        assert np.abs(ours - expected).max() <= 1.0


# What the library of the reference does, with TensorFlow's own ops


def blend_as_reference(degenerate, images, factor):
    degenerate, images = tf.cast(degenerate, tf.float32), tf.cast(images, tf.float32)
    scaled = tf.constant(factor, tf.float32) * (images - degenerate)
    return tf.cast(tf.clip_by_value(degenerate + scaled, 0.0, 255.0), tf.uint8)


@pytest.mark.parametrize("size", [5, 32])
def test_reference_blends_equal_its_library(size):
    images = some_images(size, seed=2, count=5)
    for factor in FACTORS.tolist():
        factors = np.full([5], factor, np.float32)
        gray = tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(images))
        ours = color.color(images, factors, compat="reference")
        np.testing.assert_array_equal(ours, blend_as_reference(gray, images, factor))
        # The number of pixels over 256, not the mean gray.
        mean = tf.fill(images.shape, np.uint8(min(size * size // 256, 255)))
        ours = color.contrast(images, factors, compat="reference")
        np.testing.assert_array_equal(ours, blend_as_reference(mean, images, factor))
        kernel = np.ones([3, 3, 1, 1], np.float32) / 13
        kernel[1, 1] = 5 / 13
        smooth = images.copy()
        smooth[:, 1:-1, 1:-1] = tf.nn.depthwise_conv2d(
            tf.cast(images, tf.float32), np.tile(kernel, [1, 1, 3, 1]), [1, 1, 1, 1], "VALID"
        ).numpy()
        ours = color.sharpness(images, factors, compat="reference").numpy().astype(int)
        # Truncation after a float sum: a whole number may come out one lower there.
        expected = blend_as_reference(smooth, images, factor).numpy()
        assert np.abs(ours - expected).max() <= 2
        assert np.mean(ours != expected) < 0.05


def test_reference_grayscale_equals_tensorflow():
    images = some_images(32, seed=3, count=5)
    expected = tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(images))
    ours = color.grayscale(images, np.full([5], True), compat="reference")
    np.testing.assert_array_equal(ours, expected)


def test_reference_autocontrast_truncates_in_float32():
    images = some_images(16, seed=4, count=10)
    low = images.min(axis=(1, 2), keepdims=True).astype(np.float32)
    high = images.max(axis=(1, 2), keepdims=True).astype(np.float32)
    scale = np.float32(255) / np.maximum(high - low, 1)
    stretched = np.clip(images.astype(np.float32) * scale + -low * scale, 0, 255)
    expected = np.where(high > low, stretched, images).astype(np.uint8)
    np.testing.assert_array_equal(color.autocontrast(images, compat="reference"), expected)


def projective(images, matrix):
    """Nearest, gray outside, as the library's `transform` of 2020 with wrap and unwrap."""
    ones = np.ones([*images.shape[:3], 1], np.uint8)
    wrapped = tf.raw_ops.ImageProjectiveTransformV3(
        images=np.concatenate([images, ones], axis=-1),
        transforms=matrix,
        output_shape=images.shape[1:3],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    ).numpy()
    return np.where(wrapped[..., 3:] == 0, 128, wrapped[..., :3]).astype(np.uint8)


@pytest.mark.parametrize("size", [1, 7, 32, 63, 64, 224])
def test_reference_geometry_equals_its_library(size):
    images = some_images(size, seed=5, count=1)
    far = size - 1
    for level in [sign * level for level in range(11) for sign in (1, -1)]:
        degrees, shear, pixels = level * 3.0, level / 10 * 0.3, level * 25.0 * size / 224
        angle = tf.constant(degrees * np.pi / 180, tf.float32)
        cos, sin = tf.cos(angle), tf.sin(angle)
        x_offset = (far - (cos * far - sin * far)) / 2
        y_offset = (far - (sin * far + cos * far)) / 2
        for op, argument, matrix in (
            (rotate, degrees, [cos, -sin, x_offset, sin, cos, y_offset, 0, 0]),
            (shear_x, shear, [1, shear, 0, 0, 1, 0, 0, 0]),
            (shear_y, shear, [1, 0, 0, shear, 1, 0, 0, 0]),
            (translate_x, pixels, [1, 0, pixels, 0, 1, 0, 0, 0]),
            (translate_y, pixels, [1, 0, 0, 0, 1, pixels, 0, 0]),
        ):
            expected = projective(images, tf.stack([tf.cast(v, tf.float32) for v in matrix])[None])
            ours = op(images, np.array([argument]), compat="reference")
            np.testing.assert_array_equal(ours, expected, err_msg=f"{op.__name__} {level}")


# Color jitter, blur, warp


def jitter_as_tensorflow(image, amounts, order):
    values = tf.image.convert_image_dtype(image, tf.float32)
    ops = [
        lambda v: v + amounts[0],
        lambda v: tf.image.adjust_contrast(v, amounts[1]),
        lambda v: tf.image.adjust_saturation(v, amounts[2]),
        lambda v: tf.image.adjust_hue(v, amounts[3]),
    ]
    for k in order:
        values = tf.clip_by_value(ops[k](values), 0.0, 1.0)
    return values.numpy() * 255


def jitter_as_torchvision(image, amounts, order):
    def blend(values, other, factor):
        return factor * values + (1 - factor) * other

    values = tf.image.convert_image_dtype(image, tf.float32)
    ops = [
        lambda v: v * amounts[0],
        lambda v: blend(v, tf.reduce_mean(tf.image.rgb_to_grayscale(v)), amounts[1]),
        lambda v: blend(v, tf.image.rgb_to_grayscale(v), amounts[2]),
        lambda v: tf.image.adjust_hue(v, amounts[3]),
    ]
    for k in order:
        values = tf.clip_by_value(ops[k](values), 0.0, 1.0)
    return values.numpy() * 255


@pytest.mark.parametrize("variant", jitter.JITTER_VARIANTS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_color_jitter_is_its_librarys_within_rounding(variant, strength):
    images = some_images(12, seed=6, count=24)
    draws = np.random.default_rng(1).random([24, jitter.JITTER_DRAWS], np.float32)
    amounts, order = jitter.plan_jitter(draws, strength=strength, variant=variant)
    ours = jitter.apply_jitter(images, amounts, order, variant=variant).numpy()
    oracle = {"tensorflow": jitter_as_tensorflow, "torchvision": jitter_as_torchvision}[variant]
    for k, image in enumerate(images):
        expected = oracle(image, amounts.numpy()[k], order.numpy()[k])
        assert np.abs(ours[k] - expected).max() <= 0.51, k


def test_color_jitter_rejects_strengths_that_it_does_not_define():
    draws = np.zeros([1, jitter.JITTER_DRAWS], np.float32)
    with pytest.raises(ValueError, match="strength from 0 to 1.25"):
        jitter.plan_jitter(draws, strength=1.3, variant="tensorflow")
    with pytest.raises(ValueError, match="Unknown jitter variant"):
        jitter.plan_jitter(draws, strength=1.0, variant="other")


@pytest.mark.parametrize("size", [8, 20, 64])
def test_blur_equals_float64_convolution(size):
    random = np.random.default_rng(0)
    images, sigmas = random.random([3, size, size, 3]) * 255, [0.1, 0.9, 2.0]
    ours = blur.gaussian_blur(images.astype(np.float32), np.array(sigmas, np.float32))
    radius = size // 10 // 2
    for image, sigma, result in zip(images, sigmas, ours.numpy(), strict=True):
        kernel = np.exp(-(np.arange(-radius, radius + 1.0) ** 2) / (2 * sigma**2))
        kernel /= kernel.sum()
        for axis in (0, 1):
            image = np.apply_along_axis(
                lambda line, k=kernel: np.convolve(line, k, mode="same"), axis, image
            )
        np.testing.assert_allclose(result, image, atol=1e-3)


def test_a_draw_below_the_probability_blurs_and_leaves_the_others_alone():
    images = some_images(40, seed=7, count=6)[:, None]
    draws = np.array([[[0.49, 0.5]], [[0.5, 0.5]]] * 3, np.float32)
    sigmas = blur.draw_sigmas(draws, 0.5)
    np.testing.assert_allclose(sigmas[:, 0], [1.05, 0.0] * 3, rtol=1e-6)
    blurred = blur.blurred_images({"image": images, "blur_sigma": sigmas})
    changed = np.any(blurred != images.astype(np.float32), axis=(1, 2, 3, 4))
    np.testing.assert_array_equal(changed, [True, False] * 3)


def spline_warp(images, source, destination):
    coefficients = geometry.spline_coefficients(source, destination)
    return geometry.warp_by_spline(images, destination, coefficients)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("size", [8, 20, 32])
def test_warp_equals_tensorflow_addons(size, compiled):
    numbers = np.load(pathlib.Path(__file__).parent / "helpers/warp_numbers.npz")
    images, source, destination, warped = (
        numbers[f"{name}_{size}"] for name in ("images", "source", "destination", "warped")
    )
    op = tf.function(spline_warp, jit_compile=compiled)
    np.testing.assert_allclose(op(images, source, destination), warped, atol=1e-4)


def test_warp_moves_its_control_points():
    source, destination = geometry.random_warp_points(
        np.full([1, geometry.WARP_DRAWS], 0.3, "f"), 32
    )
    rows = np.broadcast_to(np.arange(32.0)[:, None, None], [32, 32, 3])[None].astype(np.float32)
    moved = spline_warp(rows, source, tf.round(destination)).numpy()[0, ..., 0]
    for (row, _), (to_row, to_column) in zip(
        source.numpy()[0], np.round(destination.numpy()[0]).astype(int), strict=True
    ):
        assert moved[to_row, to_column] == pytest.approx(row, abs=1e-3)
