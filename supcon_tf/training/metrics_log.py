"""The logged metrics of a stage: metrics.jsonl, and TensorBoard's scalars and images."""

from __future__ import annotations

import json
import os
import socket
import time

import numpy as np
import tensorflow as tf

from supcon_tf.storage import files
from supcon_tf.storage.run_paths import LOG, TENSORBOARD
from supcon_tf.training.reference_tags import REFERENCE_TAGS, reference_scalars


class MetricsLog:
    """`metrics.jsonl`, one JSON object per logged step, and TensorBoard scalars.

    TensorBoard gets each metric by its own name and by that of the released code, if it has one.

    Args:
        folder: Where to write.
        stage: The name of the stage, which decides the names of the released code.
        start_step: Lines of later steps are removed, because these steps are taken again.
        is_chief: Whether this worker writes. The others only read the existing lines.

    Attributes:
        path: The path of `metrics.jsonl`.
        last: The newest line, which may be from an earlier run.
    """

    def __init__(
        self, folder: str, *, stage: str = "train", start_step: int = 0, is_chief: bool = True
    ):
        self.path, self._stage = os.path.join(folder, LOG), stage
        self._is_chief, self._is_broken = is_chief, False
        content = _content(self.path)
        lines, damaged = _parse_lines(content)
        kept = [line for line in lines if line["step"] <= start_step]
        tensorboard = os.path.join(folder, TENSORBOARD)
        if start_step and (damaged or not kept):
            kept = _restored(tensorboard, kept, start_step)
        self.last = kept[-1] if kept else {}
        if not is_chief:
            return
        if damaged:
            self._set_aside(damaged)
        try:
            tf.io.gfile.makedirs(tensorboard)
            _write_start(tensorboard, start_step + 1)
            self._writer = tf.summary.create_file_writer(tensorboard)
        except (OSError, tf.errors.OpError) as error:
            raise files.cannot_write(tensorboard, error) from error
        text = "".join(json.dumps(line) + "\n" for line in kept)
        if text.encode() != content:
            files.write_whole(self.path, text)

    def _set_aside(self, damaged):
        aside = os.path.join(os.path.dirname(self.path), "metrics.damaged.jsonl")
        with tf.io.gfile.GFile(aside, "ab") as file:
            file.write(b"".join(line.rstrip(b"\n") + b"\n" for line in damaged.values()))
        numbers = ", ".join(map(str, list(damaged)[:10])) + (", ..." if len(damaged) > 10 else "")
        print(
            f"{self.path} is damaged in line {numbers}. The damaged lines were moved to {aside}; "
            "their steps are restored from TensorBoard's files where possible."
        )

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Appends the metrics of a step.

        Raises:
            OSError: If they cannot be written.
        """
        self.last = {"step": step, **metrics}
        if not self._is_chief:
            return
        try:
            with tf.io.gfile.GFile(self.path, "a") as file:
                file.write(json.dumps(self.last) + "\n")
            with self._writer.as_default(step=step):
                for name, value in (metrics | reference_scalars(metrics, self._stage)).items():
                    tf.summary.scalar(name, value)
            self._writer.flush()
        except (OSError, tf.errors.OpError) as error:
            self._is_broken = True
            raise files.cannot_write(self.path, error) from error

    def write_image(self, name: str, image: np.ndarray, *, step: int = 0) -> None:
        """Writes an image uint8 [height, width, 3] for TensorBoard.

        Raises:
            OSError: If it cannot be written.
        """
        if not self._is_chief:
            return
        try:
            with self._writer.as_default(step=step):
                tf.summary.image(name, image[None])
            self._writer.flush()
        except (OSError, tf.errors.OpError) as error:
            self._is_broken = True
            raise files.cannot_write(self.path, error) from error

    def sync(self) -> None:
        """Waits until the lines are on the disk, so that no checkpoint is ahead of its log."""
        if self._is_chief and tf.io.gfile.exists(self.path):
            files.sync(self.path)

    def close(self) -> None:
        """Closes the TensorBoard file."""
        if self._is_chief and not self._is_broken:
            self._writer.close()


def _content(path):
    if not tf.io.gfile.exists(path):
        return b""
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()


def _parse_lines(content):
    """Returns the intact lines of a log as objects, and the damaged ones by their number.

    An incomplete last line, which a killed run was still writing, is neither.
    """
    good, damaged = [], {}
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            value = json.loads(line.decode())
            if not isinstance(value["step"], int):
                raise ValueError("no step")
            good.append(value)
        except (ValueError, TypeError, KeyError):
            damaged[number] = line
    return good, damaged


def _restored(folder, lines, last_step):
    """Adds lines that are missing, from TensorBoard's files."""
    by_step: dict[int, dict] = {}
    paths = tf.io.gfile.glob(os.path.join(folder, "events.out.tfevents.*"))
    for path in sorted(paths):
        for event in _events(path):
            if event.HasField("session_log"):  # A resumed run repeated these steps.
                by_step = {step: old for step, old in by_step.items() if step < event.step}
            for value in event.summary.value:
                if value.tag in REFERENCE_TAGS or value.tensor.dtype == tf.string:  # Or an image.
                    continue
                number = float(tf.make_ndarray(value.tensor))
                by_step.setdefault(event.step, {"step": event.step})[value.tag] = number
    by_step = {step: line for step, line in by_step.items() if step <= last_step}
    by_step |= {line["step"]: line for line in lines}
    return [by_step[step] for step in sorted(by_step)]


def _events(path):
    """Yields the events of a file, up to where it is damaged."""
    try:
        for record in tf.data.TFRecordDataset(path):
            yield tf.compat.v1.Event.FromString(record.numpy())
    except tf.errors.OpError:
        return


def _write_start(folder, step):
    """Tells TensorBoard to discard what an earlier run wrote from this step on.

    TensorBoard reads the first such event as the beginning and each later one as a restart. It is
    written to a separate file, whose name sorts before that of the summary writer of the same
    second.
    """
    name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.0.start"
    status = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    version = tf.compat.v1.Event(wall_time=time.time(), file_version="brain.Event:2")
    start = tf.compat.v1.Event(wall_time=time.time(), step=step, session_log=status)
    with tf.io.TFRecordWriter(os.path.join(folder, name)) as writer:
        for event in (version, start):
            writer.write(event.SerializeToString())
