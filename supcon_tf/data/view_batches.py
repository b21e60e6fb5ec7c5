"""Batches of augmented views of the user's own arrays or dataset, for `model.fit`."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from supcon_tf.augment import blur
from supcon_tf.augment.policies import Policy, create_policy
from supcon_tf.data import pipeline
from supcon_tf.data.batch_plan import BatchPlan
from supcon_tf.data.sources import source_of_arrays
from supcon_tf.data.views import ViewDraws
from supcon_tf.models.pixel_values import check_examples


def create_view_batches(
    examples: tf.data.Dataset | tuple,
    policy: Policy | str = "simclr",
    *,
    batch_size: int = 64,
    image_size: int | None = None,
    seed: int = 0,
    num_views: int = 2,
    start_step: int = 0,
    crop_area_range: tuple[float, float] = (0.5, 1.0),
    crop_compat: str = "reference",
    horizontal_flip: bool = True,
    blur_probability: float = 0.0,
) -> tf.data.Dataset:
    """Creates endless batches of augmented views of your own examples, for `model.fit`.

    The defaults are those of the command. A view only depends on its image, the seed, the step and
    the row.

    Args:
        examples: arrays or a dataset. Arrays (images, labels) are shuffled in every epoch: images
            are uint8 [M, H, W, 3] or gray [M, H, W], labels are [M] or multi-hot [M, C]. A dataset
            of (image, label) is repeated in its own order, so shuffle it: images are uint8
            [H, W, 3] of any height and width, labels have one shape, such as [] or [C].
        policy: applied to each view after the random crop and flip. One of
            `policies.AUGMENTATION_TYPES`, or a policy from `create_policy`.
        batch_size: B.
        image_size: S. None uses the height of arrays; required for a dataset.
        horizontal_flip: whether to mirror views with probability 0.5. Use False for digits and
            letters.
        blur_probability: share of the views that "simclr" and "stacked_randaugment" blur at the
            end. The published recipes use 0.5 for ImageNet and 0 for CIFAR.
        start_step: the step of the first batch. A dataset is still read from its beginning.
        seed, num_views, crop_area_range, crop_compat: see `pipeline.create_train_batches`.

    Returns:
        A dataset of (views [B, V, S, S, 3] in 0..255, labels [B, ...]). Views are uint8, or
        float32 if some are blurred. Pass `steps_per_epoch` to `fit`.

    Raises:
        ValueError: if the examples have another form, or there are fewer than a batch.

    >>> views = create_view_batches((images, labels), "simclr", batch_size=256)
    >>> model.fit(views, steps_per_epoch=len(images) // 256)
    """
    policy = create_policy(policy) if isinstance(policy, str) else policy
    options: dict[str, Any] = {
        "policy": policy,
        "batch_size": batch_size,
        "seed": seed,
        "num_views": num_views,
        "start_step": start_step,
        "crop_area_range": crop_area_range,
        "crop_compat": crop_compat,
        "horizontal_flip": horizontal_flip,
        "blur_probability": blur_probability,
    }
    if isinstance(examples, tf.data.Dataset):
        if image_size is None:
            raise ValueError(
                "The images of a dataset can differ in size: set image_size in pixels."
            )
        batches = _batches_of_dataset(examples, image_size=image_size, **options)
    else:
        source = source_of_arrays(examples)
        image_size = image_size or source.images.shape[1]
        batches = pipeline.create_train_batches(source, image_size=image_size, **options)
    return pipeline.prefetched(batches.map(_views_and_labels))


@tf.autograph.experimental.do_not_convert
def _views_and_labels(batch):
    views = blur.blurred_images(batch) if "blur_sigma" in batch else batch["image"]
    return views, batch["label"]


def _batches_of_dataset(
    examples, *, policy, batch_size, image_size, seed, num_views, start_step, **draws_options
):
    """Batches of views of a dataset of (image, label), which is repeated in its order."""
    check_examples(examples)
    view_draws = ViewDraws(policy, **draws_options)
    plan = BatchPlan(
        num_examples=batch_size,  # Only the draws of the plan are used, not its order.
        batch_size=batch_size,
        num_views=num_views,
        num_draws=view_draws.count,
        seed=seed,
    )
    draws = tf.data.Dataset.range(start_step, tf.int64.max).map(plan.draws).unbatch()
    triples = tf.data.Dataset.zip(examples.repeat(), draws)
    triples = triples.map(lambda example, draw: (*example, draw))
    return pipeline.batches_of_examples(triples, plan, view_draws, image_size)
