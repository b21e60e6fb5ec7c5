"""How folders of images are laid out: which folder holds which split, and which are classes.

Three layouts are recognized. In each, a class is a folder that contains its images.

    train/<class>/ and test/<class>/, validation/<class>/ (or valid/, val/), or both
    train/<class>/ alone
    <class>/: one folder per class and no splits
"""

from __future__ import annotations

import dataclasses
import os
import types
from typing import Any, TypeAlias

# Provides `isdir` and `listdir`: `LOCAL_FILES`, or `tf.io.gfile` for remote folders.
FileSystem: TypeAlias = Any

LOCAL_FILES: FileSystem = types.SimpleNamespace(isdir=os.path.isdir, listdir=os.listdir)
SPLITS = ("train", "validation", "test")
# The folder names of each split.
SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}
ALL_SPLIT_FOLDERS = {name for names in SPLIT_FOLDERS.values() for name in names}
NEEDED = (
    "train/ and optionally validation/ (or valid/, val/) and test/, each with one folder of images "
    "per class; or directly one folder of images per class"
)
# Files and folders that operating systems and file servers leave among images, in lower case.
# So are all names that start with a dot, such as .DS_Store and ._photo.jpg.
SYSTEM_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"}
# Only used to guess whether --data_dir means --dataset=folder. Loading reads the file contents.
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


@dataclasses.dataclass(frozen=True)
class FolderLayout:
    """A recognized layout.

    Attributes:
        folders: split to the folder that contains its class folders. A layout without split
            folders has only "train", which is the data directory itself.
        class_names: the sorted names of the classes, which are those of the training folder.
        is_flat: whether the class folders are directly in the data directory.
        ignored: names of hidden and system files beside the class folders.
        unused: names of other folders beside those of the splits.
    """

    folders: dict[str, str]
    class_names: tuple[str, ...]
    is_flat: bool = False
    ignored: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def looks_like_dataset(data_dir: str, files: FileSystem = LOCAL_FILES) -> bool:
    """Whether a folder appears to be one of the layouts: a quick look, without an error.

    A directory of TensorFlow Datasets must not be taken for one folder per class, so each of those
    must contain files only, and the first must be named like an image.
    """
    try:
        layout = find_layout(data_dir, files)
    except ValueError:
        return False
    if not layout.is_flat:
        return True
    for name in layout.class_names:
        names = visible(os.path.join(data_dir, name), files)
        if not min(names).lower().endswith(IMAGE_EXTENSIONS):
            return False
        if any(files.isdir(os.path.join(data_dir, name, other)) for other in names):
            return False
    return True


def find_layout(
    data_dir: str | None, files: FileSystem = LOCAL_FILES, *, needs_train: bool = True
) -> FolderLayout:
    """Finds the folder of each split, and the classes.

    Args:
        data_dir: the folder to look at.
        files: lists folders.
        needs_train: whether training images must be there. Data that is only evaluated may have
            test/ or validation/ alone, whose classes then count.

    Raises:
        ValueError: if the folder has none of the layouts, or if it is ambiguous.
    """
    if not data_dir:
        raise ValueError(f"--dataset=folder needs --data_dir. Expected a folder with {NEEDED}.")
    if not files.isdir(data_dir):
        raise ValueError(f"--data_dir={data_dir} is not a folder. Expected a folder with {NEEDED}.")
    folders, ignored = _folders_in(data_dir, files)
    splits = _split_folders(data_dir, folders, files)
    if not splits:
        return _flat_layout(data_dir, folders, ignored, files)
    if needs_train and "train" not in splits:
        present = ", ".join(sorted(folders))
        raise ValueError(
            f"{os.path.join(data_dir, 'train')} is missing; {data_dir} holds {present}. Expected a "
            f"folder with {NEEDED}."
        )
    classes: dict[str, list[str]] = {}
    for split, folder in splits.items():
        classes[split], hidden = _folders_in(folder, files)
        ignored += hidden
    own = "train" if "train" in splits else next(iter(splits))
    names = classes["train"] if own == "train" else sorted(set().union(*classes.values()))
    _check_class_names(splits[own], names)
    if needs_train and len(names) < 2:
        raise ValueError(
            f"{splits[own]} holds {len(names)} class folder(s); contrastive training needs at "
            "least two."
        )
    for split, folder in splits.items():
        unknown = sorted(set(classes[split]) - set(names))
        if unknown:
            shown = ", ".join(map(printable, unknown))
            raise ValueError(f"{folder} holds classes that {splits[own]} lacks: {shown}.")
    both = sorted(set(names) & (set(folders) - ALL_SPLIT_FOLDERS))
    if both:
        raise ValueError(
            f"{data_dir} is ambiguous: the class {printable(both[0])} has a folder there and one "
            f"in {splits[own]}. Expected either {NEEDED}."
        )
    unused = sorted(set(folders) - {os.path.basename(folder) for folder in splits.values()})
    return FolderLayout(splits, tuple(names), ignored=tuple(ignored), unused=tuple(unused))


def check_layout(data_dir: str | None, files: FileSystem = LOCAL_FILES) -> FolderLayout:
    """The layout of a folder whose every class has a training file.

    Raises:
        ValueError: see `find_layout`; or if a class folder of the training split is empty.
    """
    layout = find_layout(data_dir, files)
    for name in layout.class_names:
        class_files(layout, "train", name, files)
    return layout


