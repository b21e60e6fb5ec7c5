"""The training loop: many steps per call, logging, checkpoints, and a stop on NaN."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import tensorflow as tf

from supcon_tf import strategies
from supcon_tf.storage.run_paths import TENSORBOARD, run_path
from supcon_tf.training import progress, signals, similarity, view_images
from supcon_tf.training.checkpoint import ADVICE, CheckpointFolder
from supcon_tf.training.metrics_log import MetricsLog
from supcon_tf.training.profiling import Profiler
from supcon_tf.training.steps import TrainStep

# Slow steps are called in smaller groups, so that the progress is updated about this often.
UPDATE_SECONDS = 2.0
# Shorter trainings, which are trials, draw no views: that takes about as long as ten small steps.
LEAST_STEPS_WITH_VIEWS = 20


def create_loop(
    strategy: tf.distribute.Strategy,
    step: TrainStep,
    stop: tf.Variable | None = None,
    *,
    is_waiting: tf.Variable | None = None,
    jit_compile: bool = False,
) -> Callable:
    """Returns a function (iterator, num_steps) -> (steps done, metrics of the last), one graph.

    It is traced without AutoGraph, which takes half the time: a step must use `tf.cond` and
    `tf.while_loop` instead of Python's `if` and `while` on tensors, as in Keras' `fit`.

    The loop ends early at a step whose loss or gradient is not finite, and after the first step
    that reads `stop` above 0 on any worker. What the replicas read is summed with the metrics, so
    that all workers end at the same step. The loop is outside `strategy.run`, because a
    collective inside a loop of the replica function fails under MirroredStrategy.

    Args:
        strategy: The strategy under whose scope the step was created.
        step: The training step.
        stop: Ends the loop when above 0; see `create_stop_flag`.
        is_waiting: Is 1 while the loop waits for a batch; see `create_stop_flag`.
        jit_compile: Whether to compile the step, but not the loop around it, with XLA.
    """
    replica_step = step
    if jit_compile:
        replica_step = tf.function(step, jit_compile=True, autograph=False)
    names = [*step.metric_names, "finite"]
    stop = create_stop_flag() if stop is None else stop
    is_waiting = create_stop_flag() if is_waiting is None else is_waiting

    def next_batch(iterator):
        with tf.control_dependencies([is_waiting.assign(1.0)]):
            batch = next(iterator)
        with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
            is_waiting.assign(0.0)
        return batch

    def on_replica(batch, stop):
        metrics = replica_step(batch)
        values = [tf.cast(metrics[name], tf.float32) for name in names]
        return tf.stack([*values, stop])  # One exchange for all.

    def as_metrics(values):
        return dict(zip([*names, "stop"], tf.unstack(values), strict=True))

    @tf.function(autograph=False)
    def run_steps(iterator, num_steps):
        def is_next_step_due(done, values):
            metrics = as_metrics(values)
            is_finite = tf.math.is_finite(metrics["finite"]) & tf.math.is_finite(metrics["loss"])
            return (done < num_steps) & is_finite & (metrics["stop"] == 0)

        def take_step(done, _):
            per_replica = strategy.run(on_replica, args=(next_batch(iterator), stop.read_value()))
            values = strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None)
            return done + 1, values

        start = tf.constant(0), tf.zeros([len(names) + 1])  # Finite metrics, and no signal.
        done, values = tf.while_loop(is_next_step_due, take_step, start)
        return done, as_metrics(values)

    return run_steps


def create_stop_flag() -> tf.Variable:
    """Creates a variable for signals between the loop and other threads, initially 0.0."""
    with tf.device("CPU:0"):
        return tf.Variable(0.0, trainable=False)


def train(
    *,
    strategy: tf.distribute.Strategy,
    step: TrainStep,
    create_batches: Callable[[int, int, int], tf.data.Dataset],
    checkpoints: CheckpointFolder,
    log_folder: str,
    total_steps: int,
    steps_per_epoch: float,
    schedule: Callable,
    steps_per_loop: int = 10,
    summary_interval_steps: int = 10,
    save_interval_steps: int = 100,
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluate_interval_steps: int = 0,
    explain_failure: Callable[[int, int], str | None] | None = None,
    jit_compile: bool = False,
    shows_views: bool = False,
    profile_steps: tuple[int, int] | None = None,
    name: str = "train",
) -> dict[str, float]:
    """Trains from the newest checkpoint to `total_steps` and saves a checkpoint there.

    Args:
        strategy: The strategy under whose scope the step was created.
        step: The training step.
        create_batches: (start step, host, number of hosts) -> the batches of that host's
            replicas.
        checkpoints: The checkpoints of the step's models and optimizers.
        log_folder: Where to write metrics.jsonl and tensorboard/.
        total_steps: The step at which to end.
        steps_per_epoch: Steps per epoch, for the log.
        schedule: Step -> learning rate, for the log.
        steps_per_loop: Maximum number of steps per call of the compiled loop. The first call
            takes one step, and slow steps are called in smaller groups; neither changes the
            result.
        summary_interval_steps: Steps between two log lines.
        save_interval_steps: Steps between two checkpoints.
        evaluate: Returns further metrics; called every `evaluate_interval_steps` and at the end.
        evaluate_interval_steps: Steps between two evaluations; 0 for only at the end.
        explain_failure: (first step, last step) -> which input of these steps is broken, or None.
        jit_compile: Whether to compile the step with XLA; only for one replica.
        shows_views: Whether to write a picture of views of the first batch for TensorBoard, if
            there are `LEAST_STEPS_WITH_VIEWS` steps or more.
        profile_steps: The steps (a, b) between which to profile the training.
        name: The name of the stage, for messages and for TensorBoard.

    Returns:
        The last logged metrics; {} for a stage without steps.

    Raises:
        ValueError: If loss, gradient or a weight is not finite, or if the input is broken.
        OSError: If a checkpoint or the log cannot be written.
        signals.Stopped: If this worker or another received a signal. The state is saved.
    """
    at = _restore(strategy, checkpoints, name, total_steps, steps_per_epoch)
    log = MetricsLog(log_folder, stage=name, start_step=at, is_chief=checkpoints.is_chief)
    profiler = Profiler(
        run_path(log_folder, TENSORBOARD), profile_steps, is_chief=checkpoints.is_chief
    )
    shows_views &= at == 0 and total_steps >= LEAST_STEPS_WITH_VIEWS and checkpoints.is_chief
    with explaining_failure(explain_failure, at, 1):
        iterator = _distribute_batches(strategy, create_batches, at, log if shows_views else None)
    stop, is_waiting = create_stop_flag(), create_stop_flag()
    run_steps = create_loop(strategy, step, stop, is_waiting=is_waiting, jit_compile=jit_compile)
    bar = progress.Progress(name, total_steps, is_shown=checkpoints.is_chief)
    speed = progress.Speed(step.global_batch_size)
    collapse = similarity.CollapseWatch()
    intervals = (
        steps_per_loop, summary_interval_steps, save_interval_steps, evaluate_interval_steps,
    )  # fmt: skip
    shown: dict[str, float] = {}
    stopping = signals.deferred(lambda: stop.assign(1.0), lambda: bool(is_waiting.numpy()))
    with stopping, bar, profiler, contextlib.closing(log):
        while at < total_steps:
            count = min(_steps_to_next(at, (total_steps, *intervals)), _most_steps(speed))
            count = profiler.steps_to_next(at, count)
            speed.restart()
            with (
                profiler.tracing(at),
                explaining_failure(explain_failure, at, count),
                _waiting_for_first_step(name, speed),
            ):
                done, values = run_steps(iterator, tf.constant(count))
                values = {key: float(value) for key, value in values.items()}
            at += int(done)
            _stop_if_not_finite(values, at, checkpoints)
            speed.count(int(done))

            metrics = step.describe({key: values[key] for key in step.metric_names})
            is_last, is_stopped = at == total_steps, values["stop"] > 0
            is_evaluated = evaluate and (is_last or _is_due(at, evaluate_interval_steps))
            if is_last or is_evaluated or _is_due(at, summary_interval_steps):
                metrics["learning_rate"] = float(schedule(at - 1))
                metrics["epoch"] = at / steps_per_epoch
                metrics |= speed.images_per_second()
                if evaluate and is_evaluated:
                    metrics |= evaluate()
                log.write(at, metrics)
                if warning := collapse.look(metrics):
                    progress.say(f"{warning} {ADVICE}")
            shown |= metrics
            bar.update(at, shown, speed.seconds_left(total_steps - at))

            if is_last or is_stopped or _is_due(at, save_interval_steps):
                _save_checkpoint(checkpoints, log, at, name)
            if is_stopped and not is_last:
                raise signals.stopped(f"{name} is saved at step {at:,} of {total_steps:,}")
    return log.last


def _restore(strategy, checkpoints, name, total_steps, steps_per_epoch):
    """Restores the newest checkpoint and returns its step, which all workers must share."""
    with progress.waiting(f"{name}: looking for a checkpoint"):
        at = checkpoints.restore_latest()
    _check_same_step(strategy, at)
    if at > total_steps:
        raise ValueError(
            f"{name} has reached step {at:,} in {checkpoints.folder}, but the flags ask for only "
            f"{total_steps:,} steps. Ask for at least {at / steps_per_epoch:.4g} epochs, or use "
            "another --model_dir."
        )
    if at:
        progress.inform(f"{name}: resuming at step {at:,} of {total_steps:,}.")
    return at


def _distribute_batches(strategy, create_batches, at, log=None):
    """Returns an iterator over the batches from step `at` on, a part for each replica.

    With a log, the views of the first batch are drawn for it. The dataset is read for that before
    it is distributed, which takes a fraction of the time that a second one would take to build.
    """

    def of_host(context):
        host = context.input_pipeline_id
        dataset = create_batches(at, host, context.num_input_pipelines)
        if log is not None and host == 0:
            with progress.waiting("Drawing views of the first batch"):
                log.write_image("views", view_images.draw_views(next(iter(dataset))))
        return dataset

    return iter(strategy.distribute_datasets_from_function(of_host))


def _save_checkpoint(checkpoints, log, at, name):
    """Saves a checkpoint, after the log has everything up to it."""
    log.sync()
    with progress.waiting(f"{name}: saving the checkpoint of step {at:,}"):
        checkpoints.save(at)


def _steps_to_next(at, intervals):
    """Returns the number of steps from `at` to the next multiple of an interval that is not 0."""
    return min(interval - at % interval for interval in intervals if interval)


def _most_steps(speed):
    """Returns the number of steps per call that keeps the progress up to date.

    It is one until the speed is known: the first call compiles the step, so only the second
    measures the speed.
    """
    if not speed.seconds_per_step:
        return 1
    return max(1, int(UPDATE_SECONDS / speed.seconds_per_step))


def _waiting_for_first_step(name, speed):
    if speed.has_compiled:
        return contextlib.nullcontext()
    return progress.waiting(f"{name}: compiling the training step and reading the first batch")


def _check_same_step(strategy, step):
    steps = strategies.gather_from_workers(strategy, step)
    if len(set(steps)) > 1:
        raise ValueError(
            f"The workers would resume at different steps, {steps}, because they do not see the "
            "same checkpoints. --model_dir must be a shared folder that every worker can read."
        )


@contextlib.contextmanager
def explaining_failure(
    explain_failure: Callable[[int, int], str | None] | None, at: int, count: int
) -> Iterator[None]:
    """Turns an input error within the block into a ValueError that names the broken input.

    Args:
        explain_failure: (first step, last step) -> which input of these steps is broken, or None.
        at: The first step of the block.
        count: How many steps it takes.

    Raises:
        ValueError: If TensorFlow cannot read or decode the input.
    """
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as error:
        reason = explain_failure(at, at + count - 1) if explain_failure else None
        where = f"Step {at + 1}" if count == 1 else f"A step between {at + 1} and {at + count}"
        raise ValueError(f"{where} failed: {reason or error.message}") from error


def _is_due(step, interval):
    return bool(interval) and step % interval == 0


def _stop_if_not_finite(values, step, checkpoints):
    if math.isfinite(values["finite"]) and math.isfinite(values["loss"]):
        return
    raise ValueError(
        f"The loss or a gradient is not finite at step {step} (loss {values['loss']}); "
        f"{checkpoints.describe_last()}. {ADVICE}"
    )
