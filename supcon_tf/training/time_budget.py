"""How many training steps fit in a time: a step is timed without leaving a trace."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from supcon_tf import strategies
from supcon_tf.training import loop
from supcon_tf.training.steps import TrainStep

# How long to time steps, and the most steps for that; before it, a few warm up.
MEASURE_SECONDS, MOST_MEASURED_STEPS, WARM_UP_STEPS = 4.0, 200, 3
# Share of the time for training that is planned; the rest is for logs, checkpoints, slower steps.
PLANNED_SHARE = 0.95
# A training with fewer steps is refused.
FEWEST_STEPS = 10
# A forward pass takes about a third of a training step.
FORWARD_SHARE = 1 / 3
# What a stage takes at least, to start and to save.
SECONDS_PER_STAGE = 5.0
# The largest share of the epochs for the warm-up.
WARM_UP_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class StepTime:
    """What a training step takes in seconds: the first one, which is compiled, and a later one."""

    first: float
    later: float


def measure_step(
    strategy: tf.distribute.Strategy,
    step: TrainStep,
    create_batches: Callable[[int, int, int], tf.data.Dataset],
    *,
    jit_compile: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> StepTime:
    """Times a few training steps on the first batches, and undoes them.

    Models, optimizers and the state of random layers are afterwards what they were before, bit for
    bit. All workers return the chief's measurement.

    Args:
        strategy: The strategy under whose scope the step was created.
        step: The training step.
        create_batches: See `loop.train`.
        jit_compile: Whether to compile the step with XLA.
        clock: Returns the time in seconds.
    """

    def batches_of(context):
        return create_batches(0, context.input_pipeline_id, context.num_input_pipelines)

    with _undone(step):
        run_steps = loop.create_loop(strategy, step, jit_compile=jit_compile)
        iterator = iter(strategy.distribute_datasets_from_function(batches_of))

        def seconds_of(count):
            started = clock()
            done, metrics = run_steps(iterator, tf.constant(count))
            float(metrics["loss"])  # Waits for the device.
            return _of_chief(strategy, (clock() - started) / max(1, int(done)))

        first = seconds_of(1)
        later = seconds_of(WARM_UP_STEPS)
        count = int(min(MOST_MEASURED_STEPS, MEASURE_SECONDS / max(later, 1e-6)))
        return StepTime(first, seconds_of(count) if count > WARM_UP_STEPS else later)


def _of_chief(strategy, value):
    return float(strategies.broadcast_from_chief(strategy, [np.array([value], np.float32)])[0][0])


@contextlib.contextmanager
def _undone(step: TrainStep) -> Iterator[None]:
    """Restores what a checkpoint would save, in the way in which a resumed run restores it."""
    checkpoint = tf.train.Checkpoint(**step.models, **step.optimizers)
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint.write(os.path.join(folder, "state"))
        try:
            yield
        finally:
            checkpoint.read(path).assert_existing_objects_matched()


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """A training that fits in a time.

    Attributes:
        steps: Its steps; there may be none.
        epochs: Its length in epochs, as a number of few digits that makes at most these steps.
        longest_warmup_epochs: The longest warm-up that suits it.
        seconds_passed: The time that had passed before it.
        seconds_afterwards: The time that is set aside for what follows it.
        least_minutes: A time in which a short training would fit.
    """

    steps: int
    epochs: float
    longest_warmup_epochs: float
    seconds_passed: float
    seconds_afterwards: float
    least_minutes: int

    @property
    def is_too_short(self) -> bool:
        """Whether the training has fewer than `FEWEST_STEPS` steps."""
        return self.steps < FEWEST_STEPS


def plan_training(
    minutes: float,
    seconds_passed: float,
    measured: StepTime,
    *,
    steps_per_epoch: float,
    images_per_step: int,
    evaluated_images: int = 0,
    evaluation_interval_epochs: float = 0.0,
    stages_afterwards: int = 0,
    images_afterwards: float = 0.0,
    more_seconds_afterwards: float = 0.0,
) -> TrainingPlan:
    """Plans the training that fits in a time together with what follows it.

    Args:
        minutes: The time for everything.
        seconds_passed: How much of it has passed.
        measured: The time of a step.
        steps_per_epoch: Steps per epoch.
        images_per_step: Images (all views) of a step.
        evaluated_images: Images of an evaluation during the training; one takes place at its end.
        evaluation_interval_epochs: Epochs between two evaluations; 0 for only at the end.
        stages_afterwards: How many stages follow. Each compiles something, as the first step does.
        images_afterwards: How many images the encoder sees then, without training.
        more_seconds_afterwards: The time of anything else.
    """
    per_image = FORWARD_SHARE * measured.later / images_per_step
    per_stage = max(SECONDS_PER_STAGE, measured.first)
    afterwards = (1 + stages_afterwards) * per_stage  # One of them is saving the encoder.
    afterwards += images_afterwards * per_image + more_seconds_afterwards
    evaluation = evaluated_images * per_image
    per_step = measured.later
    if evaluation_interval_epochs:
        per_step += evaluation / max(1.0, evaluation_interval_epochs * steps_per_epoch)
    planned = PLANNED_SHARE * (60 * minutes - seconds_passed - afterwards - evaluation)
    steps = max(0, int(planned / per_step))
    epochs = _of_few_digits(steps / steps_per_epoch)
    least = (seconds_passed + afterwards + evaluation + 2 * FEWEST_STEPS * per_step) / 60
    return TrainingPlan(
        steps=steps,
        epochs=epochs,
        longest_warmup_epochs=float(f"{WARM_UP_SHARE * epochs:.3g}"),
        seconds_passed=seconds_passed,
        seconds_afterwards=afterwards,
        least_minutes=math.ceil(least),
    )


def _of_few_digits(epochs):
    """Rounds down; a training of several epochs loses less than a step in a thousand."""
    scale = 100 if epochs >= 10 else 10_000
    return int(epochs * scale) / scale if epochs * scale >= 1 else epochs
