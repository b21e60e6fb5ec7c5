"""Helpers for the rules between flags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from absl import flags


def register_rule(names: list[str], check: Callable[[dict[str, Any]], bool]) -> None:
    """Registers a check that absl calls when the flags are parsed.

    absl itself would put the values of all flags of the rule before the message, which hides it if
    they are many; here the message stands alone.

    Args:
        names: the flags that the check looks at.
        check: called with name to value; returns True, or raises `flags.ValidationError` with a
            message that starts with a flag's name, such as "temperature=0.5 has no effect ...".
    """

    def check_with_plain_message(values: dict[str, Any]) -> bool:
        try:
            return check(values)
        except flags.ValidationError as error:
            raise flags.IllegalFlagValueError(f"--{error}") from error

    flags.register_multi_flags_validator(names, check_with_plain_message)


def is_given(flag_values: flags.FlagValues, name: str) -> bool:
    """Returns whether the command line, a flagfile or a recipe sets the flag to any value."""
    return not flag_values[name].using_default_value
