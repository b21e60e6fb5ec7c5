"""From a source to batches: the order of examples, their crops, flips and augmentations.

Every random number is a function of (seed, step, global row, view), so a batch does not depend
on threads, replicas or hosts, and any step can be the first.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from supcon_tf.augment import blur, compiled
from supcon_tf.augment.policies import Policy, create_policy
from supcon_tf.data.batch_plan import BatchPlan
from supcon_tf.data.crops import central_box as central_box
from supcon_tf.data.crops import check_eval_crop, crop_and_resize, eval_crop, flip_if
from supcon_tf.data.data_service import check_reachable
from supcon_tf.data.decode import MAX_PIXELS, decode_crops, decode_image
from supcon_tf.data.sources import ArraySource, FileSource, Source, StreamSource, source_of_arrays
from supcon_tf.data.view_draws import ViewDraws
from supcon_tf.models.pixel_values import check_examples


def create_train_batches(
    source: Source,
    *,
    policy: Policy,
    batch_size: int,
    image_size: int,
    seed: int,
    num_views: int = 2,
    start_step: int = 0,
    crop_area_range: tuple[float, float] = (0.08, 1.0),
    crop_compat: str = "reference",
    horizontal_flip: bool = True,
    class_balanced: bool = False,
    blur_probability: float = 0.0,
    num_replicas: int = 1,
    host: int = 0,
    num_hosts: int = 1,
    data_service: str | None = None,
) -> tf.data.Dataset:
    """Endless shuffled batches of augmented views for the replicas of one host.

    Epochs follow each other without a gap: a batch may hold the end of one and the start of
    the next, as in the reference.

    Args:
        source: where the examples come from.
        policy: applied to each view after crop and flip.
        batch_size: N, the global batch over all replicas of all hosts.
        image_size: S.
        seed: every random number follows from it.
        num_views: V.
        start_step: the step of the first batch.
        crop_area_range: share of the image that a random crop covers.
        crop_compat: how crops are drawn, see `random_crops.random_crop_boxes`.
        horizontal_flip: mirror each view with probability 0.5.
        class_balanced: every class equally often, see `batch_plan.BatchPlan`; not for streams.
        blur_probability: how many views get a sigma for the blur on the device.
        num_replicas: over all hosts; must divide batch_size.
        host, num_hosts: whose rows of the global batch to make.
        data_service: address of a tf.data service dispatcher, "grpc://host:port", whose
            workers make the batches. Each step is made once, by one of them, and comes when it
            is ready: the order is lost, and after a restart so are the steps under way.

    Returns:
        {"image": uint8 [B, V, S, S, 3], "label": int32 [B]} with B = N / num_replicas; replica
        after replica, step after step. With a blur probability also "blur_sigma": float32
        [B, V], in pixels, 0 for no blur.

    Raises:
        ValueError: if the batch does not fit the source or the replicas, or a stream is to be
            balanced.
        OSError: nothing answers at the address of the data service.
    """
    check_batch_size(batch_size, num_examples=source.num_examples, num_replicas=num_replicas)
    if num_replicas % num_hosts:
        raise ValueError(f"{num_replicas} replicas cannot be shared evenly by {num_hosts} hosts.")
    rows = batch_size // num_hosts
    draws = ViewDraws(policy, crop_area_range, crop_compat, horizontal_flip, blur_probability)
    plan = BatchPlan(
        num_examples=source.num_examples,
        batch_size=batch_size,
        first_row=host * rows,
        num_rows=rows,
        num_views=num_views,
        num_draws=draws.count,
        seed=seed,
        balanced_labels=_labels_to_balance(source) if class_balanced else None,
    )
    # A range, not a counter: only a range can be split over the workers of a data service.
    steps = tf.data.Dataset.range(start_step, tf.int64.max)
    if isinstance(source, ArraySource):
        batches = _batches_of_array(source, plan, steps, draws, image_size)
    else:
        if isinstance(source, FileSource):
            examples = _examples_of_files(source, plan, steps)
        else:
            stream = source.examples(
                seed=seed, start=start_step * rows, host=host, num_hosts=num_hosts
            )
            examples = tf.data.Dataset.zip(stream, steps.map(plan.draws).unbatch())
            examples = examples.map(lambda example, draw: (*example, draw))
        batches = _batches_of_examples(examples, plan, draws, image_size, source.max_pixels)
    if data_service is not None:
        check_reachable(data_service)
        # Splits the steps (of a stream: its epochs) over the workers.
        sharding = tf.data.experimental.service.ShardingPolicy.DYNAMIC
        batches = batches.apply(
            tf.data.experimental.service.distribute(sharding, service=data_service)
        )
    if num_replicas > num_hosts:
        batches = batches.rebatch(batch_size // num_replicas, drop_remainder=True)
    return _made_ahead(batches)


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
    """Endless batches of augmented views of your own examples, ready for `model.fit`.

    The defaults are those of the command. Views depend on the seed, the step and the row alone.

    Args:
        examples: arrays (images, labels), which are shuffled in every epoch: images uint8
            [M, H, W, 3], or grey [M, H, W], and labels [M] or multi-hot [M, C]. Or a dataset of
            (image, label), which is repeated in its own order, so shuffle it: images uint8
            [H, W, 3] of any height and width, labels of one shape, such as [] or [C].
        policy: applied to each view after the random crop and flip: one of
            `policies.AUGMENTATION_TYPES`, or what `create_policy` returns.
        batch_size: B.
        image_size: S; None takes the height of arrays. A dataset needs it.
        horizontal_flip: mirror views with probability 0.5; False for digits and letters.
        blur_probability: share of the views that "simclr" and "stacked_randaugment" blur at the
            end: 0.5 for ImageNet, 0 for CIFAR in the published recipes.
        start_step: the step of the first batch. A dataset itself starts again.
        seed, num_views, crop_area_range, crop_compat: see `create_train_batches`.

    Returns:
        (views [B, V, S, S, 3] in 0..255, labels [B, ...]), the views uint8, or float32 with a
        blur. Give `fit` its steps_per_epoch.

    Raises:
        ValueError: the examples have another form, or are fewer than a batch.

    >>> views = create_view_batches((images, labels), "simclr", batch_size=256)
    >>> model.fit(views, steps_per_epoch=len(images) // 256)
    """
    policy = create_policy(policy) if isinstance(policy, str) else policy
    options = {
        "policy": policy,
        "batch_size": batch_size,
        "seed": seed,
        "num_views": num_views,
        "start_step": start_step,
        "crop_area_range": crop_area_range,
        "crop_compat": crop_compat,
        "horizontal_flip": horizontal_flip,
        "blur_probability": blur_probability if policy.ends_with_blur else 0.0,
    }
    if isinstance(examples, tf.data.Dataset):
        if image_size is None:
            raise ValueError("The images of a dataset have no one size: give image_size in pixels.")
        batches = _batches_of_dataset(examples, image_size=image_size, **options)
    else:
        source = source_of_arrays(examples)
        image_size = image_size or source.images.shape[1]
        batches = create_train_batches(source, image_size=image_size, **options)
    views = blur.blurred_images if options["blur_probability"] else lambda batch: batch["image"]
    return _made_ahead(batches.map(lambda batch: (views(batch), batch["label"])))


def _batches_of_dataset(
    examples, *, policy, batch_size, image_size, seed, num_views, start_step, **draws_options
):
    """Batches of views of a dataset of (image, label), in its order, again and again."""
    check_examples(examples)
    view_draws = ViewDraws(policy, **draws_options)
    plan = BatchPlan(
        num_examples=batch_size,  # Their order is not the plan's.
        batch_size=batch_size,
        num_views=num_views,
        num_draws=view_draws.count,
        seed=seed,
    )
    draws = tf.data.Dataset.range(start_step, tf.int64.max).map(plan.draws).unbatch()
    triples = tf.data.Dataset.zip(examples.repeat(), draws)
    triples = triples.map(lambda example, draw: (*example, draw))
    return _batches_of_examples(triples, plan, view_draws, image_size)


def _made_ahead(batches):
    # The maps run side by side already: threads inside an operation would only get in the way.
    options = tf.data.Options()
    options.threading.max_intra_op_parallelism = 1
    return batches.prefetch(tf.data.AUTOTUNE).with_options(options)


def describe_step(
    step: int,
    *,
    policy: Policy,
    batch_size: int,
    image_size: int,
    seed: int,
    num_views: int = 2,
    crop_compat: str = "reference",
    horizontal_flip: bool = True,
    blur_probability: float = 0.0,
) -> list[list[list[str]]]:
    """For every row and view of a step's batch, what was done to it after the crop."""
    view_draws = ViewDraws(policy, (0.08, 1.0), crop_compat, horizontal_flip, blur_probability)
    plan = BatchPlan(
        num_examples=batch_size,
        batch_size=batch_size,
        seed=seed,
        num_views=num_views,
        num_draws=view_draws.count,
    )
    draws = plan.draws(step).numpy()  # [B, V, K]
    return [[view_draws.describe(view, image_size) for view in row] for row in draws]


def _batches_of_array(source, plan, steps, view_draws, size):
    images, labels = tf.constant(source.images), tf.constant(source.labels)

    def make_batch(step):
        index, draws = plan.index(step), plan.draws(step)
        made = compiled.augment_views(
            tf.gather(images, index),  # [B, H, W, 3]
            view_draws.boxes(draws, tf.shape(images)[1:3]),
            view_draws.flips(draws),
            view_draws.of_policy(draws),
            policy=view_draws.policy,
            size=size,
        )
        return view_draws.batch(made, tf.gather(labels, index), draws)

    return steps.map(make_batch, num_parallel_calls=tf.data.AUTOTUNE)


def _examples_of_files(source, plan, steps):
    """(encoded image, label, draws [V, K]) in the order of this host's rows, endless."""
    paths, labels = tf.constant(source.paths), tf.constant(source.labels)
    rows = steps.map(lambda step: (plan.index(step), plan.draws(step))).unbatch()

    def read(index, draws):
        return tf.io.read_file(tf.gather(paths, index)), tf.gather(labels, index), draws

    return rows.map(read, num_parallel_calls=tf.data.AUTOTUNE)


def _batches_of_examples(examples, plan, view_draws, size, max_pixels=MAX_PIXELS):
    """Crops image by image, because shapes differ; then the policy on the whole batch.

    Examples are (encoded or decoded image, label, draws [V, K]).
    """
    policy, total = view_draws.policy, plan.num_rows * plan.num_views

    def crop_example(image, label, draws):
        def boxes_of(shape):
            return view_draws.boxes(draws[None], shape)[0]

        if image.dtype == tf.string:
            image, boxes = decode_crops(image, boxes_of, max_pixels=max_pixels)
        else:
            image = tf.ensure_shape(image, [None, None, 3])
            boxes = boxes_of(tf.shape(image)[:2])
        flips = view_draws.flips(draws)
        crops = [
            flip_if(flips[view], crop_and_resize(image, boxes[view], size, compat=policy.compat))
            for view in range(plan.num_views)
        ]
        return tf.stack(crops), label, draws  # [V, S, S, 3]

    def augment_batch(crops, label, draws):
        flat = tf.reshape(crops, [total, size, size, 3])
        policy_draws = tf.reshape(view_draws.of_policy(draws), [total, policy.num_draws])
        made = policy.apply(flat, policy_draws)
        return view_draws.batch(tf.reshape(made, crops.shape), label, draws)

    batches = examples.map(crop_example, num_parallel_calls=tf.data.AUTOTUNE)
    batches = batches.batch(plan.num_rows, drop_remainder=True)
    return batches.map(augment_batch, num_parallel_calls=tf.data.AUTOTUNE)


def _labels_to_balance(source):
    if isinstance(source, StreamSource):
        raise ValueError(
            "class_balanced picks examples by their number, which a TFDS stream does not have: "
            "store the images as files, one folder per class, and use the dataset 'folder'."
        )
    return source.labels


def create_eval_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    limit: int | None = None,
    crop_method: str = "auto",
    crop_padding: int = 32,
    host: int = 0,
    num_hosts: int = 1,
) -> tf.data.Dataset:
    """Every example once, in order, without randomness: a central crop of one view.

    Args:
        source: where the examples come from.
        batch_size: B, over all hosts, which must share it evenly.
        image_size: S.
        limit: at most so many examples, spread over the whole source (of a stream, the first).
        crop_method, crop_padding: see `crops.eval_crop`.
        host, num_hosts: whose share of each batch to make: every num_hosts-th example.

    Returns:
        {"image": uint8 [B, S, S, 3], "label": int32 [B], "index": int32 [B]}, of a host its
        share. The last batch is filled up with blank images of index -1, so that all have one
        shape.
    """
    check_eval_crop(crop_method, crop_padding)
    num_examples = min(source.num_examples, limit or source.num_examples)
    chosen = np.linspace(0, source.num_examples - 1, num_examples).astype(np.int64)
    if isinstance(source, ArraySource):
        arrays = source.images[chosen], source.labels[chosen]
        examples = tf.data.Dataset.from_tensor_slices(arrays)
    elif isinstance(source, FileSource):
        arrays = np.array(source.paths)[chosen], source.labels[chosen]
        examples = tf.data.Dataset.from_tensor_slices(arrays)
    else:
        examples = source.examples(seed=None).take(num_examples)

    def prepare(index, example):
        image, label = example
        if isinstance(source, FileSource):
            image = tf.io.read_file(image)
        if image.dtype == tf.string:
            image = decode_image(image, max_pixels=source.max_pixels)
            image = tf.ensure_shape(image, [None, None, 3])
        image = eval_crop(image, image_size, method=crop_method, padding=crop_padding)
        return {"image": image, "label": label, "index": tf.cast(index, tf.int32)}

    count = (num_examples + num_hosts - 1 - host) // num_hosts
    examples = examples.enumerate().shard(num_hosts, host)
    examples = examples.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    blank = {
        "image": np.zeros([image_size, image_size, 3], np.uint8),
        "label": np.int32(0),
        "index": np.int32(-1),
    }
    rows = batch_size // num_hosts
    total = math.ceil(num_examples / batch_size) * rows  # The same on every host.
    padding = tf.data.Dataset.from_tensors(blank).repeat(total - count)
    batches = examples.concatenate(padding).batch(rows, drop_remainder=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def check_batch_size(batch_size: int, *, num_examples: int, num_replicas: int) -> None:
    """Raises ValueError unless the batch can be filled and shared evenly."""
    if batch_size > num_examples:
        raise ValueError(
            f"batch_size={batch_size} is larger than the {num_examples} training examples: take "
            f"--batch_size={max(num_examples // num_replicas, 1) * num_replicas} or less, or more "
            "examples."
        )
    if batch_size < 1 or batch_size % num_replicas:
        below = batch_size // num_replicas * num_replicas
        raise ValueError(
            f"batch_size={batch_size} cannot be shared evenly by {num_replicas} replicas: take "
            f"{below or num_replicas} or {below + num_replicas}."
        )


def paths_of_steps(
    source: FileSource,
    *,
    batch_size: int,
    seed: int,
    first_step: int,
    last_step: int,
    class_balanced: bool = False,
) -> list[str]:
    """The files that the steps first_step to last_step (inclusive) read."""
    plan = BatchPlan(
        num_examples=source.num_examples,
        batch_size=batch_size,
        seed=seed,
        balanced_labels=source.labels if class_balanced else None,
    )
    steps = range(first_step, last_step + 1)
    indices = np.unique(np.concatenate([plan.index(step).numpy() for step in steps]))
    return [source.paths[index] for index in indices]
