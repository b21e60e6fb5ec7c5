"""The directory of a run: its paths, the folder of each stage, its flags and its result."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import tempfile

import keras
import tensorflow as tf

from supcon_tf import command_line, files
from supcon_tf.files import read_json, write_json, write_whole
from supcon_tf.stages import run_lock

# Where each part of a finished run is, the later stage first.
PART_FILES = {
    "encoder": ("finetune/encoder.keras", "pretrain/encoder.keras"),
    "projection_head": ("pretrain/projection_head.keras",),
    "classifier": ("finetune/classifier.keras", "linear/classifier.keras"),
}


class RunDirectory:
    """Every path of one run: `<model_dir>/<stage>/<file>`, local or remote."""

    def __init__(self, path: str):
        self.path = path

    @classmethod
    def of(cls, flags) -> RunDirectory:
        """The directory that --model_dir names, or its default."""
        return cls(command_line.model_dir(flags))

    def file(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    def folder(self, stage: str) -> str:
        return self.file(stage)

    @property
    def encoder(self) -> str:
        """The encoder that pretraining saves."""
        return self.file("pretrain", "encoder.keras")

    @property
    def projection_head(self) -> str:
        return self.file("pretrain", "projection_head.keras")

    @property
    def linear_head(self) -> str:
        """The classifier that pretraining saves if it trains one: embeddings to logits."""
        return self.file("pretrain", "linear_head.keras")

    @property
    def classifier(self) -> str:
        """The classifier of the latest stage that saved one: finetune, else linear."""
        files_of_part = [self.file(name) for name in PART_FILES["classifier"]]
        return next(filter(tf.io.gfile.exists, files_of_part), files_of_part[-1])


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
    whatever ran before it in the process.

    Args:
        flags: absl's flag values.
        stage: the name of the stage and of its folder.
        inputs: name to fingerprint of what the stage builds on, such as the encoder.
        always_anew: the stage goes on with nothing, so its flags may change from run to run.
        is_chief: only the chief holds the folder and writes into it; the other workers read it,
            and what they write goes into a temporary folder.

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
        self.path = self.run.folder(stage)
        self._flags, self._inputs = flags, inputs or {}
        self._always_anew = always_anew
        self.is_chief = is_chief
        self._lock = contextlib.ExitStack()

    def file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def file_to_write(self, name: str) -> str:
        """Where this process writes a file: the folder, or what stands for it beside the chief."""
        return os.path.join(self._output_path, name)

    def __enter__(self) -> StageFolder:
        self._output_path = self.path
        if not self.is_chief:
            self._output_path = self._lock.enter_context(tempfile.TemporaryDirectory())
            keras.utils.set_random_seed(self._flags.seed)
            return self
        tf.io.gfile.makedirs(self.path)
        self._lock.enter_context(run_lock.hold(self.file("lock")))
        try:
            self._refuse_other_inputs()
            changed = [] if self._always_anew else self._changed_flags()
            if changed and not self._flags.override_flags:
                raise ValueError(
                    f"{self.path} was begun with other flags:\n  " + "\n  ".join(changed) + "\n"
                    "Use the old values, another --model_dir, or --override_flags to go on with "
                    "the new ones."
                )
            if changed and self.result() is not None:
                tf.io.gfile.remove(self.file("result.json"))
            keras.utils.set_random_seed(self._flags.seed)
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *_):
        self._lock.close()

    def begin(self) -> None:
        """Writes down flags and inputs: from here on the folder belongs to them.

        To be called when everything is checked, so that a refused run does not stand in the
        way of the mended one.
        """
        if not self.is_chief:
            return
        self._write_flags()
        write_json(self.file("inputs.json"), self._inputs)

    def result(self) -> dict | None:
        """What the finished stage left, or None while it is not finished."""
        return read_json(self.file("result.json"))

    def finish(self, result: dict) -> None:
        write_json(self.file_to_write("result.json"), result)

    def say_finished(self) -> None:
        print(
            f"{self.stage} is already finished in {self.path}. To do it again take another "
            "--model_dir or delete that folder; for more epochs add --override_flags."
        )

    def _refuse_other_inputs(self):
        old = read_json(self.file("inputs.json"))
        if old is not None and old != self._inputs:
            names = ", ".join(name for name in old if old[name] != self._inputs.get(name))
            raise ValueError(
                f"{self.path} was made with another {names} than the one there is now. Delete "
                "that folder to do the stage again."
            )

    def _changed_flags(self):
        path = self.file("stage.flags")
        if not tf.io.gfile.exists(path):
            return []
        with tf.io.gfile.GFile(path) as file:
            lines = [line.rstrip("\n") for line in file]
        new = command_line.stage_flags(self._flags, self.stage)
        written = {line.lstrip("-").split("=")[0]: line for line in lines}
        changed = []
        for name in command_line.stage_flag_names(self._flags, self.stage):
            # A flag that came with a later version than the file had its default then.
            old = written.get(name) or written.get(f"no{name}") or _default(self._flags, name)
            if name not in command_line.FREE_FLAGS and old != new.get(name):
                changed.append(
                    f"{old or f'(no --{name})'}  ->  {new.get(name) or f'(no --{name})'}"
                )
        return changed

    def _write_flags(self):
        lines = [
            f"--mode={self.stage}",
            f"--model_dir={self.run.path}",
            # First, so that the flags below override it: for the stages that follow.
            *([self._flags["recipe"].serialize()] if self._flags.recipe else []),
            *command_line.stage_flags(self._flags, self.stage).values(),
        ]
        write_whole(self.file("stage.flags"), "\n".join(lines) + "\n")


def _default(flags, name):
    """`--name=value` as if nobody had given it; None where that is None."""
    flag = copy.deepcopy(flags[name])
    flag.unparse()
    return None if flag.value is None else flag.serialize()


def save_model(model, path: str) -> None:
    """Saves a Keras model whole or not at all, locally or remotely."""
    root, extension = os.path.splitext(path)
    temporary = f"{root}.writing{extension}"
    try:
        model.save(temporary)
        files.move_whole(temporary, path)
    except (OSError, tf.errors.OpError):
        files.remove(temporary)
        raise


def fingerprint(path: str) -> str:
    """SHA-256 of a file."""
    with tf.io.gfile.GFile(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
