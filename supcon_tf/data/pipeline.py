"""From a source to batches for training and for evaluation.

Every random number is a function of (seed, step, global row, view). A batch therefore does not
depend on threads, replicas or hosts, and training can start at any step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from supcon_tf.augment.policies import Policy
from supcon_tf.data.batch_plan import BatchPlan
from supcon_tf.data.crops import check_eval_crop, crop_and_resize, eval_crop, flip_if
from supcon_tf.data.data_service import check_reachable
from supcon_tf.data.decode import MAX_PIXELS, decode_crops, decode_image
from supcon_tf.data.sources import ArraySource, FileSource, Source
from supcon_tf.data.streams import StreamSource
from supcon_tf.data.views import ViewDraws, make_views


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
    fast_decode: bool = False,
    num_replicas: int = 1,
    host: int = 0,
    num_hosts: int = 1,
    data_service: str | None = None,
) -> tf.data.Dataset:
    """Creates endless shuffled batches of augmented views for the replicas of one host.

    Epochs follow each other without a gap: as in the reference, a batch can contain the end of one
    epoch and the start of the next.

    Args:
        source: where the examples come from.
        policy: applied to each view after crop and flip.
        batch_size: N, the global batch over all replicas of all hosts.
        image_size: S.
        seed: determines every random number.
        num_views: V.
        start_step: the step of the first batch.
        crop_area_range: share of the image that a random crop covers.
        crop_compat: how crops are drawn, see `crops.random_crop_boxes`.
        horizontal_flip: whether to mirror each view with probability 0.5.
        class_balanced: whether every class comes equally often, see `batch_plan.BatchPlan`. Of a
            stream it keeps all encoded images in memory.
        blur_probability: share of the views that policies ending with a blur ("simclr" and
            "stacked_randaugment") blur on the device. Ignored by other policies.
        fast_decode: whether to decode JPEG bytes at a reduced size where every crop still has about
            S pixels in height and width, see `reduced_decode`. It smooths the views of images that
            are decoded at a reduced size, and has no effect on arrays and other formats.
        num_replicas: over all hosts; must divide batch_size.
        host, num_hosts: which rows of the global batch to make.
        data_service: address of a tf.data service dispatcher, "grpc://host:port", whose workers
            make the batches. Each step is made once, by one of the workers, and arrives when it
            is ready. The order of steps is lost, and a restart loses the steps in progress.

    Returns:
        A dataset of {"image": uint8 [B, V, S, S, 3], "label": [B, ...]} with B = N / num_replicas,
        replica after replica, step after step. Labels are int32 [B], bool [B, C] for several
        classes per image, int32 [B, L] for a hierarchy, or float32 [B]. If views are blurred, also
        "blur_sigma": float32 [B, V], in pixels, 0 for no blur.

    Raises:
        ValueError: if the batch does not fit the source or the replicas, or `class_balanced` is
            used with labels of several classes or with a stream that does not fit into memory.
        OSError: if the data service does not answer.
    """
    check_batch_size(batch_size, num_examples=source.num_examples, num_replicas=num_replicas)
    if num_replicas % num_hosts:
        raise ValueError(
            f"{num_replicas} replicas cannot be shared evenly by {num_hosts} hosts: use a multiple "
            f"of {num_hosts} replicas."
        )
    rows = batch_size // num_hosts
    draws = ViewDraws(
        policy,
        crop_area_range=crop_area_range,
        crop_compat=crop_compat,
        horizontal_flip=horizontal_flip,
        blur_probability=blur_probability,
    )
    stored = None  # Images of a stream, if they are chosen by index.
    if class_balanced and isinstance(source, StreamSource):
        stored = source.in_memory()
    balanced_labels = None
    if class_balanced:
        balanced_labels = _labels_to_balance(source) if stored is None else stored[1]
    plan = BatchPlan(
        num_examples=source.num_examples,
        batch_size=batch_size,
        first_row=host * rows,
        num_rows=rows,
        num_views=num_views,
        num_draws=draws.count,
        seed=seed,
        balanced_labels=balanced_labels,
    )
    # A range, not a counter, because only a range can be split over the workers of a data service.
    steps = tf.data.Dataset.range(start_step, tf.int64.max)
    if isinstance(source, ArraySource):
        batches = _batches_of_array(source, plan, steps, draws, image_size)
    else:
        if isinstance(source, FileSource):
            examples = _examples_by_index(
                tf.constant(source.paths), source.labels, plan, steps, read=tf.io.read_file
            )
        elif stored is not None:
            examples = _examples_by_index(*stored, plan, steps)
        else:
            stream = source.examples(
                seed=seed, start=start_step * rows, host=host, num_hosts=num_hosts
            )
            examples = tf.data.Dataset.zip(stream, steps.map(plan.draws).unbatch())
            examples = examples.map(lambda example, draw: (*example, draw))
        any_format = isinstance(source, FileSource) and source.needs_pillow
        batches = batches_of_examples(
            examples, plan, draws, image_size, source.max_pixels, any_format, fast_decode
        )
    if data_service is not None:
        if isinstance(source, FileSource) and source.needs_pillow:
            raise ValueError(
                "--data_service cannot decode WebP, BMP and GIF files, because Pillow reads them "
                "in this process. Convert them to JPEG or PNG, or leave out --data_service."
            )
        check_reachable(data_service)
        # Splits the steps over the workers, or the epochs of a stream.
        sharding = tf.data.experimental.service.ShardingPolicy.DYNAMIC
        batches = batches.apply(
            tf.data.experimental.service.distribute(sharding, service=data_service)
        )
    if num_replicas > num_hosts:
        batches = batches.rebatch(batch_size // num_replicas, drop_remainder=True)
    return prefetched(batches)


def prefetched(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Makes batches ahead of their use."""
    # Maps already run in parallel; more threads inside their operations would slow them down.
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
    """Describes the operations after the crop, for every row and view of the batch of a step.

    The arguments are those of `create_train_batches`.

    Returns:
        A list of captions for each of the N rows and V views.
    """
    view_draws = ViewDraws(
        policy,
        crop_compat=crop_compat,
        horizontal_flip=horizontal_flip,
        blur_probability=blur_probability,
    )
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

    @tf.autograph.experimental.do_not_convert
    def make_batch(step):
        index, draws = plan.index(step), plan.draws(step)
        made = make_views(
            tf.gather(images, index),  # [B, H, W, 3]
            view_draws.boxes(draws, tf.shape(images)[1:3]),
            view_draws.flips(draws),
            view_draws.of_policy(draws),
            policy=view_draws.policy,
            size=size,
        )
        return view_draws.to_batch(made, tf.gather(labels, index), draws)

    return steps.map(make_batch, num_parallel_calls=tf.data.AUTOTUNE)


