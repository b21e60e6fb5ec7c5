"""Files that are written completely or not at all, even if the power fails."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from supcon_tf.storage import sealed

# Part of the names of unfinished files and folders.
WRITING = ".writing"


@contextlib.contextmanager
def writing(path: str) -> Iterator[str]:
    """Yields a temporary path, which is renamed to `path` when the block succeeds.

    Every output of a run is written this way: under a temporary name with the same extension,
    flushed to the disk, then renamed. `path` may be a file or a folder, local or remote.

    Raises:
        OSError: The file cannot be written, for example because the disk is full.
    """
    root, extension = os.path.splitext(path)
    temporary = f"{root}{WRITING}{extension}"
    try:
        remove(temporary)
        yield temporary
        move_whole(temporary, path)
    except (OSError, tf.errors.OpError) as error:
        _remove_quietly(temporary)
        raise cannot_write(path, error) from error
    except BaseException:
        _remove_quietly(temporary)
        raise


def cannot_write(path: str, error: Exception) -> OSError:
    """Creates the exception for a file that cannot be written, with a remedy in its message."""
    if isinstance(error, CannotWrite):
        return error
    return CannotWrite(
        f"{path} could not be written: {first_line(error)} Free some disk space or check the "
        "permissions of its folder, then run the same command again."
    )


class CannotWrite(OSError):
    """A file of the run cannot be written; the message has a remedy."""


def first_line(error: Exception) -> str:
    """First line of an error's message, shortened, with a period at the end."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return text if text.endswith(".") else text + "."


def _remove_quietly(path):
    with contextlib.suppress(OSError, tf.errors.OpError):
        remove(path)


def write_whole(path: str, text: str) -> None:
    """Writes a text file completely or not at all."""
    with writing(path) as temporary, tf.io.gfile.GFile(temporary, "w") as file:
        file.write(text)


def write_json(path: str, value: object) -> None:
    """Writes a JSON file completely or not at all."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str) -> Any:
    """Reads a JSON file; returns None if there is no such file.

    Raises:
        ValueError: The file is damaged.
    """
    if not tf.io.gfile.exists(path):
        return None
    try:
        with tf.io.gfile.GFile(path) as file:
            return json.load(file)
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(f"{path} is damaged: {first_line(error)}") from error


def write_sealed(path: str, value: dict) -> None:
    """Writes a JSON object together with its own checksum."""
    write_json(path, sealed.seal(value))


def read_sealed(path: str) -> dict | None:
    """Reads a file of `write_sealed`; returns None if there is no such file.

    Raises:
        ValueError: The file is damaged.
    """
    value = read_json(path)
    if value is None:
        return None
    try:
        return sealed.unseal(value)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def sha256(path: str) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()


def move_whole(temporary: str, path: str) -> None:
    """Renames a file or folder after flushing it to the disk, then flushes the new name.

    In another order a power failure could leave empty files under the new name.
    """
    for place, _, names in tf.io.gfile.walk(temporary):  # Yields nothing for a file.
        for name in [*names, ""]:
            sync(os.path.join(place, name))
    sync(temporary)
    old = path + ".old" + WRITING
    if tf.io.gfile.isdir(temporary) and tf.io.gfile.exists(path):
        remove(old)
        tf.io.gfile.rename(path, old)  # A folder cannot be renamed to one that is not empty.
    tf.io.gfile.rename(temporary, path, overwrite=True)
    sync(os.path.dirname(path))
    remove(old)


def sync(path: str) -> None:
    """Flushes a local file or folder to the disk, which TensorFlow's writers do not do.

    Remote file systems store a file when it is closed.
    """
    if "://" in path:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: str) -> None:
    """Removes a file or folder if it exists."""
    if tf.io.gfile.isdir(path):
        tf.io.gfile.rmtree(path)
    elif tf.io.gfile.exists(path):
        tf.io.gfile.remove(path)
