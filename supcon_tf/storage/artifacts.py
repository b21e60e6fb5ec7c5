"""The artifacts of a folder: written completely, recorded with checksums, checked when read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from typing import Any

import h5py
import keras
import tensorflow as tf

from supcon_tf.storage import files
from supcon_tf.storage.run_paths import RESULT

MANIFEST = "artifacts.json"


class Artifacts:
    """The files that a stage writes to its folder, and `artifacts.json`, which records them.

    Args:
        folder: The folder of the artifacts.
        output_folder: The folder to which this process writes them. Defaults to `folder`.
        remedy: The command that creates the artifacts again, for error messages.
    """

    def __init__(self, folder: str, *, output_folder: str | None = None, remedy: str = ""):
        self.folder = folder
        self._output_folder = output_folder or folder
        self._remedy = remedy
        self._written: set[str] = set()

    def path(self, name: str) -> str:
        """Path of an artifact."""
        return os.path.join(self.folder, name)

    # Writing.

    def path_to_write(self, name: str) -> str:
        """Path to which this process writes an artifact; `seal` will record it."""
        self._written.add(name)
        return os.path.join(self._output_folder, name)

    def write_json(self, name: str, value: object) -> None:
        """Writes a JSON artifact."""
        files.write_json(self.path_to_write(name), value)

    def write_text(self, name: str, text: str) -> None:
        """Writes a text artifact."""
        files.write_whole(self.path_to_write(name), text)

    def save_model(self, name: str, model: keras.Model) -> None:
        """Saves a Keras model as an artifact."""
        with files.writing(self.path_to_write(name)) as temporary:
            model.save(temporary)

    def remove(self, name: str) -> None:
        """Removes an artifact of an earlier run that this run does not create."""
        files.remove(self.path(name))

    def seal(self) -> None:
        """Records size and checksum of all files written; the last step of a stage."""
        entries = {name: _manifest_entry(self.path(name)) for name in sorted(self._written)}
        files.write_sealed(self.path(MANIFEST), {"files": entries})

    # Reading.

    def has(self, name: str) -> bool:
        """Whether the artifact is recorded, or a file of its name exists."""
        return name in self._recorded() or tf.io.gfile.exists(self.path(name))

    def problems(self) -> dict[str, str]:
        """Finds missing or damaged artifacts: a dictionary from name to problem."""
        try:
            recorded = files.read_sealed(self.path(MANIFEST))
        except ValueError as error:
            return {MANIFEST: str(error)}
        if recorded is None:
            return {MANIFEST: f"{self.path(MANIFEST)} is missing."}
        return self._problems(recorded["files"])

    def check(self, name: str) -> str:
        """Returns the path of an artifact after checking it against the record.

        In a folder without a record, such as one assembled by hand, only existence is checked.

        Raises:
            ValueError: The artifact is missing or damaged; the message has a remedy.
        """
        try:
            recorded = files.read_sealed(self.path(MANIFEST))
        except ValueError as error:
            raise self.damaged(str(error)) from error
        if recorded is None and tf.io.gfile.exists(self.path(RESULT)):
            raise self.damaged(f"{self.path(MANIFEST)} is missing.")
        entries = recorded["files"] if recorded else {}
        entry = entries.get(name)
        problem = self._problem(name, entry) if entry else None
        if problem:  # The record itself may be wrong.
            problem = self._problems(entries).get(MANIFEST, problem)
        if entry is None and not tf.io.gfile.exists(self.path(name)):
            problem = f"{self.path(name)} is missing."
        if problem:
            raise self.damaged(problem)
        return self.path(name)

    def load_model(self, name: str) -> keras.Model:
        """Loads the model of a checked artifact."""
        path = self.check(name)
        try:
            return keras.models.load_model(path)
        except Exception as error:  # Readers of zip, JSON and HDF5 raise any type.
            raise self.damaged(f"{path} cannot be loaded: {files.first_line(error)}") from error

    def read_json(self, name: str, kind: type) -> Any:
        """Reads the value of a checked JSON artifact, which must be of the given type."""
        path = self.check(name)
        try:
            value = files.read_json(path)
        except ValueError as error:
            raise self.damaged(str(error)) from error
        if not isinstance(value, kind):
            raise self.damaged(f"{path} is damaged: it does not hold a {kind.__name__}.")
        return value

    def identity(self, name: str) -> str:
        """`model_identity` of a saved model, from the record if there is one."""
        entry = self._recorded().get(name)
        if entry and "identity" in entry:
            return entry["identity"]
        path = self.check(name)
        try:
            return model_identity(path)
        except Exception as error:  # As in load_model.
            raise self.damaged(f"{path} cannot be loaded: {files.first_line(error)}") from error

    def damaged(self, problem: str) -> ValueError:
        """Creates the exception for a missing or damaged artifact."""
        return ValueError(f"{problem} Create it again with:\n    {self._remedy}")

    def _recorded(self):
        try:
            return (files.read_sealed(self.path(MANIFEST)) or {"files": {}})["files"]
        except ValueError:
            return {}

    def _problems(self, entries):
        found = {name: self._problem(name, entry) for name, entry in entries.items()}
        found = {name: problem for name, problem in found.items() if problem}
        if len(found) > len(entries) / 2:
            path = self.path(MANIFEST)
            return {MANIFEST: f"{path} is damaged: it does not match the files in its folder."}
        return found

    def _problem(self, name, entry):
        path = self.path(name)
        if not tf.io.gfile.exists(path):
            return f"{path} is missing."
        if tf.io.gfile.isdir(path) != ("files" in entry):
            return (
                f"{path} is damaged: the run wrote a folder where there is a file, or the reverse."
            )
        if "files" in entry:
            nested = ((f"{name}/{part}", value) for part, value in entry["files"].items())
            return next(filter(None, (self._problem(*part) for part in nested)), None)
        size = tf.io.gfile.stat(path).length
        if size != entry["bytes"]:
            return f"{path} is damaged: it has {size:,} bytes, not the {entry['bytes']:,} written."
        if files.sha256(path) != entry["sha256"]:
            return f"{path} is damaged: its checksum differs from the recorded one."
        return None


def _manifest_entry(path):
    if tf.io.gfile.isdir(path):
        names = sorted(name.rstrip("/") for name in tf.io.gfile.listdir(path))
        return {"files": {name: _manifest_entry(os.path.join(path, name)) for name in names}}
    entry = {"bytes": tf.io.gfile.stat(path).length, "sha256": files.sha256(path)}
    if path.endswith(".keras"):
        entry["identity"] = model_identity(path)
    return entry


def model_identity(path: str) -> str:
    """Hash of the layers and weights in a `.keras` file.

    The bytes of the file also depend on the time of saving and on layer names that Keras numbers;
    this hash is the same whenever the same model is saved.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        archive = zipfile.ZipFile(io.BytesIO(file.read()))
    config = json.loads(archive.read("config.json"))
    names: dict[str, str] = {}
    _collect_names(config, names)
    digest = hashlib.sha256(json.dumps(_renamed(config, names), sort_keys=True).encode())
    with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as weights:

        def add(name, item):
            if isinstance(item, h5py.Dataset):
                digest.update(f"{name} {item.shape} {item.dtype}".encode())
                digest.update(item[()].tobytes())

        weights.visititems(add)
    return digest.hexdigest()


def _collect_names(config, names):
    """Collects each layer's name and its position in the configuration."""
    if isinstance(config, dict):
        is_layer = "class_name" in config and isinstance(config.get("config"), dict)
        if is_layer and isinstance(config["config"].get("name"), str):
            names.setdefault(config["config"]["name"], f"layer {len(names)}")
        config = list(config.values())
    for item in config if isinstance(config, list) else ():
        _collect_names(item, names)


def _renamed(config, names):
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if key != "shared_object_id"}
        return {key: _renamed(value, names) for key, value in kept.items()}
    if isinstance(config, list):
        return [_renamed(value, names) for value in config]
    return names.get(config, config) if isinstance(config, str) else config
