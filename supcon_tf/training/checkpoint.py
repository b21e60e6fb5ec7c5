"""Saving a run whole or not at all, and finding the newest state to continue from."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable

import tensorflow as tf

from supcon_tf.storage import files

# Recorded in every checkpoint and raised whenever the meaning of what it holds changes, so that
# an older one is refused instead of being restored as something else.
#   1  no version recorded; momentum and Nesterov buffers contain the learning rate
#   2  momentum and Nesterov buffers hold gradients alone
FORMAT_VERSION = 2
_STEP_FOLDER = re.compile(r"step_(\d{8,})/?$")
_LEFTOVER = re.compile(r"(writing|deleting)_\d{8,}/?$")
ADVICE = "Try a lower learning rate, a longer warm-up, or a higher temperature."


class CheckpointFolder:
    """Numbered checkpoints of one stage: `<folder>/step_00000100/`.

    A checkpoint is written under another name and renamed when it is whole and on the disk.
    What exists is found by looking at the folder. TensorFlow keeps a checksum of every tensor
    and of the index, so a byte that the disk changed is noticed.

    Args:
        folder: a local or remote path.
        max_to_keep: older ones are deleted after a save.
        is_chief: the one worker that writes. The others take part in a save, because reading
            synchronised variables is a collective, and throw theirs away.
        record: what to note beside the step in `complete.json`: seed, flags, and as
            "environment" what equal bits depend on.
        check_record: raises ValueError for the record of a checkpoint of another run.
        **objects: what to save: models, optimizers, variables; all built.
    """

    def __init__(
        self,
        folder: str,
        *,
        max_to_keep: int = 5,
        is_chief: bool = True,
        record: dict | None = None,
        check_record: Callable[[dict], None] | None = None,
        **objects,
    ):
        self.folder = folder
        self.max_to_keep = max_to_keep
        self.is_chief, self._record = is_chief, record or {}
        self._check_record = check_record
        self._is_remote = "://" in folder
        self._objects = objects
        self._checkpoint = tf.train.Checkpoint(**objects)

    def steps(self) -> list[int]:
        """The steps that have a whole checkpoint, oldest first."""
        return [step for step in self._found() if tf.io.gfile.exists(self._marker(step))]

    def describe_last(self) -> str:
        """What a run that fails now goes on from, for its message."""
        saved = self.steps()
        if not saved:
            return "nothing was saved yet"
        return f"the last good checkpoint is of step {saved[-1]}"

    def save(self, step: int) -> str:
        """Writes the state after `step` steps and returns its folder.

        Raises:
            ValueError: a value is not finite; nothing is written.
            OSError: it cannot be written, as when the disk is full. The checkpoints before it
                stay as they were.
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
                f"{files.first_line(error)} Now {self.describe_last()}. Make room there and run "
                "the same command again to resume from that step."
            ) from error
        for old in self.steps()[: -self.max_to_keep]:
            self._delete(old)
        return self._path(step)

    def restore_latest(self) -> int:
        """Reads the newest checkpoint into the objects; returns its step, 0 if there is none.

        One that is damaged is named, passed over for the one before, and then put aside as
        `damaged_<step>`. What a killed save left is removed.

        Raises:
            ValueError: if checkpoints exist but none can be read, or if one has another
                architecture or format version.
        """
        self._remove_leftovers()
        damaged = []
        for step in reversed(self._found()):
            reason = self._read(step)
            if reason is None:
                self._put_aside(damaged)
                return step
            damaged.append(step)
            print(f"{self._path(step)} cannot be read ({reason}).")
        # A remote folder is not renamed at a stroke: a save killed there leaves one without its
        # marker.
        if self.steps() or (damaged and not self._is_remote):
            raise ValueError(
                f"None of the {len(damaged)} checkpoints in {self.folder} can be read. Delete "
                "that folder to start again."
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
        """Reads a checkpoint into the objects; returns why it cannot be read, or None."""
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
        except (tf.errors.OpError, IndexError) as error:  # IndexError: a file cut short.
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
        """What a checkpoint records; raises ValueError where that is missing or damaged."""
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
                f"version {FORMAT_VERSION}, whose optimizer state has another meaning. Use the "
                "release of supcon_tf that wrote the checkpoint, train in another --model_dir, "
                f"or delete {self.folder} to train the stage again from the start."
            )

    def _compare(self, old):
        """Says where the machine or the versions differ: rounding does then, the run goes on."""
        new = self._record.get("environment", {})
        changed = [
            f"{name} {old[name]} -> {new.get(name)}" for name in old if old[name] != new.get(name)
        ]
        if changed:
            print(
                f"Since the last checkpoint: {', '.join(changed)}. The run goes on, equal up to "
                "rounding but not bit for bit."
            )

    def _refuse_broken_values(self, step):
        """One infinite weight would make the checkpoint useless, and older ones get deleted."""
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
        """By another name first, so that a kill leaves no half of it under its own."""
        if tf.io.gfile.exists(self._path(step)):
            files.remove(self._path(step, "deleting"))
            tf.io.gfile.rename(self._path(step), self._path(step, "deleting"))
            files.remove(self._path(step, "deleting"))

    def _put_aside(self, steps):
        """Else they would count as the newest when old ones are deleted."""
        for step in steps if self.is_chief else ():
            aside = self._path(step, "damaged")
            files.remove(aside)
            tf.io.gfile.rename(self._path(step), aside)
            print(f"It is kept as {aside}; nothing reads it again.")

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
    """What the newest whole checkpoint in a folder recorded, without reading its state."""
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
