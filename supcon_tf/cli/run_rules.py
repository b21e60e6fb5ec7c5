"""The rules between the flags of data and devices."""

from __future__ import annotations

import functools
import os

from absl import flags

from supcon_tf.cli.rules import register_rule
from supcon_tf.data import csv_labels

# Flags that need classes, beside finetune and the contrastive loss with labels.
NEEDING_CLASSES = ("class_balanced", "cross_entropy_weight")

# The kinds of rows of issues.csv that name an image.
EXCLUDABLE = ("mislabeled", "contradiction", "duplicate", "leak", "outlier", "odd_image")


def define_run_rules() -> None:
    """Registers the rules in absl; `flag_rules.define_rules` calls it."""
    register_rule(["dataset", "data_dir"], _check_digits_data_dir)
    register_rule(["skip_broken_images", "dataset", "embed_dir", "predict_dir"], _check_skipping)
    register_rule(["mode", "predict_dir"], _check_predict)
    register_rule(["dataset", "exclude", "exclude_kinds"], _check_exclude)
    register_rule(
        ["dataset", "eval_dataset", "data_csv", "label_type", "label_columns"], _check_csv
    )
    register_rule(["dataset", "validation_split", "train_split", "test_split"], _check_splits)
    register_rule(
        ["label_type", "use_labels", "loss", "pair_weights", "mode", *NEEDING_CLASSES],
        _check_real_labels,
    )
    register_rule(
        ["embed_split", "embed_dir", "eval_dataset", "eval_data_dir", "eval_split"], _check_embed
    )
    register_rule(["eval_data_csv", "eval_dataset"], _check_eval_csv)
    register_rule(["num_images", "images_per_class"], _check_number_of_images)
    register_rule(["eval_dataset", "eval_data_dir"], functools.partial(_check_other_data, "eval"))
    register_rule(["ood_dataset", "ood_data_dir"], functools.partial(_check_other_data, "ood"))
    register_rule(["ood_dataset", "ood_data_dir", "eval_train_examples"], _check_ood_training)
    flags.register_validator(
        "data_service",
        lambda value: value is None or value.startswith("grpc://"),
        "must look like grpc://host:port, the address of a tf.data service dispatcher.",
    )
    register_rule(["strategy", "logical_cpus"], _check_logical_cpus)
    register_rule(["strategy", "tpu_name", "tpu_zone", "gcp_project"], _check_tpu)
    register_rule(["tpu_name", "precision", "jit_compile"], _check_tpu_computes)
    register_rule(["deterministic", "data_service"], _check_deterministic)


def _check_digits_data_dir(values):
    data_dir = values["data_dir"]
    if values["dataset"] == "digits" and data_dir:
        is_missing = "://" not in data_dir and not os.path.isdir(data_dir)
        raise flags.ValidationError(
            f"data_dir={data_dir} {'is not a folder, and it ' if is_missing else ''}has no effect "
            "with --dataset=digits, which is bundled with scikit-learn. For your own images, add "
            "--dataset=folder (data_dir then contains train/ and test/, each with one folder per "
            "class). For a TensorFlow Datasets name, add --dataset=NAME. For the digits, leave "
            "--data_dir out."
        )
    return True


def _check_skipping(values):
    is_of_files = (
        values["dataset"] in ("folder", "csv") or values["embed_dir"] or values["predict_dir"]
    )
    if values["skip_broken_images"] and not is_of_files:
        raise flags.ValidationError(
            f"skip_broken_images has no effect with --dataset={values['dataset']}: it checks the "
            "image files of --dataset=folder and csv, --embed_dir and --predict_dir. Leave it out."
        )
    return True


def _check_number_of_images(values):
    if values["num_images"] and values["images_per_class"]:
        raise flags.ValidationError(
            f"images_per_class={values['images_per_class']} and --num_images="
            f"{values['num_images']} cannot be combined. Leave one of them out."
        )
    return True


def _check_exclude(values):
    kinds = values["exclude_kinds"] or []
    unknown = [kind for kind in kinds if kind not in EXCLUDABLE]
    if unknown:
        raise flags.ValidationError(
            f"exclude_kinds={','.join(kinds)}: {unknown[0]} is not a kind of image to leave out. "
            f"Choose from {', '.join(EXCLUDABLE)}."
        )
    if kinds and not values["exclude"]:
        raise flags.ValidationError(
            f"exclude_kinds={','.join(kinds)} has no effect without --exclude, the issues.csv of "
            "--mode=inspect."
        )
    if values["exclude"] and values["dataset"] not in ("digits", "folder", "csv"):
        raise flags.ValidationError(
            f"exclude={values['exclude']} is not available for --dataset={values['dataset']}, "
            "which is read as a stream. Write its images to one folder per class, or leave "
            "--exclude out."
        )
    return True


def _check_csv(values):
    columns = values["label_columns"]
    if values["dataset"] == "csv" and not values["data_csv"]:
        raise flags.ValidationError(
            "dataset=csv needs --data_csv, a CSV file with the header filename,label."
        )
    if values["dataset"] != "csv" and values["data_csv"]:
        raise flags.ValidationError(
            f"data_csv={values['data_csv']} has no effect with --dataset={values['dataset']}. Use "
            "--dataset=csv, or leave --data_csv out."
        )
    is_default = values["label_type"] == "class" and columns == ["label"]
    if "csv" not in (values["dataset"], values["eval_dataset"]) and not is_default:
        name = "label_columns" if values["label_type"] == "class" else "label_type"
        shown = ",".join(columns) if name == "label_columns" else values[name]
        raise flags.ValidationError(
            f"{name}={shown} has no effect with --dataset={values['dataset']}: it says how to read "
            "the labels of --dataset=csv. Leave it out."
        )
    try:
        csv_labels.check_columns(values["label_type"], columns)
    except ValueError as error:
        raise flags.ValidationError(str(error)) from error
    return True


