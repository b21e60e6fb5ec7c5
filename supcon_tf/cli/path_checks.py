"""Checks of the paths that the flags name, before TensorFlow is imported.

A wrong path is reported in under a second, instead of after the start of TensorFlow. Remote paths
(gs://) can be read only with TensorFlow, so the stages check them.
"""

from __future__ import annotations

import os
import tempfile

from absl import flags

from supcon_tf.cli import command_line, flag_rules, implied_flags
from supcon_tf.cli.declare import TRAINING_STAGES
from supcon_tf.data import csv_labels, folder_layout
from supcon_tf.storage import encoder_files
from supcon_tf.storage.run_paths import part_paths, run_path


def check_paths(flag_values: flags.FlagValues) -> None:
    """Checks every directory that the flags name, --reference_ckpt and --model_dir.

    Raises:
        ValueError: the stages of --mode cannot use a path.
    """
    if implied_flags.reads_dataset(flag_values) and not _predicts_by_classifier(flag_values):
        _check_training_data(flag_values)
    if flag_values.embed_dir and "embed" in flag_values.mode:
        _check_image_folder("embed_dir", flag_values.embed_dir)
    if flag_values.predict_dir and "predict" in flag_values.mode:
        _check_image_folder("predict_dir", flag_values.predict_dir)
    has_other_folder = flag_values.ood_data_dir and flag_values.ood_dataset in (None, "folder")
    if has_other_folder and "eval" in flag_values.mode:
        _check_image_folder("ood_data_dir", flag_values.ood_data_dir)
    _check_encoder_files(flag_values)
    if flag_values.exclude and not _is_remote(flag_values.exclude):
        _check_exclude_file(flag_values.exclude, command_line.model_dir(flag_values))
    if flag_values.reference_ckpt:
        _check_reference(flag_values.reference_ckpt)
    if "report" in flag_values.mode:
        _check_compared(flag_values.compare or ())
    model_dir = command_line.model_dir(flag_values)
    if not _is_remote(model_dir):
        _check_run(flag_values, model_dir)
        for path in (model_dir, *(run_path(model_dir, mode) for mode in flag_values.mode)):
            _check_writable(path)


def _is_remote(path):
    return "://" in path


def _check_training_data(flag_values):
    dataset, data_dir = flag_values.dataset, flag_values.data_dir
    if any(_is_remote(path) for path in (data_dir, flag_values.data_csv) if path):
        return
    if dataset == "csv":
        labels = csv_labels.read_csv_labels(
            flag_values.data_csv,
            label_type=flag_values.label_type,
            label_columns=flag_values.label_columns,
        )
        paths = csv_labels.image_paths(labels, flag_values.data_csv, data_dir)
        csv_labels.check_files_exist(labels, paths, flag_values.data_csv)
    elif dataset == "folder":
        folder_layout.check_layout(data_dir)
    elif data_dir and os.path.exists(data_dir) and not os.path.isdir(data_dir):
        raise ValueError(
            f"--data_dir={data_dir} is not a folder. Expected the directory where TensorFlow "
            f"Datasets keeps, or will keep, the dataset {dataset}."
        )


def _predicts_by_classifier(flag_values):
    """Returns whether predict alone runs and may not need the training images."""
    return flag_values.mode == ["predict"] and not flag_values.predict_neighbors


def _check_image_folder(name, path):
    if _is_remote(path):
        return
    if not os.path.isdir(path):
        raise ValueError(f"--{name}={path} is not a folder. Expected a folder of images.")
    if not any(names for _, _, names in os.walk(path)):
        raise ValueError(
            f"--{name}={path} contains no images, and neither do its subfolders. Expected JPEG "
            "or PNG files."
        )


def _check_exclude_file(path, model_dir):
    if not any(os.path.isfile(each) for each in (path, os.path.join(model_dir, path))):
        raise ValueError(
            f"--exclude={path} does not exist, and neither does {os.path.join(model_dir, path)}. "
            "Expected the issues.csv that --mode=inspect writes to the folder inspect/ of a run."
        )


