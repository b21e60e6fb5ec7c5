"""The lock that keeps two runs out of one stage's folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time

import tensorflow as tf

from supcon_tf.files import read_json, write_json

STALE_LOCK_SECONDS = 600


def hold(path: str):
    """A context in which no second run can work beside the lock file `path`.

    Raises (on entering):
        ValueError: another run holds it.
    """
    return _remote_lock(path) if "://" in path else _local_lock(path)


@contextlib.contextmanager
def _local_lock(path):
    """The system's file lock, which ends with its process."""
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(_held_message(path, f"process {file.read().strip()}")) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def _remote_lock(path):
    """A file that a thread keeps fresh, because remote systems lock nothing."""
    held = read_json(path)
    if held and time.time() - held["time"] < STALE_LOCK_SECONDS:
        raise ValueError(_held_message(path, f"{held['host']}, process {held['process']}"))
    done = threading.Event()

    def refresh():
        owner = {"host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
        write_json(path, owner)

    def keep_fresh():
        while not done.wait(STALE_LOCK_SECONDS / 5):
            refresh()

    refresh()
    thread = threading.Thread(target=keep_fresh, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        tf.io.gfile.remove(path)


def _held_message(path, owner):
    return (
        f"Another run ({owner}) is at work in {os.path.dirname(path)}: wait for it, or take "
        "another --model_dir."
    )
