"""Image operations: uint8 [B, S, S, 3] in and out, over whole batches, without any random state.

What is random comes in as `draws`, uniform numbers in [0, 1) that the pipeline makes from
(seed, step, row, view); each function here is a pure function of the images and its arguments,
of which there is one per image.

The operations equal Pillow's pixel for pixel. Where `compat="reference"` is offered, it gives
what the library behind the released SupCon code gives instead (tensorflow/models, 2021,
https://github.com/tensorflow/models/blob/v2.5.0/official/vision/image_classification/augment.py).
Both compute in float32 with a rounding after every step, while XLA contracts `a * b + c` into
one instruction that rounds once; products that an addition follows therefore go through
`_rounded_product`, so that eager and compiled code agree to the last bit.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

COMPATS = ("pillow", "reference")
JITTER_VARIANTS = ("tensorflow", "torchvision")

JITTER_DRAWS = 8
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # as tf.image.rgb_to_grayscale


# Crop and flip


def crop_and_resize(
    images: tf.Tensor, boxes: tf.Tensor, size: int, *, compat: str = "pillow"
) -> tf.Tensor:
    """Crops each image to its box and resizes bilinearly, as slicing and `tf.image.resize` do.

    Args:
        images: uint8 [B, H, W, 3].
        boxes: int32 [B, 4]: top, left, height, width.
        size: S, the side of the result in pixels.
        compat: "pillow" rounds to the nearest level; "reference" drops the fraction, as the
            released code does, which darkens by half a level on average.

    Returns:
        uint8 [B, S, S, 3].
    """
    top, left, height, width = tf.unstack(boxes, axis=1)
    down, right = bilinear_taps(top, height, size), bilinear_taps(left, width, size)
    return resample(images, down, right, compat=compat)


def bilinear_taps(start: tf.Tensor, length: tf.Tensor, size: int) -> tuple[tf.Tensor, ...]:
    """Where each of `size` pixels lies on [start, start + length), with half-pixel centres.

    Args:
        start, length: int32 [B].

    Returns:
        Two source indices, int32 [B, S], and the weight of the second, float32 [B, S].
    """
    scale = tf.cast(length, tf.float32)[:, None] / size
    position = (tf.range(size, dtype=tf.float32) + 0.5)[None, :] * scale - 0.5
    first = tf.floor(position)
    last_index = length[:, None] - 1
    lower = tf.clip_by_value(tf.cast(first, tf.int32), 0, last_index)
    upper = tf.clip_by_value(tf.cast(first, tf.int32) + 1, 0, last_index)
    return lower + start[:, None], upper + start[:, None], position - first


def resample(images: tf.Tensor, down: tuple, right: tuple, *, compat: str = "pillow") -> tf.Tensor:
    """uint8 [B, H, W, 3] -> [B, S, S, 3], given the `bilinear_taps` of rows and of columns."""
    above, below, down_weight = down
    before, after, right_weight = right
    down_weight, right_weight = down_weight[:, :, None, None], right_weight[:, None, :, None]
    upper = tf.cast(tf.gather(images, above, axis=1, batch_dims=1), tf.float32)  # [B, S, W, 3]
    lower = tf.cast(tf.gather(images, below, axis=1, batch_dims=1), tf.float32)
    rows = upper + (lower - upper) * down_weight
    start = tf.gather(rows, before, axis=2, batch_dims=1)  # [B, S, S, 3]
    end = tf.gather(rows, after, axis=2, batch_dims=1)
    values = start + (end - start) * right_weight
    return to_uint8(tf.floor(values) if compat == "reference" else values)


def flip(images: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
    """Mirrors the chosen images left to right. chosen: bool [B]."""
    return tf.where(chosen[:, None, None, None], tf.reverse(images, axis=[2]), images)


# Levels: what `PIL.ImageOps` does


def invert(images: tf.Tensor) -> tf.Tensor:
    """255 - x."""
    return 255 - images


def posterize(images: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keeps the highest `bits`, int32 [B] in 0..8, of every level."""
    mask = 256 - tf.bitwise.left_shift(1, 8 - bits)
    return images & tf.cast(mask, tf.uint8)[:, None, None, None]


def solarize(images: tf.Tensor, thresholds: tf.Tensor) -> tf.Tensor:
    """Inverts levels at or above the threshold, int32 [B] in 0..256."""
    below = tf.cast(images, tf.int32) < thresholds[:, None, None, None]
    return tf.where(below, images, 255 - images)


def solarize_add(images: tf.Tensor, additions: tf.Tensor) -> tf.Tensor:
    """Adds to the levels below 128. additions: int32 [B] in 0..128."""
    levels = tf.cast(images, tf.int32)
    added = tf.minimum(levels + additions[:, None, None, None], 255)
    return tf.where(levels < 128, tf.cast(added, tf.uint8), images)


