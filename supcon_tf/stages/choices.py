"""Defaults that depend on the data. Each choice is printed as the flag that would make it."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf import strategies
from supcon_tf.cli import command_line, flag_rules, rules, training_flags
from supcon_tf.data import data_identity, defaults, image_facts, sources, streams
from supcon_tf.stages import starting_encoder
from supcon_tf.stages.stage_folder import read_record
from supcon_tf.storage import encoder_files
from supcon_tf.training import memory

_UNLIMITED_PX = 1_000_000
# The flags that the table chooses, and those that --time_budget_minutes chooses.
TABLE_FLAGS = tuple(field.name for field in dataclasses.fields(defaults.DataDefaults))
BUDGET_FLAGS = ("pretrain_epochs", "pretrain_warmup_epochs")


def choose_from_data(
    flags: FlagValues, strategy: tf.distribute.Strategy, source: sources.Source, stage: str
) -> dict[str, str]:
    """Sets the flags of pretraining that nobody gave, by the table of `data/defaults.py`.

    Prints them as one line. A run that was started before keeps what was chosen then. Nothing is
    chosen with a recipe, which is complete, or for the digits and TensorFlow Datasets.

    Args:
        flags: The parsed flags.
        strategy: The strategy of the run.
        source: The training split.
        stage: "pretrain" or "preview", whose flags are printed.

    Returns:
        Name and value, as text, of every flag that was chosen now or when the run was started.
    """
    chosen = _recorded_choices(flags, source)
    when = f"Chosen when the run in {command_line.model_dir(flags)} was started"
    if not chosen:
        if (
            flags.recipe
            or isinstance(source, streams.StreamSource)
            or flags.dataset == defaults.DIGITS
        ):
            return {}
        facts = image_facts.facts_of(source, count_training_examples(flags, source))
        chosen = _choose_by_table(flags, strategy, facts)
        when = f"Chosen for {facts.describe()}"
    shown = set(command_line.STAGE_FLAGS[stage])
    lines = [set_from_text(flags, name, text) for name, text in chosen.items()]
    flag_rules.check_classifier(flags.flag_values_dict())
    lines = [line for name, line in zip(chosen, lines, strict=True) if name in shown]
    if lines:
        print(f"{when}: {' '.join(lines)}")
    return chosen


def _recorded_choices(flags, source):
    """Returns what was chosen for the run in --model_dir, without the flags that are given now."""
    record = read_record(flags, "pretrain")
    if not record:
        return {}
    is_same = record.get("data") in (None, data_identity.identity_of(source).digest)
    if not is_same and not flags.override_flags:
        return {}  # What is chosen for other data, which is refused or trained from the start.
    texts = record.get("measured", {}).get("chosen")
    if texts is None:  # Only a checkpoint is left of the record.
        lines = dict(line.lstrip("-").partition("=")[::2] for line in record["flags"])
        lines |= {name: "false" for name in TABLE_FLAGS if f"no{name}" in lines}
        names = (*TABLE_FLAGS, *BUDGET_FLAGS)
        texts = {name: lines[name] or "true" for name in names if name in lines}
    kept = {name: text for name, text in texts.items() if not rules.is_given(flags, name)}
    is_supcon_alone = (
        rules.is_given(flags, "cross_entropy_weight") and not flags.cross_entropy_weight
    )
    if is_supcon_alone or "num_views" in _fixed_by_other_flags(flags):
        kept.pop("num_views", None)  # One view would not do with what is given now.
    if is_supcon_alone:
        kept.pop("pretrain_label_smoothing", None)
    return kept


def _choose_by_table(flags, strategy, facts):
    given = {
        name: flags[name].value
        for name in TABLE_FLAGS
        if rules.is_given(flags, name) and flags[name].value is not None
    }
    kept = given | _fixed_by_other_flags(flags)
    replicas = strategy.num_replicas_in_sync
    starts_trained = bool(flags.reference_ckpt or flags.encoder_weights)
    options = {
        "num_replicas": replicas,
        "is_cross_entropy": flags.loss == "cross_entropy",
        "is_many_measured": flags.label_type == "class"
        and flags.pretrain_optimizer == "adam"
        and not (starts_trained or flags.stop_gradient_before_classifier),
    }
    chosen = defaults.choose(facts, kept, **options)
    if chosen.encoder == defaults.LARGE.encoder and "encoder" not in kept:
        reason = defaults.why_not_large(
            facts, _this_machine(), chosen, longest_hours=_hours(flags.time_budget_minutes)
        )
        # All workers do what the chief can do.
        is_carried = np.array([reason is None], np.float32)
        if not strategies.broadcast_from_chief(strategy, [is_carried])[0]:
            chosen = defaults.choose(facts, kept, is_large_carried=False, **options)
            print(f"{reason or 'The chief is too small for that'}: choosing a smaller network.")
    texts = {name: text for name, text in chosen.texts().items() if name not in kept}
    if flags.time_budget_minutes is not None:
        texts.pop("pretrain_epochs", None)  # Chosen once the time per step is measured.
    return texts


def _fixed_by_other_flags(flags):
    """Returns the settings that the given flags do not leave open, name to value."""
    fixed = {}
    if flags.reference_ckpt or flags.encoder_weights:  # The weights decide the network.
        fixed |= {name: flags[name].value for name in ("encoder", "resnet_depth", "resnet_width")}
    has_no_classes = not flags.use_labels or flags.label_type == "real"
    if flags.loss != "supcon" or has_no_classes:  # These losses are used alone.
        fixed["cross_entropy_weight"] = flags.cross_entropy_weight
    if flags.loss != "supcon" or not flags.use_labels or flags.stop_gradient_before_classifier:
        fixed["num_views"] = flags.num_views
    depends_on_views = flags.contrast_mode != "all_views" or flags.positives_cap != -1
    if flags.queue_size or depends_on_views or flags.spread_weight:
        fixed["num_views"] = flags.num_views
    if flags.pretrain_optimizer != "adam":  # The rates of the table are those of Adam.
        fixed["pretrain_base_learning_rate"] = flags.pretrain_base_learning_rate
    if flag_rules.has_own_layers(flags.encoder):
        fixed |= {name: flags[name].value for name in ("resnet_depth", "resnet_width")}
    if encoder_files.is_encoder_path(flags.encoder):
        fixed["image_size"] = flags.image_size  # The file knows it.
    return fixed


def _hours(minutes):
    return None if minutes is None else minutes / 60


def _this_machine():
    kinds = ("GPU", "TPU")
    return defaults.Machine(
        has_accelerator=any(tf.config.list_logical_devices(kind) for kind in kinds),
        num_cpus=strategies.count_cpus(),
        memory_bytes=memory.available_bytes(),
    )


def set_from_text(flags: FlagValues, name: str, text: str) -> str:
    """Sets a flag to the value of a text; returns the flag as a user types it."""
    set_flag(flags, name, flags[name].parser.parse(text))
    if flags[name].boolean:
        return flags[name].serialize()
    return f"--{name}={text}"


def count_training_examples(flags: FlagValues, source: sources.Source) -> int:
    """Returns how many examples --num_images and --images_per_class keep of the training split."""
    per_class = flags.images_per_class * len(source.class_names)
    return min(source.num_examples, flags.num_images or per_class or source.num_examples)


def choose_batch_size(
    flags: FlagValues, strategy: tf.distribute.Strategy, source: sources.Source, stage: str
) -> None:
    """Lowers the default of --batch_size to a small training split, and prints the choice.

    A batch size that the user gave is never changed, and nothing is chosen if there are not two
    examples for every replica: `inputs.check_batches` raises an error then.
    """
    count, replicas = count_training_examples(flags, source), strategy.num_replicas_in_sync
    if rules.is_given(flags, "batch_size") or flags.batch_size <= count:
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
    """Sets --pretrain_epochs unless the user gave it, and prints an unusual choice.

    --time_budget_minutes leaves the choice to the measured time per step.
    """
    if rules.is_given(flags, "pretrain_epochs") or is_budget_open(flags):
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


def is_budget_open(flags: FlagValues) -> bool:
    """Returns whether --time_budget_minutes still has to decide the length of pretraining."""
    is_open = not rules.is_given(flags, "pretrain_epochs")
    return flags.time_budget_minutes is not None and is_open


def choose_warmup(flags: FlagValues, stage: str) -> None:
    """Shortens the default warm-up to the length of the stage.

    `describe_learning_rate` tells the user.
    """
    own, name = training_flags.of_stage(flags, stage), _warmup_flag(stage)
    if not rules.is_given(flags, name) and own.warmup_epochs > own.epochs:
        set_flag(flags, name, own.epochs)


def _warmup_flag(stage):
    return training_flags.NAMES[stage]["warmup_epochs"]


def set_flag(flags: FlagValues, name: str, value: object) -> None:
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
