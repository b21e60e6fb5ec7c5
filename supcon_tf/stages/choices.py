"""What a run chooses from the data where no flag says it, printed as the flag that would."""

from __future__ import annotations

from supcon_tf.cli import flag_rules, training_flags
from supcon_tf.data import defaults, sources


def count_training_examples(flags, source: sources.Source) -> int:
    """How many examples of the training split --num_images leaves."""
    return min(source.num_examples, flags.num_images or source.num_examples)


def choose_batch_size(flags, strategy, source: sources.Source, stage: str) -> None:
    """Lowers the default of --batch_size to a small training split, and says so.

    Nothing is chosen where every replica could not get two examples; `inputs.check_batches`
    refuses that, and a batch that somebody gave.
    """
    count, replicas = count_training_examples(flags, source), strategy.num_replicas_in_sync
    if flag_rules.is_given(flags, "batch_size") or flags.batch_size <= count:
        return
    smaller = count // replicas * replicas
    if smaller < 2 * replicas:
        return
    print(
        f"{stage}: {count:,} training images are fewer than the default batch of "
        f"{flags.batch_size}; using --batch_size={smaller}."
    )
    _set(flags, "batch_size", smaller)


def choose_epochs(flags, source: sources.Source) -> None:
    """Sets --pretrain_epochs if nobody gave it, and says so where it is not the usual default."""
    if flag_rules.is_given(flags, "pretrain_epochs"):
        return
    count = count_training_examples(flags, source)
    epochs = defaults.pretrain_epochs(flags.dataset, count, flags.batch_size)
    if epochs == flags.pretrain_epochs:
        return
    steps_per_epoch = count / flags.batch_size
    print(
        f"pretrain: {count:,} training images make {steps_per_epoch:,.1f} steps per epoch, so "
        f"{flags.pretrain_epochs:g} epochs would be only "
        f"{int(flags.pretrain_epochs * steps_per_epoch):,} steps; using --pretrain_epochs={epochs}."
    )
    _set(flags, "pretrain_epochs", float(epochs))


def choose_warmup(flags, stage: str) -> None:
    """Cuts the default warm-up to the length of the stage.

    The line that describes the schedule says so, by `describe_learning_rate`.
    """
    name, epochs = (
        training_flags.NAMES[stage]["warmup_epochs"],
        training_flags.of_stage(flags, stage).epochs,
    )
    if not flag_rules.is_given(flags, name) and flags[name].value > epochs:
        _set(flags, name, epochs)


def _set(flags, name, value):
    """Sets a flag as if it had been given; the rules between flags were checked before."""
    flags[name].value, flags[name].using_default_value = value, False


def describe_learning_rate(flags, stage: str, peak_learning_rate: float) -> str:
    """The learning rate of a stage in words, with its warm-up where there is one."""
    name = training_flags.NAMES[stage]["warmup_epochs"]
    warmup, default = flags[name].value, flags[name].default
    text = f"learning rate {peak_learning_rate:g}"
    if not flags[name].present and warmup < default:
        return (
            f"{text}, warm-up cut from the default of {default:g} epochs to the {warmup:g} of the "
            f"stage (--{name} sets it)"
        )
    return f"{text} after {warmup:g} epochs of warm-up" if warmup else text
