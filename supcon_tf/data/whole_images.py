"""The images of a source as they are stored: decoded, neither cropped nor resized."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from supcon_tf.data.decode import decode_whole, decoded_files
from supcon_tf.data.sources import ArraySource, Source
from supcon_tf.data.streams import StreamSource


def whole_images(source: Source) -> Iterator[np.ndarray]:
    """Yields every image once and in order, uint8 [H, W, 3].

    Args:
        source: The examples; every file must be decodable.
    """
    if isinstance(source, ArraySource):
        yield from source.images
    elif isinstance(source, StreamSource):
        for encoded, _, _ in source.named_examples():
            yield decode_whole(encoded, max_pixels=source.max_pixels)
    else:
        files = decoded_files(source.paths, max_pixels=source.max_pixels)
        for _, image in files.as_numpy_iterator():
            yield image
