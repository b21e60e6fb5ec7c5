"""What the uniform numbers of a view decide: its crop, its flip, its policy and its blur."""

from __future__ import annotations

import tensorflow as tf

from supcon_tf.augment import blur
from supcon_tf.data.random_crops import check_crops, num_crop_draws, random_crop_boxes


class ViewDraws:
    """What the uniform numbers of a view, the last axis of [..., K], decide.

    In order: the crop, the flip, the policy, and the blur if there is any.
    """

    def __init__(self, policy, crop_area_range, crop_compat, horizontal_flip, blur_probability):
        check_crops(crop_area_range, crop_compat)
        self.policy = policy
        self.crop_area_range = crop_area_range
        self.crop_compat = crop_compat
        self.crop_draws = num_crop_draws(crop_compat)
        self.horizontal_flip = horizontal_flip
        self.blur_probability = blur_probability
        self.count = self.crop_draws + 1 + policy.num_draws
        if blur_probability:
            self.count += blur.BLUR_DRAWS

    def boxes(self, draws, shape):
        """Crops int32 [n, V, 4] of images that all have one shape, from [n, V, K]."""
        flat = tf.reshape(draws[..., : self.crop_draws], [-1, self.crop_draws])
        count = tf.shape(flat)[0]
        heights, widths = tf.fill([count], shape[0]), tf.fill([count], shape[1])
        boxes = random_crop_boxes(
            flat, heights, widths, area_range=self.crop_area_range, compat=self.crop_compat
        )
        return tf.reshape(boxes, [*draws.shape[:2], 4])

    def flips(self, draws):
        return (draws[..., self.crop_draws] < 0.5) & self.horizontal_flip

    def of_policy(self, draws):
        start = self.crop_draws + 1
        return draws[..., start : start + self.policy.num_draws]

    def batch(self, images, labels, draws):
        """The batch of views [B, V, S, S, 3] that were made with draws [B, V, K]."""
        batch = {"image": images, "label": labels}
        if self.blur_probability:
            low, high = blur.SIGMA_RANGE
            is_blurred = draws[..., -2] < self.blur_probability
            sigma = low + draws[..., -1] * (high - low)
            batch["blur_sigma"] = tf.where(is_blurred, sigma, 0.0)
        return batch

    def describe(self, draws, size):
        """The operations of one view, from its draws [K]."""
        texts = ["flip"] if self.flips(draws) else []
        texts += self.policy.describe(self.of_policy(draws), size)
        if self.blur_probability:
            sigma = float(self.batch(None, None, draws)["blur_sigma"])
            texts += [f"blur {sigma:.1f}"] if sigma else []
        return texts
