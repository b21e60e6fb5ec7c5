"""Makes tests/helpers/warp_numbers.npz: what tensorflow-addons' sparse_image_warp gives in float64.

In float32 its own rounding passes 1e-4 from 32 px on.

Not a test. It ran once, in a separate environment, because tensorflow-addons needs
TensorFlow < 2.16:

    python3.11 -m venv addons
    addons/bin/pip install tensorflow-cpu==2.15.1 tensorflow-addons==0.23.0
    addons/bin/python tests/helpers/make_warp_numbers.py
"""

import pathlib

import numpy as np
import tensorflow_addons as tfa

numbers = {}
random = np.random.default_rng(0)
for size in (8, 20, 32):
    images = random.random([2, size, size, 3], np.float32)
    thirds = [size / 3, 2 * size / 3]
    source = np.array([[[row, column] for row in thirds for column in thirds]] * 2, np.float32)
    destination = source + random.normal(size=source.shape).astype(np.float32) * size / 12
    warped, _ = tfa.image.sparse_image_warp(
        *(array.astype(np.float64) for array in (images, source, destination))
    )
    numbers |= {
        f"images_{size}": images,
        f"source_{size}": source,
        f"destination_{size}": destination,
        f"warped_{size}": warped.numpy().astype(np.float32),
    }
np.savez_compressed(pathlib.Path(__file__).with_name("warp_numbers.npz"), **numbers)
