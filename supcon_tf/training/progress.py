"""What a run prints while it works: its progress, its speed, and what it is waiting for."""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
import time
from collections.abc import Iterator

from tqdm import tqdm

# Waits longer than this are announced.
WAIT_SECONDS = 1.0
# Time between two progress lines in a log file.
LINE_SECONDS = 20.0
# The time of a stage is estimated once its steps have been timed for so long.
ESTIMATE_SECONDS = 3.0
# What takes less than this needs no estimate, and a pass over images no bar.
SHORT_SECONDS = 2.0
# Whether progress is shown; False inside `shown(False)`.
_IS_SHOWN = contextvars.ContextVar("is_shown", default=True)
_BAR = "{desc}: {percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt}{postfix}"


@contextlib.contextmanager
def shown(is_shown: bool) -> Iterator[None]:
    """Within the block, progress is shown or not; warnings and errors always are."""
    token = _IS_SHOWN.set(is_shown)
    try:
        yield
    finally:
        _IS_SHOWN.reset(token)


def counted(count: int, noun: str) -> str:
    """Returns a number with its noun: 1 view, 2 views."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def inform(line: str) -> None:
    """Prints a line about the progress, above the progress bar if there is one."""
    if _IS_SHOWN.get():
        say(line)


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Prints `what...` once if the block takes longer than WAIT_SECONDS.

    A thread prints it, so that it also appears while TensorFlow or NumPy computes.
    """
    if not _IS_SHOWN.get():
        yield
        return
    timer = threading.Timer(WAIT_SECONDS, say, [f"{what}..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def say(line: str) -> None:
    """Prints a line immediately, above the progress bar if there is one."""
    tqdm.write(line)
    sys.stdout.flush()


def is_notebook() -> bool:
    """Returns whether the code runs in a cell of Jupyter, Colab or another front end of IPython."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


class Progress:
    """The progress of a stage: a bar in a terminal or notebook, else a line every LINE_SECONDS.

    Nothing is shown before the first `update`, which is shown immediately. After ESTIMATE_SECONDS
    of steps, a line says once how long the stage will take.

    Args:
        name: The name of the stage.
        total_steps: The number of steps of the stage.
        unit: What a step is called.
        is_shown: Whether this worker shows the progress.
    """

    def __init__(self, name: str, total_steps: int, *, unit: str = "step", is_shown: bool = True):
        self._name, self._total_steps, self._unit = name, total_steps, unit
        self._estimates_from: float | None = None
        self._is_estimated = False
        self._is_shown = is_shown and _IS_SHOWN.get()
        # Jupyter shows standard error on a red background, which is meant for errors.
        self._file = sys.stdout if is_notebook() else sys.stderr
        self._has_bar = is_notebook() or self._file.isatty()
        self._bar: tqdm | None = None
        self._next_line = 0.0
        self._waiting_line: str | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._waiting_line:
            self._print_line(self._waiting_line)

    def update(
        self, step: int, metrics: dict[str, float], seconds_left: float | None, note: str = ""
    ) -> None:
        """Shows the state after `step` steps, the time left if it is known, and a note."""
        if not self._is_shown:
            return
        text = ", ".join(filter(None, [note, describe_metrics(metrics)]))
        if seconds_left is not None and step < self._total_steps:
            self._say_estimate(self._total_steps - step, seconds_left)
            text = f"{tqdm.format_interval(seconds_left)} left, {text}"
        if self._has_bar:
            self._update_bar(step, text)
            return
        line = f"{self._name}: {self._unit} {step:,} of {self._total_steps:,}"
        line += f", {text}" if text else ""
        self._waiting_line = line
        if time.monotonic() >= self._next_line:
            self._print_line(line)

    def _say_estimate(self, steps_left, seconds_left):
        """Says how long the stage will take, once that is known well enough."""
        now = time.monotonic()
        if self._estimates_from is None:
            self._estimates_from = now
        is_known = now - self._estimates_from >= ESTIMATE_SECONDS
        if self._is_estimated or not is_known or seconds_left < SHORT_SECONDS:
            return
        self._is_estimated = True
        inform(
            f"{self._name}: the remaining {steps_left:,} {self._unit}s will take about "
            f"{describe_duration(seconds_left)}."
        )

    def _update_bar(self, step, text):
        if self._bar is None:
            self._bar = tqdm(
                total=self._total_steps,
                initial=step,
                desc=self._name,
                bar_format=_BAR,
                dynamic_ncols=True,
                file=self._file,
            )
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)
        if step == self._total_steps or self._bar.n == self._bar.initial:
            self._bar.refresh()

    def _print_line(self, line):
        print(line, file=self._file, flush=True)
        self._waiting_line, self._next_line = None, time.monotonic() + LINE_SECONDS


def describe_duration(seconds: float) -> str:
    """Formats a time in seconds for people: "40 s", "3 min", "2 h 10 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours} h"


class ImageProgress:
    """The progress of a pass over images: a `Progress` if SHORT_SECONDS have passed and remain.

    Args:
        name: The name of the stage.
        num_images: The number of images of the pass.
        is_shown: Whether this worker shows the progress.

    Attributes:
        note: What is being done now, shown with the progress.
    """

    def __init__(self, name: str, num_images: int, *, is_shown: bool = True):
        self._progress = Progress(name, num_images, unit="image", is_shown=is_shown)
        self._num_images, self._done, self._first = num_images, 0, 0
        self._started = time.monotonic()
        self._timed_from: float | None = None
        self._is_long = False
        self.note = ""

    def __enter__(self) -> ImageProgress:
        return self

    def __exit__(self, *error) -> None:
        self._progress.__exit__(*error)

    def update(self, count: int) -> None:
        """Counts images that are done. The first ones do not count for the speed."""
        self._done += count
        now = time.monotonic()
        if self._timed_from is None:
            self._timed_from, self._first = now, self._done
            return
        speed = (self._done - self._first) / max(now - self._timed_from, 1e-9)
        left = (self._num_images - self._done) / speed
        self._is_long |= min(now - self._started, left) >= SHORT_SECONDS
        if self._is_long:
            self._progress.update(self._done, {"images_per_second": speed}, left, self.note)


def describe_metrics(metrics: dict[str, float]) -> str:
    """Formats the metrics to watch, with the names that `--help` explains."""
    names = {
        "loss": "loss {:.4f}",
        "positive_similarity": "positives {:.2f}",
        "negative_similarity": "negatives {:.2f}",
        "accuracy": "accuracy {:.3f}",
        "probe_accuracy": "probe {:.3f}",
        "knn_accuracy": "k-NN {:.3f}",
        "knn_mean_average_precision": "k-NN mAP {:.3f}",
        "knn_r2": "k-NN R2 {:.3f}",
        "images_per_second": "{:,.0f} images/s",
    }
    return ", ".join(text.format(metrics[name]) for name, text in names.items() if name in metrics)


class Speed:
    """The speed of training steps, excluding compilation, evaluations and checkpoints.

    The first call compiles the step, so it does not count.

    Args:
        images_per_step: Examples of a batch over all replicas.

    Attributes:
        has_compiled: Whether the first call has ended.
        seconds_per_step: A moving average; None before the second call.
    """

    def __init__(self, images_per_step: int):
        self._images_per_step = images_per_step
        self.has_compiled = False
        self._steps, self._seconds, self._started = 0, 0.0, time.monotonic()
        self.seconds_per_step: float | None = None

    def count(self, num_steps: int) -> None:
        """Counts `num_steps` steps that started at the last `restart`."""
        seconds = time.monotonic() - self._started
        if not self.has_compiled:
            self.has_compiled = True
            return
        self._steps += num_steps
        self._seconds += seconds
        old, new = self.seconds_per_step, seconds / num_steps
        self.seconds_per_step = new if old is None else 0.7 * old + 0.3 * new

    def restart(self) -> None:
        """Starts the clock. Call it before each group of steps."""
        self._started = time.monotonic()

    def seconds_left(self, num_steps: int) -> float | None:
        """Returns the time that `num_steps` steps take; None before the second call."""
        return None if self.seconds_per_step is None else num_steps * self.seconds_per_step

    def images_per_second(self) -> dict[str, float]:
        """Returns the mean images_per_second since this was last called; {} if unknown."""
        if not self._steps:
            return {}
        rate = self._steps * self._images_per_step / self._seconds
        self._steps, self._seconds = 0, 0.0
        return {"images_per_second": rate}
