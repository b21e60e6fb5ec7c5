"""Whole batches of images through a policy, one compiled call per batch.

XLA compiles a loop over the images in which every operation is a branch: only what an image
drew is computed, while the image is in cache. On CPUs this is many times faster than
TensorFlow's kernels over the batch with `tf.where`, which compute every operation for every
image, and than `Dataset.map` per image, which pays for the graph (benchmarks/input_pipeline.py).
Random choices, crop positions and everything else that is small is computed for the whole
batch before the loop.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from supcon_tf.augment import color


@tf.function(jit_compile=True, autograph=False)
def augment_views(
    images: tf.Tensor,
    boxes: tf.Tensor,
    flips: tf.Tensor,
    draws: tf.Tensor,
    *,
    policy,
    size: int,
) -> tf.Tensor:
    """Crop, resize, flip and policy, for all views of a batch.

    To be called on the batch inside `Dataset.map`, with static shapes (batches dropping the
    remainder): every new shape, policy or size is compiled once, in some seconds.

    Args:
        images: uint8 [B, H, W, 3].
        boxes: int32 [B, V, 4], as `random_crops.random_crop_boxes` gives them for each view.
        flips: bool [B, V], which views are mirrored left to right.
        draws: float32 [B, V, policy.num_draws] in [0, 1).
        policy: a `policies.Policy`.
        size: S, the side of the views in pixels.

    Returns:
        uint8 [B, V, S, S, 3]: `policy.apply(flip(crop_and_resize(...)))` of each view.
    """
    batch_size, num_views = boxes.shape[:2]
    total = batch_size * num_views
    top, left, height, width = tf.unstack(tf.reshape(boxes, [total, 4]), axis=1)
    down = color.bilinear_taps(top, height, size)
    right = color.bilinear_taps(left, width, size)
    mirrored = tf.reshape(flips, [total, 1])
    right = tuple(tf.where(mirrored, part[:, ::-1], part) for part in right)
    plans = policy.plan(tf.reshape(draws, [total, policy.num_draws]), size)

    def view(index):
        image = tf.gather(images, index // num_views)[None]
        taps_down, taps_right, plan = _row((down, right, plans), index)
        resized = color.resample(image, taps_down, taps_right, compat=policy.compat)
        return policy.transform(resized, plan)

    views = each_image(view, total, size)
    return tf.reshape(views, [batch_size, num_views, size, size, 3])


@tf.function(jit_compile=True, autograph=False)
def apply_policy(images: tf.Tensor, draws: tf.Tensor, *, policy) -> tf.Tensor:
    """The policy on images of the right size, uint8 [n, S, S, 3], draws [n, num_draws]."""
    plans = policy.plan(draws, images.shape[1])

    def view(index):
        return policy.transform(tf.gather(images, index)[None], _row(plans, index))

    return each_image(view, tf.shape(images)[0], images.shape[1])


def each_image(view: Callable[[tf.Tensor], tf.Tensor], total, size: int) -> tf.Tensor:
    """Stacks view(0), ..., view(total - 1), each uint8 [1, S, S, 3]."""
    results = tf.TensorArray(tf.uint8, size=total, element_shape=[size, size, 3])
    _, results = tf.while_loop(
        lambda index, _: index < total,
        lambda index, results: (index + 1, results.write(index, view(index)[0])),
        (0, results),
    )
    return results.stack()


def _row(nested, index):
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, index)[None], nested)
