"""Where labeled images come from: the embedded digits, TFDS, or folders of JPEG and PNG files."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from supcon_tf.data import folder_layout
from supcon_tf.data.decode import MAX_PIXELS, decode_image, find_other_files, find_undecodable
from supcon_tf.data.folder_layout import printable
from supcon_tf.data.streams import StreamSource, load_stream
from supcon_tf.models.pixel_values import as_uint8_images

SPLITS = ("train", "test")
# The 8x8 digits fill their frame. They are enlarged to 16 pixels and get a border of 2 pixels, so
# that random crops seldom cut off a stroke.
DIGITS_SIDE, DIGITS_BORDER = 16, 2
SMALLEST_SIDE = 8
NO_LABEL = -1
# Batches draw their random numbers with (seed, step) for steps from 0, so this step is free.
LABEL_NOISE_STEP = -1

# A mirrored digit or letter is no longer the same digit or letter.
NEVER_FLIPPED = ("digits", "mnist", "kmnist", "emnist", "svhn_cropped", "binary_alpha_digits")


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images in memory.

    Attributes:
        images: uint8 [M, H, W, 3].
        labels: int32 [M].
        class_names: the name of each label.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def num_examples(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Image files with their labels.

    Attributes:
        paths: the files, in the order of the examples.
        labels: int32 [M].
        class_names: the name of each label.
        skipped: files that were left out, as path to reason.
        max_pixels: larger images are not decoded.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    max_pixels: int = MAX_PIXELS

    @property
    def num_examples(self) -> int:
        return len(self.paths)


Source = ArraySource | FileSource | StreamSource


def load_source(
    dataset: str,
    split: str,
    data_dir: str | None = None,
    *,
    skip_broken_images: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Source:
    """Loads one split of a dataset and checks it without decoding every image.

    Args:
        dataset: "digits", "folder", or the name of a TFDS image classification dataset.
        split: "train" or "test". If a dataset has no "test" split, its "validation" split is used.
        data_dir: for "folder", the folder that contains train/ and test/ (or validation/ or val/),
            each with one folder per class. For TFDS, its data directory.
        skip_broken_images: for "folder", leave out files that cannot be decoded instead of
            raising an error. Every image is decoded once to find them.
        max_pixels: images whose header states more pixels are rejected before decoding.

    Raises:
        ValueError: if the dataset is unknown, a folder is missing, or files are not images.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}: choose one of {', '.join(SPLITS)}.")
    if dataset == "digits":
        return _load_digits(split)
    if dataset == "folder":
        return _load_folder(split, data_dir, skip_broken_images, max_pixels)
    return dataclasses.replace(load_stream(dataset, split, data_dir), max_pixels=max_pixels)


def load_unlabeled(
    folder: str, *, skip_broken_images: bool = False, max_pixels: int = MAX_PIXELS
) -> FileSource:
    """Loads all image files below a folder, sorted by path. Every label is `NO_LABEL`.

    Args:
        folder: contains JPEG and PNG files at any depth.
        skip_broken_images, max_pixels: see `load_source`.

    Raises:
        ValueError: if the folder does not exist, is empty, or contains files that are not images.
    """
    if not tf.io.gfile.isdir(folder):
        raise ValueError(f"{folder} is not a folder. Expected a folder with JPEG or PNG files.")
    paths = folder_layout.files_below(folder, _files_of(folder))
    if not paths:
        raise ValueError(f"{folder} holds no images. Expected JPEG or PNG files at any depth.")
    labels = np.full(len(paths), NO_LABEL, np.int32)
    source = FileSource(paths, labels, (), max_pixels=max_pixels)
    return _without_broken(source, skip_broken_images)


