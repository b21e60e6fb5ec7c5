"""What near-duplicates are found by: a hash of the pixels, a perceptual hash and a thumbnail."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable

import numpy as np

THUMBNAIL_PX = 32
HASH_SIDE = 8  # 8 x 8 frequencies make the 64 bits of a hash.
# Below this standard deviation of the gray thumbnail (0..255), an image counts as blank.
BLANK_STD = 2.0


@dataclasses.dataclass(frozen=True)
class ImagePrints:
    """Prints of M images; about 3 kB each.

    Attributes:
        digests: 16 bytes of SHA-256 over height, width and pixels, one `bytes` per image.
        hashes: uint64 [M], the perceptual hash.
        mirrored_hashes: uint64 [M], that of the mirrored image.
        thumbnails: uint8 [M, T, T, 3], the whole image resized to `THUMBNAIL_PX`.
        sizes: int32 [M, 2], height and width in pixels.
        contrasts: float32 [M], standard deviation of the gray thumbnail, 0..255.
    """

    digests: tuple[bytes, ...]
    hashes: np.ndarray
    mirrored_hashes: np.ndarray
    thumbnails: np.ndarray
    sizes: np.ndarray
    contrasts: np.ndarray

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def is_blank(self) -> np.ndarray:
        """bool [M], whether an image shows a single color, or nearly so."""
        return self.contrasts < BLANK_STD


def print_images(images: Iterable[np.ndarray]) -> ImagePrints:
    """Computes the prints of images, which are read one at a time.

    Args:
        images: uint8 [H, W, 3] each, of any size.
    """
    digests, sizes, thumbnails = [], [], []
    for image in images:
        image = np.ascontiguousarray(image)
        shape = np.asarray(image.shape[:2], np.int32)
        digests.append(hashlib.sha256(shape.tobytes() + image.tobytes()).digest()[:16])
        sizes.append(shape)
        thumbnails.append(_thumbnail(image))
    side = THUMBNAIL_PX
    stacked = np.array(thumbnails, np.uint8).reshape([-1, side, side, 3])
    gray = to_gray(stacked)
    return ImagePrints(
        tuple(digests),
        perceptual_hash(gray),
        perceptual_hash(gray[:, :, ::-1]),
        stacked,
        np.array(sizes, np.int32).reshape([-1, 2]),
        gray.std(axis=(1, 2)).astype(np.float32),
    )


def _thumbnail(image):
    from PIL import Image

    side = (THUMBNAIL_PX, THUMBNAIL_PX)
    return np.asarray(Image.fromarray(image).resize(side, Image.Resampling.BILINEAR))


def to_gray(images: np.ndarray) -> np.ndarray:
    """Returns the luma of ITU-R BT.601, float32 [..., H, W], of images [..., H, W, 3]."""
    return np.asarray(images, np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def perceptual_hash(gray: np.ndarray) -> np.ndarray:
    """Returns 64 bits of each image: which low frequencies are above their median.

    This is the hash of https://www.phash.org: a cosine transform, of which the 8 x 8 lowest
    frequencies are compared with their median. Compression and resizing change few bits.

    Args:
        gray: float [M, T, T].

    Returns:
        uint64 [M].
    """
    from scipy.fft import dctn

    if not len(gray):
        return np.zeros([0], np.uint64)
    low = dctn(gray, axes=(1, 2), norm="ortho")[:, :HASH_SIDE, :HASH_SIDE].reshape(len(gray), -1)
    # The first one is the mean brightness, which does not belong to the pattern.
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)
    bits[:, 0] = False
    weights = np.uint64(1) << np.arange(HASH_SIDE**2, dtype=np.uint64)
    return (bits * weights).sum(axis=1, dtype=np.uint64)


def count_bits(values: np.ndarray) -> np.ndarray:
    """Returns the number of ones of each uint64, uint8 of the same shape."""
    if hasattr(np, "bitwise_count"):  # NumPy 2.
        return np.bitwise_count(values)
    parts = np.ascontiguousarray(values)[..., None].view(np.uint8)
    return np.unpackbits(parts, axis=-1).sum(axis=-1, dtype=np.uint8)
