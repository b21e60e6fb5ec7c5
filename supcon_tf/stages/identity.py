"""What a stage of a run is: its flags, its data and what it is built on."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json

from supcon_tf.cli import command_line

# Raised when the meaning of `identity.json` changes.
FORMAT_VERSION = 1
# Flags that are not compared: what only changes how a stage runs, and where the data is, because
# the data itself is compared.
NOT_COMPARED = command_line.CHANGEABLE_FLAGS


@dataclasses.dataclass(frozen=True)
class Identity:
    """What decides the weights of a stage. `identity.json` and every checkpoint record it.

    Attributes:
        flags: name to `--name=value` of every flag that the stage reads and that is set.
        inputs: name to hash of what the stage is built on, such as the encoder.
        data: the digest of the training data; None where it was not recorded.
    """

    flags: dict[str, str]
    inputs: dict[str, str]
    data: str | None = None

    @classmethod
    def of(cls, flags, stage: str, inputs: dict[str, str], data: str | None = None) -> Identity:
        return cls(command_line.stage_flags(flags, stage), inputs, data)

    @classmethod
    def from_record(cls, record: dict) -> Identity:
        """From what `to_record` returned, or from the lines of `stage.flags` alone."""
        lines = record["flags"]
        named = {line.lstrip("-").split("=")[0]: line for line in lines}
        return cls(named, record.get("inputs") or {}, record.get("data"))

    def to_record(self) -> dict:
        return {"flags": list(self.flags.values()), "inputs": self.inputs, "data": self.data}

    @property
    def key(self) -> str:
        """A hash of all that changes the weights."""
        flags = [
            line
            for name, line in sorted(self.flags.items())
            if not {name, name.removeprefix("no")} & NOT_COMPARED
        ]
        return hashlib.sha256(json.dumps([flags, self.inputs, self.data]).encode()).hexdigest()

    def changed_flags(self, flags, stage: str) -> list[str]:
        """`old  ->  new` for every flag that changes the stage and differs now."""
        new = command_line.stage_flags(flags, stage)
        changed = []
        for name in command_line.stage_flag_names(flags, stage):
            # A flag that was added after the record was written had its default then.
            old = self.flags.get(name) or self.flags.get(f"no{name}") or _default(flags, name)
            if name not in NOT_COMPARED and old != new.get(name):
                changed.append(
                    f"{old or f'(no --{name})'}  ->  {new.get(name) or f'(no --{name})'}"
                )
        return changed

    def changed_inputs(self, inputs: dict[str, str]) -> list[str]:
        return [name for name in self.inputs if self.inputs[name] != inputs.get(name)]


def _default(flags, name):
    """`--name=value` as if nobody had given it; None where that is None."""
    flag = copy.deepcopy(flags[name])
    flag.unparse()
    return None if flag.value is None else flag.serialize()


def given_flags(flags, lines: list[str]) -> list[str]:
    """Those lines `--name=value` that differ from the defaults."""
    named = ((line.lstrip("-").split("=")[0], line) for line in lines)
    return [
        line
        for name, line in named
        if line != _default(flags, name if name in flags else name.removeprefix("no"))
    ]
