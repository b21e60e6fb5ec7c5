"""The directory of a run: its paths and artefacts, and the folder that a stage works in."""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile

import keras
import tensorflow as tf

from supcon_tf.cli import command_line
from supcon_tf.cli.program import python_program
from supcon_tf.data import data_identity
from supcon_tf.data.data_identity import DataIdentity
from supcon_tf.stages import identity, run_lock
from supcon_tf.stages.identity import Identity
from supcon_tf.storage import files
from supcon_tf.storage.artifacts import Artifacts
from supcon_tf.training import checkpoint

# Where each part of a finished run is, the later stage first.
PART_FILES = {
    "encoder": ("finetune/encoder.keras", "pretrain/encoder.keras"),
    "projection_head": ("pretrain/projection_head.keras",),
    "classifier": ("finetune/classifier.keras", "linear/classifier.keras"),
}
IDENTITY, FLAGS, RESULT, LOG = "identity.json", "stage.flags", "result.json", "metrics.jsonl"
DATA_FILES = "data_files.tsv"


class RunDirectory:
    """Every path of one run, `<model_dir>/<stage>/<file>`, local or remote, and its artefacts.

    Args:
        path: the model directory.
        flags: absl's flag values, whose defaults make the commands in messages shorter.
    """

    def __init__(self, path: str, flags=None):
        self.path, self._flags = path, flags

    @classmethod
    def of(cls, flags) -> RunDirectory:
        """The directory that --model_dir names, or its default."""
        return cls(command_line.model_dir(flags), flags)

    def file(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    @property
    def encoder(self) -> str:
        """The encoder that pretraining saves."""
        return self.file("pretrain", "encoder.keras")

    @property
    def linear_head(self) -> str:
        """The classifier that pretraining saves if it trains one: embeddings to logits."""
        return self.file("pretrain", "linear_head.keras")

    def artifacts(self, stage: str) -> Artifacts:
        return Artifacts(self.file(stage), remedy=self.command(stage))

    def has(self, stage: str, name: str) -> bool:
        """Whether a stage made this artefact, even if the file is gone since."""
        return self.artifacts(stage).has(name)

    @property
    def classifier_stage(self) -> str:
        """The latest stage that saved a classifier: finetune, else linear."""
        return "finetune" if self.has("finetune", "classifier.keras") else "linear"

    def command(self, stage: str) -> str:
        """The command that makes what is missing or damaged in a stage's folder again."""
        parts = [python_program(), "-m", "supcon_tf.main", f"--flagfile={self.file(stage, FLAGS)}"]
        recorded = self._recorded(stage)
        if recorded and not _same_flags(self.file(stage, FLAGS), stage, recorded["flags"]):
            lines = recorded["flags"]
            if self._flags is not None:
                lines = identity.given_flags(self._flags, lines)
            parts[-1:] = [f"--mode={stage}", *lines]
        return shlex.join([*parts, f"--model_dir={self.path}"])

    def check_data(self, stage: str, new: DataIdentity, remedies: str) -> None:
        """Refuses a stage whose training data is not what there is now.

        Raises:
            ValueError: it differs; says how, and `remedies`.
        """
        if not self.has(stage, IDENTITY):
            return  # Put together by hand.
        path = self.artifacts(stage).check(IDENTITY)
        recorded = files.read_sealed(path)
        _refuse_other_data(self.file(stage), recorded, new, remedies)

    def inputs(self, stage: str) -> dict[str, str] | None:
        """What a stage was built on, by hash; None in a folder put together by hand."""
        if not self.has(stage, IDENTITY):
            return None
        return files.read_sealed(self.artifacts(stage).check(IDENTITY))["inputs"]

    def _recorded(self, stage):
        try:
            return files.read_sealed(Artifacts(self.file(stage)).check(IDENTITY))
        except ValueError:
            return None


def artifacts_of(path: str) -> Artifacts:
    """The artefacts of the stage of some run that a file belongs to."""
    folder = os.path.dirname(path)
    return RunDirectory(os.path.dirname(folder)).artifacts(os.path.basename(folder))


def _same_flags(path, stage, lines):
    if not tf.io.gfile.exists(path):
        return False
    with tf.io.gfile.GFile(path, "rb") as file:
        written = file.read().decode(errors="replace").splitlines()
    return written[:1] == [f"--mode={stage}"] and written[-len(lines) :] == lines


def _refuse_other_data(folder, recorded, new, remedies):
    if recorded is None or recorded.get("data") in (None, new.digest):
        return
    changed = ["(which files is not recorded any more)"]
    if "description" in recorded:
        old = data_identity.read(recorded["description"], os.path.join(folder, DATA_FILES))
        changed = data_identity.differences(old, new)
    raise ValueError(
        f"{folder} was trained on other data than there is now:\n  "
        + "\n  ".join(changed)
        + f"\n{remedies}"
    )


def find_part(reference: str, part: str) -> str:
    """The file that holds a part of a finished run.

    Args:
        reference: the model directory of a run, or a file, which is the part itself: `.keras`,
            or for the encoder SupContrast's `.pth`.
        part: one of PART_FILES.

    Raises:
        ValueError: there is no such file.
    """
    if reference.endswith(".pth") and part != "encoder":
        raise ValueError(
            f"reference_ckpt={reference} gives an encoder only: SupContrast's heads have biases "
            "that ours lack; `supcon_tf.load_supcontrast_head` reads one in Python."
        )
    if reference.endswith((".keras", ".pth")):
        candidates = [reference]
    else:
        candidates = [os.path.join(reference, name) for name in PART_FILES[part]]
    for path in candidates:
        if tf.io.gfile.exists(path):
            return path
    raise ValueError(
        f"reference_ckpt={reference} holds no {part.replace('_', ' ')}: expected "
        f"{' or '.join(candidates)}. Give the model directory of a finished run"
        + (" or an encoder's .keras file." if part == "encoder" else ".")
    )


class StageFolder:
    """`<model_dir>/<stage>/`, held by one run at a time.

    Use as a context manager: entering takes the lock, compares the flags with those of the
    run that began here, and seeds the initial weights, so that a stage comes out the same
    whatever ran before it in the process. Nothing is written before `begin`.

    Args:
        flags: absl's flag values.
        stage: the name of the stage and of its folder.
        inputs: name to hash of what the stage builds on, such as the encoder.
        always_anew: the stage always starts from the beginning, so its flags may change from
            run to run.
        is_chief: only the chief holds the folder and writes into it; the other workers read it,
            and what they write goes into a temporary folder.

    Attributes:
        artifacts: what the stage writes and reads.
        problems: artefacts of a finished stage that are missing or damaged since. The stage
            then makes its results again, from its last checkpoint.
        measured: name to what the stage measured on the data before training; recorded.

    Raises (on entering):
        ValueError: another run holds the folder, or it was begun with other flags or inputs.
    """

    def __init__(
        self,
        flags,
        stage: str,
        *,
        inputs: dict[str, str] | None = None,
        always_anew: bool = False,
        is_chief: bool = True,
    ):
        self.stage = stage
        self.run = RunDirectory.of(flags)
        self.path = self.run.file(stage)
        self._flags, self._inputs = flags, inputs or {}
        self._always_anew = always_anew
        self.is_chief = is_chief
        self._lock = contextlib.ExitStack()
        self._data: DataIdentity | None = None
        self._old: dict = {}
        self._is_changed = False
        self.problems: dict[str, str] = {}
        self.measured: dict = {}

    def file(self, name: str) -> str:
        return os.path.join(self.path, name)

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
            if not self._always_anew:
                self._compare()
            keras.utils.set_random_seed(self._flags.seed)
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *_):
        self._lock.close()

    def check_data(self, data: DataIdentity, *, built_on: str | None = None) -> None:
        """Compares the training data with that of the run that began here.

        Args:
            data: the training split, before --num_images and --label_noise_prob.
            built_on: a stage of this run whose data must be the same.

        Raises:
            ValueError: it is other data; says what differs and what can be done.
        """
        self._data = data
        if not self.is_chief:
            return
        if built_on:
            self.run.check_data(
                built_on,
                data,
                "Restore that data, or build on this encoder in another --model_dir with "
                f"--reference_ckpt={self.run.path}.",
            )
        if not self._has_trained():
            if self._old.get("data") not in (None, data.digest):
                self.measured = {}  # Nothing was trained yet: this data counts from now on.
            return
        if self._flags.override_flags:
            if self._old.get("data") not in (None, data.digest):
                self._is_changed = True
                print(f"{self.stage}: resuming on other data than before.")
            return
        _refuse_other_data(
            self.path,
            self._old,
            data,
            "Restore that data; or train on this data in another --model_dir; or add "
            "--override_flags to resume on it.",
        )

    def begin(self, schedule=None) -> None:
        """Records flags, data and inputs: from here on the folder belongs to them.

        To be called when everything else is checked, so that a rejected run does not block the
        corrected one.

        Args:
            schedule: of a stage that trains; has `total_steps` and `steps_per_epoch`.

        Raises:
            ValueError: the checkpoints that are there do not lead to the end of the schedule.
        """
        if not self.is_chief:
            return
        if schedule is not None:
            self._check_steps(schedule.total_steps, schedule.steps_per_epoch)
        self._remove_leftovers()
        if self._is_changed:  # The results that are there are not those of these flags.
            for name in (RESULT, "artifacts.json"):
                self.artifacts.remove(name)
        if LOG in self.problems and tf.io.gfile.exists(self.file(LOG)):
            tf.io.gfile.rename(self.file(LOG), self.file("metrics.damaged.jsonl"), overwrite=True)
        flags = command_line.stage_flags(self._flags, self.stage).values()
        # The recipe comes first, so that the flags override it; later stages read it here.
        recipe = [self._flags["recipe"].serialize()] if self._flags.recipe else []
        lines = [f"--mode={self.stage}", f"--model_dir={self.run.path}", *recipe, *flags]
        self.artifacts.write_text(FLAGS, "\n".join(lines) + "\n")
        if self._always_anew:
            return
        if self._data and self._data.files:
            self.artifacts.write_text(DATA_FILES, data_identity.to_lines(self._data.files))
        new = self._identity()
        earlier = self._old.get("earlier", [])
        if self._is_changed:
            earlier = [*earlier, Identity.from_record(self._old).key]
        record = {
            "format_version": identity.FORMAT_VERSION,
            **new.to_record(),
            "earlier": earlier,
            "measured": self.measured,
        }
        if self._data:
            record["description"] = self._data.description
        files.write_sealed(self.artifacts.path_to_write(IDENTITY), record)

    def record(self) -> dict:
        """What every checkpoint records of the stage's identity."""
        return self._identity().to_record()

    def check_checkpoint(self, record: dict) -> None:
        """Refuses a checkpoint of another run.

        Raises:
            ValueError: says what differs.
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
                "resume from an older one, or add --override_flags to resume from it."
            )

    def result(self) -> dict | None:
        """What the finished stage returned, or None while it is not finished and whole."""
        is_finished = tf.io.gfile.exists(self.file(RESULT))
        if self.problems or self._is_changed or not is_finished:
            return None
        return self.artifacts.read_json(RESULT, dict)

    def finish(self, result: dict) -> None:
        """Writes the result and seals every artefact of the stage: it is finished."""
        self.artifacts.write_json(RESULT, result)
        if tf.io.gfile.exists(self.file(LOG)):
            self.artifacts.path_to_write(LOG)
        self.seal()

    def seal(self) -> None:
        """Records size and checksum of what the stage wrote."""
        if self.is_chief:
            self.artifacts.seal()

    def say_finished(self) -> None:
        print(
            f"{self.stage} is already finished in {self.path}. To do it again take another "
            "--model_dir or delete that folder; for more epochs add --override_flags."
        )

    def _identity(self):
        digest = self._data.digest if self._data else None
        return Identity.of(self._flags, self.stage, self._inputs, digest)

    def _compare(self):
        """With the run that began here, which may have lost files."""
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
                f"{self.path} was made with another {', '.join(changed)} than the one there is "
                "now. Delete that folder to do the stage again."
            )
        changed = old.changed_flags(self._flags, self.stage)
        if changed and not self._flags.override_flags:
            raise ValueError(
                f"{self.path} was begun with other flags:\n  " + "\n  ".join(changed) + "\n"
                "Use the old values, another --model_dir, or --override_flags to resume with "
                "the new ones."
            )
        self._is_changed = bool(changed)
        for problem in self.problems.values() if self.is_chief else ():
            print(f"{problem} It is made again from the last checkpoint of the stage.")

    def _read_old(self):
        """The identity of the run that began here, from the first place that still has it."""
        old = None
        if IDENTITY not in self.problems:  # Those are named by `_compare`.
            try:
                old = files.read_sealed(self.file(IDENTITY))
            except ValueError as error:
                print(f"{error} The last checkpoint records it too.")
        if old is not None and old.get("format_version") != identity.FORMAT_VERSION:
            raise ValueError(
                f"{self.file(IDENTITY)} has format version {old.get('format_version')}; this "
                f"release reads version {identity.FORMAT_VERSION}. Use the release of supcon_tf "
                "that began the run, or another --model_dir."
            )
        old = old or checkpoint.newest_record(self.file("checkpoints"))
        if old is not None and "flags" in old:
            return old
        if tf.io.gfile.exists(self.file(FLAGS)):
            with tf.io.gfile.GFile(self.file(FLAGS), "rb") as file:
                return {"flags": file.read().decode(errors="replace").splitlines()}
        return {}

    def _check_steps(self, total_steps, steps_per_epoch):
        """The flags ask for no fewer steps than were trained, and lost results can be made."""
        newest = checkpoint.newest_record(self.file("checkpoints"))
        reached = newest["step"] if newest else 0
        if reached > total_steps:
            raise ValueError(
                f"{self.stage} has reached step {reached:,} in {self.path}, but the flags ask for "
                f"{total_steps:,} steps. Ask for at least {reached / steps_per_epoch:.4g} epochs, "
                "or use another --model_dir."
            )
        if self.problems and not self._is_changed and reached < total_steps:
            raise ValueError(
                f"{next(iter(self.problems.values()))} There is no checkpoint of step "
                f"{total_steps:,} to make it from. Delete {self.path} and run the same command "
                "to train the stage again."
            )

    def _has_trained(self):
        """Whether weights depend on the data that was recorded."""
        has_result = tf.io.gfile.exists(self.file(RESULT))
        return has_result or bool(checkpoint.newest_record(self.file("checkpoints")))

    def _remove_leftovers(self):
        """What a killed run was writing."""
        for name in tf.io.gfile.listdir(self.path):
            if files.WRITING in name:
                files.remove(self.file(name.rstrip("/")))
