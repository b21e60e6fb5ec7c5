"""Stopping on SIGTERM and SIGINT so that the run can be resumed, with a distinct exit code.

While TensorFlow runs a long loop, Python delays signal handlers until the loop returns. Therefore
the number of each signal is also written to a socket, which a thread reads immediately; see
https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

# 75 is EX_TEMPFAIL of sysexits.h, "try again later", which SLURM, Kubernetes and shell scripts can
# tell from a failure (1). 130 is what shells return for SIGINT.
EXIT_CODES: dict[int, int] = {signal.SIGTERM: 75, signal.SIGINT: 130}
# How long the process may wait for input after a signal.
WAIT_SECONDS = 10.0


class Stopped(SystemExit):
    """Raised when the run was told to stop and has done so; `code` is the exit code.

    Args:
        number: The signal.
        what: What was saved, for the message.
    """

    def __init__(self, number: int, what: str = ""):
        super().__init__(EXIT_CODES[number])
        self.message = f"Stopped by {signal.Signals(number).name}{what and ': '}{what}"


class _State:
    """The state of the process, because signals belong to the process."""

    lock = threading.RLock()
    received: int | None = None  # The first signal.
    on_signal: Callable[[], None] | None = None  # Set while a loop may finish its step.
    is_waiting: Callable[[], bool] | None = None  # Whether that loop waits for input.


def listen() -> None:
    """Handles SIGTERM and SIGINT: outside of `deferred` they raise Stopped immediately.

    A SIGINT after another signal ends the process immediately, without saving.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, writer), daemon=True).start()
    for number in EXIT_CODES:
        signal.signal(number, _handle)


@contextlib.contextmanager
def deferred(
    on_signal: Callable[[], None], is_waiting: Callable[[], bool] | None = None
) -> Iterator[None]:
    """Defers signals: within the block a signal only calls `on_signal`; Stopped is raised after it.

    If `is_waiting` returns True for WAIT_SECONDS after a signal, the process ends immediately,
    because a step that waits for input may never finish.

    Args:
        on_signal: Called from any thread.
        is_waiting: Returns whether the block is waiting for input.
    """
    _State.on_signal, _State.is_waiting = on_signal, is_waiting
    try:
        if _State.received is not None:
            on_signal()
        yield
    finally:
        _State.on_signal = _State.is_waiting = None
    if _State.received is not None:
        raise Stopped(_State.received)


def stopped(what: str) -> Stopped:
    """Returns the exception for a loop that has finished its step and saved.

    If this process received no signal, another worker did.
    """
    return Stopped(_State.received or signal.SIGTERM, what)


def _handle(number, _):
    """Runs in the main thread, as soon as it executes Python code."""
    _receive(number)
    if _State.on_signal is None:
        raise Stopped(number)


def _watch(reader, _writer):
    """Runs in its own thread, immediately. It keeps the writer open."""
    signals = 0
    while True:
        for number in reader.recv(64):
            signals += 1
            if number == signal.SIGINT and signals > 1:
                os.write(
                    2,
                    b"\nStopped immediately. Run the same command again to resume from the last "
                    b"checkpoint.\n",
                )
                os._exit(EXIT_CODES[signal.SIGINT])
            _receive(number)
            if signals == 1:
                threading.Thread(target=_end_if_stuck, args=(number,), daemon=True).start()


def _end_if_stuck(number, pause_seconds=0.5):
    """Ends a process that waits for input inside TensorFlow, where no Python handler can run.

    Outside of `deferred`, the handler has already ended the process, unless that waits as well.
    """
    stuck_seconds = 0.0
    while stuck_seconds < WAIT_SECONDS:
        time.sleep(pause_seconds)
        if _State.received is None:  # A program that uses the package continued.
            return
        is_stuck = _State.on_signal is None or (_State.is_waiting or bool)()
        stuck_seconds = stuck_seconds + pause_seconds if is_stuck else 0.0
    name = signal.Signals(number).name
    message = (
        f"\nStopped by {name} while waiting for input. Steps since the last checkpoint are lost. "
        "Run the same command again to resume.\n"
    )
    os.write(2, message.encode())
    os._exit(EXIT_CODES[number])


def _receive(number):
    with _State.lock:  # The handler and the thread both receive the signal.
        is_first = _State.received is None
        if is_first:
            _State.received = number
    if is_first and _State.on_signal is not None:
        _State.on_signal()
