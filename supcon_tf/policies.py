"""Augmentation policies: which operations an image meets, as tables with their source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from supcon_tf import augment

AUGMENTATION_TYPES = ("simclr", "identity")


@dataclasses.dataclass(frozen=True)
class Policy:
    """A random augmentation as a pure function of uniform draws.

    Attributes:
        name: one of AUGMENTATION_TYPES.
        num_draws: how many uniform numbers one image needs.
        apply: (uint8 [B, S, S, 3], float32 [B, num_draws] in [0, 1)) -> uint8 [B, S, S, 3].
    """

    name: str
    num_draws: int
    apply: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def create_policy(augmentation_type: str = "simclr", *, magnitude: float = 0.5) -> Policy:
    """The policy of that name; a magnitude of 0 or less turns every policy into the identity.

    Args:
        augmentation_type: "simclr" (colour jitter with probability 0.8 at strength
            `magnitude`, grayscale with probability 0.2) or "identity".
        magnitude: the strength of the policy.

    Raises:
        ValueError: unknown name.
    """
    if augmentation_type not in AUGMENTATION_TYPES:
        raise ValueError(
            f"Unknown augmentation_type {augmentation_type!r}: choose one of "
            f"{', '.join(AUGMENTATION_TYPES)}."
        )
    if augmentation_type == "identity" or magnitude <= 0:
        return Policy("identity", 0, lambda images, draws: images)
    return Policy("simclr", augment.JITTER_DRAWS + 2, _simclr(magnitude))


def _simclr(strength):
    def apply(images, draws):
        jittered = augment.color_jitter(images, draws[:, 2:], strength)
        images = tf.where((draws[:, 0] < 0.8)[:, None, None, None], jittered, images)
        return augment.grayscale(images, draws[:, 1] < 0.2)

    return apply
