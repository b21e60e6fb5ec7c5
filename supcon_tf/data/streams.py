"""TensorFlow Datasets as a source: its examples are read from files, in order or shuffled."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from supcon_tf.data.decode import MAX_PIXELS, decode_image

# Memory for shuffling a stream on each host, in bytes of encoded examples. All of CIFAR-10 takes
# 0.1 GiB, so it is shuffled fully; of ImageNet, about 18,000 examples fit into 2 GiB.
SHUFFLE_BYTES = 2 * 2**30
# Their test split has the label -1 throughout, because the labels are not published.
WITHOUT_TEST_LABELS = ("imagenet2012", "i_naturalist2017", "i_naturalist2018")


@dataclasses.dataclass(frozen=True)
class StreamSource:
    """A split of a TFDS builder, read as (encoded bytes, label).

    Attributes:
        builder: the prepared `tfds.core.DatasetBuilder`.
        split: in the syntax of TFDS, such as "train" or "train[:100]".
        shuffle_buffer: how many encoded examples a shuffle holds in memory; None for all.
        label_noise: the share of labels that `sources.with_label_noise` replaces, and its seed.
        max_pixels: larger images are not decoded.
        label_type: "class", or "multi_label" for several labels per image.
        label_place: the keys that lead to the label within a stored example.
        kept_classes: the stored numbers of the classes that are read, in the order of class_names;
            None for all classes.
        kept_names: the names that TFDS gives the examples that are read; None for all examples.
    """

    # Not typed as a DatasetBuilder, because importing TFDS takes seconds.
    builder: Any
    split: str
    num_examples: int
    class_names: tuple[str, ...]
    shuffle_buffer: int | None = None
    label_noise: tuple[float, int] = (0.0, 0)
    max_pixels: int = MAX_PIXELS
    label_type: str = "class"
    label_place: tuple[str, ...] = ("label",)
    kept_classes: tuple[int, ...] | None = None
    kept_names: tuple[str, ...] | None = None

    def examples(
        self, *, seed: int | None, start: int = 0, host: int = 0, num_hosts: int = 1
    ) -> tf.data.Dataset:
        """The encoded examples of this host.

        Without a seed, every example comes once and in order. With a seed, the stream is endless
        and each epoch is shuffled with numbers drawn from (seed, epoch), so a restarted stream is
        the same. If all examples fit into the buffer, they are read once, kept in memory and
        fully shuffled. Otherwise every epoch reads the files in another order, 16 at a time,
        through the buffer.

        Args:
            seed: see above.
            start: how many examples of this host to skip. Skipping whole epochs costs nothing;
                the rest is read but not decoded.
            host, num_hosts: which share of the examples to read.

        Returns:
            A dataset of (encoded bytes, label int32 [] or bool [C]).
        """
        place = {"host": host, "num_hosts": num_hosts}
        if seed is None:
            return self._labeled(self._stored(**place))
        in_memory = None
        if self.shuffle_buffer is None or self.shuffle_buffer >= self.num_examples:
            in_memory = self._labeled(self._stored(**place)).cache()

        @tf.autograph.experimental.do_not_convert
        def shuffle(epoch: tf.Tensor) -> tf.data.Dataset:
            # Sets the seed of this function's graph only. The user's global seed would change the
            # order, and the most common one, 0, fails together with a seed that is a tensor.
            tf.random.set_seed(1)
            epoch_seed = seed * 1_000_003 + epoch
            if in_memory is not None:
                return in_memory.shuffle(self.num_examples, seed=epoch_seed)
            files = self._stored(file_seed=epoch_seed, **place)
            return self._labeled(files).shuffle(self.shuffle_buffer, seed=epoch_seed)

        first_epoch, passed = divmod(start, self.num_examples // num_hosts)
        # A range, not a counter, because the workers of a data service can share a range.
        epochs = tf.data.Dataset.range(first_epoch, tf.int64.max)
        return epochs.flat_map(shuffle).skip(passed)

    def in_memory(self) -> tuple[tf.Tensor, np.ndarray]:
        """Every encoded image, string [M], and the labels of all, int32 [M], read at once.

        Raises:
            ValueError: the images may take more than `SHUFFLE_BYTES`, or have several labels.
        """
        if self.label_type != "class":
            raise ValueError(
                f"--class_balanced needs one class per image; these labels are {self.label_type}."
            )
        if self.shuffle_buffer is not None:
            raise ValueError(
                f"--class_balanced keeps all encoded images of a TensorFlow Datasets split in "
                f"memory, but {self.split!r} has more than {SHUFFLE_BYTES // 2**30} GiB of them. "
                "Store the images as files, one folder per class, and use --dataset=folder."
            )
        batches = [
            (images, labels.numpy()) for images, labels in self._labeled(self._stored()).batch(4096)
        ]
        images, labels = zip(*batches, strict=True)
        return tf.concat(images, axis=0), np.concatenate(labels)

    def named_examples(self) -> tf.data.Dataset:
        """Every example once and in order, as (encoded bytes, stored label, name)."""
        return self._stored().map(
            lambda example: (example["image"], self._stored_label(example), example["tfds_id"])
        )

    def _stored(
        self, *, file_seed: tf.Tensor | None = None, host: int = 0, num_hosts: int = 1
    ) -> tf.data.Dataset:
        """One epoch of this host's examples as TFDS stores them, undecoded.

        With a seed, the files are read in a random order.
        """
        import tensorflow_datasets as tfds

        read_config = tfds.ReadConfig(
            try_autocache=False,
            interleave_cycle_length=1 if file_seed is None else 16,
            add_tfds_id=True,
            shuffle_seed=file_seed,
            enable_ordering_guard=False,
        )
        split = self.split
        is_whole = self.kept_classes is None and self.kept_names is None
        if num_hosts > 1 and is_whole:
            split = tfds.split_for_jax_process(split, process_index=host, process_count=num_hosts)
        stored = self.builder.as_dataset(
            split=split,
            shuffle_files=file_seed is not None,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=read_config,
        )
        if is_whole:
            return stored
        # Every host reads all examples, so that the shares of the hosts are of equal size.
        if self.kept_names is not None:
            stored = stored.filter(_is_one_of(self.kept_names))
        if self.kept_classes is not None:
            kept = tf.constant(self.kept_classes, tf.int64)
            stored = stored.filter(
                lambda example: tf.reduce_any(
                    tf.cast(self._stored_label(example), tf.int64) == kept
                )
            )
        return stored.shard(num_hosts, host) if num_hosts > 1 else stored

    def _stored_label(self, example: dict) -> tf.Tensor:
        for key in self.label_place:
            example = example[key]
        return example

    def _labeled(self, stored: tf.data.Dataset) -> tf.data.Dataset:
        @tf.autograph.experimental.do_not_convert
        def image_and_label(example):
            label, name = self._stored_label(example), example["tfds_id"]
            if self.label_type == "multi_label":
                return example["image"], self._multi_hot(self._checked(label, name))
            return example["image"], self._label(label, name)

        return stored.map(image_and_label)

    def _checked(self, label: tf.Tensor, name: tf.Tensor) -> tf.Tensor:
        """The label as int32 in the order of class_names, or an error if it is out of range."""
        label = tf.cast(label, tf.int32)
        if self.kept_classes is not None:
            return tf.argmax(label == tf.constant(self.kept_classes), output_type=tf.int32)
        count = len(self.class_names)
        text = tf.strings.format(
            "the example {} has the label {}, but there are {} classes, numbered from 0.",
            (name, label, count),
        )
        is_known = tf.reduce_all((label >= 0) & (label < count))
        with tf.control_dependencies([tf.debugging.Assert(is_known, [text])]):
            return tf.identity(label)

    def _multi_hot(self, labels: tf.Tensor) -> tf.Tensor:
        """Class numbers [n] as memberships bool [C]."""
        hot = tf.one_hot(labels, len(self.class_names), on_value=True, off_value=False)
        return tf.reduce_any(hot, axis=0)

    def _label(self, label: tf.Tensor, name: tf.Tensor) -> tf.Tensor:
        """The label, replaced if the label noise chose this example."""
        label, count = self._checked(label, name), len(self.class_names)
        probability, seed = self.label_noise
        if not probability:
            return label
        # An example has the same name on every host and in every epoch.
        buckets = 2**31
        chosen, other = (
            tf.strings.to_hash_bucket_strong(name, buckets, key=[seed, stream]) for stream in (0, 1)
        )
        is_noise = tf.cast(chosen, tf.float64) < probability * buckets
        return tf.where(is_noise, tf.cast(other % count, tf.int32), label)


def suggest_names(dataset: str) -> list[str]:
    """Suggests up to three datasets with similar names, without network access.

    There are no suggestions for a name that TensorFlow Datasets knows: then the version or the
    configuration is wrong.
    """
    import tensorflow_datasets as tfds

    known = [*tfds.list_builders(with_community_datasets=False), "digits", "folder", "csv"]
    name = re.split("[/:]", dataset)[0]
    if name in known:
        return []
    name = name.lower()
    longer = sorted((other for other in known if other.startswith(name)), key=len)
    return list(dict.fromkeys([*longer, *difflib.get_close_matches(name, known)]))[:3]


def prepared_builder(dataset: str, data_dir: str | None = None) -> Any:
    """The TFDS builder of a dataset, after downloading and preparing it if necessary.

    Raises:
        ValueError: if the dataset is unknown, cannot be prepared, or has no images with labels.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(dataset, data_dir=data_dir, try_gcs=False)
    except (tfds.core.DatasetNotFoundError, AssertionError, ValueError) as error:
        # The last two mean a version or configuration that the dataset does not have.
        names = suggest_names(dataset)
        hint = f" Did you mean --dataset={' or --dataset='.join(names)}?" if names else ""
        where = f", nor prepared in --data_dir={data_dir}" if data_dir else ""
        raise ValueError(
            f"Unknown dataset {dataset!r}: it is neither 'digits', 'folder' nor 'csv', nor a "
            "TensorFlow Datasets name (https://www.tensorflow.org/datasets/catalog)"
            f"{where}.{hint} ({str(error).strip().splitlines()[0]})"
        ) from error
    label_feature(builder, dataset)
    try:
        builder.download_and_prepare()
    except Exception as error:  # A download or a manual step can raise anything.
        raise ValueError(f"The dataset {dataset!r} could not be prepared: {error}") from error
    return builder


