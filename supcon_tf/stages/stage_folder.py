"""The folder that a running stage holds: its lock, its identity, its artifacts and its result."""

from __future__ import annotations

import contextlib
import os
import tempfile

import keras
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf.cli import command_line
from supcon_tf.data import data_identity
from supcon_tf.data.data_identity import DataIdentity
from supcon_tf.stages import identity, run_lock
from supcon_tf.stages.identity import Identity
from supcon_tf.stages.run_directory import RunDirectory, check_same_data
from supcon_tf.storage import files
from supcon_tf.storage.artifacts import Artifacts
from supcon_tf.storage.run_paths import DATA_FILES, FLAG_FILE, IDENTITY, LOG, RESULT
from supcon_tf.training import checkpoint
from supcon_tf.training.optimizers import WarmUpThenDecay


class StageFolder:
    """`<model_dir>/<stage>/`, held by one run at a time.

    Use it as a context manager. On entering, it takes the lock, compares the flags with those of
    the run that started here, and seeds the initial weights, so that a stage gives the same
    result whatever ran before it in the process. Nothing is written before `begin`.

    Args:
        flags: The parsed flags.
        stage: The name of the stage and of its folder.
        inputs: Name and hash of each input of the stage, such as the encoder.
        always_restarts: Whether the stage always starts from the beginning, so that its flags may
            change from run to run.
        is_chief: Whether this process holds the folder and writes to it. The other workers read
            it, and what they write goes to a temporary folder.

    Attributes:
        artifacts: The artifacts that the stage writes and reads.
        problems: Artifacts of a finished stage that are missing or damaged. The stage then
            recreates its results from its last checkpoint.
        measured: What the stage measured on the data before training, by name. It is recorded.

    Raises (on entering):
        ValueError: If another run holds the folder, or if the stage was started with other flags
            or inputs.
    """

    def __init__(
        self,
        flags: FlagValues,
        stage: str,
        *,
        inputs: dict[str, str] | None = None,
        always_restarts: bool = False,
        is_chief: bool = True,
    ):
        self.stage = stage
        self.run = RunDirectory.of(flags)
        self.path = self.run.file(stage)
        self._flags, self._inputs = flags, inputs or {}
        self._always_restarts = always_restarts
        self.is_chief = is_chief
        self._lock = contextlib.ExitStack()
        self._data: DataIdentity | None = None
        self._old: dict = {}
        self._is_changed = False
        self.problems: dict[str, str] = {}
        self.measured: dict = {}

    def file(self, name: str) -> str:
        """Returns the path of a file in this folder."""
        return os.path.join(self.path, name)

    @property
    def checkpoints(self) -> str:
        """The path of the folder of checkpoints."""
        return self.file("checkpoints")

    def __enter__(self) -> StageFolder:
        output_folder = self.path
        if self.is_chief:
            tf.io.gfile.makedirs(self.path)
            self._lock.enter_context(run_lock.hold(self.file("lock")))
        else:
            output_folder = self._lock.enter_context(tempfile.TemporaryDirectory())
        try:
            remedy = self.run.command(self.stage)
            self.artifacts = Artifacts(self.path, output_folder=output_folder, remedy=remedy)
            if not self._always_restarts:
                self._compare_with_earlier_run()
            keras.utils.set_random_seed(self._flags.seed)
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._lock.close()

    # Comparing with the run that started here.

    def check_data(self, data: DataIdentity, *, built_on: str | None = None) -> None:
        """Compares the training data with that of the run that started here.

        Args:
            data: The training split, before --num_images and --label_noise_prob.
            built_on: A stage of this run that must have used the same data.

        Raises:
            ValueError: If the data differs. The message says how, and what to do.
        """
        self._data = data
        if not self.is_chief:
            return
        if built_on:
            self.run.check_data(
                built_on,
                data,
                "Restore that data, or use this encoder in another --model_dir with "
                f"--reference_ckpt={self.run.path}.",
            )
        is_other = self._old.get("data") not in (None, data.digest)
        if not self._has_trained():
            if is_other:
                self.measured = {}  # Nothing was trained on the old data.
        elif not self._flags.override_flags:
            check_same_data(
                self.path,
                self._old,
                data,
                "Restore that data, or train on the new data in another --model_dir, or add "
                "--override_flags to resume on the new data.",
            )
        elif is_other:
            self._is_changed = True
            print(f"{self.stage}: resuming, but the training data has changed (--override_flags).")

    def check_checkpoint(self, record: dict) -> None:
        """Checks that a checkpoint belongs to this run.

        Args:
            record: What the checkpoint recorded; see `record`.

        Raises:
            ValueError: If it belongs to another run. The message lists the differences.
        """
        if "inputs" not in record or self._flags.override_flags:
            return
        old, new = Identity.from_record(record), self._identity()
        changed = old.changed_flags(self._flags, self.stage) + old.changed_inputs(self._inputs)
        if old.data != new.data:
            changed.append("the training data")
        if changed and old.key not in self._old.get("earlier", []):
            raise ValueError(
                "it was written by another run:\n  " + "\n  ".join(changed) + "\nDelete it to "
                "resume from an older checkpoint, or add --override_flags to resume from it."
            )

    def record(self) -> dict:
        """Returns what every checkpoint records about the identity of the stage."""
        return self._identity().to_record()

    def _identity(self):
        digest = self._data.digest if self._data else None
        return Identity.of(self._flags, self.stage, self._inputs, digest)

    def _compare_with_earlier_run(self):
        """Finds damaged artifacts, and refuses other inputs or flags than those recorded."""
        if any(tf.io.gfile.exists(self.file(name)) for name in (RESULT, "artifacts.json")):
            self.problems = self.artifacts.problems()
        self._old = self._read_old()
        self.measured = self._old.get("measured", {})
        if not self._old:
            return
        old = Identity.from_record(self._old)
        changed = old.changed_inputs(self._inputs)
        if changed:
            raise ValueError(
                f"{self.path} was made with a different {', '.join(changed)} than the current "
                "one. Delete that folder to run the stage again."
            )
        changed = old.changed_flags(self._flags, self.stage)
        if changed and not self._flags.override_flags:
            raise ValueError(
                f"{self.path} was started with other flags:\n  " + "\n  ".join(changed) + "\n"
                "Use the old values, another --model_dir, or --override_flags to resume with "
                "the new values."
            )
        self._is_changed = bool(changed)
        for problem in self.problems.values() if self.is_chief else ():
            print(f"{problem} It will be recreated from the last checkpoint of the stage.")

    def _read_old(self):
        """Reads the identity of the run that started here, from the first place that has it."""
        old = None
        if IDENTITY not in self.problems:  # Damaged artifacts are reported separately.
            try:
                old = files.read_sealed(self.file(IDENTITY))
            except ValueError as error:
                print(f"{error} Using the copy in the last checkpoint instead.")
        if old is not None and old.get("format_version") != identity.FORMAT_VERSION:
            raise ValueError(
                f"{self.file(IDENTITY)} has format version {old.get('format_version')}; this "
                f"release reads version {identity.FORMAT_VERSION}. Use the release of supcon_tf "
                "that started the run, or another --model_dir."
            )
        old = old or checkpoint.newest_record(self.checkpoints)
        if old is not None and "flags" in old:
            return old
        if tf.io.gfile.exists(self.file(FLAG_FILE)):
            with tf.io.gfile.GFile(self.file(FLAG_FILE), "rb") as file:
                return {"flags": file.read().decode(errors="replace").splitlines()}
        return {}

    def _has_trained(self):
        """Whether there are weights that depend on the recorded data."""
        has_result = tf.io.gfile.exists(self.file(RESULT))
        return has_result or bool(checkpoint.newest_record(self.checkpoints))

    # Starting and finishing.

    def begin(self, schedule: WarmUpThenDecay | None = None) -> None:
        """Records flags, data and inputs. From now on the folder belongs to them.

        Call it after all other checks, so that a rejected run does not block the corrected one.

        Args:
            schedule: The schedule of a stage that trains, for its number of steps.

        Raises:
            ValueError: If the existing checkpoints do not lead to the end of the schedule.
        """
        if not self.is_chief:
            return
        if schedule is not None:
            self._check_steps(schedule.total_steps, schedule.steps_per_epoch)
        self._remove_leftovers()
        if self._is_changed:  # The existing results belong to the old flags.
            for name in (RESULT, "artifacts.json"):
                self.artifacts.remove(name)
        if LOG in self.problems and tf.io.gfile.exists(self.file(LOG)):
            tf.io.gfile.rename(self.file(LOG), self.file("metrics.damaged.jsonl"), overwrite=True)
        self._write_flags()
        if not self._always_restarts:
            self._write_identity()

    def _write_flags(self):
        flags = command_line.stage_flags(self._flags, self.stage).values()
        # The recipe comes first, so that the flags override it; later stages read it here.
        recipe = [self._flags["recipe"].serialize()] if self._flags.recipe else []
        lines = [f"--mode={self.stage}", f"--model_dir={self.run.path}", *recipe, *flags]
        self.artifacts.write_text(FLAG_FILE, "\n".join(lines) + "\n")

    def _write_identity(self):
        if self._data and self._data.files:
            self.artifacts.write_text(DATA_FILES, data_identity.to_lines(self._data.files))
        earlier = self._old.get("earlier", [])
        if self._is_changed:
            earlier = [*earlier, Identity.from_record(self._old).key]
        record = {
            "format_version": identity.FORMAT_VERSION,
            **self.record(),
            "earlier": earlier,
            "measured": self.measured,
        }
        if self._data:
            record["description"] = self._data.description
        files.write_sealed(self.artifacts.path_to_write(IDENTITY), record)

    def result(self) -> dict | None:
        """Returns the result of the finished stage; None if it is unfinished or damaged."""
        is_finished = tf.io.gfile.exists(self.file(RESULT))
        if self.problems or self._is_changed or not is_finished:
            return None
        return self.artifacts.read_json(RESULT, dict)

    def finish(self, result: dict) -> None:
        """Writes the result and seals every artifact, which marks the stage as finished."""
        self.artifacts.write_json(RESULT, result)
        if tf.io.gfile.exists(self.file(LOG)):
            self.artifacts.path_to_write(LOG)
        self.seal()

    def seal(self) -> None:
        """Records size and checksum of every artifact that the stage wrote."""
        if self.is_chief:
            self.artifacts.seal()

    def say_finished(self) -> None:
        """Prints that there is nothing left to do, and how to train again or for longer."""
        print(
            f"{self.stage} is already finished in {self.path}. To run it again, use another "
            "--model_dir or delete that folder. To train for more epochs, add --override_flags."
        )

    def _check_steps(self, total_steps, steps_per_epoch):
        """Checks that no more steps were trained than the flags ask for, and that lost results
        can be recreated."""
        newest = checkpoint.newest_record(self.checkpoints)
        reached = newest["step"] if newest else 0
        if reached > total_steps:
            raise ValueError(
                f"{self.stage} has reached step {reached:,} in {self.path}, but the flags ask for "
                f"only {total_steps:,} steps. Ask for at least {reached / steps_per_epoch:.4g} "
                "epochs, or use another --model_dir."
            )
        if self.problems and not self._is_changed and reached < total_steps:
            raise ValueError(
                f"{next(iter(self.problems.values()))} There is no checkpoint of step "
                f"{total_steps:,} to recreate it from. Delete {self.path} and run the same command "
                "to train the stage again."
            )

    def _remove_leftovers(self):
        """Removes files that a killed run was still writing."""
        for name in tf.io.gfile.listdir(self.path):
            if files.WRITING in name:
                files.remove(self.file(name.rstrip("/")))


def read_record(flags: FlagValues, stage: str) -> dict:
    """Returns what a stage recorded when it began: flags, data, measured; {} if it did not.

    The record of the newest checkpoint, which lacks what was measured, stands in for an
    `identity.json` that is missing or damaged. Nothing is checked: `StageFolder` does that.
    """
    run = RunDirectory.of(flags)
    try:
        record = files.read_sealed(run.file(stage, IDENTITY))
    except ValueError:
        record = None
    if record is None:
        record = checkpoint.newest_record(run.file(stage, "checkpoints"))
    return record if record and "flags" in record else {}
