"""The training loop: many steps per call, a log, checkpoints, a stop on NaN."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import tensorflow as tf

from supcon_tf import strategies
from supcon_tf.training import progress, signals, similarity
from supcon_tf.training.checkpoint import ADVICE, CheckpointFolder
from supcon_tf.training.metrics_log import MetricsLog

# Slow steps are called in smaller groups, so that the progress is shown this often.
UPDATE_SECONDS = 2.0


def create_loop(
    strategy: tf.distribute.Strategy,
    step,
    stop: tf.Variable | None = None,
    *,
    is_waiting: tf.Variable | None = None,
    jit_compile: bool = False,
) -> Callable:
    """A function (iterator, num_steps) -> (steps done, metrics of the last one), one graph.

    It ends early at a step whose loss or gradient is not finite, and after the first step that
    sees `stop` above 0 on any worker; what the replicas read is summed with the metrics, so
    that all workers end at the same step. The loop is outside `strategy.run`, because a
    collective inside a loop of the replica function fails under MirroredStrategy. With
    jit_compile XLA compiles the step, not the loop around it. While it waits for a batch,
    `is_waiting` is 1.
    """
    replica_step = tf.function(step, jit_compile=True) if jit_compile else step
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

    @tf.function
    def run_steps(iterator, num_steps):
        done, goes_on = 0, True
        values = tf.zeros([len(names) + 1])
        while goes_on and done < num_steps:
            per_replica = strategy.run(on_replica, args=(next_batch(iterator), stop.read_value()))
            values = strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None)
            metrics = dict(zip([*names, "stop"], tf.unstack(values), strict=True))
            is_finite = tf.math.is_finite(metrics["finite"]) & tf.math.is_finite(metrics["loss"])
            goes_on = is_finite & (metrics["stop"] == 0)
            done += 1
        return done, dict(zip([*names, "stop"], tf.unstack(values), strict=True))

    return run_steps


def create_stop_flag() -> tf.Variable:
    """A sign between this worker's loop and its other threads: 0.0, or 1.0 once assigned."""
    with tf.device("CPU:0"):
        return tf.Variable(0.0, trainable=False)


def train(
    *,
    strategy: tf.distribute.Strategy,
    step,
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
    explain_failure: Callable[[int, int], str] | None = None,
    jit_compile: bool = False,
    name: str = "train",
) -> dict[str, float]:
    """Trains from the newest checkpoint to total_steps and saves there.

    Args:
        strategy: under whose scope the step's models and optimizers were made.
        step: a ContrastiveStep or ClassifierStep.
        create_batches: (start step, host, number of hosts) -> the batches of that host's
            replicas.
        checkpoints: of the step's models and optimizers.
        log_folder: for metrics.jsonl and tensorboard/.
        steps_per_epoch: for the log.
        schedule: step -> learning rate, for the log.
        steps_per_loop: steps per call of the compiled loop, at most. The first call takes one
            step, and slow steps are called in smaller groups; neither changes the result.
        summary_interval_steps, save_interval_steps: how often to log and save.
        evaluate: measured every evaluate_interval_steps (0: never) and at the end.
        explain_failure: (first step, last step) -> what may have broken the input.
        jit_compile: compile the step with XLA; for one replica.
        name: shown before the progress bar.

    Returns:
        The last logged metrics; empty for a stage of no steps.

    Raises:
        ValueError: loss, gradient or a weight is not finite, or the input is broken.
        OSError: a checkpoint or the log cannot be written.
        signals.Stopped: a signal came, to this worker or another; the state is saved.
    """
    with progress.waiting(f"{name}: looking for a checkpoint"):
        at = checkpoints.restore_latest()
    _check_same_step(strategy, at)
    if at > total_steps:
        raise ValueError(
            f"{name} has reached step {at:,} in {checkpoints.folder}, but the flags ask for "
            f"{total_steps:,} steps. Ask for at least {at / steps_per_epoch:.4g} epochs, or use "
            "another --model_dir."
        )
    if at:
        print(f"{name}: continuing at step {at:,} of {total_steps:,}.", flush=True)
    log = MetricsLog(log_folder, start_step=at, is_chief=checkpoints.is_chief)
    stop = create_stop_flag()
    batches = strategy.distribute_datasets_from_function(
        lambda context: create_batches(at, context.input_pipeline_id, context.num_input_pipelines)
    )
    is_waiting = create_stop_flag()
    run_steps = create_loop(strategy, step, stop, is_waiting=is_waiting, jit_compile=jit_compile)
    iterator = iter(batches)
    intervals = (
        steps_per_loop, summary_interval_steps, save_interval_steps, evaluate_interval_steps,
    )  # fmt: skip
    bar = progress.Progress(name, total_steps, is_shown=checkpoints.is_chief)
    speed, shown = progress.Speed(step.global_batch_size), {}
    collapse = similarity.CollapseWatch()
    stopping = signals.deferred(lambda: stop.assign(1.0), lambda: bool(is_waiting.numpy()))
    with stopping, bar, contextlib.closing(log):
        while at < total_steps:
            to_next = (interval - at % interval for interval in intervals if interval)
            count = min(total_steps - at, *to_next, _most_steps(speed))
            speed.restart()
            with _explaining(explain_failure, at, count), _waiting_for_first_step(name, speed):
                done, values = run_steps(iterator, tf.constant(count))
                values = {key: float(value) for key, value in values.items()}
            at += int(done)
            _stop_if_not_finite(values, at, checkpoints)
            speed.count(int(done))
            metrics = step.describe({key: values[key] for key in step.metric_names})
            is_last = at == total_steps
            is_evaluated = evaluate and (is_last or _is_due(at, evaluate_interval_steps))
            if is_last or is_evaluated or _is_due(at, summary_interval_steps):
                metrics["learning_rate"] = float(schedule(at - 1))
                metrics["epoch"] = at / steps_per_epoch
                metrics |= speed.images_per_second()
                if is_evaluated:
                    metrics |= evaluate()
                log.write(at, metrics)
                if warning := collapse.look(metrics):
                    progress.say(f"{warning} {ADVICE}")
            shown |= metrics
            bar.update(at, shown, speed.seconds_left(total_steps - at))
            is_stopped = values["stop"] > 0
            if is_last or is_stopped or _is_due(at, save_interval_steps):
                log.sync()
                with progress.waiting(f"{name}: saving the checkpoint of step {at:,}"):
                    checkpoints.save(at)
            if is_stopped and not is_last:
                raise signals.stopped(f"{name} is saved at step {at:,} of {total_steps:,}")
    return log.last


def _most_steps(speed):
    """Steps per call that keep a person up to date: one until the speed is known.

    The first call compiles the step, so the second is the first that tells the speed.
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
            f"The workers would continue at different steps, {steps}: they do not see the same "
            "checkpoints. --model_dir must be one folder that every worker can read."
        )


@contextlib.contextmanager
def _explaining(explain_failure, at, count):
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
        f"Loss or gradient is not finite at step {step} (loss {values['loss']}); "
        f"{checkpoints.describe_last()}. {ADVICE}"
    )
