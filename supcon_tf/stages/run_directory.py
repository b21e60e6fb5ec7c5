"""The directory of a run: its files, and what its stages recorded."""

from __future__ import annotations

import json
import os
import shlex

import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf.cli import command_line
from supcon_tf.cli.program import python_program
from supcon_tf.data import data_identity
from supcon_tf.data.data_identity import DataIdentity
from supcon_tf.stages import identity
from supcon_tf.storage import files
from supcon_tf.storage.artifacts import Artifacts
from supcon_tf.storage.run_paths import DATA_FILES, FLAG_FILE, IDENTITY, LOG, part_paths, run_path


class RunDirectory:
    """The files of one run, `<model_dir>/<stage>/<file>`, in a local or remote directory.

    Args:
        path: The model directory.
        flags: The parsed flags. If given, the commands in messages omit flags at their default.
    """

    def __init__(self, path: str, flags: FlagValues | None = None):
        self.path, self._flags = path, flags

    @classmethod
    def of(cls, flags: FlagValues) -> RunDirectory:
        """Returns the directory that --model_dir names, or the default one."""
        return cls(command_line.model_dir(flags), flags)

    def file(self, *names: str) -> str:
        """Returns the path of a file or folder of the run."""
        return run_path(self.path, *names)

    @property
    def encoder(self) -> str:
        """The path of the encoder that pretraining saves."""
        return self.file("pretrain", "encoder.keras")

    @property
    def linear_head(self) -> str:
        """The path of the classifier of pretraining, if it trains one: embeddings to logits."""
        return self.file("pretrain", "linear_head.keras")

    def artifacts(self, stage: str) -> Artifacts:
        """Returns the artifacts of a stage, to check and to load."""
        return Artifacts(self.file(stage), remedy=self.command(stage))

    def has(self, stage: str, name: str) -> bool:
        """Returns whether a stage wrote this artifact, even if the file is missing now."""
        return self.artifacts(stage).has(name)

    @property
    def classifier_stage(self) -> str:
        """The latest stage that saved a classifier: "finetune", else "linear"."""
        return "finetune" if self.has("finetune", "classifier.keras") else "linear"

    def command(self, stage: str) -> str:
        """Returns the command that recreates missing or damaged files of a stage."""
        flag_file = self.file(stage, FLAG_FILE)
        parts = [python_program(), "-m", "supcon_tf.main", f"--flagfile={flag_file}"]
        recorded = self._read_identity(stage)
        if recorded and not _same_flags(flag_file, stage, recorded["flags"]):
            lines = recorded["flags"]
            if self._flags is not None:
                lines = identity.given_flags(self._flags, lines)
            parts[-1:] = [f"--mode={stage}", *lines]
        return shlex.join([*parts, f"--model_dir={self.path}"])

    def check_data(self, stage: str, new: DataIdentity, remedies: str) -> None:
        """Checks that the training data of a stage is still the same.

        Args:
            stage: A stage of this run.
            new: The training data as it is now.
            remedies: What the user can do, for the message.

        Raises:
            ValueError: If the data differs. The message lists the differences.
        """
        if not self.has(stage, IDENTITY):
            return  # The folder was put together by hand.
        path = self.artifacts(stage).check(IDENTITY)
        check_same_data(self.file(stage), files.read_sealed(path), new, remedies)

    def inputs(self, stage: str) -> dict[str, str] | None:
        """Returns the hash of each input of a stage, or None if they are not recorded."""
        if not self.has(stage, IDENTITY):
            return None
        record = files.read_sealed(self.artifacts(stage).check(IDENTITY))
        return record["inputs"] if record else None

    def read_flags(self, stage: str) -> dict[str, str]:
        """Returns name and value of each flag in `stage.flags`; {} if the stage was not run.

        A boolean flag that is on has an empty value.
        """
        pairs = (line.lstrip("-").partition("=") for line in self._read_lines(stage, FLAG_FILE))
        return {name: value for name, _, value in pairs}

    def read_log(self, stage: str) -> list[dict]:
        """Returns the logged metrics of a stage, in order; [] if the stage was not run."""
        return [json.loads(line) for line in self._read_lines(stage, LOG)]

    def _read_lines(self, stage, name):
        path = self.file(stage, name)
        if not tf.io.gfile.exists(path):
            return []
        with tf.io.gfile.GFile(path) as file:
            return [line.strip() for line in file]

    def _read_identity(self, stage):
        try:
            return files.read_sealed(Artifacts(self.file(stage)).check(IDENTITY))
        except ValueError:
            return None


def artifacts_of(path: str) -> Artifacts:
    """Returns the artifacts of the stage to which a file of any run belongs."""
    folder = os.path.dirname(path)
    return RunDirectory(os.path.dirname(folder)).artifacts(os.path.basename(folder))


def _same_flags(path, stage, lines):
    if not tf.io.gfile.exists(path):
        return False
    with tf.io.gfile.GFile(path, "rb") as file:
        written = file.read().decode(errors="replace").splitlines()
    return written[:1] == [f"--mode={stage}"] and written[-len(lines) :] == lines


def check_same_data(folder: str, recorded: dict | None, new: DataIdentity, remedies: str) -> None:
    """Checks that the training data is what `identity.json` recorded.

    Args:
        folder: The folder of the stage.
        recorded: The record of the stage, or None.
        new: The training data as it is now.
        remedies: What the user can do, for the message.

    Raises:
        ValueError: If the data differs. The message lists the differences.
    """
    if recorded is None or recorded.get("data") in (None, new.digest):
        return
    changed = ["(which files changed is no longer recorded)"]
    if "description" in recorded:
        old = data_identity.read(recorded["description"], run_path(folder, DATA_FILES))
        changed = data_identity.differences(old, new)
    raise ValueError(
        f"{folder} was trained on data that has changed since:\n  "
        + "\n  ".join(changed)
        + f"\n{remedies}"
    )


def find_part(reference: str, part: str) -> str:
    """Returns the file that holds a part of a finished run.

    Args:
        reference: The model directory of a run, or the file itself: a `.keras` file, or for the
            encoder a `.pth` file of SupContrast.
        part: "encoder", "projection_head" or "classifier".

    Raises:
        ValueError: If there is no such file.
    """
    if reference.endswith(".pth") and part != "encoder":
        raise ValueError(
            f"reference_ckpt={reference} can provide only an encoder: SupContrast's heads have "
            "biases that the heads here do not have. `supcon_tf.load_supcontrast_head` reads such "
            "a head in Python."
        )
    if reference.endswith((".keras", ".pth")):
        candidates = [reference]
    else:
        candidates = part_paths(reference, part)
    for path in candidates:
        if tf.io.gfile.exists(path):
            return path
    raise ValueError(
        f"reference_ckpt={reference} has no {part.replace('_', ' ')}: expected "
        f"{' or '.join(candidates)}. Give the model directory of a finished run"
        + (" or the .keras file of an encoder." if part == "encoder" else ".")
    )