def autocontrast(images: tf.Tensor, *, compat: str = "pillow") -> tf.Tensor:
    """Stretches each channel linearly so that its levels span 0..255."""
    low = tf.cast(tf.reduce_min(images, axis=[1, 2]), tf.int32)  # [B, 3]
    high = tf.cast(tf.reduce_max(images, axis=[1, 2]), tf.int32)
    levels = tf.range(256)
    stretch = _stretch_as_reference if compat == "reference" else _stretch_as_pillow
    tables = stretch(levels, low[..., None], high[..., None])  # [B, 3, 256]
    tables = tf.where((high > low)[..., None], tf.clip_by_value(tables, 0, 255), levels)
    return look_up(images, tf.cast(tables, tf.uint8))


def _stretch_as_pillow(levels, low, high):
    """int(level * scale - low * scale), scale = 255 / (high - low), in float64.

    A level that falls on a whole number may come out one lower, as rounding has it. The two
    parts of the scale multiply a byte without rounding, so that their sum rounds once: as the
    product does in Pillow, and with a fused multiply-add or without.
    """
    scale = 255.0 / np.maximum(np.arange(256), 1)
    coarse = np.floor(scale * 2.0**16) / 2.0**16
    coarse, fine = (tf.gather(tf.constant(part), high - low) for part in (coarse, scale - coarse))

    def scaled(value):
        value = tf.cast(value, tf.float64)
        return value * coarse + value * fine

    return tf.cast(scaled(levels) - scaled(low), tf.int32)


def _stretch_as_reference(levels, low, high):
    """The same in float32."""
    scale = 255.0 / tf.cast(tf.maximum(high - low, 1), tf.float32)
    return tf.cast(_rounded_product(levels, scale) - _rounded_product(low, scale), tf.int32)


