"""The command line: which flags each stage has, recipes, and the values that were given.

Importing this module imports no TensorFlow, so that --help answers at once.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from supcon_tf.cli import (
    augmentation_flags,
    data_flags,
    declare,
    flag_rules,
    loss_flags,
    model_flags,
    output_flags,
    run_flags,
    training_flags,
)

# Importing these modules declares the flags.
FLAG_MODULES = (
    run_flags, data_flags, augmentation_flags, model_flags, loss_flags, training_flags,
    output_flags,
)  # fmt: skip
ALL_FLAGS = declare.declared_flags()
STAGES = tuple(declare.STAGES)

# The flags that decide what a stage does. `stage.flags` holds these, in this order.
STAGE_FLAGS = {
    stage: tuple(flag.name for flag in ALL_FLAGS if stage in flag.stages) for stage in STAGES
}
# The flags of the linear stage that decide a classifier fitted by L-BFGS.
FITTED_LINEAR_FLAGS = tuple(flag.name for flag in ALL_FLAGS if flag.decides_fitted_linear)
# Flags that change where, how fast and how often something happens, but not what is computed.
FREE_FLAGS = frozenset(flag.name for flag in ALL_FLAGS if not flag.changes_result)
# The flags of a recipe that --time_budget_minutes replaces.
LENGTH_FLAGS = ("pretrain_epochs", "pretrain_warmup_epochs")
# Flags that may differ from the saved ones when a stage resumes.
CHANGEABLE_FLAGS = frozenset(flag.name for flag in ALL_FLAGS if flag.may_change_on_resume)


def define_flags() -> None:
    """Defines every flag and every rule between flags in absl; call it once per process."""
    for flag in ALL_FLAGS:
        flag.add_to(flags.FLAGS)
    flag_rules.define_rules(STAGES)


def recipe_path(name: str) -> Path:
    """Returns the flagfile of a recipe, in the installed package or in the checkout.

    Raises:
        flags.Error: there is no such recipe.
    """
    here = Path(__file__).parent.parent  # The package.
    folder = next(path for path in (here / "flags", here.parent / "flags") if path.is_dir())
    path = folder / f"{name}.flags"
    if not path.is_file():
        names = sorted(path.stem for path in folder.glob("*.flags"))
        raise flags.Error(f"There is no recipe {name!r}. Choose --recipe from {', '.join(names)}.")
    return path


def peek(argv: list[str]) -> flags.FlagValues:
    """Parses the arguments and their flagfiles without checking any rule between flags.

    `peek(argv)[name].present` is above 0 where the arguments give the flag. Unknown flags are
    ignored; the real parsing reports them.

    Raises:
        flags.Error: a value of the wrong type, or a flagfile that cannot be read.
    """
    values = flags.FlagValues()
    for flag in ALL_FLAGS:
        flag.add_to(values)
    values(argv, known_only=True)
    return values


def own_flags() -> list[str]:
    """Returns the names of all flags of this program, without those of absl."""
    return [flag.name for flag in ALL_FLAGS]


def expand_recipe(argv: list[str]) -> list[str]:
    """Puts the flags of --recipe before all others, so that the others override it.

    The recipe may be named on the command line or in a flagfile. --time_budget_minutes decides the
    length of pretraining and its warm-up in place of the recipe.

    Raises:
        flags.Error: see `peek`; or there is no such recipe.
    """
    given = peek(argv)
    if given.recipe is None:
        return argv
    path = recipe_path(given.recipe)
    if given.time_budget_minutes is None:
        return [argv[0], f"--flagfile={path}", *argv[1:]]
    lines = map(str.strip, path.read_text(encoding="utf-8").splitlines())
    kept = [
        line
        for line in lines
        if line.startswith("--") and line.partition("=")[0][2:] not in LENGTH_FLAGS
    ]
    return [argv[0], *kept, *argv[1:]]


def model_dir(flag_values: flags.FlagValues) -> str:
    """Returns --model_dir, or its default."""
    name = flag_values.recipe or flag_values.dataset.replace("/", "_").replace(":", "_")
    return flag_values.model_dir or f"runs/{name}"


def stage_flag_names(flag_values: flags.FlagValues, stage: str) -> tuple[str, ...]:
    """Returns the names of the flags that decide what the stage does with these values."""
    if stage == "linear" and flag_rules.is_linear_fitted(flag_values):
        return FITTED_LINEAR_FLAGS
    return STAGE_FLAGS[stage]


def stage_flags(flag_values: flags.FlagValues, stage: str) -> dict[str, str]:
    """Returns name to `--name=value` for every flag that decides what the stage does."""
    return {
        name: flag_values[name].serialize()
        for name in stage_flag_names(flag_values, stage)
        if flag_values[name].value is not None
    }
