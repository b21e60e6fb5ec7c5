"""A lock that keeps a second run out of the folder of a stage."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import threading
import time
import uuid

import tensorflow as tf
from absl import logging

STALE_LOCK_SECONDS = 600
CHOOSING_SECONDS = 60  # How long a starting run waits for another run that is starting too.
_CLAIM = re.compile(r"(choosing|\d{9})-([0-9a-f]{32})")


def hold(path: str) -> contextlib.AbstractContextManager:
    """Returns a context manager that holds the lock `path` against other runs.

    Raises (on entering):
        ValueError: If another run holds it.
    """
    return _remote_lock(path) if "://" in path else _local_lock(path)


@contextlib.contextmanager
def _local_lock(path):
    """Holds an operating system lock on the file and on its folder; it ends with the process.

    The file names the process. The lock on the folder remains if the file is deleted.
    """
    with open(path, "a+") as file, _opened_folder(os.path.dirname(path)) as folder:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _lock_folder(folder)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(_held_message(path, f"process {file.read().strip()}")) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def _opened_folder(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock_folder(descriptor):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # Network file systems may lock only files.
        pass


@contextlib.contextmanager
def _remote_lock(path):
    """Holds a claim of this run: a file in the folder `path` + "s" that a thread keeps fresh.

    TensorFlow cannot create a remote file only if it is absent: `tf.io.gfile.rename` and `copy`
    with `overwrite=False` check first and write afterwards. Lamport's bakery algorithm only needs
    files to be listed once they are written: every run takes a number above those it sees, and of
    equal numbers the smaller token comes first.
    https://en.wikipedia.org/wiki/Lamport%27s_bakery_algorithm
    """
    path, token = path + "s", uuid.uuid4().hex
    tf.io.gfile.makedirs(path)
    with _kept_claim(path, f"choosing-{token}"):
        numbers = [int(number) for number, _ in _claims(path) if number != "choosing"]
        name = f"{max(numbers, default=0) + 1:09d}-{token}"
        _write_claim(path, name)
    with _kept_claim(path, name):
        _wait_until_all_have_numbers(path)
        live = _live_claims(path) | {tuple(name.split("-"))}
        first = "-".join(min(live))
        if first != name:
            raise ValueError(_held_message(path, _owner(path, first)))
        _remove_dead_claims(path)
        yield


@contextlib.contextmanager
def _kept_claim(path, name):
    """Writes the claim `name`, updates its time regularly, and removes it at the end."""
    done = threading.Event()

    def keep_fresh():
        while not done.wait(STALE_LOCK_SECONDS / 5):
            try:
                _write_claim(path, name)
            except tf.errors.OpError as error:
                logging.warning("The lock %s could not be renewed: %s", path, error)

    _write_claim(path, name)
    thread = threading.Thread(target=keep_fresh, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _remove_claim(path, name)


def _remove_claim(path, name):
    with contextlib.suppress(tf.errors.NotFoundError):  # Another process deleted it.
        tf.io.gfile.remove(os.path.join(path, name))


def _write_claim(path, name):
    owner = {"host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
    # Written in place, because during a rename there can be no file for a moment.
    with tf.io.gfile.GFile(os.path.join(path, name), "w") as file:
        file.write(json.dumps(owner))


def _read_claim(path, name):
    """Returns who wrote a claim and when; None if it is gone, {} while it is being written."""
    try:
        with tf.io.gfile.GFile(os.path.join(path, name)) as file:
            return json.loads(file.read())
    except tf.errors.NotFoundError:
        return None
    except (ValueError, tf.errors.OpError):
        return {}


def _claims(path):
    """Returns (number or "choosing", token) of every claim in the folder."""
    matches = (_CLAIM.fullmatch(name) for name in tf.io.gfile.listdir(path))
    return {match.groups() for match in matches if match}


def _live_claims(path):
    """Returns the claims except those of runs that ended without removing them.

    A time that is too far in the future does not count as live either.
    """
    live = set()
    for claim in _claims(path):
        owner = _read_claim(path, "-".join(claim))
        if owner is None:
            continue
        if abs(time.time() - owner.get("time", time.time())) < STALE_LOCK_SECONDS:
            live.add(claim)
    return live


def _remove_dead_claims(path):
    for claim in _claims(path) - _live_claims(path):
        _remove_claim(path, "-".join(claim))


def _wait_until_all_have_numbers(path):
    """Waits for runs that are choosing a number, which may come before that of this run."""
    deadline = time.time() + CHOOSING_SECONDS
    while choosing := [token for number, token in _live_claims(path) if number == "choosing"]:
        if time.time() > deadline:
            raise ValueError(_held_message(path, _owner(path, f"choosing-{choosing[0]}")))
        time.sleep(0.02)


def _owner(path, name):
    owner = _read_claim(path, name) or {}
    return f"{owner.get('host', 'unknown host')}, process {owner.get('process', 'unknown')}"


def _held_message(path, owner):
    remote = f" If it crashed, delete {path} or wait {STALE_LOCK_SECONDS // 60} minutes."
    return (
        f"Another run ({owner}) is using {os.path.dirname(path)}: wait until it ends, or use "
        "another --model_dir." + (remote if "://" in path else "")
    )
