"""Where labelled images come from: the embedded digits, TFDS, or folders of JPEG and PNG files."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from supcon_tf.data import folder_layout
from supcon_tf.data.decode import MAX_PIXELS, decode_image, find_other_files, find_undecodable
from supcon_tf.data.folder_layout import printable
from supcon_tf.data.streams import StreamSource as StreamSource
from supcon_tf.data.streams import find_broken as find_broken
from supcon_tf.data.streams import load_stream
from supcon_tf.models.pixel_values import as_uint8_images

SPLITS = ("train", "test")
# The 8x8 digits fill their frame; enlarged to 16 pixels they get a border of 2, so that random
# crops seldom cut a stroke.
DIGITS_SIDE, DIGITS_BORDER = 16, 2
SMALLEST_SIDE = 8
NO_LABEL = -1
LABEL_NOISE_STEP = -1  # Batches draw with (seed, step), from step 0 on.

# Whitening constants in [-1, 1], 2 m - 1 and 2 s of the usual ones (reference, preprocessing.py).
CIFAR10_MEAN, CIFAR10_STD = (-0.0172, -0.0356, -0.107), (0.4046, 0.3988, 0.402)
CIFAR100_MEAN, CIFAR100_STD = (0.0142, -0.0266, -0.1184), (0.535, 0.513, 0.5522)
# Of torchvision's models; nothing here uses them unless they are given.
IMAGENET_MEAN, IMAGENET_STD = (-0.03, -0.088, -0.188), (0.458, 0.448, 0.45)
# Mirrored digits and letters are other digits and letters.
NEVER_FLIPPED = ("digits", "mnist", "kmnist", "emnist", "svhn_cropped", "binary_alpha_digits")


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images in memory: uint8 [M, H, W, 3] and int32 [M]."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def num_examples(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Image files by path, with labels int32 [M], and those left out: path to reason.

    An image of more than `max_pixels` is not decoded.
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
    """The split of a dataset, checked as far as can be without decoding every image.

    Args:
        dataset: "digits", "folder", or the name of a TFDS image classification dataset.
        split: "train" or "test"; a dataset without "test" gives its "validation".
        data_dir: the folder that holds train/ and test/ (or validation/ or val/) with one folder
            per class, or TFDS's data directory.
        skip_broken_images: of a folder, leave out what cannot be decoded instead of refusing
            what is no image; decodes every image once.
        max_pixels: images whose header names more are refused before they are decoded.

    Raises:
        ValueError: unknown dataset, missing folder, or files that are not images.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}: choose one of {', '.join(SPLITS)}.")
    if dataset == "digits":
        return _load_digits(split)
    if dataset == "folder":
        return _load_folder(split, data_dir, skip_broken_images, max_pixels)
    return dataclasses.replace(load_stream(dataset, split, data_dir), max_pixels=max_pixels)


def load_unlabelled(
    folder: str, *, skip_broken_images: bool = False, max_pixels: int = MAX_PIXELS
) -> FileSource:
    """Every file in a folder and the folders in it, by path, without labels: all are -1.

    Args:
        folder: holds JPEG and PNG files, at any depth.
        skip_broken_images, max_pixels: see `load_source`.

    Raises:
        ValueError: no such folder, no file in it, or files that are not images.
    """
    if not tf.io.gfile.isdir(folder):
        raise ValueError(f"{folder} is not a folder.")
    paths = folder_layout.files_below(folder, _files_of(folder))
    if not paths:
        raise ValueError(f"{folder} holds no images.")
    paths = tuple(sorted(paths))
    labels = np.full(len(paths), NO_LABEL, np.int32)
    source = FileSource(paths, labels, (), max_pixels=max_pixels)
    return _without_broken(source, skip_broken_images)


