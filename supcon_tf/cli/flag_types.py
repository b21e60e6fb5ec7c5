"""The types of the flags: numbers and lists of numbers with a range, choices, lines of text.

A flag is declared with its type, which rejects every value that no run can use:

    define("temperature", Number(at_least=1e-4, at_most=1e4), default=0.1, ...)

No type accepts NaN or infinity. Rules between several flags are in the `*_rules` modules. Importing
this module imports no TensorFlow, so that --help answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from absl import flags

LARGEST_INTEGER = 2**31 - 1  # TensorFlow counts steps, rows and seeds in int32.
EPOCHS_MOST = 1_000_000  # Beyond it, the number of steps leaves the integers of TensorFlow.


class Number(flags.ArgumentParser):
    """A finite number within a range.

    Args:
        at_least, at_most: inclusive bounds.
        above, below: exclusive bounds.
        advice: what to add to the message for a bad value, such as the usual value.
    """

    what = "a number"

    def __init__(
        self,
        *,
        at_least: float | None = None,
        above: float | None = None,
        at_most: float | None = None,
        below: float | None = None,
        advice: str = "",
    ):
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

    def parse(self, argument: str | float) -> float:
        """Returns the value of a text or of a number.

        Raises:
            ValueError: not of this type or out of its range.
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

    def convert(self, argument: str | float) -> float:
        return float(argument)

    def flag_type(self) -> str:
        return "float"


class Integer(Number):
    """A whole number within a range, by default at most 2^31 - 1."""

    what = "a whole number"

    def __init__(self, *, at_most: float = LARGEST_INTEGER, **bounds: Any):
        super().__init__(at_most=at_most, **bounds)

    def convert(self, argument: str | float) -> int:
        return int(argument) if isinstance(argument, str) else _whole(argument)

    def flag_type(self) -> str:
        return "int"


class OneOf(flags.ArgumentParser):
    """One of a few whole numbers."""

    def __init__(self, choices: Sequence[int]):
        self.choices = tuple(choices)
        self.syntactic_help = f"one of {', '.join(map(str, self.choices))}"

    def parse(self, argument: str | int) -> int:
        text = str(argument).strip()
        if text not in map(str, self.choices):
            raise ValueError(f"expected {self.syntactic_help}.")
        return int(text)

    def flag_type(self) -> str:
        return "int"


class Numbers(tuple):
    """The value of a list flag. As a string it is the text that it was parsed from."""

    text: str

    def __str__(self) -> str:
        return self.text


class NumberList(flags.ArgumentParser):
    """Numbers separated by commas, as `Numbers`.

    Args:
        each: the type of every number.
        length: how many numbers; None for one or more.
        increasing: None for any order, "strictly", or "or equal" where neighbors may be equal.
    """

    def __init__(self, each: Number, *, length: int | None = None, increasing: str | None = None):
        self.each, self._length, self._increasing = each, length, increasing
        count = "numbers" if length is None else f"{length} numbers"
        order = {None: "", "strictly": ", each larger than the one before",
                 "or equal": ", none smaller than the one before"}[increasing]  # fmt: skip
        self.syntactic_help = f"{count} separated by commas{order}; each {each.describe()}"

    def parse(self, argument: str | Sequence[float]) -> Numbers:
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

    def flag_type(self) -> str:
        return "comma separated list of numbers"


class Text(flags.ArgumentParser):
    """One line of text, such as a path or a name.

    Rejects empty text, line breaks and other control characters (which would become lines of
    their own in a saved flagfile), leading and trailing spaces (which a flagfile loses), and bytes
    that are not UTF-8.
    """

    syntactic_help = "one line of text"

    def parse(self, argument: str) -> str:
        if not argument:
            raise ValueError("the value is empty. Give a value, or leave the flag out.")
        is_line = all(character.isprintable() for character in argument)
        if not is_line or argument != argument.strip():
            shown = ascii(argument)
            raise ValueError(
                f"{shown} contains line breaks, control characters, bytes that are not UTF-8, or "
                "leading or trailing spaces; expected one line of text. If it names a file or a "
                "folder, rename that."
            )
        return argument

    def flag_type(self) -> str:
        return "string"


class Boolean(flags.BooleanParser):
    """True or false: --name and --noname."""

    syntactic_help = "true or false"


class Enum(flags.EnumParser):
    """One of a few names."""

    def __init__(self, choices: Sequence[str]):
        super().__init__(list(choices))
        self.syntactic_help = f"one of {', '.join(choices)}"


class NameList(flags.ListParser):
    """Names separated by commas."""

    def __init__(self) -> None:
        super().__init__()
        self.syntactic_help = "names separated by commas"


def _whole(number):
    if number != int(number):
        raise ValueError(f"{number} is not whole")
    return int(number)


def _text(bound):
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"
