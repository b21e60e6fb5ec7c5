"""The layout of a folder dataset: train/ and test/, each with one folder of images per class."""

from __future__ import annotations

import os
import types
from typing import Any, TypeAlias

# Provides `isdir` and `listdir`: `LOCAL_FILES`, or `tf.io.gfile` for remote folders.
FileSystem: TypeAlias = Any

SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "validation", "val")}
LOCAL_FILES: FileSystem = types.SimpleNamespace(isdir=os.path.isdir, listdir=os.listdir)
NEEDED = (
    "a folder with train/ and test/ (or validation/ or val/), each with one folder of JPEG or PNG "
    "files per class"
)


def looks_like_dataset(data_dir: str, files: FileSystem = LOCAL_FILES) -> bool:
    """Whether a folder appears to have the layout: a train/ that contains folders."""
    train_folder = os.path.join(data_dir, "train")
    return files.isdir(train_folder) and bool(_class_folders(train_folder, files))


def find_classes(
    data_dir: str | None, split: str, files: FileSystem = LOCAL_FILES
) -> tuple[str, list[str]]:
    """Finds the folder of a split and the sorted class names, which are those of train/.

    Args:
        data_dir: the folder that contains the splits.
        split: "train" or "test".
        files: lists folders.

    Raises:
        ValueError: if the layout is not the expected one.
    """
    if not data_dir:
        raise ValueError(f"--dataset=folder needs --data_dir: {NEEDED}.")
    if not files.isdir(data_dir):
        raise ValueError(f"--data_dir={data_dir} is not a folder. Expected {NEEDED}.")
    folder, train_folder = (_find_split(data_dir, name, files) for name in (split, "train"))
    class_names = _class_folders(train_folder, files)
    if len(class_names) < 2:
        raise ValueError(
            f"{train_folder} holds {len(class_names)} class folder(s); contrastive training needs "
            "at least two."
        )
    unknown = sorted(set(_class_folders(folder, files)) - set(class_names))
    if unknown:
        raise ValueError(f"{folder} holds classes that {train_folder} lacks: {', '.join(unknown)}.")
    return folder, class_names


def check_layout(data_dir: str | None, files: FileSystem = LOCAL_FILES) -> None:
    """Raises ValueError unless both splits have the layout and every class has training files."""
    find_classes(data_dir, "test", files)
    folder, class_names = find_classes(data_dir, "train", files)
    for name in class_names:
        class_files(folder, name, files)


def class_files(folder: str, class_name: str, files: FileSystem = LOCAL_FILES) -> list[str]:
    """Lists the files of a class in the folder of a split, sorted by path.

    The list is empty if a split other than train/ has no folder for the class.

    Raises:
        ValueError: if a class of the training split is empty.
    """
    class_folder = os.path.join(folder, class_name)
    names = visible(class_folder, files) if files.isdir(class_folder) else []
    if not names and os.path.basename(folder) == "train":
        raise ValueError(f"The class folder {class_folder} is empty. Add images or delete it.")
    return [os.path.join(class_folder, name) for name in sorted(names)]


def visible(folder: str, files: FileSystem = LOCAL_FILES) -> list[str]:
    """The names in a folder that do not start with a dot."""
    names = (name.rstrip("/") for name in files.listdir(folder))
    return [name for name in names if not name.startswith(".")]


def _find_split(data_dir: str, split: str, files: FileSystem) -> str:
    folders = [os.path.join(data_dir, name) for name in SPLIT_FOLDERS[split]]
    for folder in folders:
        if files.isdir(folder):
            return folder
    found = ", ".join(sorted(visible(data_dir, files))) or "nothing"
    raise ValueError(
        f"{' or '.join(folders)} is missing; {data_dir} holds {found}. Expected {NEEDED}."
    )


def _class_folders(folder: str, files: FileSystem) -> list[str]:
    names = visible(folder, files)
    names = sorted(name for name in names if files.isdir(os.path.join(folder, name)))
    for name in names:
        if printable(name) != name:
            raise ValueError(
                f"The name of the class folder {printable(os.path.join(folder, name))} contains "
                "control characters or is not valid UTF-8: rename the folder."
            )
    return names


def files_below(folder: str, files: FileSystem = LOCAL_FILES) -> tuple[str, ...]:
    """Lists the visible files below a folder, at any depth, sorted by path.

    Each folder is entered only once, so that symbolic links that form a loop do no harm.
    """
    paths: list[str] = []
    entered: set[str] = set()

    def enter(place: str) -> None:
        key = place if "://" in place else os.path.realpath(place)
        if key in entered:
            return
        entered.add(key)
        for name in sorted(visible(place, files)):
            path = os.path.join(place, name)
            if files.isdir(path):
                enter(path)
            else:
                paths.append(path)

    enter(folder)
    return tuple(sorted(paths))


def printable(text: str) -> str:
    """Escapes characters that a terminal cannot show or UTF-8 cannot encode."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )
