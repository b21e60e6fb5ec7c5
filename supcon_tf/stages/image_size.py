"""The size at which a run sees its images."""

from __future__ import annotations

from supcon_tf.data import sources

# The largest size that is chosen for the user, by encoder.
LARGEST_TINY_PX, LARGEST_PX = 32, 224
_UNLIMITED_PX = 1_000_000


def image_size_from_flags(flags, source: sources.Source) -> int:
    """--image_size, or that of the data as far as the encoder is made for it.

    Prints a line if that reduces the images by more than half for the tiny encoder.
    """
    if flags.image_size:
        return flags.image_size
    if flags.encoder != "tiny":
        return sources.default_image_size(source, largest=LARGEST_PX)
    size = sources.default_image_size(source, largest=LARGEST_TINY_PX)
    original = sources.default_image_size(source, largest=_UNLIMITED_PX)
    if 2 * size < original < _UNLIMITED_PX:
        larger = min(original, LARGEST_PX)
        print(
            f"Images of about {original} px are reduced to {size} px for the tiny encoder. To keep "
            f"more detail, use --image_size={min(larger, 4 * size)}, or a larger encoder: "
            f"--encoder=resnet_v1 --resnet_depth=18 --image_size={larger} (slower)."
        )
    return size