def _examples_by_index(images, labels, plan, steps, *, read=tf.identity):
    """Endless (encoded image, label, draws [V, K]) in the order of this host's rows."""
    labels = tf.constant(labels)
    rows = steps.map(lambda step: (plan.index(step), plan.draws(step))).unbatch()

    @tf.autograph.experimental.do_not_convert
    def example(index, draws):
        return read(tf.gather(images, index)), tf.gather(labels, index), draws

    return rows.map(example, num_parallel_calls=tf.data.AUTOTUNE)


def batches_of_examples(
    examples: tf.data.Dataset,
    plan: BatchPlan,
    view_draws: ViewDraws,
    size: int,
    max_pixels: int = MAX_PIXELS,
    any_format: bool = False,
    fast_decode: bool = False,
) -> tf.data.Dataset:
    """Makes views of images of any shape: crops image by image, then the policy per batch.

    Args:
        examples: (encoded image string [] or image uint8 [H, W, 3], label, draws [V, K]).
        plan: number of rows and views of a batch.
        view_draws: what the draws decide.
        size: S.
        max_pixels, any_format: see `decode.decode_crops`.
        fast_decode: see `create_train_batches`.

    Returns:
        Batches as `create_train_batches` returns them.
    """
    policy, total = view_draws.policy, plan.num_rows * plan.num_views

    @tf.autograph.experimental.do_not_convert
    def crop_example(image, label, draws):
        def boxes_of(shape):
            return view_draws.boxes(draws[None], shape)[0]

        if image.dtype == tf.string:
            image, boxes = decode_crops(
                image,
                boxes_of,
                max_pixels=max_pixels,
                any_format=any_format,
                least_size=size if fast_decode else None,
            )
        else:
            image = tf.ensure_shape(image, [None, None, 3])
            boxes = boxes_of(tf.shape(image)[:2])
        flips = view_draws.flips(draws)
        crops = [
            flip_if(flips[view], crop_and_resize(image, boxes[view], size, compat=policy.compat))
            for view in range(plan.num_views)
        ]
        return tf.stack(crops), label, draws  # [V, S, S, 3]

    @tf.autograph.experimental.do_not_convert
    def augment_batch(crops, label, draws):
        flat = tf.reshape(crops, [total, size, size, 3])
        policy_draws = tf.reshape(view_draws.of_policy(draws), [total, policy.num_draws])
        made = policy.apply(flat, policy_draws)
        return view_draws.to_batch(tf.reshape(made, crops.shape), label, draws)

    batches = examples.map(crop_example, num_parallel_calls=tf.data.AUTOTUNE)
    batches = batches.batch(plan.num_rows, drop_remainder=True)
    return batches.map(augment_batch, num_parallel_calls=tf.data.AUTOTUNE)


