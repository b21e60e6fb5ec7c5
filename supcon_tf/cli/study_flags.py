"""The flags of the programs in `supcon_tf/studies/`, which have their own command lines."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence

from absl import flags

from supcon_tf.cli.declare import Declaration
from supcon_tf.cli.flag_types import Boolean, NameList, Text

GROUP = "Run"
# By program. They are flags of no stage of the command, so `define` does not list them.
STUDY_FLAGS = {
    "table": (
        Declaration(
            name="figures",
            kind=NameList(),
            default=["top_1"],
            stages=(),
            group=GROUP,
            help="Figures to show, one table each: numbers of eval.json, robustness.json or of the "
            "figures of entry.json, by name.",
        ),
        Declaration(
            name="baseline",
            kind=Text(),
            default=None,
            stages=(),
            group=GROUP,
            help="Setting that the others are compared with, on the same test examples.",
        ),
        Declaration(
            name="write",
            kind=Boolean(),
            default=False,
            stages=(),
            group=GROUP,
            help="Take the arguments as pages, and fill in the tables between their markers.",
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
