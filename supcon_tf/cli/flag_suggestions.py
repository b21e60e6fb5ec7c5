"""Suggestions for a flag that does not exist."""

from __future__ import annotations

import difflib
import re

from supcon_tf.cli.declare import TRAINING_STAGES

# Names that other programs use, and the flag here, without the prefix of a stage.
OTHER_WORDS = {
    "lr": "base_learning_rate", "learning_rate": "base_learning_rate", "bs": "batch_size",
    "wd": "weight_decay", "epoch": "epochs", "num_epochs": "epochs", "max_epochs": "epochs",
    "train_epochs": "epochs", "warmup": "warmup_epochs", "warm": "warmup_epochs",
    "temp": "temperature", "temp_fc": "temperature", "tau": "temperature",
    "optim": "optimizer", "opt": "optimizer", "cosine": "learning_rate_decay",
    "lr_decay_rate": "decay_rate", "lr_decay_epochs": "decay_boundary_epochs",
    "model": "encoder", "arch": "encoder", "backbone": "encoder", "network": "encoder",
    "architecture": "encoder", "data": "dataset", "data_path": "data_dir",
    "data_folder": "data_dir", "dataset_dir": "data_dir", "train_dir": "data_dir",
    "root": "data_dir", "output": "model_dir", "output_dir": "model_dir", "out": "model_dir",
    "save_dir": "model_dir", "save_folder": "model_dir", "log_dir": "model_dir",
    "checkpoint_dir": "model_dir", "ckpt": "reference_ckpt", "checkpoint": "reference_ckpt",
    "pretrained": "reference_ckpt", "weights": "reference_ckpt", "resume": "model_dir",
    "stage": "mode", "task": "mode", "config": "recipe", "preset": "recipe",
    "random_seed": "seed", "img_size": "image_size", "size": "image_size",
    "augmentation": "augmentation_type", "aug": "augmentation_type",
    "views": "num_views", "n_views": "num_views", "amp": "precision", "fp16": "precision",
    "bf16": "precision", "gpus": "strategy", "num_gpus": "strategy", "tpu": "tpu_name",
    "feat_dim": "projection_head_layers", "depth": "resnet_depth", "width": "resnet_width",
    "val_batch_size": "eval_batch_size", "test_batch_size": "eval_batch_size",
    "smoothing": "label_smoothing", "queue": "queue_size", "momentum": "encoder_momentum",
    "print_freq": "summary_interval_steps", "save_freq": "save_interval_steps",
}  # fmt: skip
MOST = 3


def suggest_flags(name: str, known: list[str]) -> list[str]:
    """Returns up to `MOST` of the known flags, the most likely first.

    A name that other programs use is translated first (`OTHER_WORDS`). If every training stage has
    the flag, the flags of all stages are returned (for epochs: pretrain_epochs, linear_epochs,
    finetune_epochs); else those that end with the name, or that are spelled most alike.
    """
    plain = re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")
    prefix, _, rest = plain.partition("_")
    if prefix in TRAINING_STAGES:
        flag = f"{prefix}_{_translate(rest)}"
        return [flag] if flag in known else _spelled_alike(plain, known)
    plain = _translate(plain)
    if plain in known:
        return [plain]
    of_stages = [f"{stage}_{plain}" for stage in TRAINING_STAGES if f"{stage}_{plain}" in known]
    ending = [flag for flag in known if flag.endswith(f"_{plain}")]
    return of_stages or ending[:MOST] or _spelled_alike(plain, known)


def _translate(word):
    return OTHER_WORDS.get(word, word)


def _spelled_alike(name, known):
    return difflib.get_close_matches(name, known, n=MOST, cutoff=0.7)
