"""What a stage reads: its sources and batches, as the flags describe them."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf.augment import policies
from supcon_tf.cli import flag_rules
from supcon_tf.data import (
    decode,
    defaults,
    exclusion,
    folder_layout,
    held_out_classes,
    pipeline,
    sources,
    streams,
    whitening,
)
from supcon_tf.stages import exclusion_list, read_messages
from supcon_tf.stages.stage_folder import StageFolder
from supcon_tf.training import progress

# Sources.


def splits_from_flags(flags: FlagValues) -> sources.Splits:
    """Returns the splits of --dataset, without --holdout_classes; read once per process."""
    place = flags.dataset, flags.data_dir, _data_options(flags)
    excluded = exclusion_list.excluded_from_flags(flags)
    if flags.holdout_classes:
        return _without_held_out_classes(*place, excluded, tuple(flags.holdout_classes))
    return _without_excluded(*place, excluded) if excluded else _read_splits(*place)


def complete_splits_from_flags(flags: FlagValues, *, skips_broken: bool = False) -> sources.Splits:
    """Returns the splits of --dataset with the images that --exclude names.

    Args:
        flags: The parsed flags.
        skips_broken: Leave out files that cannot be decoded, as with --skip_broken_images.
    """
    options = _data_options(flags)
    if skips_broken and flags.dataset in ("folder", "csv"):
        options = dataclasses.replace(options, skip_broken_images=True)
    return _read_splits(flags.dataset, flags.data_dir, options)


def held_out_classes_from_flags(flags: FlagValues, split: str) -> sources.Source:
    """Returns the examples of --holdout_classes in a split; validation stands in for test."""
    splits = _read_splits(flags.dataset, flags.data_dir, _data_options(flags))
    source = getattr(splits, split) or splits.validation
    return held_out_classes.only_classes(source, flags.holdout_classes)


def sources_from_flags(flags: FlagValues) -> tuple[sources.Source, sources.Source]:
    """Returns the training split and the one that it is measured on: validation, else test.

    Raises:
        ValueError: If there is no other split.
    """
    splits = splits_from_flags(flags)
    if splits.held_out is None:
        raise ValueError(
            f"--dataset={flags.dataset} has neither validation nor test images. Hold out some of "
            "the training images: --validation_split=0.2, or of a TensorFlow Datasets name "
            "--train_split=train[:80%] --test_split=train[80%:]."
        )
    return splits.train, splits.held_out


def source_from_flags(flags: FlagValues, split: str) -> sources.Source:
    """Returns the train, validation or test split of --dataset; validation stands in for test.

    Raises:
        ValueError: If the dataset has no such split.
    """
    splits = splits_from_flags(flags)
    source = getattr(splits, split, None)
    if source is None and split == "test":
        source = splits.validation
    if source is None:
        if split not in folder_layout.SPLITS and flags.dataset not in sources.OWN_NAMES:
            options = dataclasses.asdict(_data_options(flags))
            return sources.load_source(flags.dataset, split, flags.data_dir, **options)
        raise ValueError(
            f"--dataset={flags.dataset} has no {split} split. Name another one with --eval_split, "
            "or other data with --eval_dataset or --eval_data_dir."
        )
    return source


def record_validation_split(flags: FlagValues, folder: StageFolder) -> None:
    """Writes which files --validation_split holds out to `validation_split.csv`, if any."""
    splits = splits_from_flags(flags)
    if not isinstance(splits.train, sources.FileSource) or splits.train.held_out is None:
        return
    rows = [
        (name, split)
        for split, source in (("train", splits.train), ("validation", splits.validation))
        if isinstance(source, sources.FileSource)
        for name in sources.file_names(source)
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("filename", "split"), *sorted(rows)])
    folder.artifacts.write_text("validation_split.csv", text.getvalue())


def max_pixels_from_flags(flags: FlagValues) -> int:
    """Converts --max_image_megapixels to pixels."""
    return int(flags.max_image_megapixels * 1e6)


def _data_options(flags):
    is_of_files = flags.dataset in ("folder", "csv")
    return sources.DataOptions(
        data_csv=flags.data_csv,
        label_type=flags.label_type,
        label_columns=tuple(flags.label_columns),
        validation_split=flags.validation_split,
        seed=flags.seed,
        train_split=flags.train_split,
        test_split=flags.test_split,
        skip_broken_images=flags.skip_broken_images and is_of_files,
        max_pixels=max_pixels_from_flags(flags),
    )


@functools.lru_cache(maxsize=1)
def _read_splits(dataset, data_dir, options):
    with progress.waiting(f"Reading the dataset {dataset}"):
        splits = sources.load_splits(dataset, data_dir, **dataclasses.asdict(options))
    train = splits.train
    present = [
        (name, source)
        for name, source in (
            ("training", train), ("validation", splits.validation), ("test", splits.test)
        )
        if source is not None
    ]  # fmt: skip
    counts = [f"{source.num_examples:,} {name}" for name, source in present]
    what = (
        f" of {len(train.class_names)} classes ({first_ten(train.class_names)})"
        if train.class_names
        else ""
    )
    print(f"Dataset {dataset}: {read_messages.listed(counts)} examples{what}.")
    if isinstance(train, sources.FileSource) and train.held_out is not None:
        rule = train.held_out
        print(
            f"The validation images are held out of the training images by --validation_split="
            f"{rule.fraction:g} --seed={rule.seed}."
        )
    if train.label_type == "hierarchy":
        print(
            f"Labels have {len(train.level_names)} levels; training and the classifier use the "
            f"finest, {len(train.class_names)} classes. eval reports the accuracy at each level."
        )
    for name, source in present:
        read_messages.say_skipped(source, f"{name} ")
    read_messages.say_ignored([source for _, source in present])
    if dataset == "folder" and "://" not in data_dir:
        unused = folder_layout.find_layout(data_dir).unused
        if unused:
            print(f"Not used: the folders {', '.join(unused)} in {data_dir}.")
    found = {"train": train, "validation": splits.validation, "test": splits.test}
    return sources.Splits(
        **{name: sources.finest_level(source) for name, source in found.items() if source}
    )


@functools.lru_cache(maxsize=1)
def _without_excluded(dataset, data_dir, options, excluded):
    splits = _read_splits(dataset, data_dir, options)
    kept, lines = exclusion.without_files(splits, dict(excluded), data_dir)
    print("\n".join(lines))
    return kept


@functools.lru_cache(maxsize=1)
def _without_held_out_classes(dataset, data_dir, options, excluded, names):
    place = dataset, data_dir, options
    splits = _without_excluded(*place, excluded) if excluded else _read_splits(*place)
    found = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    kept = sources.Splits(
        **{
            name: held_out_classes.without_classes(source, names)
            for name, source in found.items()
            if source
        }
    )
    print(
        f"Without the classes {first_ten(names)} (--holdout_classes): "
        f"{kept.train.num_examples:,} training examples of {len(kept.train.class_names)} classes."
    )
    return kept


def unlabeled_from_flags(flags: FlagValues, folder: str) -> sources.FileSource:
    """Returns the images in a folder as a source without labels."""
    source = sources.load_unlabeled(
        folder,
        skip_broken_images=flags.skip_broken_images,
        max_pixels=max_pixels_from_flags(flags),
    )
    print(f"Folder {folder}: {source.num_examples:,} images.")
    read_messages.say_skipped(source)
    read_messages.say_ignored([source])
    return source


def training_examples_from_flags(flags: FlagValues, source: sources.Source) -> sources.Source:
    """Applies --label_noise_prob, --num_images and --images_per_class to the training split."""
    given = source
    if flags.label_noise_prob:
        source = sources.with_label_noise(source, flags.label_noise_prob, seed=flags.seed)
        print(f"{flags.label_noise_prob:.0%} of the training labels are replaced by random labels.")
    if flags.num_images:
        source = sources.first_examples(source, flags.num_images)
    if flags.images_per_class:
        source = sources.first_per_class(source, flags.images_per_class, true_labels=given)
    if flags.num_images or flags.images_per_class:
        print(f"Training on {source.num_examples:,} of the training images.")
    return source


# Training batches.


@dataclasses.dataclass(frozen=True)
class Views:
    """How a stage turns a training example into views.

    Attributes:
        image_size: Side of a view in pixels.
        policy: The augmentation after crop and flip.
        num_views: Views of each example.
        crop_area_range: Smallest and largest area of a random crop, as fractions of the image.
    """

    image_size: int
    policy: policies.Policy
    num_views: int
    crop_area_range: tuple[float, float]


def policy_from_flags(flags: FlagValues, augmentation_type: str) -> policies.Policy:
    """Creates the augmentation policy of a stage."""
    return policies.create_policy(
        augmentation_type,
        magnitude=flags.augmentation_magnitude,
        compat=flags.augmentation_compat,
        num_layers=flags.randaugment_num_layers,
        stacked_magnitude=flags.stacked_randaugment_magnitude,
        jitter_variant="torchvision" if flags.use_pytorch_color_jitter else "tensorflow",
        warp_probability=flags.warp_probability,
    )


def horizontal_flip_from_flags(flags: FlagValues) -> bool:
    """Returns whether views are flipped horizontally at random."""
    if flags.horizontal_flip == "auto":
        return sources.may_flip(flags.dataset)
    return flags.horizontal_flip == "true"


def train_batches_from_flags(
    flags: FlagValues,
    strategy: tf.distribute.Strategy,
    source: sources.Source,
    views: Views,
    *,
    start_step: int,
    host: int = 0,
    num_hosts: int = 1,
) -> tf.data.Dataset:
    """Creates the training batches of one host, starting at a step."""
    if flags.data_service:
        print(
            f"Batches come from the tf.data service at {flags.data_service}, in the order in which "
            "its workers finish them: the run cannot be repeated exactly, and a resumed run loses "
            "the batches that were in progress."
        )
    return pipeline.create_train_batches(
        source,
        policy=views.policy,
        batch_size=flags.batch_size,
        image_size=views.image_size,
        seed=flags.seed,
        num_views=views.num_views,
        start_step=start_step,
        crop_area_range=views.crop_area_range,
        crop_compat=flags.crop_compat,
        horizontal_flip=horizontal_flip_from_flags(flags),
        class_balanced=flags.class_balanced,
        blur_probability=flags.blur_probability,
        fast_decode=flags.fast_decode,
        num_replicas=strategy.num_replicas_in_sync,
        host=host,
        num_hosts=num_hosts,
        data_service=flags.data_service,
    )


def check_batches(
    flags: FlagValues, strategy: tf.distribute.Strategy, train_source: sources.Source
) -> None:
    """Raises ValueError if a batch cannot be filled or shared by the replicas."""
    replicas = strategy.num_replicas_in_sync
    pipeline.check_batch_size(
        flags.batch_size, num_examples=train_source.num_examples, num_replicas=replicas
    )
    check_eval_batches(flags, strategy)


# Evaluation batches.


def eval_batches_from_flags(
    flags: FlagValues, source: sources.Source, *, image_size: int, limit: int | None = None
) -> Callable[..., tf.data.Dataset]:
    """Returns a function (host=0, num_hosts=1) -> that host's share of the evaluation batches.

    Args:
        flags: The parsed flags.
        source: The examples.
        image_size: Side of the images in pixels.
        limit: Use at most this many examples, spread evenly over the source.
    """
    return functools.partial(
        pipeline.create_eval_batches,
        source,
        batch_size=flags.eval_batch_size,
        image_size=image_size,
        limit=limit,
        crop_method=flags.eval_crop_method,
        crop_padding=flags.crop_padding,
    )


def check_eval_batches(flags: FlagValues, strategy: tf.distribute.Strategy) -> None:
    """Raises ValueError if the replicas cannot share an evaluation batch evenly."""
    replicas = strategy.num_replicas_in_sync
    if flags.eval_batch_size % replicas:
        raise ValueError(
            f"eval_batch_size={flags.eval_batch_size} cannot be shared evenly by {replicas} "
            f"replicas: use a multiple of {replicas}."
        )


def whitening_from_flags(
    flags: FlagValues, source: sources.Source, folder: StageFolder, image_size: int
) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Returns mean and standard deviation for the encoder, or (None, None).

    `folder.measured` records what is measured, so that a resumed run uses the same constants.
    """
    if flags.whitening == "given":
        return flags.whitening_mean, flags.whitening_std
    if flags.whitening == "none" or flag_rules.has_own_layers(flags.encoder):
        return None, None
    return whitening.choose_whitening(
        flags.dataset, lambda: _measured_whitening(flags, source, folder, image_size)
    )