def _check_splits(values):
    dataset, fraction = values["dataset"], values["validation_split"]
    if fraction is not None and dataset not in ("folder", "csv"):
        advice = (
            "Leave it out."
            if dataset == "digits"
            else f"Use --train_split=train[:{100 - 100 * fraction:g}%] and "
            f"--test_split=train[{100 - 100 * fraction:g}%:]."
        )
        raise flags.ValidationError(
            f"validation_split={fraction:g} has no effect with --dataset={dataset}: it divides "
            f"image files. {advice}"
        )
    for name in ("train_split", "test_split"):
        if values[name] and dataset in ("digits", "folder", "csv"):
            raise flags.ValidationError(
                f"{name}={values[name]} has no effect with --dataset={dataset}: it names a split "
                "of TensorFlow Datasets. Leave it out, or see --validation_split."
            )
    return True


def _check_real_labels(values):
    """Numbers are no classes: what compares or predicts classes cannot use them."""
    if values["label_type"] != "real":
        return True
    if "finetune" in values["mode"]:
        raise flags.ValidationError(
            "label_type=real has no classes, which --mode=finetune needs. Use --mode=linear, which "
            "fits a regression to the embeddings, or store the numbers as classes."
        )
    for name in NEEDING_CLASSES:
        if values[name]:
            raise flags.ValidationError(
                f"{name} needs classes, but the labels of --label_type=real are numbers. Leave it "
                "out."
            )
    uses_classes = values["use_labels"] and values["pair_weights"] != "gaussian"
    if "pretrain" in values["mode"] and (uses_classes or values["loss"] != "supcon"):
        raise flags.ValidationError(
            "label_type=real has no classes whose images attract each other. Pretrain with "
            "--loss=supcon and --pair_weights=gaussian, which attracts images with close targets; "
            "or without labels, with --nouse_labels."
        )
    return True


def _check_embed(values):
    if values["embed_split"] and values["embed_dir"]:
        raise flags.ValidationError(
            "embed_split names a split of --dataset, but embed_dir names a folder to embed "
            "instead. Give only one of them."
        )
    other = [name for name in ("eval_dataset", "eval_data_dir") if values[name]]
    if values["embed_dir"] and other:
        raise flags.ValidationError(
            f"embed_dir and {other[0]} both name the images to embed. Give only one of them."
        )
    if values["embed_split"] and values["eval_split"]:
        raise flags.ValidationError(
            "embed_split and eval_split both name the split to embed. Give only one of them."
        )
    return True


def _check_predict(values):
    if "predict" in values["mode"] and not values["predict_dir"]:
        raise flags.ValidationError(
            "mode=predict needs a folder of images to predict, such as --predict_dir=new_images."
        )
    return True


def _check_other_data(name, values):
    dataset, data_dir = values[f"{name}_dataset"], values[f"{name}_data_dir"]
    if dataset == "folder" and not data_dir:
        raise flags.ValidationError(
            f"{name}_dataset=folder needs --{name}_data_dir, the directory of the images."
        )
    if dataset == "digits" and data_dir:
        raise flags.ValidationError(
            f"{name}_dataset=digits is bundled with scikit-learn. Leave out --{name}_data_dir."
        )
    return True


def _check_eval_csv(values):
    is_csv = values["eval_dataset"] == "csv"
    if is_csv != bool(values["eval_data_csv"]):
        raise flags.ValidationError(
            "eval_dataset=csv and --eval_data_csv, the CSV file, belong together. Give both."
        )
    return True


def _check_ood_training(values):
    given = [name for name in ("ood_dataset", "ood_data_dir") if values[name]]
    if given and not values["eval_train_examples"]:
        raise flags.ValidationError(
            f"{given[0]} compares images with the training images, so it has no effect with "
            "--eval_train_examples=0. Leave one of them out."
        )
    return True


def _check_logical_cpus(values):
    if values["logical_cpus"] > 1 and values["strategy"] != "mirrored":
        raise flags.ValidationError(
            f"logical_cpus={values['logical_cpus']} has no effect without --strategy=mirrored. "
            "Add it, or leave --logical_cpus out."
        )
    return True


def _check_tpu(values):
    name, strategy = values["tpu_name"], values["strategy"]
    if strategy == "tpu" and not name:
        raise flags.ValidationError(
            "strategy=tpu needs --tpu_name. On the TPU VM itself, use --tpu_name=local."
        )
    if name and strategy not in ("tpu", "auto"):
        raise flags.ValidationError(
            f"tpu_name={name} has no effect with --strategy={strategy}. Use --strategy=tpu."
        )
    for flag in ("tpu_zone", "gcp_project"):
        if values[flag] and not name:
            raise flags.ValidationError(
                f"{flag}={values[flag]} has no effect without --tpu_name. Name the TPU, or leave "
                f"--{flag} out."
            )
    return True


def _check_tpu_computes(values):
    if values["tpu_name"] and values["jit_compile"]:
        raise flags.ValidationError(
            "jit_compile has no effect on a TPU, where every step is compiled. Leave it out."
        )
    if values["tpu_name"] and values["precision"] == "mixed_float16":
        raise flags.ValidationError(
            "precision=mixed_float16 is not available on a TPU. Use --precision=mixed_bfloat16."
        )
    return True


def _check_deterministic(values):
    if values["deterministic"] and values["data_service"]:
        raise flags.ValidationError(
            f"deterministic cannot be combined with data_service={values['data_service']}, whose "
            "batches come in any order. Leave one out."
        )
    return True