def _check_reference(path):
    if _is_remote(path):
        return
    expected = (
        "Expected the model directory of a finished run, an encoder's .keras file, or the .pth "
        "file of a SupContrast or torchvision ResNet."
    )
    if not os.path.exists(path):
        raise ValueError(f"--reference_ckpt={path} does not exist. {expected}")
    if os.path.isdir(path) and not _holds_run(path):
        raise ValueError(
            f"--reference_ckpt={path} contains no run: none of the folders "
            f"{', '.join(TRAINING_STAGES)} is there. {expected}"
        )


def _check_compared(paths):
    for path in paths:
        if not _is_remote(path) and not _holds_run(path):
            raise ValueError(
                f"--compare={path} contains no run. Expected the model directories of other runs, "
                "separated by commas."
            )


def _check_encoder_files(flag_values):
    """Checks --encoder and --encoder_weights where they are files."""
    encoder, weights = flag_values.encoder, flag_values.encoder_weights
    modes = {"pretrain", "preview"} & set(flag_values.mode)
    if modes and encoder_files.is_encoder_path(encoder) and not _is_remote(encoder):
        path = encoder_files.find_encoder_file(encoder)
        encoder_files.image_side(path, flag_values.image_size)
        _check_other_run(flag_values, "encoder", path)
    if "pretrain" in modes:
        _check_frozen(flag_values)
    is_file = weights and weights != encoder_files.IMAGENET and not _is_remote(weights)
    if is_file and "pretrain" in modes:
        try:
            path = encoder_files.find_weights_file(weights)
        except ValueError as error:
            raise ValueError(f"--encoder_weights={weights}: {error}") from error
        _check_other_run(flag_values, "encoder_weights", path)


def _check_frozen(flag_values):
    """Checks that there is something to freeze: not in the rules, because a recipe freezes the
    batch norm of the encoder that another flag names."""
    is_file = encoder_files.is_encoder_path(flag_values.encoder) or flag_values.encoder_weights
    is_warm = flag_values.reference_ckpt and flag_values.warm_start_encoder
    if flag_values.freeze_batch_norm and not is_file and not is_warm:
        application = f"--encoder={flag_rules.APPLICATIONS}EfficientNetV2B0"
        raise ValueError(
            "--freeze_batch_norm keeps the batch norm of a pretrained encoder, but "
            f"--encoder={flag_values.encoder} starts untrained. Name what it starts from: "
            "--encoder=path/to/encoder.keras (or the model directory of a run), or "
            f"{application} --encoder_weights=imagenet, or "
            "--encoder_weights=path/to/encoder.weights.h5."
        )


def _check_other_run(flag_values, name, path):
    """Refuses the encoder of this run, which pretraining would overwrite."""
    model_dir = command_line.model_dir(flag_values)
    is_own = any(
        os.path.realpath(path) == os.path.realpath(own) for own in part_paths(model_dir, "encoder")
    )
    if is_own and "pretrain" in flag_values.mode:
        raise ValueError(
            f"--{name}={flag_values[name].value} is the encoder of this very run, {model_dir}, "
            "which pretraining would overwrite. Train in another directory, such as "
            f"--model_dir={model_dir}_continued."
        )


def _holds_run(path):
    return any(os.path.isdir(run_path(path, stage)) for stage in TRAINING_STAGES)


def _check_run(flag_values, model_dir):
    """Stages after pretraining need a trained encoder."""
    first = flag_values.mode[0]
    is_training = first in ("linear", "finetune")
    has_reference = is_training and flag_values.reference_ckpt
    if first in ("pretrain", "preview", "inspect") or has_reference or _holds_run(model_dir):
        return
    reference = ", or start from another run with --reference_ckpt" if is_training else ""
    raise ValueError(
        f"--mode={first} needs a trained encoder, but {model_dir} contains no run. Name the "
        "directory of a run with --model_dir, or train an encoder first with "
        f"--mode=pretrain,linear{reference}."
    )


def _check_writable(path):
    """Creates and deletes a temporary file in the folder, or where the folder will be created."""
    existing = os.path.abspath(path)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    problem = "is a file"
    if os.path.isdir(existing):
        try:
            with tempfile.TemporaryFile(dir=existing):
                return
        except OSError as error:
            problem = f"is not writable ({error.strerror})"
    raise ValueError(
        f"Results cannot be written to {path}: {existing} {problem}. Name another directory, such "
        "as --model_dir=runs/mine."
    )