def _measured_whitening(flags, source, folder, image_size):
    measured = folder.measured.get("whitening")
    if measured is None:
        create_batches = eval_batches_from_flags(
            flags, source, image_size=image_size, limit=defaults.WHITENING_EXAMPLES
        )
        with naming_broken_images(source), progress.waiting("Measuring the whitening constants"):
            mean, std = whitening.measure_whitening(create_batches())
        measured = folder.measured["whitening"] = {"mean": mean, "std": std}
    texts = {name: ",".join(map(str, values)) for name, values in measured.items()}
    print(
        f"Whitening constants, measured on up to {defaults.WHITENING_EXAMPLES:,} training images: "
        f"--whitening=given --whitening_mean={texts['mean']} --whitening_std={texts['std']}"
    )
    return tuple(measured["mean"]), tuple(measured["std"])


# Images that cannot be decoded.


def explain_failure(flags: FlagValues, source: sources.Source) -> Callable[[int, int], str | None]:
    """Returns a function (first step, last step) -> which images of these steps are broken."""

    def explain(first_step, last_step):
        if not isinstance(source, sources.FileSource):
            return _explain_broken(source)
        paths = pipeline.paths_of_steps(
            source,
            batch_size=flags.batch_size,
            seed=flags.seed,
            first_step=first_step,
            last_step=last_step,
            class_balanced=flags.class_balanced,
        )
        return _explain_broken(source, paths)

    return explain


@contextlib.contextmanager
def naming_broken_images(source: sources.Source) -> Iterator[None]:
    """Turns a decoding error within the block into a ValueError that names the broken images."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as error:
        raise ValueError(_explain_broken(source) or error.message) from error


def _explain_broken(source, paths=None):
    if isinstance(source, sources.FileSource):
        broken = decode.find_undecodable(
            source.paths if paths is None else paths, max_pixels=source.max_pixels
        )
        if broken:
            return (
                "these files cannot be decoded. Remove or replace them, or skip them with "
                f"--skip_broken_images{sources.advice_on_size(broken)}:\n  "
                + "\n  ".join(f"{path}: {reason}" for path, reason in broken.items())
            )
    if isinstance(source, streams.StreamSource):
        name = streams.find_broken(source)
        if name:
            return (
                f"the example {name} of the dataset cannot be decoded: prepare the dataset again."
            )
    return None


def first_ten(names: Sequence[str]) -> str:
    """Lists names for a message: the first ten, and `...` if there are more."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