def source_of_arrays(examples: tuple) -> ArraySource:
    """Makes a source without class names from arrays (images, labels).

    Args:
        examples: images as `pixel_values.as_uint8_images` accepts them, and labels [M] or [M, C].

    Raises:
        ValueError: if the examples have another form.
    """
    if not isinstance(examples, (tuple, list)) or len(examples) != 2:
        raise ValueError(
            "Expected arrays (images, labels) or a tf.data.Dataset of (image, label), got "
            f"{type(examples).__name__}."
        )
    images, labels = as_uint8_images(examples[0]), np.asarray(examples[1])
    if labels.ndim == 0 or len(labels) != len(images):
        raise ValueError(
            f"Expected one label for each of the {len(images):,} images, got labels of shape "
            f"{labels.shape}."
        )
    return ArraySource(images, labels, ())


def example_names(source: Source) -> list[str]:
    """The name of each example: its path, its TFDS id, or for arrays its position."""
    if isinstance(source, FileSource):
        return list(source.paths)
    if isinstance(source, StreamSource):
        return [name.numpy().decode() for _, _, name in source.named_examples()]
    return [str(index) for index in range(source.num_examples)]


def default_image_size(source: Source, *, largest: int = 224) -> int:
    """The short side of the first image in pixels, but at least 8 and at most `largest`.

    Raises:
        ValueError: if the first image file cannot be decoded or is smaller than 8 pixels.
    """
    if isinstance(source, ArraySource):
        return source.images.shape[1]
    if isinstance(source, FileSource):
        shape = _shape_of_file(source.paths[0], source.max_pixels)
    else:
        shape = source.builder.info.features["image"].shape
    return largest if None in shape[:2] else max(8, min(largest, *shape[:2]))


def _shape_of_file(path, max_pixels):
    for reason in find_undecodable([path], max_pixels=max_pixels).values():
        raise ValueError(f"{path} {reason}; remove or replace it.")
    shape = decode_image(tf.io.read_file(path), max_pixels=max_pixels).shape
    if min(shape[:2]) < SMALLEST_SIDE:
        raise ValueError(
            f"{path} has {shape[1]}x{shape[0]} pixels, which is too small to choose the image "
            f"size from it (at least {SMALLEST_SIDE} are needed): set --image_size."
        )
    return shape


def first_examples(source: Source, count: int) -> Source:
    """Keeps the first `count` examples.

    Files are sorted by class. From files, this takes the first of every class, then the second
    of every class, and so on.

    Raises:
        ValueError: if the source has fewer examples.
    """
    if not 0 < count <= source.num_examples:
        raise ValueError(
            f"num_images={count} is out of range: there are {source.num_examples:,} training "
            "examples. Use --num_images=0 for all of them."
        )
    if isinstance(source, StreamSource):
        split = f"{source.split}[:{count}]"
        return dataclasses.replace(source, split=split, num_examples=count)
    if isinstance(source, ArraySource):
        return dataclasses.replace(
            source, images=source.images[:count], labels=source.labels[:count]
        )
    starts = np.searchsorted(source.labels, source.labels)  # Labels of files are sorted.
    rank = np.arange(source.num_examples) - starts
    chosen = np.sort(np.lexsort([source.labels, rank])[:count])
    paths = tuple(source.paths[index] for index in chosen)
    return dataclasses.replace(source, paths=paths, labels=source.labels[chosen])


def with_label_noise(source: Source, probability: float, *, seed: int) -> Source:
    """Replaces each label with the given probability by a random class.

    The random class may be the true one. The new label depends only on the seed and the example:
    it is the same in every epoch and on every host, whichever other examples are used.
    """
    if isinstance(source, StreamSource):
        return dataclasses.replace(source, label_noise=(probability, seed))
    count = len(source.class_names)
    draws = tf.random.stateless_uniform(
        [source.num_examples, 2], seed=[seed, LABEL_NOISE_STEP], alg="philox"
    ).numpy()
    other = np.minimum((draws[:, 1] * count).astype(np.int32), count - 1)
    labels = np.where(draws[:, 0] < probability, other, source.labels)
    return dataclasses.replace(source, labels=labels)


