"""From a source to batches: the order of examples, their crops, flips and augmentations.

Every random number is a function of (seed, step, global row, view), so a batch does not depend
on threads, replicas or hosts, and any step can be the first.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from supcon_tf import augment, views
from supcon_tf.policies import Policy
from supcon_tf.sources import ArraySource, FileSource, Source, StreamSource, decode_image


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
    horizontal_flip: bool = True,
    num_replicas: int = 1,
    host: int = 0,
    num_hosts: int = 1,
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
        horizontal_flip: mirror each view with probability 0.5.
        num_replicas: over all hosts; must divide batch_size.
        host, num_hosts: whose rows of the global batch to make.

    Returns:
        {"image": uint8 [B, V, S, S, 3], "label": int32 [B]} with B = N / num_replicas; replica
        after replica, step after step.

    Raises:
        ValueError: if the batch does not fit the source or the replicas.
    """
    check_batch_size(batch_size, num_examples=source.num_examples, num_replicas=num_replicas)
    if num_replicas % num_hosts:
        raise ValueError(f"{num_replicas} replicas cannot be shared evenly by {num_hosts} hosts.")
    rows = batch_size // num_hosts
    plan = _BatchPlan(
        num_examples=source.num_examples,
        batch_size=batch_size,
        first_row=host * rows,
        num_rows=rows,
        num_views=num_views,
        num_draws=augment.CROP_DRAWS + 1 + policy.num_draws,
        seed=seed,
    )
    steps = tf.data.Dataset.counter(start_step)

    def split(draws):
        """What crops, flips and the policy consume, from draws [..., K]."""
        crop, rest = draws[..., : augment.CROP_DRAWS], draws[..., augment.CROP_DRAWS :]
        flips = (rest[..., 0] < 0.5) & horizontal_flip
        return crop, flips, rest[..., 1:]

    if isinstance(source, ArraySource):
        images, labels = tf.constant(source.images), tf.constant(source.labels)

        def make_batch(step):
            index = plan.index(step)
            crop, flips, draws = split(plan.draws(step))
            chosen = tf.gather(images, index)  # [B, H, W, 3]
            boxes = _crop_boxes(crop, tf.shape(images)[1:3], crop_area_range)
            made = views.augment_views(chosen, boxes, flips, draws, policy=policy, size=image_size)
            return {"image": made, "label": tf.gather(labels, index)}

        batches = steps.map(make_batch, num_parallel_calls=tf.data.AUTOTUNE)
    else:

        def crop_example(encoded, label, draws):
            image = decode_image(encoded)
            crop, flips, draws = split(draws)
            boxes = _crop_boxes(crop[None], tf.shape(image)[:2], crop_area_range)[0]
            repeated = tf.repeat(image[None], num_views, axis=0)  # [V, H, W, 3]
            cropped = augment.crop_and_resize(repeated, boxes, image_size)
            return augment.flip(cropped, flips), label, draws

        def augment_batch(cropped, label, draws):
            flat = tf.reshape(cropped, [rows * num_views, image_size, image_size, 3])
            made = policy.apply(flat, tf.reshape(draws, [rows * num_views, policy.num_draws]))
            return {"image": tf.reshape(made, cropped.shape), "label": label}

        examples = _encoded_examples(source, plan, steps, start_step, seed, host, num_hosts)
        batches = examples.map(crop_example, num_parallel_calls=tf.data.AUTOTUNE)
        batches = batches.batch(rows, drop_remainder=True)
        batches = batches.map(augment_batch, num_parallel_calls=tf.data.AUTOTUNE)
    if num_replicas > num_hosts:
        batches = batches.rebatch(batch_size // num_replicas, drop_remainder=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def create_eval_batches(
    source: Source, *, batch_size: int, image_size: int, limit: int | None = None
) -> tf.data.Dataset:
    """Every example once, in order, without randomness: a central crop of one view.

    Images larger than S lose the border that a random crop would seldom show, 1/8 of the side
    (224 of 256 pixels, as in the paper's evaluation); images of S pixels stay as they are.

    Args:
        source: where the examples come from.
        batch_size: B.
        image_size: S.
        limit: at most so many examples, spread over the whole source (of a stream, the first).

    Returns:
        {"image": uint8 [B, S, S, 3], "label": int32 [B], "index": int32 [B]}. The last batch
        is filled up with blank images of index -1, so that all have one shape.
    """
    num_examples = min(source.num_examples, limit or source.num_examples)
    chosen = np.linspace(0, source.num_examples - 1, num_examples).astype(np.int64)
    if isinstance(source, ArraySource):
        arrays = source.images[chosen], source.labels[chosen]
        examples = tf.data.Dataset.from_tensor_slices(arrays)
    elif isinstance(source, FileSource):
        arrays = np.array(source.paths)[chosen], source.labels[chosen]
        examples = tf.data.Dataset.from_tensor_slices(arrays)
        examples = examples.map(lambda path, label: (tf.io.read_file(path), label))
    else:
        examples = source.examples(seed=None).take(num_examples)

    def prepare(index, example):
        image, label = example
        if image.dtype == tf.string:
            image = decode_image(image)
        box = central_box(tf.shape(image)[0], tf.shape(image)[1], image_size)
        image = augment.crop_and_resize(image[None], box[None], image_size)[0]
        return {"image": image, "label": label, "index": tf.cast(index, tf.int32)}

    examples = examples.enumerate().map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    blank = {
        "image": np.zeros([image_size, image_size, 3], np.uint8),
        "label": np.int32(0),
        "index": np.int32(-1),
    }
    padding = tf.data.Dataset.from_tensors(blank).repeat(-num_examples % batch_size)
    batches = examples.concatenate(padding).batch(batch_size, drop_remainder=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def central_box(height: tf.Tensor, width: tf.Tensor, image_size: int) -> tf.Tensor:
    """The central square to resize to S: int32 [4] top, left, height, width."""
    short = tf.minimum(height, width)
    side = tf.where(short > image_size, tf.maximum(short * 7 // 8, image_size), short)
    return tf.stack([(height - side + 1) // 2, (width - side + 1) // 2, side, side])


def check_batch_size(batch_size: int, *, num_examples: int, num_replicas: int) -> None:
    """Raises ValueError unless the batch can be filled and shared evenly."""
    if batch_size > num_examples:
        raise ValueError(
            f"batch_size={batch_size} is larger than the {num_examples} training examples: "
            "take a smaller batch."
        )
    if batch_size < 1 or batch_size % num_replicas:
        below = batch_size // num_replicas * num_replicas
        raise ValueError(
            f"batch_size={batch_size} cannot be shared evenly by {num_replicas} replicas: take "
            f"{below or num_replicas} or {below + num_replicas}."
        )


def paths_of_steps(
    source: FileSource, *, batch_size: int, seed: int, first_step: int, last_step: int
) -> list[str]:
    """The files that the steps first_step to last_step (inclusive) read."""
    plan = _BatchPlan(source.num_examples, batch_size, 0, batch_size, 1, 1, seed)
    steps = range(first_step, last_step + 1)
    indices = np.unique(np.concatenate([plan.index(step).numpy() for step in steps]))
    return [source.paths[index] for index in indices]


class _BatchPlan:
    """Which examples and which random numbers make up the rows of a step on this host."""

    def __init__(self, num_examples, batch_size, first_row, num_rows, num_views, num_draws, seed):
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.first_row = first_row
        self.num_rows = num_rows
        self.num_views = num_views
        self.num_draws = num_draws
        self.seed = seed

    def index(self, step):
        """Which example each row holds, int64 [B]: a fresh permutation every epoch."""
        position = tf.cast(step, tf.int64) * self.batch_size + self.first_row
        position += tf.range(self.num_rows, dtype=tf.int64)
        epoch, place = position // self.num_examples, position % self.num_examples
        seed = tf.fill([self.num_rows], tf.cast(self.seed, tf.int64))
        # The raw op, because tf.random.experimental.index_shuffle pads a seed per row wrongly.
        return tf.raw_ops.RandomIndexShuffle(
            index=place,
            seed=tf.stack([seed, epoch, tf.zeros_like(epoch)], axis=1),
            max_index=tf.constant(self.num_examples - 1, tf.int64),
            rounds=16,  # 4, the usual number, hardly shuffles: 50 of 100 examples stay in place.
        )

    def draws(self, step):
        """Uniform numbers [B, V, K]: drawn for the whole global batch, then this host's rows.

        (A draw of another shape has other numbers, so the rows cannot be drawn alone.)
        """
        draws = tf.random.stateless_uniform(
            [self.batch_size, self.num_views, self.num_draws],
            seed=tf.stack([tf.cast(self.seed, tf.int64), tf.cast(step, tf.int64)]),
            alg="philox",  # "auto" gives other numbers when compiled.
        )
        return draws[self.first_row : self.first_row + self.num_rows]


def _encoded_examples(source, plan, steps, start_step, seed, host, num_hosts):
    """(encoded image, label, draws [V, K]) in the order of this host's rows, endless."""
    draws = steps.map(plan.draws).unbatch()
    if isinstance(source, StreamSource):
        examples = source.examples(seed=seed, host=host, num_hosts=num_hosts)
        examples = examples.skip(start_step * plan.num_rows)  # Still encoded: cheap to pass over.
        pairs = tf.data.Dataset.zip(examples, draws)
        return pairs.map(lambda example, draw: (*example, draw))
    paths, labels = tf.constant(source.paths), tf.constant(source.labels)
    indices = steps.map(plan.index).unbatch()

    def read(index, draw):
        return tf.io.read_file(tf.gather(paths, index)), tf.gather(labels, index), draw

    return tf.data.Dataset.zip(indices, draws).map(read, num_parallel_calls=tf.data.AUTOTUNE)


def _crop_boxes(draws, shape, area_range):
    """Boxes int32 [B, V, 4] of images that all have one shape, from draws [B, V, CROP_DRAWS]."""
    flat = tf.reshape(draws, [-1, augment.CROP_DRAWS])
    count = tf.shape(flat)[0]
    heights, widths = tf.fill([count], shape[0]), tf.fill([count], shape[1])
    boxes = augment.random_crop_boxes(flat, heights, widths, area_range=area_range)
    return tf.reshape(boxes, [*draws.shape[:2], 4])
