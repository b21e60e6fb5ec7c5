"""Where labelled images come from: the embedded digits, TFDS, or folders of JPEG and PNG files."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os

import numpy as np
import tensorflow as tf

SPLITS = ("train", "test")
JPEG_START, PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
DIGITS_SIDE = 16

# Whitening constants in [-1, 1], 2 m - 1 and 2 s of the usual ones (reference, preprocessing.py).
CIFAR10_MEAN, CIFAR10_STD = (-0.0172, -0.0356, -0.107), (0.4046, 0.3988, 0.402)
CIFAR100_MEAN, CIFAR100_STD = (0.0142, -0.0266, -0.1184), (0.535, 0.513, 0.5522)
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
    """Image files by path, with labels int32 [M]."""

    paths: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def num_examples(self) -> int:
        return len(self.paths)


@dataclasses.dataclass(frozen=True)
class StreamSource:
    """A split of a TFDS builder, read in order as {"image": encoded bytes, "label": int}."""

    builder: object
    split: str
    num_examples: int
    class_names: tuple[str, ...]
    shuffle_buffer: int = 10_000

    def examples(self, *, seed: int | None, host: int = 0, num_hosts: int = 1) -> tf.data.Dataset:
        """Encoded examples of this host: once and in order without a seed, else endless.

        With a seed, files are read in an order drawn from it and each epoch shuffles its
        buffer with (seed, epoch), so that the stream is the same at every start.
        """
        import tensorflow_datasets as tfds

        def order_files(files):
            if seed is None:
                return files
            return [files[i] for i in np.random.default_rng(seed).permutation(len(files))]

        # TFDS's own shuffle of the files would depend on TensorFlow's global seed.
        read_config = tfds.ReadConfig(
            try_autocache=False,
            interleave_cycle_length=1 if seed is None else 16,
            experimental_interleave_sort_fn=order_files,
            enable_ordering_guard=False,
        )
        split = self.split
        if num_hosts > 1:
            split = tfds.split_for_jax_process(split, process_index=host, process_count=num_hosts)
        stream = self.builder.as_dataset(
            split=split,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=read_config,
        )
        stream = stream.map(lambda example: (example["image"], tf.cast(example["label"], tf.int32)))
        if seed is None:
            return stream
        buffer = min(self.shuffle_buffer, self.num_examples)

        def shuffled(epoch):
            # Of this function's graph alone, in place of the global seed: that would change the
            # order, and 0, its most common value, fails with a seed that is a tensor.
            tf.random.set_seed(1)
            return stream.shuffle(buffer, seed=seed * 1_000_003 + epoch)

        return tf.data.Dataset.counter().flat_map(shuffled)


Source = ArraySource | FileSource | StreamSource


def load_source(dataset: str, split: str, data_dir: str | None = None) -> Source:
    """The split of a dataset, checked as far as can be without decoding every image.

    Args:
        dataset: "digits", "folder", or the name of a TFDS image classification dataset.
        split: "train" or "test"; a dataset without "test" gives its "validation".
        data_dir: the folder that holds train/ and test/ (or validation/) with one folder per
            class, or TFDS's data directory.

    Raises:
        ValueError: unknown dataset, missing folder, or files that are not images.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}: choose one of {', '.join(SPLITS)}.")
    if dataset == "digits":
        return _load_digits(split)
    if dataset == "folder":
        return _load_folder(split, data_dir)
    return _load_tfds(dataset, split, data_dir)


def default_image_size(source: Source) -> int:
    """The side at which the images come, in pixels; 224 where they vary or are larger."""
    if isinstance(source, ArraySource):
        return source.images.shape[1]
    if isinstance(source, FileSource):
        shape = decode_image(tf.io.read_file(source.paths[0])).shape
    else:
        shape = source.builder.info.features["image"].shape
    return 224 if None in shape[:2] else min(224, *shape[:2])


def whitening_constants(dataset: str) -> tuple[tuple | None, tuple | None]:
    """Mean and standard deviation per channel of images in [-1, 1], or None where unknown."""
    return {
        "cifar10": (CIFAR10_MEAN, CIFAR10_STD),
        "cifar100": (CIFAR100_MEAN, CIFAR100_STD),
    }.get(dataset.split(":")[0].split("/")[0], (None, None))


def may_flip(dataset: str) -> bool:
    """Whether a mirrored image is still one of its class."""
    return dataset.split(":")[0].split("/")[0] not in NEVER_FLIPPED


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """JPEG or PNG bytes -> uint8 [H, W, 3]; grey is repeated, an alpha channel is dropped."""
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def find_undecodable(paths) -> list[str]:
    """Those of the files that cannot be decoded, for a message after a failed step."""
    broken = []
    for path in paths:
        try:
            decode_image(tf.io.read_file(path))
        except tf.errors.OpError:
            broken.append(path)
    return broken


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
    return ArraySource(
        np.repeat(images, 3, axis=-1), labels[chosen], tuple(str(digit) for digit in range(10))
    )


