"""The flags that a command line implies: --dataset=folder, and the flags of the run in --model_dir.

`complete` puts them before the arguments that the user gave, so that those win, and says in one
line what it added. It imports TensorFlow only to read a remote --model_dir.
"""

from __future__ import annotations

import json
import os

from absl import flags

from supcon_tf.cli import command_line, flag_rules, tensorflow_start
from supcon_tf.data import folder_layout
from supcon_tf.storage import sealed

# They name the data together: without the first, the run's others mean nothing.
DATASET_FLAGS = ("dataset", "data_dir", "skip_broken_images")
# Where the stages that follow pretraining look first: at the classifier that they would use.
NEWEST_FIRST = ("finetune", "linear", "pretrain")


def complete(argv: list[str]) -> list[str]:
    """The command line with the flags that it implies, and with its recipe as a flagfile.

    Args:
        argv: the program's name and the arguments as they were typed.

    Returns:
        The same, with what is implied before what was typed.

    Raises:
        flags.Error: a bad value, an unknown recipe or an unreadable flagfile.
    """
    arguments = command_line.expand_recipe(argv)
    implied = _implied_by_data_dir(command_line.peek(arguments))
    arguments = [argv[0], *implied, *arguments[1:]]
    given = command_line.peek(arguments)
    completed = [argv[0], *_inherited(given), *arguments[1:]]
    return completed if given.recipe else command_line.expand_recipe(completed)


def _implied_by_data_dir(given: flags.FlagValues) -> list[str]:
    """--dataset=folder for a --data_dir that looks like one, where nobody named a dataset."""
    data_dir = given.data_dir
    if given["dataset"].present or not data_dir or "://" in data_dir:
        return []
    if not folder_layout.looks_like_dataset(data_dir):
        return []
    print(f"{data_dir} holds train/ with one folder per class: using --dataset=folder.")
    return ["--dataset=folder"]


def _inherited(given: flags.FlagValues) -> list[str]:
    """The flags of the run in --model_dir that the stages of --mode need and nobody gave.

    Those that have their default in the run keep it, so that they do not count as given.
    """
    if not given.mode or "pretrain" in given.mode:
        return []
    model_dir = command_line.model_dir(given)
    run = {}
    for stage in _stages_to_look_at(given.mode):
        for name, line in _read_stage_flags(model_dir, stage).items():
            if not _overrules_linear_optimizer(given, name, line):
                run.setdefault(name, line)
    wanted = [name for name in _wanted(given, run) if name in run and not given[name].present]
    recipe = [run["recipe"]] if "recipe" in run and not given.recipe else []
    base = command_line.peek(command_line.expand_recipe(["", *recipe]))
    changed = [run[name] for name in wanted if run[name] != _serialized(base[name])]
    _say(model_dir, recipe + [run[name] for name in wanted if name == "dataset"], changed)
    # The default of --model_dir follows the dataset and the recipe, which may change here.
    inherited = [*recipe, *changed]
    return [f"--model_dir={model_dir}", *inherited] if inherited else []


def _overrules_linear_optimizer(given, name, line):
    """Whether the line contradicts how the user wants the linear classifier to be found."""
    if name == "linear_optimizer":
        names_training = any(given[flag].present for flag in flag_rules.LINEAR_TRAINING_FLAGS)
        return line.endswith("=lbfgs") and names_training
    return name in flag_rules.LINEAR_TRAINING_FLAGS and given.linear_optimizer == "lbfgs"


def _stages_to_look_at(modes):
    """Own flags first, so that a stage resumes; then those of what it builds on."""
    trained = [mode for mode in modes if mode in ("linear", "finetune")]
    after = ("pretrain", "finetune", "linear") if trained else NEWEST_FIRST
    return dict.fromkeys([*trained, *after])


def _wanted(given, run):
    """Names of the flags that the stages of --mode read, without those of the machine."""
    names = {name for mode in given.mode for name in command_line.STAGE_FLAGS.get(mode, ())}
    names -= command_line.FREE_FLAGS
    run_dataset = run.get("dataset", "").partition("=")[2]
    other_data = given["dataset"].present and given.dataset != run_dataset
    if other_data or not reads_dataset(given):
        names -= set(DATASET_FLAGS)
    # A default warm-up that was cut to the length of the stage is no warm-up for another length.
    names -= {f"{s}_warmup_epochs" for s in NEWEST_FIRST if given[f"{s}_epochs"].present}
    return sorted(names)


def reads_dataset(values: flags.FlagValues) -> bool:
    """Whether a stage of --mode reads --dataset."""
    return any(
        mode != "export" and not (mode == "embed" and values.embed_dir) for mode in values.mode
    )


def _read_stage_flags(model_dir, stage):
    """Name to `--name=value` of what a stage recorded, without flags that are no longer there.

    `identity.json` shows whether it is damaged; `stage.flags` alone has the recipe, and stands
    for it where there is none.
    """
    lines = _read(os.path.join(model_dir, stage, "stage.flags")).splitlines()
    try:
        record = sealed.unseal(json.loads(_read(os.path.join(model_dir, stage, "identity.json"))))
    except ValueError:  # Missing or damaged.
        record = {}
    if "flags" in record and lines[-len(record["flags"]) :] != record["flags"]:
        lines = record["flags"]
    return dict(_named(line) for line in lines if _named(line)[0] in flags.FLAGS)


def _read(path):
    """The text of a file, empty if there is none."""
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
    """One line with what was taken: recipe, dataset, and the rest where it is no default."""
    shown = dict.fromkeys([*source, *changed])
    if shown:
        print(f"From the run in {model_dir}: {' '.join(shown)} (override them on the command line)")


def _serialized(flag):
    return None if flag.value is None else flag.serialize()
