"""A folder of images as training, validation and test examples."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from supcon_tf.data import folder_layout, validation_split
from supcon_tf.data.decode import MAX_PIXELS
from supcon_tf.data.folder_layout import FolderLayout
from supcon_tf.data.image_files import FileSource, HeldOut, check_files, files_of


def load_folder(
    data_dir: str | None,
    splits: Sequence[str] = folder_layout.SPLITS,
    *,
    validation_split: float | None = None,
    seed: int = 0,
    for_training: bool = True,
    skip_broken_images: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, FileSource]:
    """Loads the splits of a folder and looks at the first bytes of every file.

    Args:
        data_dir: the folder, in one of the layouts of `folder_layout`.
        splits: which of "train", "validation" and "test" to load.
        validation_split: the share of the training images to hold out for validation by the rule of
            `validation_split`; 0 holds out none. By default 0.2 if the folder has neither
            validation nor test images, else 0.
        seed: of the validation split.
        for_training: whether training images and two classes are needed. If not, a folder without
            splits is a test split as a whole.
        skip_broken_images: leave out files that cannot be decoded instead of raising an error.
        max_pixels: images whose header states more pixels are rejected before decoding.

    Returns:
        Those of the splits that the folder has.

    Raises:
        ValueError: if the layout is unknown, a class has no training image, or files are not
            images.
    """
    layout = folder_layout.find_layout(data_dir, files_of(data_dir), needs_train=for_training)
    if not for_training and layout.is_flat:
        layout = FolderLayout(
            {"test": layout.folders["train"]}, layout.class_names, True, layout.ignored
        )
    fraction = _fraction_of_files(layout, validation_split) if for_training else 0.0
    loaded = {}
    for split in splits:
        if split in layout.folders:
            loaded[split] = _files(layout, split, max_pixels)
    if fraction and {"train", "validation"} & set(splits):
        train = loaded.pop("train", None) or _files(layout, "train", max_pixels)
        sides = hold_out(train, class_and_file_names(train), fraction=fraction, seed=seed)
        loaded |= {split: side for split, side in sides.items() if split in splits}
    return {
        split: check_files(source, skip_broken_images=skip_broken_images)
        for split, source in loaded.items()
    }


def hold_out(
    source: FileSource, names: Sequence[str], *, fraction: float, seed: int
) -> dict[str, FileSource]:
    """Divides training examples by the rule of `validation_split`: "train" and "validation".

    Raises:
        ValueError: if no example is held out.
    """
    if source.label_type == "multi_label":
        groups = [np.flatnonzero(column) for column in source.labels.T]
    else:
        numbers = source.class_numbers
        groups = [np.flatnonzero(numbers == number) for number in np.unique(numbers)]
    chosen = validation_split.held_out(names, groups, fraction=fraction, seed=seed)
    if not chosen.any():
        raise ValueError(
            f"--validation_split={fraction:g} holds out none of the {len(names):,} images. Use a "
            "larger fraction or add images, or pretrain without validation: --validation_split=0."
        )
    rule = HeldOut(fraction, seed)
    return {
        "train": source.choose(~chosen, held_out=rule),
        "validation": source.choose(chosen, held_out=rule),
    }


def _fraction_of_files(layout, given):
    if given and "validation" in layout.folders:
        raise ValueError(
            f"--validation_split={given:g} and {layout.folders['validation']} both name validation "
            "images. Leave out the flag or the folder."
        )
    if given is not None:
        return given
    has_other = {"validation", "test"} & set(layout.folders)
    return 0.0 if has_other else validation_split.DEFAULT_FRACTION


def _files(layout: FolderLayout, split: str, max_pixels: int) -> FileSource:
    files = files_of(layout.folders[split])
    paths: list[str] = []
    labels: list[int] = []
    ignored = list(layout.ignored)
    for label, name in enumerate(layout.class_names):
        class_files, others = folder_layout.class_files(layout, split, name, files)
        paths += class_files
        labels += [label] * len(class_files)
        ignored += others
    if not paths:
        raise ValueError(f"{layout.folders[split]} holds no images.")
    return FileSource(
        tuple(paths),
        np.array(labels, np.int32),
        layout.class_names,
        max_pixels=max_pixels,
        ignored=tuple(ignored),
    )


def class_and_file_names(source: FileSource) -> list[str]:
    """`<class>/<file>` of each file, with slashes on every system."""
    return [
        f"{source.class_names[label]}/{os.path.basename(path)}"
        for path, label in zip(source.paths, source.labels, strict=True)
    ]
