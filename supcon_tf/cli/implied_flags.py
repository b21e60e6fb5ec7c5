"""The flags that a command line implies: --dataset=folder, and the flags of the run in --model_dir.

`complete` puts them before the user's arguments, so that those take precedence, and prints one line
with what it added. It imports TensorFlow only to read a remote --model_dir.
"""

from __future__ import annotations

import json
import os

from absl import flags

from supcon_tf.cli import (
    command_line,
    flag_rules,
    loss_rules,
    tensorflow_start,
    training_flags,
)
from supcon_tf.data import folder_layout
from supcon_tf.storage import sealed
from supcon_tf.storage.run_paths import FLAG_FILE, IDENTITY, run_path

# These flags name the data together: with another --dataset, the others do not apply.
DATASET_FLAGS = (
    "dataset", "data_dir", "data_csv", "label_type", "label_columns", "validation_split",
    "train_split", "test_split", "holdout_classes", "skip_broken_images", "exclude",
    "exclude_kinds",
)  # fmt: skip
# Where stages after pretraining look for flags first: at the classifier that they would use.
NEWEST_FIRST = ("finetune", "linear", "pretrain")


def complete(argv: list[str]) -> list[str]:
    """Adds the flags that the command line implies, and its recipe as a flagfile.

    Args:
        argv: the program's name and the arguments as they were typed.

    Returns:
        The program's name, the implied flags, and the arguments as they were typed.

    Raises:
        flags.Error: a bad value, an unknown recipe or an unreadable flagfile.
    """
    arguments = command_line.expand_recipe(argv)
    implied = _implied_by_data_dir(command_line.peek(arguments))
    arguments = [argv[0], *implied, *arguments[1:]]
    given = command_line.peek(arguments)
    of_variant = loss_rules.flags_of_variant(given)
    arguments = [argv[0], *of_variant, *arguments[1:]]
    completed = [argv[0], *_inherited(given), *arguments[1:]]
    return completed if given.recipe else command_line.expand_recipe(completed)


def _implied_by_data_dir(given: flags.FlagValues) -> list[str]:
    """Returns the --dataset that --data_csv or --data_dir implies, if no --dataset is given."""
    data_dir = given.data_dir
    if given["dataset"].present:
        return []
    if given.data_csv:
        print("--data_csv is given: using --dataset=csv.")
        return ["--dataset=csv"]
    if not data_dir or "://" in data_dir:
        return []
    if not folder_layout.looks_like_dataset(data_dir):
        return []
    print(f"{data_dir} contains one folder per class: using --dataset=folder.")
    return ["--dataset=folder"]


def _inherited(given: flags.FlagValues) -> list[str]:
    """Returns the flags of the run in --model_dir that the stages of --mode need.

    Leaves out flags that the user gave, and flags with their default value, so that those do not
    count as given.
    """
    if not given.mode or "pretrain" in given.mode:
        return []
    model_dir = command_line.model_dir(given)
    run: dict[str, str] = {}
    for stage in _stages_to_look_at(given.mode):
        for name, line in _read_stage_flags(model_dir, stage).items():
            if not _overrules_linear_optimizer(given, name, line):
                run.setdefault(name, line)
    wanted = [name for name in _wanted(given, run) if name in run and not given[name].present]
    recipe = [run["recipe"]] if "recipe" in run and not given.recipe else []
    base = command_line.peek(command_line.expand_recipe(["", *recipe]))
    changed = [run[name] for name in wanted if run[name] != _serialized(base[name])]
    # RandAugment needs its level to be given, also if it is the default of the flag.
    is_randaugment = any(line.endswith("augmentation_type=randaugment") for line in changed)
    if is_randaugment and "augmentation_magnitude" in wanted:
        changed = list(dict.fromkeys([*changed, run["augmentation_magnitude"]]))
    _say(model_dir, recipe + [run[name] for name in wanted if name == "dataset"], changed)
    # The default of --model_dir follows the dataset and the recipe, which may change here.
    inherited = [*recipe, *changed]
    return [f"--model_dir={model_dir}", *inherited] if inherited else []


def _overrules_linear_optimizer(given, name, line):
    """Returns whether the line contradicts how the user wants to train the linear classifier."""
    if name == "linear_optimizer":
        names_training = any(given[flag].present for flag in flag_rules.LINEAR_TRAINING_FLAGS)
        return line.endswith("=lbfgs") and names_training
    return name in flag_rules.LINEAR_TRAINING_FLAGS and given.linear_optimizer == "lbfgs"


def _stages_to_look_at(modes):
    """Returns the stages of --mode first, so that they resume, then those that they build on."""
    trained = [mode for mode in modes if mode in ("linear", "finetune")]
    after = ("pretrain", "finetune", "linear") if trained else NEWEST_FIRST
    return dict.fromkeys([*trained, *after])


def _wanted(given, run):
    """Returns the names of the flags that the stages of --mode take from a run."""
    names = {name for mode in given.mode for name in command_line.STAGE_FLAGS.get(mode, ())}
    names -= command_line.FREE_FLAGS
    run_dataset = run.get("dataset", "").partition("=")[2]
    other_data = given["dataset"].present and given.dataset != run_dataset
    if other_data or not reads_dataset(given):
        names -= set(DATASET_FLAGS)
    # A default warm-up that was cut to the length of the stage does not fit another length.
    for flag in training_flags.NAMES.values():
        if given[flag["epochs"]].present:
            names.discard(flag["warmup_epochs"])
    return sorted(names)


def reads_dataset(values: flags.FlagValues) -> bool:
    """Returns whether a stage of --mode reads --dataset."""
    return any(
        mode != "export" and not (mode == "embed" and values.embed_dir) for mode in values.mode
    )


def _read_stage_flags(model_dir, stage):
    """Returns name to `--name=value` of the flags that a stage recorded and that still exist.

    `stage.flags` has the recipe too. If it contradicts `identity.json`, which has a checksum,
    the flags of `identity.json` are used.
    """
    lines = _read_if_present(run_path(model_dir, stage, FLAG_FILE)).splitlines()
    try:
        text = _read_if_present(run_path(model_dir, stage, IDENTITY))
        record = sealed.unseal(json.loads(text))
    except ValueError:  # Missing or damaged.
        record = {}
    if "flags" in record and lines[-len(record["flags"]) :] != record["flags"]:
        lines = record["flags"]
    return dict(_named(line) for line in lines if _named(line)[0] in flags.FLAGS)


def _read_if_present(path):
    """Returns the text of a file, or an empty text if there is no file."""
    if "://" in path:
        file_system = tensorflow_start.import_quietly().io.gfile
        if not file_system.exists(path):
            return ""
        with file_system.GFile(path, "rb") as file:
            return file.read().decode(errors="replace")
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _named(line):
    name = line.lstrip("-").partition("=")[0]
    return (name if name in flags.FLAGS else name.removeprefix("no")), line


def _say(model_dir, source, changed):
    """Prints one line with the flags taken from the run: recipe, dataset, and non-default flags."""
    shown = dict.fromkeys([*source, *changed])
    if shown:
        print(f"From the run in {model_dir}: {' '.join(shown)} (override them on the command line)")


def _serialized(flag):
    return None if flag.value is None else flag.serialize()