def class_files(
    layout: FolderLayout, split: str, class_name: str, files: FileSystem = LOCAL_FILES
) -> tuple[list[str], list[str]]:
    """Lists the files of a class, sorted by path, and the names of ignored ones.

    Hidden and system files are ignored, and so is a link to a file that the class already has. The
    list is empty if a split other than "train" has no folder for the class.

    Raises:
        ValueError: if a class of the training split is empty.
    """
    class_folder = os.path.join(layout.folders[split], class_name)
    names: list[str] = []
    ignored: list[str] = []
    if files.isdir(class_folder):
        names, ignored = _visible_and_ignored(class_folder, files)
    if not names and split == "train":
        raise ValueError(f"The class folder {class_folder} is empty. Add images or delete it.")
    paths, links = _without_repeated_links(
        [os.path.join(class_folder, name) for name in sorted(names)]
    )
    return paths, ignored + links


def visible(folder: str, files: FileSystem = LOCAL_FILES) -> list[str]:
    """The names in a folder without hidden and system files."""
    return _visible_and_ignored(folder, files)[0]


def is_ignored(name: str) -> bool:
    """Whether a file or folder name is hidden, or one that operating systems create."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def files_below(
    folder: str, files: FileSystem = LOCAL_FILES
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lists the files below a folder, at any depth, sorted by path, and the names of ignored ones.

    Each folder and each file is used once, so links that repeat or form a loop do no harm.
    """
    paths: list[str] = []
    ignored: list[str] = []
    entered: set[str] = set()

    def enter(place: str) -> None:
        key = place if "://" in place else os.path.realpath(place)
        if key in entered:
            return
        entered.add(key)
        names, hidden = _visible_and_ignored(place, files)
        ignored.extend(hidden)
        for name in sorted(names):
            path = os.path.join(place, name)
            if files.isdir(path):
                enter(path)
            else:
                paths.append(path)

    enter(folder)
    kept, links = _without_repeated_links(sorted(paths))
    return tuple(kept), tuple(ignored + links)


def printable(text: str) -> str:
    """Escapes characters that a terminal cannot show or UTF-8 cannot encode."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


def _visible_and_ignored(folder: str, files: FileSystem) -> tuple[list[str], list[str]]:
    names = [name.rstrip("/") for name in files.listdir(folder)]
    return [x for x in names if not is_ignored(x)], [x for x in names if is_ignored(x)]


def _folders_in(folder: str, files: FileSystem) -> tuple[list[str], list[str]]:
    """The sorted names of the folders in a folder, and those of ignored files and folders.

    A link back to the folder itself or to one above it is ignored.

    Raises:
        ValueError: if two names are the same folder, through a link.
    """
    names, ignored = _visible_and_ignored(folder, files)
    names = sorted(name for name in names if files.isdir(os.path.join(folder, name)))
    if "://" in folder:
        return names, ignored
    here = os.path.realpath(folder)
    kept: list[str] = []
    targets: dict[str, str] = {}
    for name in names:
        path = os.path.join(folder, name)
        target = os.path.realpath(path)
        if os.path.islink(path) and os.path.commonpath([target, here]) == target:
            ignored.append(name)
            continue
        if target in targets:
            raise ValueError(
                f"{printable(path)} and {printable(os.path.join(folder, targets[target]))} are the "
                "same folder, through a link. Remove one of them."
            )
        targets[target] = name
        kept.append(name)
    return kept, ignored


def _split_folders(data_dir: str, folders: list[str], files: FileSystem) -> dict[str, str]:
    """Split to folder, for the splits that have one; empty if the folders are classes.

    A class may be named "train": it then contains files instead of class folders, and the data
    directory has another class, but no other split.
    """
    splits = {}
    for split, names in SPLIT_FOLDERS.items():
        found = [name for name in names if name in folders]
        if len(found) > 1:
            raise ValueError(
                f"{data_dir} is ambiguous: it holds {' and '.join(found)}, which are all names of "
                f"the {split} split. Rename or remove one of them."
            )
        if found:
            splits[split] = os.path.join(data_dir, found[0])
    is_class = (
        list(splits) == ["train"]
        and len(folders) > 1
        and not _folders_in(splits["train"], files)[0]
    )
    return {} if is_class else splits


def _flat_layout(
    data_dir: str, folders: list[str], ignored: list[str], files: FileSystem
) -> FolderLayout:
    """One folder per class."""
    if len(folders) < 2:
        found = ", ".join(sorted(visible(data_dir, files))[:10]) or "nothing"
        raise ValueError(f"{data_dir} holds {printable(found)}. Expected a folder with {NEEDED}.")
    _check_class_names(data_dir, folders)
    for name in folders:
        path = os.path.join(data_dir, name)
        names = visible(path, files)
        if names and all(files.isdir(os.path.join(path, other)) for other in names):
            raise ValueError(
                f"{path} contains folders but no images, so {data_dir} does not have one folder of "
                f"images per class. Expected a folder with {NEEDED}. If the classes are in {path}, "
                "name it as the directory."
            )
    return FolderLayout({"train": data_dir}, tuple(folders), True, tuple(ignored))


def _check_class_names(folder: str, names: list[str]) -> None:
    for name in names:
        if printable(name) != name:
            raise ValueError(
                f"The name of the class folder {printable(os.path.join(folder, name))} contains "
                "control characters or is not valid UTF-8: rename the folder."
            )


def _without_repeated_links(paths: list[str]) -> tuple[list[str], list[str]]:
    """Leaves out links to a file that another path names too; returns their names as well."""
    links = {path for path in paths if "://" not in path and os.path.islink(path)}
    if not links:
        return paths, []
    seen = {os.path.realpath(path) for path in paths if path not in links}
    kept, repeated = [], []
    for path in paths:
        target = os.path.realpath(path)
        # A link to a folder or to nothing stays, so that the check of the files names it.
        if path in links and os.path.isfile(target):
            if target in seen:
                repeated.append(os.path.basename(path))
                continue
            seen.add(target)
        kept.append(path)
    return kept, repeated