def label_feature(builder: Any, dataset: str) -> tuple[tuple[str, ...], Any]:
    """Where the labels of a dataset are, and what they are.

    Returns:
        The keys that lead to the label within an example, such as ("label",) or ("objects",
        "label"); and its feature, a ClassLabel, or a Sequence of them for several labels per image.

    Raises:
        ValueError: if there are no images, or no labels of these kinds.
    """
    import tensorflow_datasets as tfds

    def is_class(feature):
        return isinstance(feature, tfds.features.ClassLabel)

    features = dict((builder.info.features or {}).items())
    if "image" in features:
        for name in ("label", "labels"):
            feature = features.get(name)
            if is_class(feature) or is_class(getattr(feature, "feature", None)):
                return (name,), feature
        objects = getattr(features.get("objects"), "feature", None)
        label = dict(getattr(objects, "items", dict)()).get("label")
        if is_class(label):
            return ("objects", "label"), label
    raise ValueError(
        f"The dataset {dataset!r} has the features {sorted(features)}; image classification needs "
        "'image', and 'label', 'labels' or 'objects' with 'label'."
    )


def find_split(builder: Any, split: str) -> str | None:
    """The TFDS split to use as "train" or "test", or None if there is none.

    Without a test split, or if its labels are not published, the validation split is used. Any
    other name is returned unchanged.
    """
    available = list(builder.info.splits)
    if split == "test":
        hidden = builder.info.name in WITHOUT_TEST_LABELS
        wanted = ("validation",) if hidden else ("test", "validation")
    elif split == "train":
        wanted = ("train",)
    else:
        return split
    return next((name for name in wanted if name in available), None)


