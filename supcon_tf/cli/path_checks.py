"""Checks of the paths that the flags name, made before TensorFlow is imported.

They answer in under a second what the stages would find after TensorFlow's start. Remote paths
(gs://) need TensorFlow, so the stages check those.
"""

from __future__ import annotations

import os
import tempfile

from absl import flags

from supcon_tf.cli import command_line, implied_flags
from supcon_tf.data import folder_layout

TRAINING_STAGES = ("pretrain", "linear", "finetune")


def check(flag_values: flags.FlagValues) -> None:
    """Checks --data_dir, --embed_dir, --reference_ckpt and --model_dir.

    Raises:
        ValueError: a path that the stages of --mode cannot use; says what to do.
    """
    if implied_flags.reads_dataset(flag_values):
        _check_data_dir(flag_values.dataset, flag_values.data_dir)
    if flag_values.embed_dir and "embed" in flag_values.mode:
        _check_embed_dir(flag_values.embed_dir)
    if flag_values.reference_ckpt:
        _check_reference(flag_values.reference_ckpt)
    model_dir = command_line.model_dir(flag_values)
    if not _is_remote(model_dir):
        _check_run(flag_values, model_dir)
        for path in (model_dir, *(os.path.join(model_dir, mode) for mode in flag_values.mode)):
            _check_writable(path)


def _is_remote(path):
    return "://" in path


def _check_data_dir(dataset, data_dir):
    if data_dir and _is_remote(data_dir):
        return
    if dataset == "folder":
        folder_layout.check_layout(data_dir)
    elif data_dir and os.path.exists(data_dir) and not os.path.isdir(data_dir):
        raise ValueError(
            f"--data_dir={data_dir} is not a folder. Expected the directory of TensorFlow "
            f"Datasets, which holds or gets the dataset {dataset}."
        )


def _check_embed_dir(path):
    if _is_remote(path):
        return
    if not os.path.isdir(path):
        raise ValueError(f"--embed_dir={path} is not a folder. Expected a folder of images.")
    if not any(names for _, _, names in os.walk(path)):
        raise ValueError(f"--embed_dir={path} holds no images, also not in the folders in it.")


def _check_reference(path):
    if _is_remote(path):
        return
    expected = (
        "Expected the model directory of a finished run, an encoder's .keras file, or "
        "SupContrast's .pth."
    )
    if not os.path.exists(path):
        raise ValueError(f"--reference_ckpt={path} does not exist. {expected}")
    if os.path.isdir(path) and not _holds_run(path):
        raise ValueError(
            f"--reference_ckpt={path} holds no run: it has no folder "
            f"{', '.join(TRAINING_STAGES)}. {expected}"
        )


def _holds_run(path):
    return any(os.path.isdir(os.path.join(path, stage)) for stage in TRAINING_STAGES)


def _check_run(flag_values, model_dir):
    """What comes after pretraining needs what pretraining left."""
    first = flag_values.mode[0]
    is_training = first in ("linear", "finetune")
    has_reference = is_training and flag_values.reference_ckpt
    if first in ("pretrain", "preview") or has_reference or _holds_run(model_dir):
        return
    reference = ", or start from another run with --reference_ckpt" if is_training else ""
    raise ValueError(
        f"--mode={first} needs a trained encoder, and {model_dir} holds no run. Name the "
        "directory of a run with --model_dir, or train one there first with "
        f"--mode=pretrain,linear{reference}."
    )


def _check_writable(path):
    """A file is made where the folder is or will be, and is gone at once."""
    existing = os.path.abspath(path)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    problem = "it is a file"
    if os.path.isdir(existing):
        try:
            with tempfile.TemporaryFile(dir=existing):
                return
        except OSError as error:
            problem = f"cannot write into it ({error.strerror})"
    raise ValueError(
        f"{path} cannot hold the results. {existing}: {problem}. Name another directory with "
        "--model_dir, such as --model_dir=runs/mine."
    )
