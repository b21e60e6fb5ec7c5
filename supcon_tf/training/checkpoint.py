"""Checkpoints that are written completely or not at all, and resuming from the newest one."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from supcon_tf.storage import files

# Recorded in every checkpoint, and increased whenever the meaning of its contents changes, so that
# an older checkpoint is rejected instead of being restored as something else.
#   1  no version recorded; momentum and Nesterov buffers contain the learning rate
#   2  momentum and Nesterov buffers contain only gradients
FORMAT_VERSION = 2
_STEP_FOLDER = re.compile(r"step_(\d{8,})/?$")
_LEFTOVER = re.compile(r"(writing|deleting)_\d{8,}/?$")
ADVICE = "Try a lower learning rate, a longer warm-up, or a higher temperature."


class CheckpointFolder:
    """The numbered checkpoints of one stage: `<folder>/step_00000100/`.

    A checkpoint is written under another name and renamed once it is complete and on the disk.
    The existing checkpoints are found by listing the folder. TensorFlow stores a checksum of every
    tensor and of the index, so damaged bytes are detected.

    Args:
        folder: A local or remote path.
        max_to_keep: How many checkpoints to keep; older ones are deleted after a save.
        is_chief: Whether this worker writes. The others take part in a save, because reading
            synchronized variables is a collective operation, and discard their copy.
        record: What to record in `complete.json` besides the step: seed, flags, and as
            "environment" what bit-for-bit equality depends on.
        check_record: Raises ValueError for the record of a checkpoint of another run.
        **objects: What to save: models, optimizers, variables; all built.
    """

    def __init__(
        self,
        folder: str,
        *,
        max_to_keep: int = 5,
        is_chief: bool = True,
        record: dict | None = None,
        check_record: Callable[[dict], None] | None = None,
        **objects: Any,
    ):
        self.folder = folder
        self.max_to_keep = max_to_keep
        self.is_chief, self._record = is_chief, record or {}
        self._check_record = check_record
        self._is_remote = "://" in folder
        self._objects = objects
        self._checkpoint = tf.train.Checkpoint(**objects)

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, oldest first."""
        return [step for step in self._found() if tf.io.gfile.exists(self._marker(step))]

    def describe_last(self) -> str:
        """Describes what a run that fails now can resume from, for its message."""
        saved = self.steps()
        if not saved:
            return "nothing was saved yet"
        return f"the last good checkpoint is of step {saved[-1]}"

    def save(self, step: int) -> str:
        """Writes the state after `step` steps and returns its folder.

        Raises:
            ValueError: If a value is not finite. Nothing is written.
            OSError: If it cannot be written, for example because the disk is full. Earlier
                checkpoints are not affected.
        """
        self._refuse_broken_values(step)
        if not self.is_chief:
            with tempfile.TemporaryDirectory() as elsewhere:
                self._checkpoint.write(os.path.join(elsewhere, "state"))
            return self._path(step)
        temporary = self._path(step, "writing")
        try:
            self._write(step, temporary)
        except (OSError, tf.errors.OpError) as error:
            files.remove(temporary)
            raise OSError(
                f"The checkpoint of step {step} could not be written to {self.folder}: "
                f"{files.first_line(error)} Now {self.describe_last()}. Free some disk space and "
                "run the same command again to resume from that step."
            ) from error
        for old in self.steps()[: -self.max_to_keep]:
            self._delete(old)
        return self._path(step)

    def restore_latest(self) -> int:
        """Restores the newest checkpoint; returns its step, or 0 if there is none.

        A damaged checkpoint is reported and renamed to `damaged_<step>`, and the one before it is
        used. The remains of a killed save are removed.

        Raises:
            ValueError: If checkpoints exist but none can be read, or if one has another
                architecture or format version.
        """
        self._remove_leftovers()
        damaged: list[int] = []
        for step in reversed(self._found()):
            reason = self._read(step)
            if reason is None:
                self._put_aside(damaged)
                return step
            damaged.append(step)
            print(f"{self._path(step)} cannot be read ({reason}).")
        # A remote folder is not renamed atomically: a save that was killed there leaves a folder
        # without its marker.
        if self.steps() or (damaged and not self._is_remote):
            raise ValueError(
                f"None of the {len(damaged)} checkpoints in {self.folder} can be read. Delete "
                "that folder to start the stage again."
            )
        return 0

    def _found(self):
        if not tf.io.gfile.isdir(self.folder):
            return []
        names = (_STEP_FOLDER.search(name) for name in tf.io.gfile.listdir(self.folder))
        return sorted(int(match.group(1)) for match in names if match)

    def _write(self, step, temporary):
        record = {"step": step, "format_version": FORMAT_VERSION, **self._record}
        files.remove(temporary)
        self._checkpoint.write(os.path.join(temporary, "state"))
        if not self._is_remote:
            files.write_sealed(os.path.join(temporary, "complete.json"), record)
        self._delete(step)
        files.move_whole(temporary, self._path(step))
        if self._is_remote:
            files.write_sealed(self._marker(step), record)

    def _read(self, step):
        """Restores a checkpoint; returns why it cannot be read, or None."""
        try:
            record = self._read_marker(step)
        except (ValueError, KeyError, tf.errors.OpError) as error:
            return files.first_line(error)
        self._refuse_other_version(step, record.get("format_version", 1))
        try:
            if self._check_record:
                self._check_record(record)
        except ValueError as error:
            raise ValueError(f"{self._path(step)} cannot be used: {error}") from error
        try:
            status = self._checkpoint.read(os.path.join(self._path(step), "state"))
            status.assert_existing_objects_matched()
        except (tf.errors.OpError, IndexError) as error:  # IndexError: a truncated file.
            return files.first_line(error)
        except (AssertionError, ValueError) as error:
            raise ValueError(
                f"{self._path(step)} was written by another architecture: "
                f"{files.first_line(error)} Use the flags it was written with, or another "
                "--model_dir."
            ) from error
        self._compare(record.get("environment", {}))
        return None

    def _read_marker(self, step):
        """Returns what a checkpoint recorded; raises ValueError if that is missing or damaged."""
        record = files.read_json(self._marker(step))
        if record is None:
            raise ValueError("complete.json is missing")
        is_old = isinstance(record, dict) and "checksum" not in record
        if is_old and record.get("step") == step and "format_version" not in record:
            return record  # The first version had no checksum.
        record = files.read_sealed(self._marker(step))
        if record["step"] != step:
            raise ValueError(f"it records step {record['step']}: the folder was renamed")
        return record

    def _refuse_other_version(self, step, version):
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{self._path(step)} has checkpoint format version {version}; this release reads "
                f"version {FORMAT_VERSION}, whose optimizer state has a different meaning. Use the "
                "release of supcon_tf that wrote the checkpoint, train in another --model_dir, "
                f"or delete {self.folder} to train the stage again from the start."
            )

    def _compare(self, old):
        """Prints which versions or threads differ, because rounding may then differ too."""
        new = self._record.get("environment", {})
        changed = [
            f"{name} {old[name]} -> {new.get(name)}" for name in old if old[name] != new.get(name)
        ]
        if changed:
            print(
                f"Since the last checkpoint, this has changed: {', '.join(changed)}. The run "
                "resumes; its results may differ by rounding."
            )

    def _refuse_broken_values(self, step):
        """Rejects values that are not finite: they make a checkpoint useless, and older ones are
        deleted."""
        for name, holder in self._objects.items():
            for variable in getattr(holder, "variables", [holder]):
                value = tf.convert_to_tensor(variable)
                if value.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(value)):
                    path = getattr(variable, "path", variable.name)
                    raise ValueError(
                        f"{name}: {path} is not finite after step {step}, so nothing was saved; "
                        f"{self.describe_last()}. {ADVICE}"
                    )

    def _delete(self, step):
        """Renames it first, so that a kill leaves no incomplete checkpoint under its name."""
        if tf.io.gfile.exists(self._path(step)):
            files.remove(self._path(step, "deleting"))
            tf.io.gfile.rename(self._path(step), self._path(step, "deleting"))
            files.remove(self._path(step, "deleting"))

    def _put_aside(self, steps):
        """Renames damaged checkpoints; else they would count as the newest ones to keep."""
        for step in steps if self.is_chief else ():
            aside = self._path(step, "damaged")
            files.remove(aside)
            tf.io.gfile.rename(self._path(step), aside)
            print(f"It was renamed to {aside} and will not be read again.")

    def _remove_leftovers(self):
        if self.is_chief and tf.io.gfile.isdir(self.folder):
            for name in tf.io.gfile.listdir(self.folder):
                if _LEFTOVER.match(name):
                    files.remove(os.path.join(self.folder, name))

    def _path(self, step, kind="step"):
        return os.path.join(self.folder, f"{kind}_{step:08d}")

    def _marker(self, step):
        return os.path.join(self._path(step), "complete.json")


def newest_record(folder: str) -> dict | None:
    """Returns what the newest complete checkpoint recorded, without its state; None if none."""
    if not tf.io.gfile.isdir(folder):
        return None
    for name in sorted(tf.io.gfile.listdir(folder), reverse=True):
        if _STEP_FOLDER.match(name):
            try:
                record = files.read_sealed(os.path.join(folder, name, "complete.json"))
            except ValueError:
                continue
            if record is not None:
                return record
    return None