def source_of_arrays(examples) -> ArraySource:
    """(images, labels) in memory as a source without class names.

    Args:
        examples: images, see `pixel_values.as_uint8_images`, and labels [M] or [M, C].

    Raises:
        ValueError: another form.
    """
    if not isinstance(examples, (tuple, list)) or len(examples) != 2:
        raise ValueError(
            "Expected arrays (images, labels) or a tf.data.Dataset of (image, label), got "
            f"{type(examples).__name__}."
        )
    images, labels = as_uint8_images(examples[0]), np.asarray(examples[1])
    if labels.ndim == 0 or len(labels) != len(images):
        raise ValueError(
            f"Expected one label for each of the {len(images):,} images, got labels of the shape "
            f"{labels.shape}."
        )
    return ArraySource(images, labels, ())


def example_names(source: Source) -> list[str]:
    """What each example is called: its path, its TFDS id, or in memory its number."""
    if isinstance(source, FileSource):
        return list(source.paths)
    if isinstance(source, StreamSource):
        return [name.numpy().decode() for _, _, name in source.named_examples()]
    return [str(index) for index in range(source.num_examples)]


def default_image_size(source: Source, *, largest: int = 224) -> int:
    """The short side of the first image, in pixels, within 8 and `largest`."""
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
            f"{path} has {shape[1]}x{shape[0]} pixels, too few to take it as the size of all "
            "images: give --image_size."
        )
    return shape


def whitening_constants(dataset: str) -> tuple[tuple | None, tuple | None]:
    """Mean and standard deviation per channel of images in [-1, 1], or None where unknown."""
    return {
        "cifar10": (CIFAR10_MEAN, CIFAR10_STD),
        "cifar100": (CIFAR100_MEAN, CIFAR100_STD),
    }.get(dataset.split(":")[0].split("/")[0], (None, None))


def first_examples(source: Source, count: int) -> Source:
    """The first `count` examples.

    Of files, which are sorted by class, the first of every class, then the second of every
    class, and so on.

    Raises:
        ValueError: the source has fewer.
    """
    if not 0 < count <= source.num_examples:
        raise ValueError(
            f"num_images={count}: there are {source.num_examples:,} training examples; take 0 "
            "for all of them."
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
    """Replaces labels with that probability by a class drawn from all, perhaps the true one.

    What becomes of an example depends on the seed and on the example: it is the same in every
    epoch, on every host, and whatever is done with the other examples.
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
    """Whether a mirrored image is still one of its class."""
    return not dataset.startswith(NEVER_FLIPPED)


def _load_digits(split):
    """1,797 handwritten digits of 8x8 pixels (UCI, in scikit-learn), 360 of them for the test."""
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


def _files_of(folder):
    """What lists a folder: TensorFlow where it is remote; it refuses names that are not UTF-8."""
    return tf.io.gfile if "://" in (folder or "") else folder_layout.LOCAL_FILES


def _load_folder(split, data_dir, skip_broken_images, max_pixels):
    files = _files_of(data_dir)
    folder, class_names = folder_layout.find_classes(data_dir, split, files)
    paths, labels = [], []
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


def _without_broken(source, skip_broken_images):
    """Refuses files that are no images, or leaves out all that cannot be decoded."""
    complaints = find_other_files(source.paths, max_pixels=source.max_pixels)
    if complaints and not skip_broken_images:
        _refuse(complaints, len(source.paths))
    if skip_broken_images:
        images = [path for path in source.paths if path not in complaints]
        complaints |= find_undecodable(images, max_pixels=source.max_pixels)
    return _without(source, complaints)


def advice_on_size(complaints: dict[str, str]) -> str:
    """How to use images that are too large, if there are any among the reasons."""
    is_large = any("more than the limit" in reason for reason in complaints.values())
    return " (or raise --max_image_megapixels)" if is_large else ""


def _refuse(complaints, num_paths):
    shown = [f"{printable(path)}: {why}" for path, why in list(complaints.items())[:10]]
    more = f"\n  and {len(complaints) - 10} more" if len(complaints) > 10 else ""
    raise ValueError(
        f"{len(complaints)} of {num_paths} files are not JPEG or PNG images that can be used; "
        "remove or replace them, or leave them out with --skip_broken_images"
        f"{advice_on_size(complaints)}:\n  " + "\n  ".join(shown) + more
    )


def _without(source, complaints):
    """The source without the broken files, which it lists.

    Raises:
        ValueError: a class has no image left.
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
