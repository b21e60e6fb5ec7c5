"""The data that eval and embed read: that of the run, or what --eval_dataset names."""

from __future__ import annotations

import dataclasses

import numpy as np
from absl.flags import FlagValues

from supcon_tf.data import data_identity, sources, streams
from supcon_tf.stages import inputs
from supcon_tf.stages.run_directory import RunDirectory

OTHER_DATA = "Restore that data, or name the data to read with --eval_dataset or --eval_data_dir."


@dataclasses.dataclass(frozen=True)
class EvalData:
    """A split to evaluate.

    Attributes:
        source: The examples.
        name: Their name in messages.
        is_own: Whether they belong to the dataset that the run was trained on.
    """

    source: sources.Source
    name: str
    is_own: bool


def eval_data_from_flags(flags: FlagValues, split: str) -> EvalData:
    """Reads a split of --eval_dataset or --eval_data_dir, if given, else of --dataset."""
    if not (flags.eval_dataset or flags.eval_data_dir):
        source = inputs.source_from_flags(flags, split)
        if source is inputs.splits_from_flags(flags).validation:
            split = "validation"  # Also where it stands in for test.
        return EvalData(source, f"{flags.dataset}, {split}", True)
    dataset = flags.eval_dataset or "folder"
    is_csv = dataset == "csv"
    try:
        source = sources.finest_level(
            sources.load_source(
                dataset,
                split,
                flags.eval_data_dir,
                for_training=False,
                data_csv=flags.eval_data_csv,
                label_type=flags.label_type if is_csv else "class",
                label_columns=tuple(flags.label_columns) if is_csv else ("label",),
                skip_broken_images=flags.skip_broken_images and dataset in ("folder", "csv"),
                max_pixels=inputs.max_pixels_from_flags(flags),
            )
        )
    except ValueError as error:
        names = ("eval_dataset", "eval_data_dir", "eval_data_csv", "eval_split")
        given = [flags[name] for name in names if flags[name].value]
        text = " ".join(flag.serialize() for flag in given)
        raise ValueError(f"Cannot read the evaluation data of {text}. {error}") from error
    name = f"{flags.eval_data_csv or flags.eval_data_dir or dataset}, {split}"
    print(f"Evaluation data {name}: {source.num_examples:,} examples.")
    return EvalData(source, name, False)


def check_own(flags: FlagValues, stage: str) -> None:
    """Checks that --dataset is what a stage was trained on.

    Raises:
        ValueError: If it is not. The message lists the differences.
    """
    train = inputs.splits_from_flags(flags).train
    RunDirectory.of(flags).check_data(stage, data_identity.identity_of(train), OTHER_DATA)


def training_source(flags: FlagValues, stage: str, data: EvalData) -> sources.Source | None:
    """Returns the training split for k-NN and logistic regression, or None if it is unusable.

    It must be what the run was trained on, whatever data is evaluated. If it is not, a line says
    that these figures are skipped.
    """
    if data.is_own:
        source = inputs.splits_from_flags(flags).train
        if data.source is source:
            print("eval: skipping k-NN and logistic regression: they are fitted to this split.")
            return None
        return source
    try:
        check_own(flags, stage)
    except ValueError as error:
        reason = str(error).splitlines()[0].rstrip(":")
        print(f"eval: skipping k-NN and logistic regression ({reason}).")
        return None
    return inputs.splits_from_flags(flags).train


def as_of_classifier(labels: np.ndarray, numbers: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the labels in the classifier's numbers of the classes.

    Args:
        labels: int [M], bool [M, C] for several labels per image, or float [M], which stay as
            they are.
        numbers: What `match_classes` returned.
        num_classes: Of the classifier.
    """
    if labels.dtype.kind == "f":
        return labels
    if labels.ndim == 1:
        return numbers[labels]
    matched = np.zeros([len(labels), num_classes], bool)
    matched[:, numbers] = labels
    return matched


def held_out_classes(flags: FlagValues, data: EvalData, split: str) -> EvalData | None:
    """Reads the examples of --holdout_classes in the split of --dataset that is evaluated.

    Returns:
        None without --holdout_classes, or if other data than that of the run is evaluated.
    """
    if not (flags.holdout_classes and data.is_own):
        return None
    source = inputs.held_out_classes_from_flags(flags, split)
    return EvalData(source, f"held-out classes {inputs.first_ten(source.class_names)}", True)


def out_of_distribution_data(
    flags: FlagValues, train_source: sources.Source | None
) -> list[EvalData]:
    """Reads the images that the run should notice as something else; [] if none are asked for.

    Args:
        flags: The parsed flags.
        train_source: The training images that the scores are fitted to, or None.

    Raises:
        ValueError: If the images cannot be read, or if there are no training images.
    """
    if not (flags.ood_dataset or flags.ood_data_dir):
        return []
    if train_source is None:
        raise ValueError(
            "--ood_dataset and --ood_data_dir compare images with the training images of the run, "
            "which are not available here (see above). Restore them and evaluate the test split."
        )
    dataset = flags.ood_dataset or "folder"
    if dataset == "folder":
        unlabeled = inputs.unlabeled_from_flags(flags, flags.ood_data_dir)
        return [EvalData(unlabeled, flags.ood_data_dir, False)]
    try:
        source = sources.load_source(
            dataset, "test", flags.ood_data_dir, max_pixels=inputs.max_pixels_from_flags(flags)
        )
    except ValueError as error:
        raise ValueError(f"--ood_dataset={dataset}: {error}") from error
    return [EvalData(source, f"{dataset}, test", False)]


def match_classes(
    class_names: tuple[str, ...], data: EvalData, model_path: str, *, is_real: bool = False
) -> np.ndarray:
    """Returns the classifier's number of each class of the data, matched by name: int32 [C].

    A dataset of TensorFlow Datasets without class names, such as cifar10_corrupted, is matched by
    number if the classifier has as many classes.

    Args:
        class_names: The classes that the classifier knows.
        data: The data to evaluate.
        model_path: Names the classifier in messages.
        is_real: Whether it predicts real targets; the result is then empty.

    Raises:
        ValueError: If the classifier does not know a class of the data, or if one has classes and
            the other real targets.
    """
    if is_real != (data.source.label_type == "real"):
        kinds = "numbers", "classes"
        predicted, given = kinds if is_real else kinds[::-1]
        raise ValueError(
            f"{model_path} predicts {predicted}, but the labels of {data.name} are {given}. "
            "Evaluate data with labels of the same type, or embed it with --mode=embed."
        )
    names = data.source.class_names
    is_unnamed = isinstance(data.source, streams.StreamSource) and _are_numbers(names)
    if is_unnamed and len(class_names) == len(names) and set(class_names) != set(names):
        print(f"{data.name} numbers its classes without names: matching them by number.")
        return np.arange(len(names), dtype=np.int32)
    unknown = [name for name in data.source.class_names if name not in class_names]
    if unknown:
        known, missing = inputs.first_ten(class_names), inputs.first_ten(unknown)
        raise ValueError(
            f"{model_path} knows the classes {known}, but {data.name} also has {missing}. Classes "
            "are matched by name: evaluate data with the same class names, or embed it with "
            "--mode=embed."
        )
    return np.array([class_names.index(name) for name in data.source.class_names], np.int32)


def _are_numbers(names):
    return tuple(names) == tuple(str(number) for number in range(len(names)))
