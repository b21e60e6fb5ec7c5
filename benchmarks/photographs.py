"""Photographs for a study: a part of a folder, copied, and listed with their checksums."""

from __future__ import annotations

import csv
import hashlib
import pathlib
import shutil

HEAD = ["split", "class", "file", "sha256"]


def copy_photographs(source, folder, per_class, manifest=None):
    """Copies the first training images of each class by file name, and all test images.

    Args:
        source: Folder with train/<class>/ and test/<class>/.
        folder: Where to copy them, with the same folders.
        per_class: Training images of each class; None for all.
        manifest: CSV file that lists them. One that is there is not written again.

    Raises:
        SystemExit: If the manifest lists other photographs.
    """
    rows = []
    for split in ("train", "test"):
        if not (source / split).is_dir():
            raise SystemExit(
                f"{source / split} does not exist: expected train/<class>/ and test/<class>/."
            )
        for class_folder in sorted(p for p in (source / split).iterdir() if p.is_dir()):
            paths = sorted(path for path in class_folder.iterdir() if path.is_file())
            target = folder / split / class_folder.name
            target.mkdir(parents=True, exist_ok=True)
            for path in paths[: per_class if split == "train" else None]:
                shutil.copy(path, target / path.name)
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                rows.append([split, class_folder.name, path.name, digest])
    if manifest is None:
        return
    if manifest.exists():
        check_manifest(manifest, rows)
        return
    manifest.parent.mkdir(parents=True, exist_ok=True)
    with manifest.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEAD, *rows])


def check_manifest(manifest: pathlib.Path, rows):
    """Stops if a manifest lists other photographs than these rows."""
    with manifest.open(newline="") as file:
        listed = {tuple(row) for row in list(csv.reader(file))[1:]}
    differing = sorted(listed ^ {tuple(row) for row in rows})
    if differing:
        raise SystemExit(
            f"The photographs are not those of {manifest}, for example {'/'.join(differing[0][:3])}"
            f" ({len(differing)} differences). Results of other photographs need other --results."
        )
