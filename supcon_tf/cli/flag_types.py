"""The types of the command's flags: a number with its range, a list of numbers, a line of text.

A flag is declared once, with its type, and the type refuses every value that no run can use:

    define("temperature", Number(at_least=1e-4, at_most=1e4), 0.1, "Temperature of the loss.")

No type accepts NaN or infinity. Rules between several flags are in `flag_rules`. Importing this
module imports no TensorFlow, so that --help answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from absl import flags

# A flag belongs to the module that calls `define`, not to this one.
flags.disclaim_key_flags()

LARGEST_INTEGER = 2**31 - 1  # TensorFlow counts steps, rows and seeds in int32.
EPOCHS_MOST = 1_000_000  # Beyond it, the number of steps leaves the integers of TensorFlow.


def define(name: str, kind: flags.ArgumentParser, default, help_text: str) -> None:
    """Declares one flag.

    Args:
        name: without the leading dashes.
        kind: one of the types below.
        default: a value of that type, or its text; None for no value.
        help_text: stands alone: what the flag is, its unit, when to change it.
    """
    flags.DEFINE(kind, name, default, help_text, serializer=flags.ArgumentSerializer())


class Number(flags.ArgumentParser):
    """A finite number within a range.

    Args:
        at_least, at_most: the bounds, which are allowed themselves.
        above, below: bounds that are not allowed themselves.
        advice: what to add to the message for a bad value, such as the usual value.
    """

    what = "a number"

    def __init__(self, *, at_least=None, above=None, at_most=None, below=None, advice=""):
        self._at_least, self._above = at_least, above
        self._at_most, self._below = at_most, below
        self._advice = advice
        self.syntactic_help = self.describe()

    def describe(self) -> str:
        """The type in words: "a number from 0 to 1"."""
        bounds = (
            ("of at least", self._at_least),
            ("above", self._above),
            ("of at most", self._at_most),
            ("below", self._below),
        )
        if self._at_least is not None and self._at_most is not None:
            return f"{self.what} from {_text(self._at_least)} to {_text(self._at_most)}"
        limits = [f"{words} {_text(bound)}" for words, bound in bounds if bound is not None]
        return f"{self.what} {' and '.join(limits)}".strip()

    def parse(self, argument):
        """The value of a text or of a number.

        Raises:
            ValueError: not of this type or not in its range.
        """
        try:
            value = self.convert(argument)
        except (ValueError, OverflowError):
            value = math.nan
        is_allowed = (
            math.isfinite(value)
            and (self._at_least is None or value >= self._at_least)
            and (self._above is None or value > self._above)
            and (self._at_most is None or value <= self._at_most)
            and (self._below is None or value < self._below)
        )
        if not is_allowed:
            raise ValueError(f"expected {self.describe()}{self._advice and '; '}{self._advice}.")
        return value

    def convert(self, argument):
        return float(argument)

    def flag_type(self):
        return "float"


class Integer(Number):
    """A whole number within a range; without another bound, at most 2^31 - 1."""

    what = "a whole number"

    def __init__(self, *, at_most=LARGEST_INTEGER, **bounds):
        super().__init__(at_most=at_most, **bounds)

    def convert(self, argument):
        return int(argument) if isinstance(argument, str) else _whole(argument)

    def flag_type(self):
        return "int"


class OneOf(flags.ArgumentParser):
    """One of a few whole numbers."""

    def __init__(self, choices: Sequence[int]):
        self.choices = tuple(choices)
        self.syntactic_help = f"one of {', '.join(map(str, self.choices))}"

    def parse(self, argument):
        text = str(argument).strip()
        if text not in map(str, self.choices):
            raise ValueError(f"expected {self.syntactic_help}.")
        return int(text)

    def flag_type(self):
        return "int"


class Numbers(tuple):
    """The value of a list flag: numbers, and as a string the text that they were given as."""

    text: str

    def __str__(self):
        return self.text


class NumberList(flags.ArgumentParser):
    """Numbers separated by commas, as `Numbers`.

    Args:
        each: the type of every number.
        length: how many; None for at least one.
        increasing: None, "strictly", or "or equal" where neighbors may be the same.
    """

    def __init__(self, each: Number, *, length: int | None = None, increasing: str | None = None):
        self.each, self._length, self._increasing = each, length, increasing
        count = "numbers" if length is None else f"{length} numbers"
        order = {None: "", "strictly": ", each larger than the one before",
                 "or equal": ", none smaller than the one before"}[increasing]  # fmt: skip
        self.syntactic_help = f"{count} separated by commas{order}; each {each.describe()}"

    def parse(self, argument):
        text = argument if isinstance(argument, str) else ",".join(map(str, argument))
        try:
            numbers = Numbers(self.each.parse(part.strip()) for part in text.split(","))
        except ValueError:
            raise ValueError(f"expected {self.syntactic_help}.") from None
        pairs = zip(numbers, numbers[1:], strict=False)
        is_ordered = self._increasing is None or all(
            a < b or (a == b and self._increasing == "or equal") for a, b in pairs
        )
        if not is_ordered or self._length not in (None, len(numbers)):
            raise ValueError(f"expected {self.syntactic_help}.")
        numbers.text = text
        return numbers

    def flag_type(self):
        return "comma separated list of numbers"


class Text(flags.ArgumentParser):
    """One line of text, such as a path or a name.

    Refuses the empty text, line breaks and other control characters, which would become lines of
    their own in a saved flagfile, spaces at the ends, which a flagfile loses, and bytes that are
    not UTF-8.
    """

    syntactic_help = "one line of text"

    def parse(self, argument):
        if not argument:
            raise ValueError("it is empty: give it a value or leave the flag out.")
        is_line = all(character.isprintable() for character in argument)
        if not is_line or argument != argument.strip():
            shown = ascii(argument)
            raise ValueError(
                f"{shown} holds line breaks, control characters, bytes that are not UTF-8, or "
                "spaces at an end; expected one line of text. Rename the file or folder if it is "
                "one."
            )
        return argument

    def flag_type(self):
        return "string"


def _whole(number):
    if number != int(number):
        raise ValueError(f"{number} is not whole")
    return int(number)


def _text(bound):
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"
