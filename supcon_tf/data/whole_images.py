"""The images of a source as they are stored: decoded, neither cropped nor resized."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from supcon_tf.data.decode import decode_whole
from supcon_tf.data.sources import ArraySource, Source
from supcon_tf.data.streams import StreamSource

# Files decoded ahead of the caller, at most.
FILES_AHEAD = 64
NUM_THREADS = 8


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
        yield from _from_files(source)


def _from_files(source):
    def read(path):
        return decode_whole(tf.io.read_file(path), max_pixels=source.max_pixels)

    with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
        for start in range(0, source.num_examples, FILES_AHEAD):
            yield from pool.map(read, source.paths[start : start + FILES_AHEAD])
