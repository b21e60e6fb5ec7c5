"""SIGTERM and SIGINT: the run ends where it can go on, with a code that tells why.

While TensorFlow runs a long loop, Python's signal handlers wait until it returns. The number of
each signal is therefore also written to a socket, which a thread reads at once; see
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

# 75 is EX_TEMPFAIL of sysexits.h, "try again later": SLURM, Kubernetes and shell scripts can
# tell it from a failure (1). 130 is what shells give for SIGINT.
EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
# After a signal, how long the process may wait for input that does not come.
WAIT_SECONDS = 10.0


class Stopped(SystemExit):
    """The run was told to stop and has done so; `code` is the exit code.

    Args:
        number: the signal.
        what: what is kept, for the message.
    """

    def __init__(self, number: int, what: str = ""):
        super().__init__(EXIT_CODES[number])
        self.message = f"Stopped by {signal.Signals(number).name}{what and ': '}{what}"


class _State:
    """Of the process, as signals are."""

    lock = threading.RLock()
    received: int | None = None  # The first signal.
    on_signal: Callable[[], None] | None = None  # While a loop finishes its step.
    is_waiting: Callable[[], bool] | None = None  # Whether that loop waits for input.


def listen() -> None:
    """Takes over SIGTERM and SIGINT: outside of `deferred` they raise Stopped at once.

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
    """Within, a signal only calls `on_signal`, from any thread; Stopped follows at the end.

    Where `is_waiting` says for WAIT_SECONDS that the block waits for input, the process ends
    without that: the step will never finish.
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
    """The exception for a loop that has finished its step and saved.

    Where no signal came to this process, another worker has had one.
    """
    return Stopped(_State.received or signal.SIGTERM, what)


def _handle(number, _):
    """In the main thread, as soon as Python runs there."""
    _receive(number)
    if _State.on_signal is None:
        raise Stopped(number)


def _watch(reader, _writer):
    """In a thread of its own, at once. It holds the writer, which must stay open."""
    signals = 0
    while True:
        for number in reader.recv(64):
            signals += 1
            if number == signal.SIGINT and signals > 1:
                os.write(2, b"\nEnded at once; the last checkpoint is whole.\n")
                os._exit(EXIT_CODES[signal.SIGINT])
            _receive(number)
            if signals == 1:
                threading.Thread(target=_end_if_stuck, args=(number,), daemon=True).start()


def _end_if_stuck(number, pause_seconds=0.5):
    """Ends a process that TensorFlow keeps waiting for input, where no handler of Python runs.

    Outside of `deferred` the handler has ended it already, unless it waits as well.
    """
    stuck_seconds = 0.0
    while stuck_seconds < WAIT_SECONDS:
        time.sleep(pause_seconds)
        if _State.received is None:  # A program that uses the package went on with other work.
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
    with _State.lock:  # The handler and the thread hear of the same signal.
        is_first = _State.received is None
        if is_first:
            _State.received = number
    if is_first and _State.on_signal is not None:
        _State.on_signal()
