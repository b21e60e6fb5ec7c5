"""Parsing the command line: help pages, implied flags, and one message for an error."""

from __future__ import annotations

import os
import shutil
import sys
from typing import NoReturn

from absl import flags

from supcon_tf.cli import command_line, flag_suggestions, help_pages, implied_flags


def parse_command_line(argv: list[str]) -> list[str]:
    """Parses the arguments into absl's FLAGS, which `command_line.define_flags` has defined.

    Exits the process with status 0 after --help and with 2 after printing what is wrong with the
    arguments.

    Args:
        argv: the program's name and the arguments as they were typed.

    Returns:
        The program's name alone: every argument is a flag.
    """
    page = help_pages.requested_page(argv, shutil.get_terminal_size((80, 24)).columns)
    if page is not None:
        _print_page(page)
        sys.exit(0)
    try:
        rest = flags.FLAGS(implied_flags.complete(argv))
    except flags.UnrecognizedFlagError as error:
        close = flag_suggestions.suggest_flags(error.flagname, command_line.own_flags())
        hint = f" Did you mean {' or '.join(f'--{name}' for name in close)}?" if close else ""
        _reject(f"There is no flag --{error.flagname}.{hint}")
    except UnicodeDecodeError as error:
        _reject(f"The file given with --flagfile is not UTF-8 text: {error}.")
    except (flags.Error, ValueError) as error:
        _reject(str(error).removeprefix("ERROR:: "))
    except SystemExit:  # absl ends --helpxml with status 1.
        sys.exit(0)
    if len(rest) > 1:
        _reject(
            f"Unexpected argument {rest[1]!r}: every flag starts with --, as in --batch_size=64."
        )
    return rest


def _print_page(page):
    try:
        print(page, flush=True)
    except BrokenPipeError:  # The reader wants no more, as in --help | head.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reject(message: str) -> NoReturn:
    print(f"ERROR: {message}\n(--help shows the common flags, --helpfull all.)", file=sys.stderr)
    sys.exit(2)
