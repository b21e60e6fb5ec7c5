"""A picture of the first augmented views of a training, for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from supcon_tf.augment.blur import blurred_images

# Examples in the picture. Smaller views are enlarged, each pixel as a square, to about TILE_PX.
NUM_EXAMPLES, TILE_PX, GAP_PX = 6, 96, 4


def draw_views(batch: Mapping[str, tf.Tensor], num_examples: int = NUM_EXAMPLES) -> np.ndarray:
    """Draws the views that the encoder receives: a row for each example, a column for each view.

    Args:
        batch: A training batch, whose "image" is [B, V, S, S, 3]; the blur, which is applied on the
            device, is part of it.
        num_examples: How many examples to draw, at most B.

    Returns:
        uint8 [height, width, 3].
    """
    views = blurred_images({name: values[:num_examples] for name, values in batch.items()})
    shown = tf.cast(tf.clip_by_value(tf.round(views), 0, 255), tf.uint8).numpy()
    num_rows, num_columns, side = shown.shape[:3]
    zoom = max(1, round(TILE_PX / side))
    tile = side * zoom
    pitch = tile + GAP_PX
    picture = np.full([num_rows * pitch + GAP_PX, num_columns * pitch + GAP_PX, 3], 255, np.uint8)
    for row in range(num_rows):
        for column in range(num_columns):
            top, left = GAP_PX + row * pitch, GAP_PX + column * pitch
            enlarged = shown[row, column].repeat(zoom, axis=0).repeat(zoom, axis=1)
            picture[top : top + tile, left : left + tile] = enlarged
    return picture