def equalize(images: tf.Tensor) -> tf.Tensor:
    """Spreads the levels of each channel so that their histogram becomes even."""
    counts = channel_histograms(images)  # [B, 3, 256]
    pixels = images.shape[1] * images.shape[2]
    last = tf.cast(tf.reduce_max(images, axis=[1, 2]), tf.int32)[..., None]
    step = (pixels - tf.gather(counts, last, batch_dims=2)) // 255  # [B, 3, 1]
    below = tf.cumsum(counts, axis=-1, exclusive=True)
    tables = tf.minimum((step // 2 + below) // tf.maximum(step, 1), 255)
    tables = tf.where(step > 0, tables, tf.range(256))
    return look_up(images, tf.cast(tables, tf.uint8))


def channel_histograms(images: tf.Tensor) -> tf.Tensor:
    """Counts of each level. uint8 [B, S, S, 3] -> int32 [B, 3, 256]."""
    images = tf.convert_to_tensor(images)
    batch_size = images.shape[0] or tf.shape(images)[0]
    image = tf.range(batch_size)[:, None, None, None] * 768
    bins = tf.cast(images, tf.int32) + tf.range(3) * 256 + image
    # `tf.math.bincount` does not compile under XLA.
    counts = tf.math.unsorted_segment_sum(tf.ones_like(bins), bins, batch_size * 768)
    return tf.reshape(counts, [batch_size, 3, 256])


def look_up(images: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
    """Replaces each level by its entry. tables: uint8 [B, 3, 256] or [B, 1, 256]."""
    channels = tables.shape[1]
    entries = tf.cast(images, tf.int32) + tf.range(channels) * 256
    shape = tf.shape(images)
    flat = tf.gather(
        tf.reshape(tables, [-1, channels * 256]), tf.reshape(entries, [shape[0], -1]), batch_dims=1
    )
    return tf.reshape(flat, shape)


# Blends: what `PIL.ImageEnhance` does; factor 0 gives the degenerate image, 1 the image itself


def color(images: tf.Tensor, factors: tf.Tensor, *, compat: str = "pillow") -> tf.Tensor:
    """Moves away from (factor > 1) or towards gray. factors: float32 [B], at least 0."""
    return _blend(_gray(images, compat), images, factors)


def contrast(images: tf.Tensor, factors: tf.Tensor, *, compat: str = "pillow") -> tf.Tensor:
    """Moves away from (factor > 1) or towards the image's mean gray. factors: float32 [B].

    The library of the reference divides the number of pixels, instead of the sum of their
    grays, by 256 (https://github.com/tensorflow/models/issues/8328).
    """
    pixels = images.shape[1] * images.shape[2]
    if compat == "reference":
        mean = min(pixels // 256, 255)
    else:
        total = tf.reduce_sum(_gray(images, compat), axis=[1, 2], keepdims=True)
        mean = (2 * total + pixels) // (2 * pixels)
    return _blend(mean, images, factors)


def brightness(images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Moves away from (factor > 1) or towards black. factors: float32 [B], at least 0."""
    return _blend(tf.zeros([1, 1, 1, 1], tf.int32), images, factors)


def sharpness(images: tf.Tensor, factors: tf.Tensor, *, compat: str = "pillow") -> tf.Tensor:
    """Moves away from (factor > 1) or towards the smoothed image. factors: float32 [B].

    Smoothing is the 3x3 mean in which the centre counts five times; border pixels stay.
    """
    levels = tf.cast(images, tf.int32)
    if images.shape[1] < 3:
        return images
    rows = levels[:, :-2] + levels[:, 1:-1] + levels[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * levels[:, 1:-1, 1:-1]
    # Pillow rounds, the reference truncates; totals are whole, so the small shift is safe.
    shift = 0.01 if compat == "reference" else 6.5
    smooth = tf.cast((tf.cast(total, tf.float32) + shift) * (1 / 13), tf.int32)
    inner = _blend(smooth, images[:, 1:-1, 1:-1], factors)
    middle = tf.concat([images[:, 1:-1, :1], inner, images[:, 1:-1, -1:]], axis=2)
    return tf.concat([images[:, :1], middle, images[:, -1:]], axis=1)


def grayscale(images: tf.Tensor, chosen: tf.Tensor, *, compat: str = "pillow") -> tf.Tensor:
    """Replaces the chosen images by their luma in all three channels. chosen: bool [B]."""
    gray = tf.cast(_gray(images, compat), tf.uint8)
    return tf.where(chosen[:, None, None, None], gray, images)


def _gray(images, compat):
    """Luma, uint8 [B, S, S, 3] -> int32 [B, S, S, 1]: Pillow's "L", or TensorFlow's."""
    if compat == "reference":
        parts = tf.cast(images, tf.float32) * (1 / 255)
        red, green, blue = tf.split(_rounded_product(parts, tf.constant(GRAY_WEIGHTS)), 3, axis=-1)
        return tf.cast((red + green + blue) * 255.5, tf.int32)
    weights = tf.constant([19595, 38470, 7471])
    total = tf.reduce_sum(tf.cast(images, tf.int32) * weights, axis=-1, keepdims=True)
    return tf.bitwise.right_shift(total + 0x8000, 16)


def _blend(degenerate, images, factors):
    """trunc(degenerate + factor * (image - degenerate)) within 0..255; degenerate is int32."""
    difference = tf.cast(images, tf.int32) - degenerate
    step = _rounded_product(difference, tf.cast(factors, tf.float32)[:, None, None, None])
    values = tf.cast(degenerate, tf.float32) + step
    return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)


def _rounded_product(a, b):
    """The float32 product, rounded before anything is added to it."""
    return tf.cast(tf.cast(a, tf.float64) * tf.cast(b, tf.float64), tf.float32)


def to_uint8(values: tf.Tensor) -> tf.Tensor:
    """Rounds to the nearest level within 0..255."""
    return tf.cast(tf.clip_by_value(tf.round(values), 0.0, 255.0), tf.uint8)


# Colour jitter


def color_jitter(
    images: tf.Tensor, draws: tf.Tensor, *, strength: float, variant: str = "tensorflow"
) -> tf.Tensor:
    """SimCLR's colour jitter: brightness, contrast, saturation and hue in a random order.

    All are clipped to the range of levels after each; with s the strength (1 for ImageNet,
    0.5 for CIFAR-10; Chen et al. 2020, https://arxiv.org/abs/2002.05709, appendix A):

    * "tensorflow" adds up to 0.8 s of the range to the brightness, stretches contrast about
      each channel's mean and saturation in HSV by 1 +- 0.8 s.
    * "torchvision" multiplies brightness, contrast about the mean gray, and saturation about
      each pixel's gray, by 1 +- 0.8 s (not below 0).
    * Both turn the hue by up to 0.2 s of the circle.

    Args:
        images: uint8 [B, S, S, 3].
        draws: float32 [B, JITTER_DRAWS] in [0, 1): four amounts, then four that order the ops.
        strength: s above.
        variant: one of JITTER_VARIANTS.
    """
    amounts, order = jitter_plan(draws, strength=strength, variant=variant)
    return jitter(images, amounts, order, variant=variant)


def jitter_plan(draws: tf.Tensor, *, strength: float, variant: str) -> tuple[tf.Tensor, tf.Tensor]:
    """float32 [B, JITTER_DRAWS] -> the amounts, float32 [B, 4], and the order, int32 [B, 4]."""
    check_jitter(strength, variant)
    spread, turn = 0.8 * strength, 0.2 * strength
    low = max(0.0, 1.0 - spread)
    lows = [low, low, low, -turn]
    highs = [1.0 + spread, 1.0 + spread, 1.0 + spread, turn]
    if variant == "tensorflow":
        lows[0], highs[0] = -spread, spread
    amounts = tf.constant(lows) + draws[:, :4] * (tf.constant(highs) - tf.constant(lows))
    return amounts, tf.argsort(draws[:, 4:8], axis=1)


def check_jitter(strength: float, variant: str) -> None:
    """Raises ValueError for an unknown variant or a strength that it does not define."""
    if variant not in JITTER_VARIANTS:
        raise ValueError(f"Unknown jitter variant {variant!r}: choose one of {JITTER_VARIANTS}.")
    limit = 1.25 if variant == "tensorflow" else 2.5
    if not 0 <= strength <= limit:
        raise ValueError(
            f"The {variant} colour jitter takes a strength from 0 to {limit}, got {strength}: "
            "beyond it, contrast and saturation would turn negative or the hue pass half a circle."
        )


def jitter(
    images: tf.Tensor, amounts: tf.Tensor, order: tf.Tensor, *, variant: str = "tensorflow"
) -> tf.Tensor:
    """`color_jitter` with the amounts and the order of `jitter_plan`."""
    steps = {
        "tensorflow": (_add_brightness, _stretch_channels, _saturate_hsv, _turn_hue),
        "torchvision": (_scale_brightness, _stretch_gray, _saturate_gray, _turn_hue),
    }[variant]

    def step(turn, values):
        branches = [lambda k=k: steps[k](values, amounts[:, k, None, None, None]) for k in range(4)]
        chosen = select(tf.gather(order, turn, axis=1), branches)
        return tf.clip_by_value(chosen, 0.0, 255.0)

    values = in_turn(step, tf.cast(images, tf.float32), 4)
    return to_uint8(values)


def select(index: tf.Tensor, branches: list) -> tf.Tensor:
    """What branch number `index`, int32 [B], gives for each image.

    For a batch of one image (the compiled loop of views.py) only that branch is computed.
    """
    if index.shape[0] == 1:
        return tf.switch_case(index[0], branches)
    result = branches[0]()
    for number, branch in enumerate(branches[1:], start=1):
        result = tf.where((index == number)[:, None, None, None], branch(), result)
    return result


def in_turn(step, images: tf.Tensor, count: int) -> tf.Tensor:
    """step(count - 1, ... step(0, images)), as a loop.

    Unrolled, TensorFlow's bridge to XLA would take minutes at 224 px over a chain of
    `tf.switch_case`: it evaluates what goes into each, pixel by pixel, in search of constants.
    """
    return tf.while_loop(
        lambda turn, _: turn < count,
        lambda turn, values: (turn + 1, step(turn, values)),
        (0, images),
    )[1]


def _add_brightness(values, amount):
    return values + amount * 255.0


def _scale_brightness(values, amount):
    return values * amount


def _stretch_channels(values, amount):
    mean = tf.reduce_mean(values, axis=[1, 2], keepdims=True)
    return mean + (values - mean) * amount


def _stretch_gray(values, amount):
    mean = tf.reduce_mean(_luma(values), axis=[1, 2], keepdims=True)
    return mean + (values - mean) * amount


def _saturate_gray(values, amount):
    gray = _luma(values)
    return gray + (values - gray) * amount


def _saturate_hsv(values, amount):
    """Scales the saturation, 1 - min / max, up to 1; hue and max stay."""
    top = tf.reduce_max(values, axis=-1, keepdims=True)
    chroma = top - tf.reduce_min(values, axis=-1, keepdims=True)
    amount = tf.minimum(amount, top / tf.maximum(chroma, 1e-6))
    return top - (top - values) * amount


def _turn_hue(values, turns):
    """Turns the hue, in circles: a channel falls by the chroma as the hue moves away from it."""
    top = tf.reduce_max(values, axis=-1, keepdims=True)
    chroma = top - tf.reduce_min(values, axis=-1, keepdims=True)
    red, green, blue = tf.split(values, 3, axis=-1)
    hue = tf.where(top == green, 2 * chroma + blue - red, 4 * chroma + red - green)
    hue = tf.where(top == red, green - blue, hue) / tf.maximum(chroma, 1e-6)  # sixths
    distance = tf.math.floormod(hue + 6.0 * turns + tf.constant([5.0, 3.0, 1.0]), 6.0)
    return top - chroma * tf.clip_by_value(tf.minimum(distance, 4.0 - distance), 0.0, 1.0)


def _luma(values):
    return tf.reduce_sum(values * tf.constant(GRAY_WEIGHTS), axis=-1, keepdims=True)
