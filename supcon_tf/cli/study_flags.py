"""The flags of the programs in `supcon_tf/studies/`, which have their own command lines."""

from __future__ import annotations

import functools
import sys
import textwrap
from collections.abc import Sequence

from absl import flags

from supcon_tf.cli.declare import Declaration
from supcon_tf.cli.flag_types import Boolean, Integer, NameList, Text

# They are flags of no stage of the command, so `define` does not list them.
_declare = functools.partial(Declaration, stages=(), group="Run")

OF_ALL_RUNS = (
    _declare(
        name="study_dir",
        kind=Text(),
        default="runs/study",
        help="Directory of the study: one directory for each run, the ledger in results/, and the "
        "table. Run the same command again to resume.",
    ),
    _declare(
        name="jobs",
        kind=Integer(at_least=1, at_most=1024),
        default=1,
        help="Number of runs at a time on this machine.",
    ),
    _declare(
        name="task",
        kind=Integer(at_least=0),
        default=None,
        help="Only the run of this number, from 0, for the array jobs of a cluster "
        "(examples/slurm_array.sh). Without it, all runs, then the table.",
    ),
    _declare(
        name="list",
        kind=Boolean(),
        default=False,
        help="Only print the number and the flags of each run.",
    ),
)
STUDY_FLAGS: dict[str, tuple[Declaration, ...]] = {
    "table": (
        _declare(
            name="figures",
            kind=NameList(),
            default=["top_1"],
            help="Figures to show, one table each: numbers of eval.json, robustness.json or of the "
            "figures of entry.json, by name.",
        ),
        _declare(
            name="baseline",
            kind=Text(),
            default=None,
            help="Setting that the others are compared with, on the same test examples.",
        ),
        _declare(
            name="write",
            kind=Boolean(),
            default=False,
            help="Take the arguments as pages, and fill in the tables between their markers.",
        ),
    ),
    "record": (
        _declare(
            name="results",
            kind=Text(),
            default="results",
            help="Folder of the ledger.",
        ),
        _declare(
            name="experiment",
            kind=Text(),
            default=None,
            help="Experiment that the runs belong to, such as reproduce/table_1. Required.",
        ),
        _declare(
            name="setting",
            kind=Text(),
            default=None,
            help="Setting of the runs, which differ in their seed. By default, each run is a "
            "setting, named as its directory.",
        ),
    ),
    "stability": (
        *OF_ALL_RUNS,
        _declare(
            name="recipe",
            kind=Text(),
            default=None,
            help="Recipe to vary. Flags for every run follow after --.",
        ),
        _declare(
            name="seeds",
            kind=NameList(),
            default=["0", "1", "2"],
            help="Seeds of every setting.",
        ),
        _declare(
            name="supcon_flags",
            kind=Text(),
            default=None,
            help="Further flags of the runs of SupCon, in quotes, such as its learning rate.",
        ),
        _declare(
            name="cross_entropy_flags",
            kind=Text(),
            default=None,
            help="Further flags of the runs of cross-entropy, in quotes, such as its learning "
            "rate. --loss=cross_entropy --num_views=1 is set already.",
        ),
        _declare(
            name="augmentations",
            kind=NameList(),
            default=["autoaugment", "randaugment:5", "simclr", "stacked_randaugment"],
            help="Values of --augmentation_type, also with an --augmentation_magnitude of their "
            "own: for randaugment it is a level up to 10, for simclr the strength of the color "
            "jitter, up to about 1. Empty: do not vary it.",
        ),
        _declare(
            name="optimizers",
            kind=NameList(),
            default=["lars:0.4", "momentum:0.1", "rmsprop:0.012", "adam:0.012"],
            help="Values of --pretrain_optimizer, each with its base learning rate. The optimizer "
            "of the recipe keeps the rate of the recipe. Choose the rates on validation images.",
        ),
        _declare(
            name="learning_rate_factors",
            kind=NameList(),
            default=["0.25", "0.5", "2", "4"],
            help="Factors of --pretrain_base_learning_rate.",
        ),
        _declare(
            name="temperatures",
            kind=NameList(),
            default=["0.05", "0.07", "0.2", "0.5"],
            help="Values of --temperature, for SupCon only.",
        ),
        _declare(
            name="batch_size_factors",
            kind=NameList(),
            default=["0.5", "2", "4"],
            help="Factors of --batch_size. The base learning rate is per 256 examples, so the "
            "learning rate follows.",
        ),
    ),
    "transfer": (
        *OF_ALL_RUNS,
        _declare(
            name="encoder",
            kind=Text(),
            default=None,
            help="Model directory of the run whose encoder is transferred, or its encoder.keras. "
            "Required. Flags for every run follow after --.",
        ),
        _declare(
            name="datasets",
            kind=NameList(),
            default=[
                "food101",
                "cifar10",
                "cifar100",
                "sun397",
                "cars196",
                "voc2007",
                "dtd",
                "oxford_iiit_pet",
                "caltech101",
                "oxford_flowers102",
            ],
            help="Datasets: names of the paper's, other TensorFlow Datasets names with a train "
            "and a test split, or your own as name=folder or name=labels.csv.",
        ),
        _declare(
            name="tfds_dir",
            kind=Text(),
            default=None,
            help="Directory of the prepared TensorFlow Datasets.",
        ),
        _declare(
            name="protocols",
            kind=NameList(),
            default=["linear", "finetune"],
            help="linear (a classifier on the frozen encoder), finetune (all layers), or both.",
        ),
        _declare(
            name="linear_rates",
            kind=NameList(),
            default=["1", "10"],
            help="Base learning rates of the linear protocol, beside the classifier that is fitted "
            "without steps.",
        ),
        _declare(
            name="linear_decays",
            kind=NameList(),
            default=["0"],
            help="Weight decays of the linear protocol, each with every rate.",
        ),
        _declare(
            name="finetune_rates",
            kind=NameList(),
            default=["0.003", "0.012"],
            help="Base learning rates of the finetune protocol.",
        ),
        _declare(
            name="finetune_decays",
            kind=NameList(),
            default=["0", "1e-4"],
            help="Weight decays of the finetune protocol, each with every rate.",
        ),
        _declare(
            name="seed",
            kind=Integer(at_least=0),
            default=0,
            help="Seed of every run, and of the validation split of folders and csv files.",
        ),
    ),
}


def parse_study(program: str, argv: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """Parses the command line of a study; with --help, prints its flags and exits.

    Args:
        program: A key of `STUDY_FLAGS`.
        argv: The name of the program and its arguments. Those after `--` are not parsed.

    Returns:
        The flags, and the other arguments.

    Raises:
        flags.Error: If a flag is unknown or has a wrong value.
    """
    values = flags.FlagValues()
    for declaration in STUDY_FLAGS[program]:
        declaration.add_to(values)
    before = list(argv[1 : argv.index("--")] if "--" in argv else argv[1:])
    if any(argument in ("--help", "-h", "-help") for argument in before):
        print(help_of_study(program))
        sys.exit(0)
    return values, values(list(argv))[1:]


def help_of_study(program: str) -> str:
    """Returns the help text of a study."""
    lines = [f"Usage: python -m supcon_tf.studies.{program} [flags]", ""]
    for flag in STUDY_FLAGS[program]:
        values = flags.FlagValues()
        flag.add_to(values)
        default = values[flag.name].serialize().partition("=")[2] or "not set"
        if isinstance(flag.kind, Boolean):
            default = "true" if flag.default else "false"
        lines.append(f"  --{flag.name} (default: {default})")
        lines += textwrap.wrap(flag.help, 90, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)
