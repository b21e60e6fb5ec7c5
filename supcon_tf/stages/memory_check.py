"""Rejects a training that does not fit in memory, and reserves the memory of one that fits."""

from __future__ import annotations

import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf.training import memory, memory_reservation, progress
from supcon_tf.training.steps import TrainStep


def prepare_memory(
    flags: FlagValues, strategy: tf.distribute.Strategy, step: TrainStep, *, num_views: int
) -> None:
    """Checks before the first step that the training fits in memory, and reserves that memory.

    Only on CPUs without XLA, because the memory of accelerators and of XLA is not known here.

    Args:
        flags: The parsed flags.
        strategy: The strategy of the run.
        step: The training step.
        num_views: Views of each example that the step reads.

    Raises:
        ValueError: If it needs more memory than is available. The message lists remedies.
    """
    if flags.jit_compile or tf.config.list_logical_devices("GPU") or flags.tpu_name:
        return
    available = memory.available_bytes()
    needed = _estimate(flags, strategy, step, num_views, flags.microbatch_size)
    if available is None or needed.missing <= available:
        memory_reservation.reserve(needed.missing)
        return
    encoder, replicas = step.encoder, strategy.num_replicas_in_sync
    of_replicas = f" in each of {replicas} replicas" if replicas > 1 else ""
    remedies = "\n  ".join(_remedies(flags, strategy, step, num_views, available))
    views = progress.counted(num_views, "view")
    raise ValueError(
        f"The training needs about {_gb(needed.missing)} of memory, in addition to the "
        f"{_gb(needed.state)} of its weights and optimizer, but only {_gb(available)} are "
        f"available: activations {_gb(needed.activations)} ({encoder.name} at "
        f"{encoder.input_shape[1]} px, "
        f"{flags.microbatch_size or flags.batch_size // replicas} examples x {views}"
        f"{of_replicas}, {flags.precision}), gradients {_gb(needed.gradients)}, one evaluation of "
        f"{flags.eval_batch_size} images at least {_gb(needed.evaluation)}. Use one of these, or "
        f"a machine with more memory:\n  {remedies}"
    )


def _estimate(flags, strategy, step, num_views, microbatch_size):
    examples = microbatch_size or flags.batch_size // strategy.num_replicas_in_sync
    return memory.estimate_on_host(
        strategy,
        step,
        images_per_replica=num_views * examples,
        eval_batch_size=flags.eval_batch_size,
    )


def _remedies(flags, strategy, step, num_views, available):
    """Yields flags that need less memory; those that change the result least come first."""
    needed = _estimate(flags, strategy, step, num_views, flags.microbatch_size)
    if needed.evaluation > available:
        fits = flags.eval_batch_size * available // needed.evaluation
        yield f"--eval_batch_size={max(1, fits // 2)}"
    if needed.gradients + needed.activations <= available:
        return
    per_replica = flags.batch_size // strategy.num_replicas_in_sync
    fitting = [
        size
        for size in range(1, per_replica)
        if per_replica % size == 0
        and _estimate(flags, strategy, step, num_views, size).missing <= available
    ]
    if fitting and hasattr(step, "microbatch_size") and not flags.queue_size:
        yield (
            f"--microbatch_size={fitting[-1]} --nouse_global_batch_norm  (the same batch in "
            "smaller pieces; takes about twice the time)"
        )
    if fitting:
        yield f"--batch_size={fitting[-1] * strategy.num_replicas_in_sync}"
    yield f"--image_size={step.encoder.input_shape[1] // 2}"
    yield "--encoder=resnet_v1 --resnet_depth=18, or --encoder=tiny"


def _gb(size):
    return f"{size / 1e9:.1f} GB"
