"""Images that hold what image ops depend on."""

import numpy as np


def some_images(size, seed, count):
    """Noise, few levels, a narrow range, black and white, gradients: what the ops depend on."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, [count, size, size, 3])
    ramp = np.add.outer(np.arange(size) * 3, np.arange(size))[..., None]
    kinds = [
        noise,
        noise // 64 * 64,
        noise // 8 + random.integers(0, 224),
        np.where(noise > 128, 255, 0),
        np.clip(ramp + noise // 20, 0, 255),
    ]
    return np.stack([kinds[k % 5][k] for k in range(count)]).astype(np.uint8)