def stream_of(builder: Any, split: str) -> StreamSource:
    """A split of a prepared builder, in the syntax of TFDS, such as "train[:80%]".

    Raises:
        ValueError: if there is no such split, or it is empty.
    """
    name = builder.info.full_name
    try:
        info = builder.info.splits[split]
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"The dataset {name} has no split {split!r}; it has {list(builder.info.splits)}. "
            "Slices and sums such as train[:80%] and train+validation are possible, see "
            f"https://www.tensorflow.org/datasets/splits. ({str(error).strip().splitlines()[0]})"
        ) from error
    if not info.num_examples:
        raise ValueError(f"The split {split!r} of the dataset {name} is empty.")
    place, feature = label_feature(builder, name)
    whole = builder.info.splits.values()
    # A slice does not know its bytes.
    num_bytes = info.num_bytes or int(
        sum(part.num_bytes for part in whole)
        * info.num_examples
        / max(sum(part.num_examples for part in whole), 1)
    )
    is_single = place == ("label",) and not hasattr(feature, "feature")
    return StreamSource(
        builder,
        split,
        info.num_examples,
        tuple(getattr(feature, "feature", feature).names),
        shuffle_buffer=_shuffle_buffer(info.num_examples, num_bytes),
        label_type="class" if is_single else "multi_label",
        label_place=place,
    )


