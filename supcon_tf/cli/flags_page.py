"""Prints docs/flags.md, made from the declarations of the flags.

python -m supcon_tf.cli.flags_page > docs/flags.md
"""

from __future__ import annotations

from supcon_tf.cli import command_line, declare, help_pages

COMMAND = "python -m supcon_tf.cli.flags_page > docs/flags.md"
INTRODUCTION = f"""\
<!-- Generated: change the declarations in supcon_tf/cli/, then run
{COMMAND} -->

# Flags

Every flag of `.venv/bin/python -m supcon_tf.main`, by subject. In the terminal, `--help` shows the
common flags and `--helpfull` shows all of them. `--flagfile=my.flags` reads flags from a file, one
per line. A flag on the command line overrides the same flag of a recipe, and of a flagfile that
comes before it.

*Paper* gives the value in Khosla et al. 2020, with its section or table, or in the
[code that the authors released](https://github.com/google-research/google-research/tree/master/supcon).
"""


def create_page() -> str:
    """Returns the text of docs/flags.md."""
    lines = [INTRODUCTION]
    for group in declare.GROUPS:
        lines += [f"## {group}", ""]
        for flag in command_line.ALL_FLAGS:
            if flag.group == group:
                lines += [f"### --{flag.name}", "", _escape(flag.help), ""]
                facts = help_pages.facts(flag).items()
                lines += [f"- **{title}**: {_escape(text)}" for title, text in facts]
                lines.append("")
    return "\n".join(lines)


def _escape(text):
    return text.replace("*", r"\*").replace("<", r"\<")


if __name__ == "__main__":
    print(create_page(), end="")
