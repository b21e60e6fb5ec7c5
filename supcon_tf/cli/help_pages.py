"""The text of --help and --helpfull, made from the declarations of the flags."""

from __future__ import annotations

import re
import textwrap

from absl import flags

from supcon_tf.cli import command_line, declare
from supcon_tf.cli.declare import Declaration
from supcon_tf.cli.flag_types import Boolean
from supcon_tf.cli.program import python_program

INDENT = "      "
# Wider lines are hard to read.
MOST_COLUMNS = 100


def requested_page(argv: list[str], columns: int) -> str | None:
    """Returns the text that the arguments ask for: of --help, --helpfull, or None.

    Args:
        argv: the program's name and the arguments.
        columns: width of the terminal in characters.
    """
    for argument in argv[1:]:
        if argument == "--":
            return None
        if re.fullmatch("--?(help|helpshort|h|[?])", argument):
            return short_help(columns)
        if re.fullmatch("--?helpfull", argument):
            return full_help(columns)
    return None


def short_help(columns: int) -> str:
    """Returns the stages and the common flags by group, each in one sentence."""
    lines = [*_usage(), "Stages (--mode):"]
    for stage, summary in declare.STAGES.items():
        lines += _wrap(f"  {stage:<10} {summary}", columns, " " * 13)
    for group in declare.GROUPS:
        common = [flag for flag in _of_group(group) if flag.common]
        if common:
            lines += ["", f"{group}:"]
        for flag in common:
            paper = f"; paper: {flag.paper}" if flag.paper else ""
            heading = f"  --{flag.name} (default: {default_text(flag)}{paper})"
            lines += _wrap(heading, columns, INDENT + "    ")
            sentence = flag.help.partition(". ")[0].rstrip(".")
            lines += _wrap(f"{INDENT}{sentence}.", columns, INDENT)
    lines += ["", f"--helpfull lists all {len(command_line.ALL_FLAGS)} flags."]
    return "\n".join(lines)


def full_help(columns: int) -> str:
    """Returns every flag by group, with its type, default, unit, stages and the paper's value."""
    lines = _usage()[:-1]
    for group in declare.GROUPS:
        lines += ["", f"{group}:"]
        for flag in _of_group(group):
            lines += ["", f"  --{'[no]' if isinstance(flag.kind, Boolean) else ''}{flag.name}"]
            lines += _wrap(INDENT + flag.help, columns, INDENT)
            for title, text in facts(flag).items():
                lines += _wrap(f"{INDENT}{title}: {text}", columns, INDENT + "    ")
    return "\n".join(lines)


def facts(flag: Declaration) -> dict[str, str]:
    """Returns what there is to know of a flag besides its help text, by title."""
    may_change = "yes" if flag.may_change_on_resume else "no"
    return {
        "Type": flag.kind.syntactic_help + (f"; unit: {flag.unit}" if flag.unit else ""),
        "Default": default_text(flag),
        **({"Paper": flag.paper} if flag.paper else {}),
        "Stages": ", ".join(flag.stages) or "the run as a whole",
        **({"May change when resuming": may_change} if flag.stages else {}),
    }


def default_text(flag: Declaration) -> str:
    """Returns the default as one would type it, or what applies without one."""
    if flag.default is None:
        return flag.unset_means or "none"
    values = flags.FlagValues()
    flag.add_to(values)
    value = values[flag.name].value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(value) if isinstance(value, list) else str(value)


def _usage():
    command = f"{python_program()} -m supcon_tf.main"
    return [
        f"Usage:    {command} --flag=value ...",
        f"Example:  {command} --data_dir=my_photos --pretrain_epochs=100",
        "",
    ]


def _of_group(group):
    return [flag for flag in command_line.ALL_FLAGS if flag.group == group]


def _wrap(text, columns, indent):
    return textwrap.wrap(
        text,
        min(max(columns, 40), MOST_COLUMNS),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
