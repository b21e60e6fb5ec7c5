"""The losses of pretraining by name."""

from __future__ import annotations

import keras

from supcon_tf.losses import baselines, supcon

# Beside "supcon"; they have no options.
BASELINES = {
    "npairs": baselines.NPairsLoss,
    "triplet": baselines.TripletLoss,
    "max_margin": baselines.MaxMarginLoss,
}
NAMES = ("supcon", *BASELINES)


def create_loss(name: str, **options) -> keras.losses.Loss:
    """Creates a loss that returns one value per example.

    Args:
        name: One of `NAMES`.
        **options: The keyword arguments of `SupConLoss`; for "supcon" only.

    Raises:
        ValueError: If there is no such loss, or if an option is invalid.
    """
    if name == "supcon":
        return supcon.SupConLoss(**options, reduction=None)
    if name not in BASELINES:
        raise ValueError(f"Unknown loss {name!r}: choose one of {', '.join(NAMES)}.")
    return BASELINES[name](reduction=None)
