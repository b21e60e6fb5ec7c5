"""Geometric operations on uint8 [B, S, S, 3]: rotate, shear, translate, cutout, spline warp.

Affine operations sample the nearest pixel and fill with gray outside the image. Composing two of
them into one transform would change pixels, so each samples the image on its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from supcon_tf.augment.rounding import rounded_product

# Arguments are numbers or vectors [B] of floats.
Amounts: TypeAlias = float | np.ndarray | tf.Tensor

FILL = 128
WARP_DRAWS = 9
_FIXED_POINT = 65536.0


class Grid(NamedTuple):
    """The positions that the pixels of the result are sampled from: an affine map, as sums.

    Pixel (row, column) is sampled at `(along_columns[:, :, column] + along_rows[:, :, row]) +
    offset`, x first, in int32 units of 1/65536 pixel (Pillow) or float32 pixels (the reference).
    Because the products are computed beforehand, XLA has nothing to fuse, and compiled and eager
    code give the same bits.
    """

    along_columns: tf.Tensor  # [B, 2, S]
    along_rows: tf.Tensor  # [B, 2, S]
    offset: tf.Tensor  # [B, 2]


def cutout(images: tf.Tensor, halves: tf.Tensor, centers: tf.Tensor) -> tf.Tensor:
    """Fills a square with gray (DeVries & Taylor 2017, https://arxiv.org/abs/1708.04552).

    Args:
        images: uint8 [B, S, S, 3].
        halves: int32 [B], half the side of the square in pixels.
        centers: int32 [B, 2], row and column. The square spans the pixels from center - half up
            to, but not including, center + half that are inside the image.
    """
    position = tf.range(images.shape[1])
    distance = position - centers[:, :, None]  # [B, 2, S]
    halves = halves[:, None, None]
    inside = (distance >= -halves) & (distance < halves)
    hole = inside[:, 0, :, None, None] & inside[:, 1, None, :, None]
    return tf.where(hole, tf.constant(FILL, tf.uint8), images)


# Affine maps. Each is a float [B, 2, 3] matrix: x, y = matrix @ (column, row, 1).


def rotation(degrees: Amounts, size: int, compat: str) -> tf.Tensor:
    """Rotates counterclockwise about the center of the image.

    With `compat="pillow"` this is the center of its area, with "reference" that of its pixels.
    """
    radians = tf.cast(degrees, tf.float64) * (math.pi / 180)
    if compat == "reference":
        radians = tf.cast(tf.cast(radians, tf.float32), tf.float64)
        cos, sin = tf.cast(tf.cos(radians), tf.float32), tf.cast(tf.sin(radians), tf.float32)
        far, wide = rounded_product(sin, size - 1), rounded_product(cos, size - 1)
        x_offset = ((size - 1) - (wide - far)) / 2
        y_offset = ((size - 1) - (far + wide)) / 2
        return _matrix(cos, -sin, x_offset, sin, cos, y_offset)
    # Pillow rounds to 15 digits, which makes a quarter turn exact.
    cos, sin = (tf.round(value * 1e15) / 1e15 for value in (tf.cos(radians), tf.sin(radians)))
    center = size / 2
    return _matrix(
        cos, -sin, center - cos * center + sin * center, sin, cos, center - (sin + cos) * center
    )


def shearing(along_x: Amounts, along_y: Amounts, compat: str) -> tf.Tensor:
    """Samples pixel (x, y) at (x + along_x * y, y + along_y * x)."""
    dtype = tf.float32 if compat == "reference" else tf.float64
    along_x, along_y = _same_shape(along_x, along_y, dtype)
    one, zero = tf.ones_like(along_x), tf.zeros_like(along_x)
    return _matrix(one, along_x, zero, along_y, one, zero)


def translation(along_x: Amounts, along_y: Amounts, compat: str) -> tf.Tensor:
    """Samples pixel (x, y) at (x + along_x, y + along_y), in pixels."""
    dtype = tf.float32 if compat == "reference" else tf.float64
    along_x, along_y = _same_shape(along_x, along_y, dtype)
    # Whole pixels, as `affine_grid` would truncate them, but without its rounding to 1/65536.
    if compat != "reference":
        along_x, along_y = tf.floor(along_x + 0.5), tf.floor(along_y + 0.5)
    one, zero = tf.ones_like(along_x), tf.zeros_like(along_x)
    return _matrix(one, zero, along_x, zero, one, along_y)


def affine_grid(matrix: tf.Tensor, size: int) -> Grid:
    """The grid of a matrix [B, 2, 3]: fixed-point for float64 (Pillow), else float32."""
    position = tf.range(size)
    if matrix.dtype == tf.float32:
        along_columns = rounded_product(matrix[:, :, :1], position)
        return Grid(along_columns, rounded_product(matrix[:, :, 1:2], position), matrix[:, :, 2])
    step = tf.cast(tf.floor(matrix[:, :, :2] * _FIXED_POINT + 0.5), tf.int32)
    # Pillow samples at the center of each pixel.
    center = matrix[:, :, 2] + (matrix[:, :, 0] + matrix[:, :, 1]) * 0.5
    # Far away everything is outside the image; clipping only prevents an overflow of int32.
    center = tf.clip_by_value(center * _FIXED_POINT, -(2.0**30), 2.0**30)
    offset = tf.cast(tf.floor(center + 0.5), tf.int32)
    return Grid(step[:, :, :1] * position, step[:, :, 1:] * position, offset)


def sample(images: tf.Tensor, grid: Grid) -> tf.Tensor:
    """Samples the pixels that the grid points to, with gray outside the image."""
    size = images.shape[1]
    position = grid.along_columns[:, :, None, :] + grid.along_rows[:, :, :, None]
    position += grid.offset[:, :, None, None]  # [B, 2, S, S]
    if position.dtype == tf.int32:
        whole = tf.bitwise.right_shift(position, 16)
        inside = (whole >= 0) & (whole < size)
    else:
        # Rounds halves away from zero, like std::round in ImageProjectiveTransformV3.
        whole = tf.floor(position)
        whole += tf.cast(position - whole >= 0.5, tf.float32)
        inside = (position > -0.5) & (whole < size)
        whole = tf.cast(whole, tf.int32)
    whole = tf.clip_by_value(whole, 0, size - 1)
    index = whole[:, 1] * size + whole[:, 0]  # [B, S, S]
    pixels = tf.gather(tf.reshape(images, [-1, size * size, 3]), index, batch_dims=1)
    return tf.where((inside[:, 0] & inside[:, 1])[..., None], pixels, tf.constant(FILL, tf.uint8))


def _matrix(*entries):
    return tf.reshape(tf.stack(entries, axis=-1), [-1, 2, 3])


def _same_shape(a, b, dtype):
    a, b = tf.cast(a, dtype), tf.cast(b, dtype)
    return a + tf.zeros_like(b), b + tf.zeros_like(a)


# The spline warp.


def random_warp_points(draws: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws the control points of SimAugment's random warp (Khosla et al. 2020).

    Four points at the thirds of the image move by a normally distributed step in each direction.
    The scale of the steps is uniform between 0 and 23 pixels of 224.

    Args:
        draws: float32 [B, WARP_DRAWS] in [0, 1).

    Returns:
        source, destination: float32 [B, 4, 2], row and column in pixels.
    """
    thirds = [size / 3, 2 * size / 3]
    source = tf.constant([[row, column] for row in thirds for column in thirds], tf.float32)
    radius = tf.sqrt(-2.0 * tf.math.log1p(-draws[:, 1:5]))  # Box-Muller
    angle = 2 * math.pi * draws[:, 5:9]
    steps = tf.stack([radius * tf.cos(angle), radius * tf.sin(angle)], axis=-1)  # [B, 4, 2]
    scale = draws[:, 0] * (23 / 224 * size)
    return source + tf.zeros_like(steps), source + steps * scale[:, None, None]


def spline_coefficients(source: tf.Tensor, destination: tf.Tensor) -> tf.Tensor:
    """Solves for the thin-plate spline that interpolates the flow at the destinations.

    The spline is f(x) = sum_p w_p phi(|x - d_p|) + v . (x, 1) with phi(r) = r^2 log r, where w is
    orthogonal to all affine functions.

    Args:
        source, destination: float32 [B, P, 2], row and column in pixels.

    Returns:
        float32 [B, P + 3, 2]: w and v, for the flow destination - source.
    """
    points = tf.cast(destination, tf.float64)
    flow = points - tf.cast(source, tf.float64)
    distances = tf.reduce_sum((points[:, :, None] - points[:, None]) ** 2, axis=-1)  # [B, P, P]
    affine = tf.concat([points, tf.ones_like(points[..., :1])], axis=-1)  # [B, P, 3]
    lower = tf.concat([tf.linalg.matrix_transpose(affine), tf.zeros_like(affine[:, :3, :3])], -1)
    system = tf.concat([tf.concat([_phi(distances), affine], axis=-1), lower], axis=1)
    right_side = tf.concat([flow, tf.zeros_like(flow[:, :3])], axis=1)
    return tf.cast(tf.linalg.solve(system, right_side), tf.float32)


def warp_by_spline(images: tf.Tensor, destination: tf.Tensor, coefficients: tf.Tensor) -> tf.Tensor:
    """Moves control points to their destinations and the rest along with them, by a spline.

    With `spline_coefficients`, this equals `tfa.image.sparse_image_warp` of tensorflow-addons 0.23
    with its defaults (https://www.tensorflow.org/addons/api_docs/python/tfa/image/sparse_image_warp):
    bilinear, with repeated edges outside the image.

    Args:
        images: uint8 or float32 [B, S, S, 3].
        destination: float32 [B, P, 2], row and column in pixels.
        coefficients: float32 [B, P + 3, 2], from `spline_coefficients`.

    Returns:
        float32 [B, S, S, 3].
    """
    size = images.shape[1]
    position = tf.range(size, dtype=tf.float32)
    rows, columns = position[None, :, None, None], position[None, None, :, None]  # [1, S, S, 1]
    squares = [
        (axis - destination[:, None, None, :, k]) ** 2 for k, axis in enumerate((rows, columns))
    ]
    bent = _phi(squares[0] + squares[1])  # [B, S, S, P]
    taps = []
    for k, axis in enumerate((rows, columns)):
        terms = [coefficients[:, None, None, p, k] for p in range(coefficients.shape[1])]
        flow = terms[-3] * rows[..., 0] + terms[-2] * columns[..., 0] + terms[-1]
        for p, weight in enumerate(terms[:-3]):
            flow += weight * bent[..., p]
        taps.append(_neighbors(axis[..., 0] - flow, size))  # [B, S, S] each
    (above, below, down), (before, after, right) = taps
    flat = tf.reshape(tf.cast(images, tf.float32), [-1, size * size, 3])

    def pixels(row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
        return tf.gather(flat, row * size + column, batch_dims=1)

    upper = pixels(above, before) * (1 - right) + pixels(above, after) * right
    lower = pixels(below, before) * (1 - right) + pixels(below, after) * right
    return upper * (1 - down) + lower * down


def _phi(squared_distance):
    return 0.5 * squared_distance * tf.math.log(tf.maximum(squared_distance, 1e-10))


def _neighbors(position, size):
    first = tf.clip_by_value(tf.floor(position), 0.0, max(size - 2, 0))
    weight = tf.clip_by_value(position - first, 0.0, 1.0)[..., None]
    first = tf.cast(first, tf.int32)
    return first, tf.minimum(first + 1, size - 1), weight