def classes_of_stream(source: StreamSource, names: Sequence[str]) -> StreamSource:
    """The examples of some classes alone, numbered in the order of `names`.

    Reads the label of every example once, to count them.

    Raises:
        ValueError: if there is no example of these classes.
    """
    stored_numbers = source.kept_classes or tuple(range(len(source.class_names)))
    kept = tuple(stored_numbers[source.class_names.index(name)] for name in names)
    chosen = dataclasses.replace(source, class_names=tuple(names), kept_classes=kept)
    examples = chosen.examples(seed=None).map(lambda image, label: label)
    count = int(examples.reduce(np.int64(0), lambda total, label: total + 1))
    if not count:
        raise ValueError(
            f"The split {source.split!r} of the dataset {source.builder.info.full_name} has no "
            f"example of the classes {', '.join(names[:10])}."
        )
    return dataclasses.replace(chosen, num_examples=count)


def first_of_stream(source: StreamSource, count: int) -> StreamSource:
    """The first `count` examples of a source.

    Raises:
        ValueError: if classes were left out: their places in the files are unknown.
    """
    import tensorflow_datasets as tfds

    if source.kept_classes is not None:
        raise ValueError(
            f"--num_images={count} cannot be combined with --holdout_classes of a TensorFlow "
            "Datasets name. Take a slice of the split instead: --train_split=train[:10%]."
        )
    if not set("[+") & set(source.split):
        return dataclasses.replace(source, split=f"{source.split}[:{count}]", num_examples=count)
    splits, left, parts = source.builder.info.splits, count, []
    for part in tfds.core.ReadInstruction.from_spec(source.split).to_absolute(splits):
        start = part.from_ or 0
        end = splits[part.splitname].num_examples if part.to is None else part.to
        end = min(end, start + left)
        left -= end - start
        if end > start:
            parts.append(f"{part.splitname}[{start}:{end}]")
    return dataclasses.replace(source, split="+".join(parts), num_examples=count)


def balanced_stream(source: StreamSource, per_class: int) -> StreamSource:
    """Keeps the first `per_class` examples of every class.

    Reads the labels in order, until every class has enough.

    Raises:
        ValueError: If a class has fewer examples.
    """
    counts = np.zeros(len(source.class_names), np.int64)
    names: list[str] = []
    for example in source._stored():
        label = int(source._checked(source._stored_label(example), example["tfds_id"]))
        if counts[label] < per_class:
            counts[label] += 1
            names.append(example["tfds_id"].numpy().decode())
            if len(names) == per_class * len(counts):
                return dataclasses.replace(source, kept_names=tuple(names), num_examples=len(names))
    raise too_few_of_a_class(counts, source.class_names, per_class)


def too_few_of_a_class(
    counts: np.ndarray, class_names: Sequence[str], per_class: int
) -> ValueError:
    """Returns the error that names the smallest class.

    Args:
        counts: The examples of each class, int [C].
        class_names: Of the C classes.
        per_class: How many each class should have.
    """
    smallest = int(np.argmin(counts))
    return ValueError(
        f"images_per_class={per_class} is out of range: the class {class_names[smallest]} has "
        f"{counts[smallest]:,} training examples. Use at most that many, or --num_images."
    )


def _is_one_of(names):
    """Returns a function from a stored example to whether its name is one of these."""
    keys = tf.constant(names)
    values = tf.ones([len(names)], tf.int32)
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), 0)
    return lambda example: table.lookup(example["tfds_id"]) > 0


def _shuffle_buffer(num_examples: int, num_bytes: int) -> int | None:
    """How many examples of average size fit into SHUFFLE_BYTES, or None if all fit."""
    if num_bytes <= SHUFFLE_BYTES:
        return None
    return max(1, num_examples * SHUFFLE_BYTES // num_bytes)


def find_broken(source: StreamSource) -> str | None:
    """The name of the first example that cannot be decoded, or None. Decodes all before it."""
    for encoded, _, name in source.named_examples():
        try:
            decode_image(encoded, max_pixels=source.max_pixels)
        except tf.errors.InvalidArgumentError:
            return name.numpy().decode()
    return None
