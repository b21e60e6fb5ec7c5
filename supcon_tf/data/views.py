"""From images and uniform draws to augmented views: crop, flip, policy and blur."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from supcon_tf.augment import blur, loops
from supcon_tf.augment.policies import Policy
from supcon_tf.data import crops


class ViewDraws:
    """What the uniform draws of a view decide.

    The draws are the last axis of [..., K]. In order, they decide the crop, the flip, the policy
    and, if `blur_probability` is not 0, the blur.

    Attributes:
        count: K, how many draws a view needs.

    Args:
        policy: applied after crop and flip.
        crop_area_range: share of the image that a crop covers.
        crop_compat: see `crops.random_crop_boxes`.
        horizontal_flip: whether views are mirrored with probability 0.5.
        blur_probability: share of the views to blur. Policies that do not end with a blur ignore
            it.

    Raises:
        ValueError: if the sampler is unknown or cannot draw crops of these areas.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        crop_area_range: tuple[float, float] = (0.08, 1.0),
        crop_compat: str = "reference",
        horizontal_flip: bool = True,
        blur_probability: float = 0.0,
    ):
        crops.check_random_crop(crop_area_range, crop_compat)
        self.policy = policy
        self.crop_area_range = crop_area_range
        self.crop_compat = crop_compat
        self.crop_draws = crops.num_crop_draws(crop_compat)
        self.horizontal_flip = horizontal_flip
        self.blur_probability = blur_probability if policy.ends_with_blur else 0.0
        self.count = self.crop_draws + 1 + policy.num_draws
        if self.blur_probability:
            self.count += blur.BLUR_DRAWS

    def boxes(self, draws: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
        """Crops of images of one shape, int32 [n, V, 4], from draws [n, V, K]."""
        flat = tf.reshape(draws[..., : self.crop_draws], [-1, self.crop_draws])
        count = tf.shape(flat)[0]
        heights, widths = tf.fill([count], shape[0]), tf.fill([count], shape[1])
        boxes = crops.random_crop_boxes(
            flat, heights, widths, area_range=self.crop_area_range, compat=self.crop_compat
        )
        return tf.reshape(boxes, [*draws.shape[:2], 4])

    def flips(self, draws: tf.Tensor) -> tf.Tensor:
        """Which views are mirrored left to right, bool [...]."""
        return (draws[..., self.crop_draws] < 0.5) & self.horizontal_flip

    def of_policy(self, draws: tf.Tensor) -> tf.Tensor:
        """The draws of the policy, [..., policy.num_draws]."""
        start = self.crop_draws + 1
        return draws[..., start : start + self.policy.num_draws]

    def sigmas(self, draws: tf.Tensor) -> tf.Tensor:
        """The sigma of the blur of each view in pixels, float32 [...]; 0 for no blur."""
        return blur.draw_sigmas(draws[..., -blur.BLUR_DRAWS :], self.blur_probability)

    def to_batch(
        self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The batch with views [B, V, S, S, 3] that were made with draws [B, V, K]."""
        batch = {"image": images, "label": labels}
        if self.blur_probability:
            batch["blur_sigma"] = self.sigmas(draws)
        return batch

    def describe(self, draws: np.ndarray, size: int) -> list[str]:
        """Captions of the operations after the crop of one view, from its draws [K]."""
        texts = ["flip"] if self.flips(draws) else []
        texts += self.policy.describe(self.of_policy(draws), size)
        if self.blur_probability:
            sigma = float(self.sigmas(draws))
            texts += [f"blur {sigma:.1f}"] if sigma else []
        return texts


@tf.function(jit_compile=True, autograph=False)
def make_views(
    images: tf.Tensor,
    boxes: tf.Tensor,
    flips: tf.Tensor,
    draws: tf.Tensor,
    *,
    policy: Policy,
    size: int,
) -> tf.Tensor:
    """Crops, resizes, flips and augments all views of a batch of images of one shape.

    Call it inside `Dataset.map` with static shapes, for batches without a smaller remainder: it is
    compiled for every new shape, policy or size, which takes a few seconds.

    Args:
        images: uint8 [B, H, W, 3].
        boxes: int32 [B, V, 4], from `crops.random_crop_boxes`.
        flips: bool [B, V], which views are mirrored left to right.
        draws: float32 [B, V, policy.num_draws] in [0, 1).
        policy: applied after crop and flip.
        size: S, the side of the views in pixels.

    Returns:
        uint8 [B, V, S, S, 3].
    """
    batch_size, num_views = boxes.shape[:2]
    total = batch_size * num_views
    top, left, height, width = tf.unstack(tf.reshape(boxes, [total, 4]), axis=1)
    down = crops.bilinear_taps(top, height, size)
    right = crops.bilinear_taps(left, width, size)
    mirrored = tf.reshape(flips, [total, 1])
    right = tuple(tf.where(mirrored, part[:, ::-1], part) for part in right)
    plans = policy.plan(tf.reshape(draws, [total, policy.num_draws]), size)

    def view(index: tf.Tensor) -> tf.Tensor:
        image = tf.gather(images, index // num_views)[None]
        taps_down, taps_right, plan = loops.row_of((down, right, plans), index)
        resized = crops.resample(image, taps_down, taps_right, compat=policy.compat)
        return policy.transform(resized, plan)

    views = loops.each_image(view, total, size)
    return tf.reshape(views, [batch_size, num_views, size, size, 3])
