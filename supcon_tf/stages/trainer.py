"""Training as the flags describe it: the schedule, the optimizer, the warm start, the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import keras
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf import strategies
from supcon_tf.cli import flag_rules, training_flags
from supcon_tf.data import sources
from supcon_tf.interop import warm_start
from supcon_tf.stages import inputs
from supcon_tf.stages.run_directory import find_part
from supcon_tf.stages.stage_folder import StageFolder
from supcon_tf.training import (
    checkpoint,
    loop,
    optimizers,
    stage_optimizer,
)
from supcon_tf.training.steps import TrainStep


def schedule_from_flags(
    flags: FlagValues, stage: str, num_examples: int
) -> optimizers.WarmUpThenDecay:
    """Creates the learning rate schedule of a stage; its `total_steps` is the stage's length."""
    own = training_flags.of_stage(flags, stage)
    return stage_optimizer.schedule_of_epochs(
        own.base_learning_rate,
        batch_size=flags.batch_size,
        num_examples=num_examples,
        epochs=own.epochs,
        warmup_epochs=own.warmup_epochs,
        warmup_start=own.warmup_start,
        decay=own.learning_rate_decay,
        decay_rate=own.decay_rate,
        epochs_per_decay=own.epochs_per_decay,
        boundary_epochs=own.decay_boundary_epochs,
    )


def optimizer_from_flags(
    flags: FlagValues,
    stage: str,
    schedule: optimizers.WarmUpThenDecay,
    *,
    parts: Iterable[tuple[keras.Model | keras.Layer, bool]],
) -> keras.optimizers.Optimizer:
    """Creates the optimizer of a stage, which also applies the weight decay.

    Args:
        flags: The parsed flags.
        stage: "pretrain", "linear" or "finetune".
        schedule: The learning rate.
        parts: Every built model that the stage trains, and whether its weights decay.
    """
    own = training_flags.of_stage(flags, stage)
    return stage_optimizer.optimizer_of_parts(
        own.optimizer,
        schedule,
        parts=parts,
        decay_biases=flags.use_bias_weight_decay,
        weight_decay=own.weight_decay,
        rmsprop_epsilon=own.rmsprop_epsilon,
    )


def warm_start_part(flags: FlagValues, part: str, model: keras.Model) -> None:
    """Copies a part of --reference_ckpt into a model, and prints the weights it did not have.

    Args:
        flags: The parsed flags.
        part: "encoder", "projection_head" or "classifier".
        model: The model to copy into.
    """
    path = find_part(flags.reference_ckpt, part)
    missing = warm_start.copy_weights(
        path, model, ignore_missing=flags.ignore_missing_checkpoint_vars
    )
    print(f"Loaded the weights of {model.name} from {path}.")
    if missing:
        print(f"{len(missing)} weights are not in that file and keep their initial values:")
        print("\n".join(f"  {name}" for name in missing))


def batches_of_views(
    flags: FlagValues, strategy: tf.distribute.Strategy, source: sources.Source, views: inputs.Views
) -> Callable[[int, int, int], tf.data.Dataset]:
    """Returns a function (start step, host, number of hosts) -> that host's training batches."""

    def create_batches(start_step, host, num_hosts):
        return inputs.train_batches_from_flags(
            flags, strategy, source, views, start_step=start_step, host=host, num_hosts=num_hosts
        )

    return create_batches


def train_stage(
    flags: FlagValues,
    strategy: tf.distribute.Strategy,
    folder: StageFolder,
    *,
    step: TrainStep,
    schedule: optimizers.WarmUpThenDecay,
    source: sources.Source,
    views: inputs.Views,
    create_batches: Callable[[int, int, int], tf.data.Dataset] | None = None,
    evaluation: tuple[Callable[[], dict[str, float]], int] | None = None,
) -> dict[str, float]:
    """Trains a stage from its newest checkpoint to its end.

    Args:
        flags: The parsed flags.
        strategy: The strategy under whose scope the step was created.
        folder: The folder of the stage, for checkpoints and logs.
        step: The training step.
        schedule: The learning rate, and the length of the stage.
        source: The training examples.
        views: How a training example becomes views.
        create_batches: Batches of something other than views, as a function of start step, host and
            number of hosts.
        evaluation: A function that measures the model during training, and how often to call it,
            in steps.

    Returns:
        The last logged metrics.
    """
    evaluate, evaluate_interval_steps = evaluation or (None, 0)
    return loop.train(
        strategy=strategy,
        step=step,
        create_batches=create_batches or batches_of_views(flags, strategy, source, views),
        checkpoints=_checkpoints(flags, folder, step),
        log_folder=folder.path,
        total_steps=schedule.total_steps,
        steps_per_epoch=schedule.steps_per_epoch,
        schedule=schedule,
        steps_per_loop=flags.steps_per_loop,
        summary_interval_steps=flags.summary_interval_steps,
        save_interval_steps=flags.save_interval_steps,
        evaluate=evaluate,
        evaluate_interval_steps=evaluate_interval_steps,
        explain_failure=inputs.explain_failure(flags, source),
        jit_compile=flags.jit_compile,
        # Reading a batch twice would take it from the workers of a data service.
        shows_views=flags.data_service is None and create_batches is None,
        profile_steps=profile_steps_from_flags(flags, folder, schedule),
        name=folder.stage,
    )


def profile_steps_from_flags(
    flags: FlagValues, folder: StageFolder, schedule: optimizers.WarmUpThenDecay
) -> tuple[int, int] | None:
    """Returns the steps of this stage that --profile_steps profiles, or None.

    Raises:
        ValueError: If the stage ends before them, or resumes after them.
    """
    if flags.profile_steps is None or flag_rules.profiled_stage(flags) != folder.stage:
        return None
    first, last = flags.profile_steps
    given, total = f"--profile_steps={first},{last}", schedule.total_steps
    if last > total:
        raise ValueError(
            f"{given} is outside of {folder.stage}, which has {total:,} steps. Use for example "
            f"--profile_steps={max(total // 2 - 5, 0)},{min(total // 2 + 5, total)}, or leave it "
            "out."
        )
    reached = steps_done(folder)
    if reached >= last:
        raise ValueError(
            f"{given} is outside of what is left of {folder.stage}, which resumes at step "
            f"{reached:,} of {total:,}. Name later steps, or leave it out."
        )
    return max(first, reached), last


def steps_done(folder: StageFolder) -> int:
    """Returns the step of the newest checkpoint of a stage, or 0."""
    return (checkpoint.newest_record(folder.checkpoints) or {"step": 0})["step"]


def _checkpoints(flags, folder, step):
    """The checkpoints of a stage. Equal bits also depend on versions and number of threads."""
    threads = tf.config.threading.get_intra_op_parallelism_threads() or strategies.count_cpus()
    environment = {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "cpu_threads": threads,
    }
    return checkpoint.CheckpointFolder(
        folder.checkpoints,
        max_to_keep=flags.max_checkpoints_to_keep,
        record={"seed": flags.seed, **folder.record(), "environment": environment},
        check_record=folder.check_checkpoint,
        is_chief=folder.is_chief,
        **step.models,
        **step.optimizers,
    )
