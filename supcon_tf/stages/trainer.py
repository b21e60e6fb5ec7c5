"""How a stage trains as the flags describe it: schedule, optimizer, warm start, training."""

from __future__ import annotations

import os

import keras
import tensorflow as tf

from supcon_tf.cli import training_flags
from supcon_tf.interop import warm_start
from supcon_tf.models import contrastive
from supcon_tf.stages import inputs
from supcon_tf.stages.run_directory import find_part
from supcon_tf.training import checkpoint, optimizers
from supcon_tf.training import loop as training


def schedule_from_flags(flags, stage: str, num_examples: int) -> optimizers.WarmUpThenDecay:
    """The learning rate of a stage; its total_steps is the length of the stage."""
    own = training_flags.of_stage(flags, stage)
    steps_per_epoch = num_examples / flags.batch_size
    return optimizers.WarmUpThenDecay(
        optimizers.scaled_learning_rate(own.base_learning_rate, flags.batch_size),
        decay=own.learning_rate_decay,
        total_steps=int(own.epochs * steps_per_epoch),
        warmup_steps=int(own.warmup_epochs * steps_per_epoch),
        warmup_start=own.warmup_start,
        steps_per_epoch=steps_per_epoch,
        decay_rate=own.decay_rate,
        epochs_per_decay=own.epochs_per_decay,
        boundary_epochs=own.decay_boundary_epochs,
    )


def optimizer_from_flags(flags, stage: str, schedule, *, parts) -> keras.optimizers.Optimizer:
    """The optimizer of a stage, which does the weight decay too.

    Args:
        parts: (model, whether it decays) for every built model that the stage trains.
    """
    undecayed = []
    for model, is_decayed in parts:
        undecayed += (
            optimizers.undecayed_variables(model, decay_biases=flags.use_bias_weight_decay)
            if is_decayed
            else model.trainable_variables
        )
    own = training_flags.of_stage(flags, stage)
    optimizer = optimizers.create_optimizer(
        own.optimizer,
        schedule,
        weight_decay=own.weight_decay,
        undecayed=undecayed,
        rmsprop_epsilon=own.rmsprop_epsilon,
    )
    # Not by --precision: a loaded encoder computes as it was saved.
    if any(contrastive.computes_in_float16(model) for model, _ in parts):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def warm_start_part(flags, part: str, model: keras.Model) -> None:
    """Copies a part of --reference_ckpt into the model and says what it lacked."""
    path = find_part(flags.reference_ckpt, part)
    missing = warm_start.copy_weights(
        path, model, ignore_missing=flags.ignore_missing_checkpoint_vars
    )
    print(f"Weights of {model.name} from {path}.")
    if missing:
        print(f"It lacks {len(missing)}, which keep their initial values:")
        print("\n".join(f"  {name}" for name in missing))


def train_stage(
    flags, strategy, folder, *, step, schedule, source, evaluation=None, **batch_options
):
    """Trains a stage from its newest checkpoint to its end; returns the last log line.

    Args:
        folder: the stage's; checkpoints and the log go there.
        step, schedule: what `training.train` takes.
        source: the training split.
        evaluation: (function, interval in steps) to measure on the way, or None.
        **batch_options: what `create_train_batches` takes.
    """
    evaluate, evaluate_interval_steps = evaluation or (None, 0)
    checkpoints = checkpoint.CheckpointFolder(
        folder.file("checkpoints"),
        max_to_keep=flags.max_checkpoints_to_keep,
        record=_record(flags, folder),
        check_record=folder.check_checkpoint,
        is_chief=folder.is_chief,
        **step.models,
        **step.optimizers,
    )
    return training.train(
        strategy=strategy,
        step=step,
        create_batches=lambda start_step, host, num_hosts: inputs.train_batches_from_flags(
            flags,
            strategy,
            source,
            start_step=start_step,
            host=host,
            num_hosts=num_hosts,
            **batch_options,
        ),
        checkpoints=checkpoints,
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
        name=folder.stage,
    )


def _record(flags, folder):
    """What a checkpoint notes beside the state. Bits also depend on versions and threads."""
    threads = tf.config.threading.get_intra_op_parallelism_threads() or _count_cpus()
    return {
        "seed": flags.seed,
        **folder.record(),
        "environment": {
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "cpu_threads": threads,
        },
    }


def _count_cpus():
    """Those that this process may use, which is how many threads TensorFlow starts."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS.
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
