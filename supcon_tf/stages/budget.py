"""--time_budget_minutes: the length of pretraining that fits in a time."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf import strategies
from supcon_tf.cli import flag_rules, rules
from supcon_tf.data import sources
from supcon_tf.stages import choices, inputs, process, trainer
from supcon_tf.stages.knn import MAX_EXAMPLES
from supcon_tf.stages.stage_folder import StageFolder
from supcon_tf.training import checkpoint, loop, optimizers, progress, stage_optimizer, time_budget
from supcon_tf.training.steps import TrainStep

# What fitting a linear classifier takes for each example.
SECONDS_PER_FITTED_EXAMPLE = 3e-4


def schedule_of_budget(
    flags: FlagValues,
    strategy: tf.distribute.Strategy,
    folder: StageFolder,
    *,
    step: TrainStep,
    splits: sources.Splits,
    source: sources.Source,
    views: inputs.Views,
) -> optimizers.WarmUpThenDecay:
    """Sets --pretrain_epochs to what fits in --time_budget_minutes, and returns that schedule.

    The time of a step is measured. The time of the evaluations during pretraining and of the other
    stages of --mode is estimated and set aside.

    Args:
        flags: The parsed flags.
        strategy: The strategy of the run.
        folder: Its `measured` records the choice, so that a resumed run keeps it.
        step: The training step, whose optimizer gets the new schedule.
        splits: All examples of the dataset.
        source: The training examples that are used.
        views: How a training example becomes views.

    Raises:
        ValueError: If too few steps fit, or if the run was started without a budget.
    """
    if checkpoint.newest_record(folder.checkpoints):
        raise ValueError(
            f"{folder.path} was started without --time_budget_minutes. Leave it out to resume, or "
            "use another --model_dir."
        )
    create_batches = trainer.batches_of_views(flags, strategy, source, views)
    with (
        progress.waiting("pretrain: measuring the time of a step for --time_budget_minutes"),
        loop.explaining_failure(inputs.explain_failure(flags, source), 0, 1),
    ):
        measured = time_budget.measure_step(
            strategy, step, create_batches, jit_compile=flags.jit_compile
        )
    plan = _plan(flags, measured, splits, source, views.num_views)
    chosen = _texts_of_plan(flags, _plan_of_chief(strategy, plan.steps, plan.epochs), plan)
    lines = [choices.set_from_text(flags, name, text) for name, text in chosen.items()]
    print(
        f"pretrain: a step takes {measured.later:.3g} s. Of {flags.time_budget_minutes:g} minutes, "
        f"{plan.seconds_passed:.0f} s have passed and about {plan.seconds_afterwards:.0f} s are "
        f"set aside for what follows pretraining: {' '.join(lines)}"
    )
    folder.measured["chosen"] = folder.measured.get("chosen", {}) | chosen
    folder.measured["time_budget"] = {
        "minutes": flags.time_budget_minutes,
        "seconds_per_step": measured.later,
        "seconds_passed": plan.seconds_passed,
        "seconds_afterwards": plan.seconds_afterwards,
    }
    schedule = trainer.schedule_from_flags(flags, "pretrain", source.num_examples)
    stage_optimizer.change_schedule(step.optimizers["optimizer"], schedule)
    return schedule


def _plan(flags, measured, splits, source, num_views):
    train = source.num_examples
    held_out = splits.held_out.num_examples if splits.held_out else 0
    evaluated = min(train, MAX_EXAMPLES) + min(held_out, MAX_EXAMPLES) if held_out else 0
    following = flags.mode[flags.mode.index("pretrain") + 1 :]
    images = len(following) * (train + held_out)
    if "finetune" in following:  # A training step is as three forward passes.
        images += flags.finetune_epochs * train / time_budget.FORWARD_SHARE
    if "linear" in following and not flag_rules.is_linear_fitted(flags):
        images += flags.linear_epochs * train
    fitted = sum(stage in ("linear", "eval") for stage in following) * train
    return time_budget.plan_training(
        flags.time_budget_minutes,
        process.seconds_since_start(),
        measured,
        steps_per_epoch=train / flags.batch_size,
        images_per_step=flags.batch_size * num_views,
        evaluated_images=evaluated,
        evaluation_interval_epochs=flags.knn_interval_epochs,
        stages_afterwards=len(following),
        images_afterwards=images,
        more_seconds_afterwards=fitted * SECONDS_PER_FITTED_EXAMPLE,
    )


def _plan_of_chief(strategy, steps, epochs):
    """The chief's plan on every worker, whose clocks differ: steps, and epochs as a text."""
    plan = [np.array([value], np.float32) for value in (steps, epochs)]
    steps, epochs = (float(value[0]) for value in strategies.broadcast_from_chief(strategy, plan))
    return int(steps), f"{epochs:.6g}"


def _texts_of_plan(flags, plan_of_chief, plan):
    """Returns the flags that the plan sets, name to value; raises ValueError if it is too short."""
    steps, epochs = plan_of_chief
    if steps < time_budget.FEWEST_STEPS:
        raise ValueError(
            f"--time_budget_minutes={flags.time_budget_minutes:g} is too short to train: "
            f"{plan.seconds_passed:.0f} s have passed since the start, and about "
            f"{plan.seconds_afterwards:.0f} s are needed after pretraining. Use at least "
            f"--time_budget_minutes={plan.least_minutes}."
        )
    chosen = {"pretrain_epochs": epochs}
    if not rules.is_given(flags, "pretrain_warmup_epochs"):
        longest = float(flags["pretrain_warmup_epochs"].default or 0)
        warmup = min(longest, time_budget.WARM_UP_SHARE * float(epochs))
        chosen["pretrain_warmup_epochs"] = f"{warmup:.3g}"
    return chosen
