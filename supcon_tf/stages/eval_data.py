"""The data that eval and embed read: the run's own, or what --eval_dataset names."""

from __future__ import annotations

import dataclasses

import numpy as np

from supcon_tf.data import data_identity, sources
from supcon_tf.stages import inputs
from supcon_tf.stages.run_directory import RunDirectory

OTHER_DATA = (
    "Restore that data; to read other data, name it with --eval_dataset or --eval_data_dir."
)


@dataclasses.dataclass(frozen=True)
class EvalData:
    """One split to evaluate.

    Attributes:
        source: the examples.
        name: what they are called in messages.
        is_own: they belong to the data set that the run was trained on.
    """

    source: sources.Source
    name: str
    is_own: bool


def eval_data_from_flags(flags, split: str) -> EvalData:
    """The split of --eval_dataset or --eval_data_dir, else of --dataset."""
    if not (flags.eval_dataset or flags.eval_data_dir):
        train, test = inputs.sources_from_flags(flags)
        return EvalData({"train": train, "test": test}[split], f"{flags.dataset}, {split}", True)
    dataset = flags.eval_dataset or "folder"
    try:
        source = sources.load_source(
            dataset,
            split,
            flags.eval_data_dir,
            skip_broken_images=flags.skip_broken_images and dataset == "folder",
            max_pixels=inputs.max_pixels_from_flags(flags),
        )
    except ValueError as error:
        given = [flags[name] for name in ("eval_dataset", "eval_data_dir") if flags[name].value]
        text = " ".join(flag.serialize() for flag in given)
        raise ValueError(f"The evaluation data of {text} cannot be read. {error}") from error
    name = f"{flags.eval_data_dir or dataset}, {split}"
    print(f"Evaluation data {name}: {source.num_examples:,} examples.")
    return EvalData(source, name, False)


def check_own(flags, stage: str) -> None:
    """Refuses a --dataset that is not the one that the stage was trained on.

    Raises:
        ValueError: says what differs.
    """
    train, _ = inputs.sources_from_flags(flags)
    RunDirectory.of(flags).check_data(stage, data_identity.identity_of(train), OTHER_DATA)


def training_source(flags, stage: str, data: EvalData) -> sources.Source | None:
    """The training split for k-NN and logistic regression; None, with a line, if it is not there.

    It must be what the run was trained on, whatever is evaluated.
    """
    if data.is_own:
        source = inputs.sources_from_flags(flags)[0]
        if data.source is source:
            print("eval: k-NN and logistic regression are left out: they learn from this split.")
            return None
        return source
    try:
        check_own(flags, stage)
    except ValueError as error:
        reason = str(error).splitlines()[0].rstrip(":")
        print(f"eval: k-NN and logistic regression are left out ({reason}).")
        return None
    return inputs.sources_from_flags(flags)[0]


def match_classes(class_names: tuple[str, ...], data: EvalData, model_path: str) -> np.ndarray:
    """The number that the classifier gives each class of the data, by name: int32 [C].

    Raises:
        ValueError: the classifier lacks a class of the data.
    """
    unknown = [name for name in data.source.class_names if name not in class_names]
    if unknown:
        known, missing = inputs.first_ten(class_names), inputs.first_ten(unknown)
        raise ValueError(
            f"{model_path} knows the classes {known}, but {data.name} also has {missing}. Classes "
            "are matched by name: evaluate data with the same class names, or embed it with "
            "--mode=embed."
        )
    return np.array([class_names.index(name) for name in data.source.class_names], np.int32)
