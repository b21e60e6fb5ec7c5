"""Image files as a source: the files with their labels, and the check of what they contain."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from supcon_tf.data import decode, folder_layout
from supcon_tf.data.folder_layout import printable

NO_LABEL = -1


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Image files with their labels.

    Attributes:
        paths: the files, in the order of the examples.
        labels: int32 [M] for the label type "class", bool [M, C] for "multi_label", int32 [M, L]
            for "hierarchy", float32 [M] for "real".
        class_names: the name of each class; of a hierarchy, the classes of the finest level.
        skipped: files that were left out, as path to reason.
        max_pixels: larger images are not decoded.
        label_type: one of `csv_labels.LABEL_TYPES`.
        level_names: for a hierarchy, the class names of each level, from coarse to fine.
        parents: for a hierarchy, for each level but the finest, the class at that level of each
            class of the finest level.
        needs_pillow: whether some files are in formats that TensorFlow does not decode.
        ignored: names of hidden and system files beside the images, and of repeated links.
        held_out: how this split was chosen, if it is one side of a validation split.
        names: of files from a CSV file, their names in it.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    max_pixels: int = decode.MAX_PIXELS
    label_type: str = "class"
    level_names: tuple[tuple[str, ...], ...] = ()
    parents: tuple[tuple[int, ...], ...] = ()
    needs_pillow: bool = False
    ignored: tuple[str, ...] = ()
    held_out: HeldOut | None = None
    names: tuple[str, ...] = ()

    @property
    def num_examples(self) -> int:
        return len(self.paths)

    @property
    def class_numbers(self) -> np.ndarray:
        """int [M]: the class of each example; of a hierarchy, at the finest level.

        Examples with several labels or a real one have no single class: all are 0.
        """
        if self.label_type in ("multi_label", "real"):
            return np.zeros(len(self.paths), np.int32)
        return self.labels[:, -1] if self.labels.ndim == 2 else self.labels

    def choose(self, chosen: np.ndarray, *, held_out: HeldOut | None = None) -> FileSource:
        """The examples at these positions, or where this mask is True."""
        return dataclasses.replace(
            self,
            paths=tuple(np.array(self.paths, dtype=object)[chosen].tolist()),
            names=tuple(np.array(self.names, dtype=object)[chosen].tolist()) if self.names else (),
            labels=self.labels[chosen],
            held_out=held_out or self.held_out,
        )


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The rule that chose a side of a validation split, see `validation_split`."""

    fraction: float
    seed: int


def load_unlabeled(
    folder: str, *, skip_broken_images: bool = False, max_pixels: int = decode.MAX_PIXELS
) -> FileSource:
    """Loads all image files below a folder, sorted by path. Every label is `NO_LABEL`.

    Args:
        folder: contains image files at any depth.
        skip_broken_images: leave out files that cannot be decoded instead of raising an error.
            Every image is decoded once to find them.
        max_pixels: images whose header states more pixels are rejected before decoding.

    Raises:
        ValueError: if the folder does not exist, is empty, or contains files that are not images.
    """
    if not tf.io.gfile.isdir(folder):
        raise ValueError(f"{folder} is not a folder. Expected a folder of images.")
    paths, ignored = folder_layout.files_below(folder, files_of(folder))
    if not paths:
        raise ValueError(f"{folder} holds no images. Expected image files at any depth.")
    labels = np.full(len(paths), NO_LABEL, np.int32)
    source = FileSource(paths, labels, (), max_pixels=max_pixels, ignored=ignored)
    return check_files(source, skip_broken_images=skip_broken_images)


def files_of(folder: str | None) -> folder_layout.FileSystem:
    """The functions that list a folder.

    TensorFlow's are only used for remote folders, because they reject names that are not UTF-8.
    """
    return tf.io.gfile if "://" in (folder or "") else folder_layout.LOCAL_FILES


def check_files(source: FileSource, *, skip_broken_images: bool) -> FileSource:
    """Looks at the first bytes of every file, and notes whether Pillow has to decode some.

    Args:
        source: the files.
        skip_broken_images: decode every file, and leave out those that are not images or cannot
            be decoded.

    Raises:
        ValueError: if files are not images, and are not to be skipped; or if a class has no image
            left.
    """
    complaints, for_pillow = decode.inspect_files(source.paths, max_pixels=source.max_pixels)
    if complaints and not skip_broken_images:
        raise ValueError(_unusable_files(complaints, len(source.paths)))
    if skip_broken_images:
        images = [path for path in source.paths if path not in complaints]
        complaints |= decode.find_undecodable(images, max_pixels=source.max_pixels)
    source = dataclasses.replace(source, needs_pillow=bool(for_pillow - set(complaints)))
    return _without(source, complaints) if complaints else source


def advice_on_size(complaints: dict[str, str]) -> str:
    """The flag that accepts larger images, if the reasons include an image that is too large."""
    is_large = any("more than the limit" in reason for reason in complaints.values())
    return " (or raise --max_image_megapixels)" if is_large else ""


def first_of_each_class(source: FileSource, count: int) -> FileSource:
    """The first example of every class, then the second of every class, and so on, up to `count`.

    Of examples without a single class, the first `count`.
    """
    numbers = source.class_numbers
    in_order = np.argsort(numbers, kind="stable")
    starts = np.searchsorted(numbers[in_order], numbers[in_order])
    rank = np.zeros(len(numbers), np.int64)
    rank[in_order] = np.arange(len(numbers)) - starts
    return source.choose(np.sort(np.lexsort([numbers, rank])[:count]))


def _unusable_files(complaints: dict[str, str], num_paths: int) -> str:
    shown = [f"{printable(path)}: {why}" for path, why in list(complaints.items())[:10]]
    more = f"\n  and {len(complaints) - 10} more" if len(complaints) > 10 else ""
    return (
        f"{len(complaints)} of {num_paths} files are not images that can be used. Expected "
        f"{decode.FORMATS}. Remove or replace them, or skip them with --skip_broken_images"
        f"{advice_on_size(complaints)}:\n  " + "\n  ".join(shown) + more
    )


def _without(source: FileSource, complaints: dict[str, str]) -> FileSource:
    """The source without the broken files, which become its `skipped`."""
    kept = np.array([path not in complaints for path in source.paths])
    if source.label_type in ("class", "hierarchy"):
        lost = np.setdiff1d(source.class_numbers, source.class_numbers[kept]).tolist()
    else:
        lost = [] if kept.any() else [NO_LABEL]
    for label in lost:
        what = "" if label == NO_LABEL else f" of the class {source.class_names[label]}"
        raise ValueError(
            f"No image{what} can be decoded: "
            + "; ".join(f"{printable(path)}: {why}" for path, why in list(complaints.items())[:3])
        )
    return dataclasses.replace(source.choose(kept), skipped=complaints)