def _load_folder(split, data_dir):
    if not data_dir:
        raise ValueError(
            "--dataset=folder needs --data_dir: a folder with train/ and test/ (or validation/), "
            "each with one folder of JPEG or PNG files per class."
        )
    if not tf.io.gfile.isdir(data_dir):
        raise ValueError(f"--data_dir={data_dir} is not a folder.")
    names = ("train",) if split == "train" else ("test", "validation")
    folders = [os.path.join(data_dir, name) for name in names]
    folder = next((path for path in folders if tf.io.gfile.isdir(path)), None)
    if folder is None:
        found = ", ".join(sorted(_visible(data_dir))) or "nothing"
        raise ValueError(f"{' or '.join(folders)} is missing; {data_dir} holds {found}.")
    train_folder = os.path.join(data_dir, "train")
    class_names = _class_folders(train_folder)
    if len(class_names) < 2:
        raise ValueError(
            f"{train_folder} holds {len(class_names)} class folder(s); contrast needs at least two."
        )
    unknown = sorted(set(_class_folders(folder)) - set(class_names))
    if unknown:
        raise ValueError(f"{folder} holds classes that {train_folder} lacks: {', '.join(unknown)}.")
    paths, labels = [], []
    for label, name in enumerate(class_names):
        class_folder = os.path.join(folder, name)
        files = sorted(_visible(class_folder)) if tf.io.gfile.isdir(class_folder) else []
        if not files and split == "train":
            raise ValueError(f"The class folder {class_folder} is empty.")
        paths += [os.path.join(class_folder, file) for file in files]
        labels += [label] * len(files)
    if not paths:
        raise ValueError(f"{folder} holds no images.")
    _refuse_non_images(paths)
    return FileSource(tuple(paths), np.array(labels, np.int32), tuple(class_names))


def _visible(folder):
    names = (name.rstrip("/") for name in tf.io.gfile.listdir(folder))
    return [name for name in names if not name.startswith(".")]


def _class_folders(folder):
    if not tf.io.gfile.isdir(folder):
        raise ValueError(f"{folder} is missing: it names the classes.")
    names = _visible(folder)
    return sorted(name for name in names if tf.io.gfile.isdir(os.path.join(folder, name)))


def _refuse_non_images(paths):
    """Looks at the first bytes of every file, many at a time, because gs:// answers slowly."""
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        complaints = [text for text in pool.map(_complaint, paths, chunksize=64) if text]
    if complaints:
        shown = "\n  ".join(complaints[:10])
        more = f"\n  and {len(complaints) - 10} more" if len(complaints) > 10 else ""
        raise ValueError(
            f"{len(complaints)} of {len(paths)} files are not JPEG or PNG images; remove or "
            f"replace them:\n  {shown}{more}"
        )


def _complaint(path):
    if tf.io.gfile.isdir(path):
        return f"{path}: a folder among images"
    with tf.io.gfile.GFile(path, "rb") as file:
        start = file.read(8)
    if not start:
        return f"{path}: empty"
    if not start.startswith((JPEG_START, PNG_START)):
        return f"{path}: starts with {start!r}"
    return None


def _load_tfds(dataset, split, data_dir):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(dataset, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"Unknown dataset {dataset!r}: it is neither 'digits' nor 'folder' nor a TensorFlow "
            f"Datasets name (https://www.tensorflow.org/datasets/catalog), nor prepared in "
            f"--data_dir={data_dir}."
        ) from error
    features = builder.info.features
    if not features or not {"image", "label"} <= set(features):
        raise ValueError(
            f"The dataset {dataset!r} has the features {sorted(features or ())}; image "
            "classification needs 'image' and 'label'."
        )
    try:
        builder.download_and_prepare()
    except Exception as error:  # Whatever the download or a manual step raises.
        raise ValueError(f"The dataset {dataset!r} could not be prepared: {error}") from error
    available = list(builder.info.splits)
    wanted = ("train",) if split == "train" else ("test", "validation")
    name = next((name for name in wanted if name in available), None)
    if name is None:
        raise ValueError(
            f"The dataset {dataset!r} has the splits {available}, but {' or '.join(wanted)} is "
            "needed."
        )
    return StreamSource(
        builder, name, builder.info.splits[name].num_examples, tuple(features["label"].names)
    )
