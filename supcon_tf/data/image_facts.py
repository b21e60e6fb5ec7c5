"""What the images of a source look like, for the defaults that follow the data."""

from __future__ import annotations

import numpy as np

from supcon_tf.data.decode import decoded_files, find_undecodable
from supcon_tf.data.defaults import ImageFacts
from supcon_tf.data.image_files import FileSource
from supcon_tf.data.sources import ArraySource

# Number of images that are measured if sizes differ, spread evenly over the source.
SAMPLED_FILES = 16


def facts_of(source: ArraySource | FileSource, num_examples: int | None = None) -> ImageFacts:
    """Describes the images of a source: all arrays, or for files a sample.

    Args:
        source: The training examples.
        num_examples: How many of them are used; all by default.

    Raises:
        ValueError: If no file of the sample can be decoded.
    """
    if isinstance(source, ArraySource):
        side_px = min(source.images.shape[1:3])
        is_color = _has_color(source.images)
    else:
        images = _sampled_images(source)
        side_px = int(np.median([min(image.shape[:2]) for image in images]))
        is_color = any(_has_color(image) for image in images)
    return ImageFacts(
        num_examples=num_examples or source.num_examples,
        side_px=side_px,
        is_color=is_color,
        num_classes=len(source.class_names),
    )


def _has_color(images):
    return bool((images != images[..., :1]).any())


def _sampled_images(source):
    count = min(SAMPLED_FILES, source.num_examples)
    chosen = np.linspace(0, source.num_examples - 1, count).astype(int)
    paths = [source.paths[index] for index in chosen]
    decoded = decoded_files(paths, max_pixels=source.max_pixels)
    images = [image for _, image in decoded.ignore_errors().as_numpy_iterator()]
    if not images:
        broken = find_undecodable(paths, max_pixels=source.max_pixels)
        if not broken:  # Reading failed the first time only.
            return [image for _, image in decoded.as_numpy_iterator()]
        path, reason = next(iter(broken.items()))
        raise ValueError(f"{path} {reason}; remove or replace it.")
    return images
