"""Defaults that follow the data: one table, for the command and for `SupConClassifier`.

`choose` looks at the number, size, color and classes of the images (`ImageFacts`), takes a row of
the table and returns a `DataDefaults`, whose fields have the names of the flags. The values of a
row are constants here, so that one line changes them; docs/own_data.md shows the same table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

BATCH_SIZE = 64
# Larger batches for many classes, so that a batch holds several images of a class: up to how many
# classes, and the batch size.
BATCH_SIZE_BY_CLASSES = ((32, 64), (100, 128), (math.inf, 256))
# Share of an image that a random crop of pretraining covers.
CROP_AREA_RANGE = (0.5, 1.0)
# Whitening constants are measured on at most this number of training images, spread evenly.
WHITENING_EXAMPLES = 2_000
# The largest side in pixels that is chosen for the user, by encoder; and the smallest.
LARGEST_TINY_PX, LARGEST_PX, SMALLEST_PX = 32, 224, 8
# Images of at least this side get a larger network or, on a small machine, more pixels.
LARGE_IMAGE_PX = 64
# Enough for the embedded digits: 673 steps at batch size 64.
EPOCHS = 30
DIGITS = "digits"
# 2,000 photographs of ten classes at batch size 64: k-NN reaches 40% of 2,000 test images after 937
# steps, and 48% after 2,000.
MIN_STEPS = 2_000
# Prevents that each image of a very small folder is repeated thousands of times.
MAX_EPOCHS = 240
# With one view, the positives of an image are the other images of its class: a batch must hold this
# many images of a class on average.
MIN_IMAGES_PER_CLASS = 4
# From this number on, small photographs get the settings that are best for 10,000 of them
# (docs/when_supcon.md), else those that are best for 2,000 (docs/own_data.md).
MANY_EXAMPLES = 5_000


@dataclasses.dataclass(frozen=True)
class TableRow:
    """The values that the table chooses for one kind of images.

    Attributes:
        encoder, resnet_depth, resnet_width: The network. `resnet_depth` applies to resnet_v1.
        largest_px: Largest side that the encoder sees; smaller images keep their size.
        num_views: Views of each example. Where one view does not suffice, two are chosen; see
            `num_views`.
        augmentation_type, augmentation_magnitude, crop_area_range: Augmentation of a view.
        cross_entropy_weight: Weight of the cross-entropy in joint training; 0 for none.
        label_smoothing: Fraction of the target of a classifier that is trained with the encoder
            which is spread over all classes.
        normalize_embedding: Whether embeddings are normalized before both heads.
        peak_learning_rate: Peak rate of Adam at the batch size that is chosen. It is not scaled
            with larger batches, because Adam tolerates little more.
        min_steps: The smallest number of training steps with two views, up to `MAX_EPOCHS`. With
            one view, a step is half the work, and there are twice as many.
        eval_crop_method: How evaluation images are cropped.
    """

    encoder: str = "tiny"
    resnet_depth: int = 50
    resnet_width: int = 1
    largest_px: int = LARGEST_TINY_PX
    num_views: int = 2
    augmentation_type: str = "simclr"
    augmentation_magnitude: float = 0.5
    crop_area_range: tuple[float, float] = CROP_AREA_RANGE
    cross_entropy_weight: float = 0.0
    label_smoothing: float = 0.0
    normalize_embedding: bool = True
    peak_learning_rate: float = 0.003
    min_steps: int = MIN_STEPS
    eval_crop_method: str = "auto"


# Color images below `LARGE_IMAGE_PX`: 240 epochs of 2,000 images at batch size 64.
SMALL_PHOTOS = TableRow(num_views=1, cross_entropy_weight=1.0, min_steps=3_750)
# The same for at least `MANY_EXAMPLES`, where a classifier is trained with one view.
MANY_SMALL_PHOTOS = dataclasses.replace(
    SMALL_PHOTOS,
    cross_entropy_weight=0.3,
    label_smoothing=0.1,
    normalize_embedding=False,
    peak_learning_rate=0.006,
)
# Gray images below `LARGE_IMAGE_PX`: most are digits, letters or scans. As for the digits.
SMALL_GRAY = TableRow()
# Larger images where the machine can carry a network of ImageNet's shape.
LARGE = dataclasses.replace(
    SMALL_PHOTOS,
    encoder="resnet_v1",
    resnet_depth=18,
    largest_px=LARGEST_PX,
    num_views=2,
    crop_area_range=(0.2, 1.0),
    peak_learning_rate=0.001,
)
# Larger images elsewhere: the small network, on more pixels (2.25 times the work of 32 px).
LARGE_ON_SMALL_MACHINE = dataclasses.replace(SMALL_PHOTOS, largest_px=48)

TABLE = {
    "color, below 64 px": SMALL_PHOTOS,
    f"the same, at least {MANY_EXAMPLES:,}, one view": MANY_SMALL_PHOTOS,
    "gray, below 64 px": SMALL_GRAY,
    "64 px and more": LARGE,
    "64 px and more, on a machine that is too small for that": LARGE_ON_SMALL_MACHINE,
}

# What decides whether a machine can carry `LARGE` without an accelerator. A training step of
# ResNet-18 takes 10.9 GFLOP and 744 bytes of layer outputs per pixel for a view of 224 px; measured
# with TensorFlow 2.21 on CPU cores that reached 80 GFLOP/s each.
RESNET18_GFLOP_AT_224_PX, RESNET18_BYTES_PER_PIXEL = 10.9, 744
CPU_GFLOP_PER_SECOND = 50
LONGEST_HOURS = 2.0


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """What the table looks at.

    Attributes:
        num_examples: Training examples.
        side_px: Typical short side of the images in pixels.
        is_color: Whether some image has colors.
        num_classes: Number of classes; 0 for labels that are numbers.
    """

    num_examples: int
    side_px: int
    is_color: bool
    num_classes: int

    def describe(self) -> str:
        """Describes the images for a message."""
        gray = "" if self.is_color else "gray "
        classes = f" in {self.num_classes:,} classes" if self.num_classes else ""
        return f"{self.num_examples:,} {gray}images of about {self.side_px} px{classes}"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a training may use.

    Attributes:
        has_accelerator: Whether there is a GPU or a TPU.
        num_cpus: CPU cores that this process may use.
        memory_bytes: Memory that is free; None if it is unknown.
    """

    has_accelerator: bool
    num_cpus: int
    memory_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class DataDefaults:
    """What is chosen for a dataset. Every field has the name and the meaning of a flag."""

    encoder: str
    resnet_depth: int
    resnet_width: int
    image_size: int
    batch_size: int
    num_views: int
    augmentation_type: str
    augmentation_magnitude: float
    crop_area_range: tuple[float, float]
    horizontal_flip: bool
    cross_entropy_weight: float
    pretrain_label_smoothing: float
    normalize_embedding: bool
    pretrain_epochs: float
    pretrain_base_learning_rate: float
    eval_crop_method: str

    def texts(self) -> dict[str, str]:
        """Returns flag name to value as text, in the order of the fields.

        --resnet_depth is left out where the encoder has no depth to choose, and
        --pretrain_label_smoothing where labels are not smoothed.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.encoder not in ("resnet_v1", "resnext"):
            values.pop("resnet_depth")
        if not self.pretrain_label_smoothing:
            values.pop("pretrain_label_smoothing")
        return {name: _text_of(value) for name, value in values.items()}


def _text_of(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(str, value))
    return str(value)


def choose(
    facts: ImageFacts,
    given: Mapping[str, Any] | None = None,
    *,
    num_replicas: int = 1,
    is_large_carried: bool = True,
    is_cross_entropy: bool = False,
    is_many_measured: bool = True,
) -> DataDefaults:
    """Chooses the settings of a training from its images.

    Args:
        facts: The images.
        given: Settings that the user made, by the names of the fields of `DataDefaults`. They are
            kept, and the others are chosen to fit them.
        num_replicas: How many replicas share a batch.
        is_large_carried: Whether the machine can carry the network for large images; see
            `why_not_large`.
        is_cross_entropy: Whether the encoder is trained with cross-entropy alone.
        is_many_measured: Whether `MANY_SMALL_PHOTOS` was measured with the other settings: one
            class per image, an encoder that starts untrained, and Adam.
    """
    given = dict(given or {})
    row = table_row(facts, given.get("encoder"), is_large_carried=is_large_carried)
    size = given.get("batch_size") or batch_size(
        facts.num_examples, num_replicas, batch_size_of_classes(facts.num_classes)
    )
    weight = given.get("cross_entropy_weight", row.cross_entropy_weight)
    views = given.get("num_views") or num_views(row, size, facts.num_classes, weight)
    has_classifier = weight > 0 or is_cross_entropy
    is_many = facts.num_examples >= MANY_EXAMPLES and is_many_measured
    if row == SMALL_PHOTOS and is_many and views == 1 and has_classifier:
        row = MANY_SMALL_PHOTOS
    chosen = DataDefaults(
        encoder=row.encoder,
        resnet_depth=row.resnet_depth,
        resnet_width=row.resnet_width,
        image_size=max(SMALLEST_PX, min(row.largest_px, facts.side_px)),
        batch_size=size,
        num_views=views,
        augmentation_type=row.augmentation_type,
        augmentation_magnitude=row.augmentation_magnitude,
        crop_area_range=row.crop_area_range,
        horizontal_flip=facts.is_color,
        cross_entropy_weight=row.cross_entropy_weight,
        pretrain_label_smoothing=row.label_smoothing,
        normalize_embedding=row.normalize_embedding,
        pretrain_epochs=epochs_of_steps(row.min_steps, facts.num_examples, size, views),
        # For smaller batches the rate falls with the batch.
        pretrain_base_learning_rate=row.peak_learning_rate * 256 / max(size, BATCH_SIZE),
        eval_crop_method=row.eval_crop_method,
    )
    return dataclasses.replace(chosen, **given)


def num_views(row: TableRow, batch_size: int, num_classes: int, cross_entropy_weight: float) -> int:
    """Returns the views of each example: those of the row, or two if one does not suffice.

    One view is enough for joint training on batches with `MIN_IMAGES_PER_CLASS` images of each
    class on average. It halves the work of an epoch.
    """
    is_enough = batch_size >= MIN_IMAGES_PER_CLASS * num_classes > 0
    return row.num_views if cross_entropy_weight and is_enough else max(row.num_views, 2)


def table_row(
    facts: ImageFacts, encoder: str | None = None, *, is_large_carried: bool = True
) -> TableRow:
    """Returns the row of the table for these images and, if the user chose it, this encoder."""
    if facts.side_px < LARGE_IMAGE_PX:
        row = SMALL_PHOTOS if facts.is_color else SMALL_GRAY
    elif encoder == "tiny" or not (encoder or is_large_carried):
        row = LARGE_ON_SMALL_MACHINE
    else:
        row = LARGE
    if encoder is None:
        return row
    return dataclasses.replace(
        row,
        encoder=encoder,
        resnet_depth=TableRow.resnet_depth,
        resnet_width=row.resnet_width if encoder == row.encoder else 1,
        largest_px=row.largest_px if encoder == "tiny" else LARGEST_PX,
    )


def why_not_large(
    facts: ImageFacts, machine: Machine, chosen: DataDefaults, *, longest_hours: float | None = None
) -> str | None:
    """Returns why a machine cannot carry the network for large images, or None if it can.

    Args:
        facts: The images.
        machine: The machine.
        chosen: What `choose` chose with that network.
        longest_hours: The longest training; `LONGEST_HOURS` by default.
    """
    longest_hours = longest_hours or LONGEST_HOURS
    if machine.has_accelerator:
        return None
    pixels = chosen.image_size**2
    views = chosen.batch_size * chosen.num_views
    needed = views * pixels * RESNET18_BYTES_PER_PIXEL
    what = (
        f"--encoder={chosen.encoder} --resnet_depth={chosen.resnet_depth} "
        f"--image_size={chosen.image_size}"
    )
    if machine.memory_bytes is not None and needed > machine.memory_bytes:
        return (
            f"{what} would need about {needed / 1e9:.0f} GB of memory, and "
            f"{machine.memory_bytes / 1e9:.0f} GB are free"
        )
    gflop = RESNET18_GFLOP_AT_224_PX * pixels / 224**2
    total = gflop * facts.num_examples * chosen.num_views * chosen.pretrain_epochs
    hours = total / (CPU_GFLOP_PER_SECOND * machine.num_cpus) / 3_600
    if hours <= longest_hours:
        return None
    cores = f"{machine.num_cpus} CPU core{'s' if machine.num_cpus > 1 else ''}"
    time = f"{hours:,.0f} hours" if hours >= 2 else f"{60 * hours:,.0f} minutes"
    return f"{what} would train for about {time} on {cores}"


def pretrain_epochs(dataset: str, num_examples: int, batch_size: int) -> int:
    """The default number of pretraining epochs of the digits and of TensorFlow Datasets.

    It is `EPOCHS` for the digits. Other datasets are trained for at least `MIN_STEPS` steps, but
    for at most `MAX_EPOCHS` epochs.

    Args:
        dataset: the value of --dataset.
        num_examples: training examples in one epoch.
        batch_size: examples per step.
    """
    if dataset == DIGITS:
        return EPOCHS
    return int(epochs_of_steps(MIN_STEPS, num_examples, batch_size))


def epochs_of_steps(
    min_steps: int, num_examples: int, batch_size: int, num_views: int = 2
) -> float:
    """Returns `EPOCHS`, or as many as make `min_steps` steps, but at most `MAX_EPOCHS`.

    This is for two or more views. With one view there are twice as many.
    """
    epochs = math.ceil(min_steps * batch_size / num_examples)
    epochs = min(max(epochs, EPOCHS), MAX_EPOCHS)
    return float(2 * epochs if num_views == 1 else epochs)


def describe_pretrain_epochs() -> str:
    """Describes the rules, for the help of --pretrain_epochs."""
    table = ", ".join(
        f"{count:,} images {epochs_of_steps(SMALL_PHOTOS.min_steps, count, BATCH_SIZE, 1):g}"
        for count in (500, 1_000, 2_000, 4_000, 50_000)
    )
    return (
        f"{EPOCHS} for the digits; for other data {EPOCHS}, or as many as it takes to reach "
        f"{MIN_STEPS:,} steps, or {SMALL_PHOTOS.min_steps:,} for photographs in a folder or CSV "
        f"file, up to {MAX_EPOCHS}. In a folder or CSV file twice as many with one view. "
        f"Photographs with one view at batch size {BATCH_SIZE}: {table}."
    )


def image_size(shape: Sequence[int], encoder: str) -> int:
    """Returns the side at which an encoder sees images of this height and width, in pixels."""
    largest = LARGEST_TINY_PX if encoder == "tiny" else LARGEST_PX
    return max(SMALLEST_PX, min(largest, *shape))


def batch_size_of_classes(num_classes: int) -> int:
    """Returns the batch size for a number of classes, if there are enough examples."""
    return next(size for most, size in BATCH_SIZE_BY_CLASSES if num_classes <= most)


def batch_size(num_examples: int, num_replicas: int = 1, wanted: int = BATCH_SIZE) -> int:
    """Returns `wanted`, or for fewer examples the most that the replicas share evenly.

    Where every replica could not get two examples it is `wanted`, which is then refused.
    """
    smaller = num_examples // num_replicas * num_replicas
    return wanted if smaller < 2 * num_replicas else min(wanted, smaller)