def may_flip(dataset: str) -> bool:
    """Whether a mirrored image of this dataset still shows its class."""
    return not dataset.startswith(NEVER_FLIPPED)


def _load_digits(split: str) -> ArraySource:
    """The 1,797 handwritten 8x8 digits of UCI, from scikit-learn; 360 are for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    labels = digits.target.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=360, random_state=0, stratify=labels
    )
    chosen = np.sort(train if split == "train" else test)
    images = digits.images[chosen, :, :, None] * (255 / 16)
    images = tf.image.resize(images, [DIGITS_SIDE, DIGITS_SIDE], method="bicubic")
    images = np.clip(np.round(images), 0, 255).astype(np.uint8)
    border = (DIGITS_BORDER, DIGITS_BORDER)
    images = np.pad(images, [(0, 0), border, border, (0, 0)])  # [M, 20, 20, 1]
    return ArraySource(
        np.repeat(images, 3, axis=-1), labels[chosen], tuple(str(digit) for digit in range(10))
    )


def _files_of(folder: str | None) -> folder_layout.FileSystem:
    """The functions that list a folder.

    TensorFlow's are only used for remote folders, because they reject names that are not UTF-8.
    """
    return tf.io.gfile if "://" in (folder or "") else folder_layout.LOCAL_FILES


def _load_folder(
    split: str, data_dir: str | None, skip_broken_images: bool, max_pixels: int
) -> FileSource:
    files = _files_of(data_dir)
    folder, class_names = folder_layout.find_classes(data_dir, split, files)
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        class_files = folder_layout.class_files(folder, name, files)
        paths += class_files
        labels += [label] * len(class_files)
    if not paths:
        raise ValueError(f"{folder} holds no images.")
    source = FileSource(
        tuple(paths), np.array(labels, np.int32), tuple(class_names), max_pixels=max_pixels
    )
    return _without_broken(source, skip_broken_images)


def _without_broken(source: FileSource, skip_broken_images: bool) -> FileSource:
    """Raises an error for files that are not images, or leaves out all that cannot be decoded."""
    complaints = find_other_files(source.paths, max_pixels=source.max_pixels)
    if complaints and not skip_broken_images:
        raise ValueError(_unusable_files(complaints, len(source.paths)))
    if skip_broken_images:
        images = [path for path in source.paths if path not in complaints]
        complaints |= find_undecodable(images, max_pixels=source.max_pixels)
    return _without(source, complaints)


def advice_on_size(complaints: dict[str, str]) -> str:
    """The flag that accepts larger images, if the reasons include an image that is too large."""
    is_large = any("more than the limit" in reason for reason in complaints.values())
    return " (or raise --max_image_megapixels)" if is_large else ""


def _unusable_files(complaints: dict[str, str], num_paths: int) -> str:
    shown = [f"{printable(path)}: {why}" for path, why in list(complaints.items())[:10]]
    more = f"\n  and {len(complaints) - 10} more" if len(complaints) > 10 else ""
    return (
        f"{len(complaints)} of {num_paths} files are not JPEG or PNG images that can be used. "
        "Remove or replace them, or skip them with --skip_broken_images"
        f"{advice_on_size(complaints)}:\n  " + "\n  ".join(shown) + more
    )


def _without(source: FileSource, complaints: dict[str, str]) -> FileSource:
    """The source without the broken files, which become its `skipped`.

    Raises:
        ValueError: if a class has no image left.
    """
    kept = np.array([path not in complaints for path in source.paths])
    for label in np.setdiff1d(source.labels, source.labels[kept]):
        what = "" if label == NO_LABEL else f" of the class {source.class_names[label]}"
        raise ValueError(
            f"No image{what} can be decoded: "
            + "; ".join(f"{printable(path)}: {why}" for path, why in list(complaints.items())[:3])
        )
    return dataclasses.replace(
        source,
        paths=tuple(np.array(source.paths)[kept].tolist()),
        labels=source.labels[kept],
        skipped=complaints,
    )
