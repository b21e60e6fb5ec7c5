"""The identity of a stage: its flags, its data and its inputs."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json

from absl.flags import FlagValues

from supcon_tf.cli import command_line

# Increased when the meaning of `identity.json` changes.
FORMAT_VERSION = 1
# Flags that are not compared: those that only change how a stage runs, and the location of the
# data, because the data itself is compared.
NOT_COMPARED = command_line.CHANGEABLE_FLAGS


@dataclasses.dataclass(frozen=True)
class Identity:
    """What determines the weights of a stage, as `identity.json` and checkpoints record it.

    Attributes:
        flags: Name and `--name=value` of every flag that the stage reads and that is set.
        inputs: Name and hash of each input of the stage, such as the encoder.
        data: The digest of the training data; None if it was not recorded.
    """

    flags: dict[str, str]
    inputs: dict[str, str]
    data: str | None = None

    @classmethod
    def of(
        cls, flags: FlagValues, stage: str, inputs: dict[str, str], data: str | None = None
    ) -> Identity:
        """Returns the identity of a stage under the current flags."""
        return cls(command_line.stage_flags(flags, stage), inputs, data)

    @classmethod
    def from_record(cls, record: dict) -> Identity:
        """Reads what `to_record` returned, or only the lines of `stage.flags`."""
        lines = record["flags"]
        named = {line.lstrip("-").split("=")[0]: line for line in lines}
        return cls(named, record.get("inputs") or {}, record.get("data"))

    def to_record(self) -> dict:
        """Returns the identity as JSON values."""
        return {"flags": list(self.flags.values()), "inputs": self.inputs, "data": self.data}

    @property
    def key(self) -> str:
        """A hash of everything that changes the weights."""
        flags = [
            line
            for name, line in sorted(self.flags.items())
            if not {name, name.removeprefix("no")} & NOT_COMPARED
        ]
        return hashlib.sha256(json.dumps([flags, self.inputs, self.data]).encode()).hexdigest()

    def changed_flags(self, flags: FlagValues, stage: str) -> list[str]:
        """Returns `old  ->  new` for each flag that changes the weights and differs now."""
        new = command_line.stage_flags(flags, stage)
        changed = []
        for name in command_line.stage_flag_names(flags, stage):
            # A flag that is newer than the record had its default value then.
            old = self.flags.get(name) or self.flags.get(f"no{name}") or _default(flags, name)
            if name not in NOT_COMPARED and old != new.get(name):
                changed.append(
                    f"{old or f'(no --{name})'}  ->  {new.get(name) or f'(no --{name})'}"
                )
        return changed

    def changed_inputs(self, inputs: dict[str, str]) -> list[str]:
        """Returns the names of the inputs that differ now."""
        return [name for name in self.inputs if self.inputs[name] != inputs.get(name)]


def _default(flags, name):
    """Returns `--name=value` with the default value; None if the default is None."""
    flag = copy.deepcopy(flags[name])
    flag.unparse()
    return None if flag.value is None else flag.serialize()


def given_flags(flags: FlagValues, lines: list[str]) -> list[str]:
    """Returns those lines `--name=value` that differ from the defaults."""
    named = ((line.lstrip("-").split("=")[0], line) for line in lines)
    return [
        line
        for name, line in named
        if line != _default(flags, name if name in flags else name.removeprefix("no"))
    ]
