"""How a stage trains as the flags describe it: schedule, optimizer, warm start, training."""

from __future__ import annotations

import os

import keras
import tensorflow as tf

from supcon_tf.interop import warm_start
from supcon_tf.models import contrastive
from supcon_tf.stages import inputs
from supcon_tf.stages.run_directory import find_part
from supcon_tf.training import checkpoint, optimizers
from supcon_tf.training import loop as training


def schedule_from_flags(flags, stage: str, num_examples: int) -> optimizers.WarmUpThenDecay:
    """The learning rate of a stage; its total_steps is the length of the stage."""
    steps_per_epoch = num_examples / flags.batch_size
    return optimizers.WarmUpThenDecay(
        optimizers.scaled_learning_rate(
            flags[f"{stage}_base_learning_rate"].value, flags.batch_size
        ),
        decay=flags[f"{stage}_learning_rate_decay"].value,
        total_steps=int(flags[f"{stage}_epochs"].value * steps_per_epoch),
        warmup_steps=int(flags[f"{stage}_warmup_epochs"].value * steps_per_epoch),
        warmup_start=flags[f"{stage}_warmup_start"].value,
        steps_per_epoch=steps_per_epoch,
        decay_rate=flags[f"{stage}_decay_rate"].value,
        epochs_per_decay=flags[f"{stage}_epochs_per_decay"].value,
        boundary_epochs=flags[f"{stage}_decay_boundary_epochs"].value,
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
    optimizer = optimizers.create_optimizer(
        flags[f"{stage}_optimizer"].value,
        schedule,
        weight_decay=flags[f"{stage}_weight_decay"].value,
        undecayed=undecayed,
        rmsprop_epsilon=flags[f"{stage}_rmsprop_epsilon"].value,
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
