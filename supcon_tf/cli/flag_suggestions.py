"""What somebody may have meant by a flag that does not exist."""

from __future__ import annotations

import difflib
import re

# Words that other programs use, and ours.
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
STAGES = ("pretrain", "linear", "finetune")
MOST = 3


def suggest(name: str, known: list[str]) -> list[str]:
    """Up to `MOST` of the known flags, the likeliest first.

    A word of another program becomes ours (`OTHER_WORDS`). What every training stage has gives
    the flag of each stage (epochs: pretrain_epochs, linear_epochs, finetune_epochs); anything else
    the names that end with it, or that are spelled most alike.
    """
    plain = re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")
    prefix, _, rest = plain.partition("_")
    if prefix in STAGES:
        return [flag for flag in [f"{prefix}_{_ours(rest)}"] if flag in known] or _alike(
            plain, known
        )
    plain = _ours(plain)
    if plain in known:
        return [plain]
    of_stages = [f"{stage}_{plain}" for stage in STAGES if f"{stage}_{plain}" in known]
    ending = [flag for flag in known if flag.endswith(f"_{plain}")]
    return of_stages or ending[:MOST] or _alike(plain, known)


def _ours(word):
    return OTHER_WORDS.get(word, word)


def _alike(name, known):
    return difflib.get_close_matches(name, known, n=MOST, cutoff=0.7)
