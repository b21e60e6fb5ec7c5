"""Reports of ops that a TPU does not run. This module does not import TensorFlow."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Problem:
    """An op that a TPU does not run, and where it comes from."""

    op_type: str
    name: str
    reason: str
    place: str  # "file:line", or the function of the graph

    def __str__(self):
        return f"{self.op_type} ({self.name}), {self.place}: {self.reason}."


class UnfitStep(Exception):
    """The step contains ops that a TPU does not run."""

    def __init__(self, problems: list[Problem]):
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
