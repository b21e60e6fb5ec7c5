"""The files of TensorBoard's embedding projector.

Their format is described in https://www.tensorflow.org/tensorboard/tensorboard_projector_plugin.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

CONFIG, VECTORS, METADATA, SPRITE = (
    "projector_config.pbtxt", "embeddings.tsv", "metadata.tsv", "sprite.png",
)  # fmt: skip
# The projector runs in a browser, which has to load all numbers as text: about 9 bytes each.
MAX_POINTS, MAX_NUMBERS = 3_000, 2_000_000
TILE_PX = 32  # The side of an image; browsers draw pictures of up to 8,192 px.


def choose_points(num_examples: int, num_features: int) -> np.ndarray:
    """Returns which examples to show, evenly spread: int [K]."""
    most = min(num_examples, MAX_POINTS, max(1, MAX_NUMBERS // num_features))
    return np.linspace(0, num_examples - 1, most).astype(np.int64)


def write_projector_files(
    folder: str,
    embeddings: np.ndarray,
    columns: Mapping[str, Sequence[object]],
    images: np.ndarray | None = None,
) -> None:
    """Writes the files into a folder that TensorBoard knows as a run.

    Args:
        folder: An existing folder.
        embeddings: float32 [K, F].
        columns: What is known of each example, by name: K values each. There are at least two
            columns, because the projector takes the first line of several for their names.
        images: uint8 [K, S, S, 3], which the projector shows as points, or None.
    """
    lines = ("\t".join(f"{value:.5g}" for value in row) for row in embeddings.tolist())
    _write_line_file(folder, VECTORS, "".join(f"{line}\n" for line in lines))
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    text = "".join("\t".join(map(_as_cell, row)) + "\n" for row in rows)
    _write_line_file(folder, METADATA, text)
    sprite = ""
    if images is not None:
        side = _write_sprite(folder, images)
        sprite = (
            f'  sprite {{\n    image_path: "{SPRITE}"\n'
            f"    single_image_dim: {side}\n    single_image_dim: {side}\n  }}\n"
        )
    config = (
        "embeddings {\n"
        '  tensor_name: "embeddings"\n'
        f"  tensor_shape: {embeddings.shape[0]}\n  tensor_shape: {embeddings.shape[1]}\n"
        f'  tensor_path: "{VECTORS}"\n'
        f'  metadata_path: "{METADATA}"\n'
        f"{sprite}"
        "}\n"
    )
    _write_line_file(folder, CONFIG, config)


def _write_line_file(folder, name, text):
    with tf.io.gfile.GFile(os.path.join(folder, name), "w") as file:
        file.write(text)


def _as_cell(value):
    """One line without tabs; the projector has no escapes."""
    return " ".join(str(value).split()) or "-"


def _write_sprite(folder, images):
    """Writes all images in one picture, row by row; returns the side of an image in pixels."""
    side = images.shape[1]
    columns = int(np.ceil(np.sqrt(len(images))))
    grid = np.zeros([columns * columns, side, side, 3], np.uint8)
    grid[: len(images)] = images
    grid = grid.reshape([columns, columns, side, side, 3]).swapaxes(1, 2)
    picture = tf.io.encode_png(grid.reshape([columns * side, columns * side, 3]))
    with tf.io.gfile.GFile(os.path.join(folder, SPRITE), "wb") as file:
        file.write(picture.numpy())
    return side
