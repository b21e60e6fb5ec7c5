"""Defaults that depend on the data. Each choice is printed as the flag that would make it."""

from __future__ import annotations

import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf.cli import flag_rules, training_flags
from supcon_tf.data import defaults, sources
from supcon_tf.stages import starting_encoder

_UNLIMITED_PX = 1_000_000


def count_training_examples(flags: FlagValues, source: sources.Source) -> int:
    """Returns how many examples of the training split --num_images keeps."""
    return min(source.num_examples, flags.num_images or source.num_examples)


def choose_batch_size(
    flags: FlagValues, strategy: tf.distribute.Strategy, source: sources.Source, stage: str
) -> None:
    """Lowers the default of --batch_size to a small training split, and prints the choice.

    A batch size that the user gave is never changed, and nothing is chosen if there are not two
    examples for every replica: `inputs.check_batches` raises an error then.
    """
    count, replicas = count_training_examples(flags, source), strategy.num_replicas_in_sync
    if flag_rules.is_given(flags, "batch_size") or flags.batch_size <= count:
        return
    smaller = defaults.batch_size(count, replicas)
    if smaller == flags.batch_size:
        return
    print(
        f"{stage}: there are only {count:,} training images, fewer than the default batch size of "
        f"{flags.batch_size}; using --batch_size={smaller}."
    )
    set_flag(flags, "batch_size", smaller)


def choose_epochs(flags: FlagValues, source: sources.Source) -> None:
    """Sets --pretrain_epochs unless the user gave it, and prints an unusual choice."""
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
    set_flag(flags, "pretrain_epochs", float(epochs))


def choose_warmup(flags: FlagValues, stage: str) -> None:
    """Shortens the default warm-up to the length of the stage.

    `describe_learning_rate` tells the user.
    """
    own, name = training_flags.of_stage(flags, stage), _warmup_flag(stage)
    if not flag_rules.is_given(flags, name) and own.warmup_epochs > own.epochs:
        set_flag(flags, name, own.epochs)


def _warmup_flag(stage):
    return training_flags.NAMES[stage]["warmup_epochs"]


def set_flag(flags: FlagValues, name: str, value: float | str) -> None:
    """Sets a flag as if the user had given it. The rules between flags were checked before."""
    flags[name].value, flags[name].using_default_value = value, False


def describe_learning_rate(flags: FlagValues, stage: str, peak_learning_rate: float) -> str:
    """Describes the learning rate of a stage, and its warm-up if it has one."""
    name = _warmup_flag(stage)
    warmup, default = flags[name].value, flags[name].default
    text = f"learning rate {peak_learning_rate:g}"
    if not flags[name].present and default is not None and warmup < default:
        return (
            f"{text}, with the default warm-up of {default:g} epochs shortened to the stage's "
            f"{warmup:g} (set it with --{name})"
        )
    return f"{text} after {warmup:g} epochs of warm-up" if warmup else text


def image_size_from_flags(flags: FlagValues, source: sources.Source) -> int:
    """Returns --image_size, or the size of the data up to what the encoder is made for.

    The size of an encoder from a file is printed and used.

    Prints a line if this shrinks the images to less than half for the tiny encoder.
    """
    side = starting_encoder.side_of_encoder(flags)
    if flags.image_size:
        return flags.image_size
    if side:
        print(f"The encoder {flags.encoder} is made for {side} px: using --image_size={side}.")
        return side
    if flags.encoder != "tiny":
        return sources.default_image_size(source, largest=defaults.LARGEST_PX)
    size = sources.default_image_size(source, largest=defaults.LARGEST_TINY_PX)
    original = sources.default_image_size(source, largest=_UNLIMITED_PX)
    if 2 * size < original < _UNLIMITED_PX:
        larger = min(original, defaults.LARGEST_PX)
        print(
            f"Images of about {original} px are resized to {size} px for the tiny encoder. To keep "
            f"more detail, use --image_size={min(larger, 4 * size)}, or a larger encoder: "
            f"--encoder=resnet_v1 --resnet_depth=18 --image_size={larger} (slower)."
        )
    return size
