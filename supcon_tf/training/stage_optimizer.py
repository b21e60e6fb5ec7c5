"""The learning rate and the optimizer of one training: its length in epochs, its several models."""

from __future__ import annotations

from collections.abc import Iterable

import keras

from supcon_tf.models import contrastive
from supcon_tf.training import optimizers


def schedule_of_epochs(
    base_learning_rate: float,
    *,
    batch_size: int,
    num_examples: int,
    epochs: float,
    warmup_epochs: float = 0.0,
    **options,
) -> optimizers.WarmUpThenDecay:
    """Creates the learning rate of a training whose length is given in epochs.

    Args:
        base_learning_rate: Peak learning rate for a batch of 256 examples.
        batch_size: Examples per step, over all replicas.
        num_examples: Training examples in one epoch.
        epochs: Length of the training; `total_steps` of the result is its number of steps.
        warmup_epochs: Length of the linear warm-up.
        **options: Further keyword arguments of `WarmUpThenDecay`.
    """
    steps_per_epoch = num_examples / batch_size
    return optimizers.WarmUpThenDecay(
        optimizers.scaled_learning_rate(base_learning_rate, batch_size),
        total_steps=int(epochs * steps_per_epoch),
        warmup_steps=int(warmup_epochs * steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        **options,
    )


def change_schedule(
    optimizer: keras.optimizers.Optimizer, schedule: keras.optimizers.schedules.LearningRateSchedule
) -> None:
    """Gives another learning rate to an optimizer of `optimizer_of_parts`, before it is traced."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    optimizer.learning_rate = schedule


def optimizer_of_parts(
    name: str,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
    *,
    parts: Iterable[tuple[keras.Layer, bool]],
    decay_biases: bool = True,
    **options,
) -> keras.optimizers.Optimizer:
    """Creates the optimizer of several models that are trained together.

    Args:
        name: One of `optimizers.OPTIMIZERS`.
        learning_rate: A number or a schedule over steps.
        parts: Every built model, and whether its weights decay.
        decay_biases: Whether biases decay too.
        **options: Further keyword arguments of `create_optimizer`.

    Returns:
        The optimizer, with loss scaling if a layer computes in float16.
    """
    parts = list(parts)
    undecayed: list[keras.Variable] = []
    for model, is_decayed in parts:
        undecayed += (
            optimizers.undecayed_variables(model, decay_biases=decay_biases)
            if is_decayed
            else model.trainable_variables
        )
    optimizer = optimizers.create_optimizer(name, learning_rate, undecayed=undecayed, **options)
    # The layers decide, not the current policy: a loaded encoder computes as it was saved.
    if any(contrastive.computes_in_float16(model) for model, _ in parts):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer
