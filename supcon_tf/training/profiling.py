"""A profile of some training steps, for the profile page of TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from supcon_tf.training import progress


class Profiler:
    """Profiles the training steps between two given steps, and runs them one at a time.

    Use it as a context manager. The files are written to `<folder>/plugins/profile/`, where
    TensorBoard's profile plugin looks for them.

    Args:
        folder: The folder of TensorBoard's files.
        steps: The steps (a, b), where the profile begins after step a and ends after step b; None
            for no profile.
        is_chief: Whether this worker writes a profile. The others only take the same steps.
    """

    def __init__(self, folder: str, steps: tuple[int, int] | None = None, *, is_chief: bool = True):
        self._folder, self._is_chief = folder, is_chief
        self._first, self._last = steps or (0, 0)
        self._is_running = False

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def steps_to_next(self, at: int, most: int) -> int:
        """Returns how many of `most` steps to take at once after step `at`."""
        if at >= self._last:
            return most
        return min(most, self._first - at) if at < self._first else 1

    @contextlib.contextmanager
    def tracing(self, at: int) -> Iterator[None]:
        """Profiles the step after step `at` if it is one of those to profile."""
        if not (self._is_chief and self._first <= at < self._last):
            yield
            return
        if not self._is_running:
            tf.profiler.experimental.start(self._folder)
            self._is_running = True
        with tf.profiler.experimental.Trace("train", step_num=at + 1, _r=1):
            yield
        if at + 1 >= self._last:
            self._stop()

    def _stop(self):
        if self._is_running:
            self._is_running = False
            with progress.waiting("Writing the profile"):
                tf.profiler.experimental.stop()
            progress.inform(
                f"The profile of steps {self._first:,} to {self._last:,} is in {self._folder}. "
                "TensorBoard shows it after pip install tensorboard-plugin-profile."
            )