def _labels_to_balance(source):
    if source.label_type not in ("class", "hierarchy"):
        raise ValueError(
            f"--class_balanced needs one class per image; these labels are {source.label_type}."
        )
    return source.class_numbers if isinstance(source, FileSource) else source.labels


def create_eval_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    limit: int | None = None,
    crop_method: str = "auto",
    crop_padding: int = 32,
    crop: Callable[[tf.Tensor], tf.Tensor] | None = None,
    host: int = 0,
    num_hosts: int = 1,
) -> tf.data.Dataset:
    """Creates batches of every example once and in order, with a central crop.

    Args:
        source: where the examples come from.
        batch_size: B, over all hosts; a multiple of num_hosts.
        image_size: S.
        limit: see `eval_examples`.
        crop_method, crop_padding: see `crops.eval_crop`.
        crop: another crop instead, uint8 [H, W, 3] -> uint8 [S, S, 3].
        host, num_hosts: which share of each batch to make: every num_hosts-th example.

    Returns:
        A dataset of {"image": uint8 [B, S, S, 3], "label": int32 [B], "index": int32 [B]}, or this
        host's share of the rows. The last batch is padded with blank images of index -1, so that
        all batches have the same shape.
    """
    check_eval_crop(crop_method, crop_padding)
    chosen = eval_examples(source, limit)
    num_examples = len(chosen)
    if isinstance(source, ArraySource):
        arrays = source.images[chosen], source.labels[chosen]
        examples = tf.data.Dataset.from_tensor_slices(arrays)
    elif isinstance(source, FileSource):
        arrays = np.array(source.paths)[chosen], source.labels[chosen]
        examples = tf.data.Dataset.from_tensor_slices(arrays)
    else:
        examples = source.examples(seed=None).take(num_examples)

    @tf.autograph.experimental.do_not_convert
    def prepare(index, example):
        image, label = example
        if isinstance(source, FileSource):
            image = tf.io.read_file(image)
        if image.dtype == tf.string:
            any_format = isinstance(source, FileSource) and source.needs_pillow
            image = decode_image(image, max_pixels=source.max_pixels, any_format=any_format)
            image = tf.ensure_shape(image, [None, None, 3])
        if crop is not None:
            image = crop(image)
        else:
            image = eval_crop(image, image_size, method=crop_method, padding=crop_padding)
        return {"image": image, "label": label, "index": tf.cast(index, tf.int32)}

    count = (num_examples + num_hosts - 1 - host) // num_hosts
    label = examples.element_spec[1]
    examples = examples.enumerate().shard(num_hosts, host)
    examples = examples.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    label = examples.element_spec["label"]
    blank = {
        "image": np.zeros([image_size, image_size, 3], np.uint8),
        "label": np.zeros(label.shape, label.dtype.as_numpy_dtype),
        "index": np.int32(-1),
    }
    rows = batch_size // num_hosts
    total = math.ceil(num_examples / batch_size) * rows  # The same on every host.
    padding = tf.data.Dataset.from_tensors(blank).repeat(total - count)
    batches = examples.concatenate(padding).batch(rows, drop_remainder=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def eval_examples(source: Source, limit: int | None = None) -> np.ndarray:
    """The examples of a source that `create_eval_batches` chooses, int64 [M].

    Args:
        source: where the examples come from.
        limit: maximum number of examples, spread evenly over the source. Of a stream, the first
            are used.
    """
    num_examples = min(source.num_examples, limit or source.num_examples)
    if isinstance(source, StreamSource):
        return np.arange(num_examples)
    return np.linspace(0, source.num_examples - 1, num_examples).astype(np.int64)


def check_batch_size(batch_size: int, *, num_examples: int, num_replicas: int) -> None:
    """Raises ValueError unless a batch can be filled and shared evenly by the replicas."""
    if batch_size > num_examples:
        raise ValueError(
            f"batch_size={batch_size} is larger than the {num_examples} training examples: use "
            f"--batch_size={max(num_examples // num_replicas, 1) * num_replicas} or less, or add "
            "examples."
        )
    if batch_size < 1 or batch_size % num_replicas:
        below = max(batch_size, 0) // num_replicas * num_replicas
        sizes = f"{below} or {below + num_replicas}" if below else f"{num_replicas}"
        raise ValueError(
            f"batch_size={batch_size} cannot be shared evenly by {num_replicas} replicas: use "
            f"--batch_size={sizes}."
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
    """The files that the steps from first_step to last_step (inclusive) read."""
    plan = BatchPlan(
        num_examples=source.num_examples,
        batch_size=batch_size,
        seed=seed,
        balanced_labels=source.class_numbers if class_balanced else None,
    )
    steps = range(first_step, last_step + 1)
    indices = np.unique(np.concatenate([plan.index(step).numpy() for step in steps]))
    return [source.paths[index] for index in indices]
