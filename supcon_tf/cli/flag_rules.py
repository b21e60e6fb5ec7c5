"""The rules between flags: each refuses a bad value with one message, before anything runs."""

from __future__ import annotations

import difflib
import functools
import os

from absl import flags

# What follows from --reference_ckpt, with the defaults.
WARM_STARTS = {
    "warm_start_encoder": True,
    "warm_start_projection_head": False,
    "warm_start_classifier": False,
    "ignore_missing_checkpoint_vars": False,
}
# What only the supervised contrastive loss knows, and what only training with a projection head.
SUPCON_FLAGS = (
    "use_labels", "temperature", "contrast_mode", "summation_location", "denominator_mode",
    "positives_cap", "scale_by_temperature",
)  # fmt: skip
# What a queue does not know.
NO_QUEUE_FLAGS = (
    "loss", "summation_location", "denominator_mode", "positives_cap", "microbatch_size",
)  # fmt: skip
PROJECTION_FLAGS = (
    "projection_head_layers", "projection_head_use_batch_norm",
    "projection_head_use_batch_norm_beta", "microbatch_size", "cross_entropy_weight",
    "warm_start_projection_head", "pretrain_use_projection_head_weight_decay",
)  # fmt: skip

# Share of the image below which --crop_compat=reference draws no crop.
SMALLEST_REFERENCE_CROP = 0.1
# What trains the linear stage in steps, and says nothing to a classifier fitted by L-BFGS.
LINEAR_TRAINING_FLAGS = (
    "linear_epochs", "linear_base_learning_rate", "linear_weight_decay", "linear_rmsprop_epsilon",
    "linear_warmup_epochs", "linear_learning_rate_decay", "linear_decay_rate",
    "linear_epochs_per_decay", "linear_decay_boundary_epochs", "linear_augmentation_type",
    "linear_crop_area_range", "label_smoothing", "zero_initialize_classifier",
    "warm_start_classifier",
)  # fmt: skip

STEM_FLAGS = ("first_conv_kernel_size", "first_conv_stride", "use_initial_max_pool")
ENCODERS = ("tiny", "resnet_v1", "resnext")
APPLICATIONS = "keras.applications."


def define_rules(stages: tuple[str, ...]) -> None:
    """Registers every validator; after the flags are defined, once per process."""
    flags.register_validator("mode", functools.partial(_check_mode, stages))
    for stage in ("pretrain", "linear", "finetune"):
        flags.register_multi_flags_validator(
            [f"{stage}_warmup_epochs", f"{stage}_epochs"], _check_warmup
        )
        flags.register_multi_flags_validator(
            [f"{stage}_warmup_start", f"{stage}_warmup_epochs"], _check_warmup_start
        )
    flags.register_multi_flags_validator(
        ["loss", *SUPCON_FLAGS, *PROJECTION_FLAGS], _check_flags_of_the_loss
    )
    flags.register_multi_flags_validator(["mode", "linear_optimizer"], _check_linear_optimizer)
    flags.register_multi_flags_validator(["loss", "num_views"], _check_views_of_the_loss)
    flags.register_multi_flags_validator(
        [
            "loss",
            "cross_entropy_weight",
            "stop_gradient_before_classifier",
            "pretrain_label_smoothing",
        ],
        _check_cross_entropy,
    )
    flags.register_multi_flags_validator(
        ["queue_size", "encoder_momentum", "num_views", "contrast_mode", *NO_QUEUE_FLAGS],
        _check_queue,
    )
    flags.register_multi_flags_validator(["use_labels", "num_views"], _check_positives)
    for name in ("crop_area_range", "linear_crop_area_range", "finetune_crop_area_range"):
        flags.register_multi_flags_validator([name, "crop_compat"], _check_crop_area)
    flags.register_multi_flags_validator(
        ["mode", "loss", "batch_size", "queue_size"], _check_contrasts
    )
    flags.register_multi_flags_validator(["positives_cap", "num_views"], _check_positives_cap)
    flags.register_multi_flags_validator(
        ["microbatch_size", "use_global_batch_norm"], _check_microbatch
    )
    flags.register_validator("encoder", _check_encoder)
    flags.register_multi_flags_validator(["resnet_depth", "encoder"], _check_depth)
    flags.register_multi_flags_validator(["encoder", *STEM_FLAGS], _check_stem)
    flags.register_multi_flags_validator(
        ["initial_max_pool_padding", "use_initial_max_pool", "encoder"], _check_max_pool_padding
    )
    flags.register_multi_flags_validator(
        ["whitening", "whitening_mean", "whitening_std", "encoder"], _check_whitening
    )
    flags.register_multi_flags_validator(["reference_ckpt", *WARM_STARTS], _check_warm_start)
    flags.register_multi_flags_validator(["dataset", "data_dir"], _check_data_dir)
    flags.register_multi_flags_validator(
        ["skip_broken_images", "dataset", "embed_dir"], _check_skipping
    )
    flags.register_multi_flags_validator(
        ["embed_split", "embed_dir", "eval_dataset", "eval_data_dir", "eval_split"], _check_embed
    )
    flags.register_multi_flags_validator(["eval_dataset", "eval_data_dir"], _check_eval_data)
    flags.register_validator(
        "data_service",
        lambda value: value is None or value.startswith("grpc://"),
        "must look like grpc://host:port, the address of a tf.data service dispatcher.",
    )
    flags.register_multi_flags_validator(["strategy", "logical_cpus"], _check_logical_cpus)
    flags.register_multi_flags_validator(
        ["strategy", "tpu_name", "tpu_zone", "gcp_project"], _check_tpu
    )
    flags.register_multi_flags_validator(
        ["tpu_name", "precision", "jit_compile"], _check_tpu_computes
    )
    flags.register_multi_flags_validator(["deterministic", "data_service"], _check_deterministic)


def _check_mode(stages, modes):
    if not modes:
        raise flags.ValidationError(f"names no stage; choose from {', '.join(stages)}.")
    for mode in modes:
        if mode not in stages:
            close = difflib.get_close_matches(mode, stages, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise flags.ValidationError(
                f"{mode!r} is not a stage; choose from {', '.join(stages)}.{hint}"
            )
    if len(set(modes)) < len(modes):
        raise flags.ValidationError("names a stage twice.")
    return True


def _check_warmup(values):
    warmup, epochs = values.values()
    name, length = values
    if warmup > epochs and is_given(flags.FLAGS, name):
        raise flags.ValidationError(
            f"{name}={warmup:g}, from the command line, a flagfile or a recipe, is longer than the "
            f"stage of {epochs:g} epochs: take --{name}={epochs / 10:g} or a longer --{length}, "
            f"such as --{length}={10 * warmup:g}."
        )
    return True


def _check_crop_area(values):
    (name, (low, high)), compat = next(iter(values.items())), values["crop_compat"]
    if compat == "reference" and high <= SMALLEST_REFERENCE_CROP:
        raise flags.ValidationError(
            f"{name}={low:g},{high:g}: --crop_compat=reference draws no crops below "
            f"{SMALLEST_REFERENCE_CROP} of the image. Raise the upper end, or use "
            "--crop_compat=torchvision."
        )
    return True


def _check_warmup_start(values):
    (name, start), (epochs_name, epochs) = values.items()
    if start and not epochs:
        raise flags.ValidationError(
            f"{name}={start:g} does nothing without a warm-up: set --{epochs_name} above 0."
        )
    return True


def is_given(flag_values: flags.FlagValues, name: str) -> bool:
    """Whether the command line, a flagfile or a recipe sets the flag, to whatever value."""
    return not flag_values[name].using_default_value


def _check_positives_cap(values):
    cap, num_views = values["positives_cap"], values["num_views"]
    if cap != -1 and (cap < 0 or cap % num_views):
        raise flags.ValidationError(
            f"positives_cap={cap} must be -1 (no cap) or a multiple of num_views={num_views}."
        )
    return True


def _check_microbatch(values):
    if values["microbatch_size"] is not None and values["use_global_batch_norm"]:
        raise flags.ValidationError(
            "microbatch_size cannot go with batch norm over all replicas, which would have to "
            "exchange statistics inside the loop over pieces: add --nouse_global_batch_norm."
        )
    return True


def _check_flags_of_the_loss(values):
    loss = values["loss"]
    unused = () if loss == "supcon" else SUPCON_FLAGS
    if loss == "cross_entropy":
        unused += PROJECTION_FLAGS
    for name in unused:
        if values[name] != flags.FLAGS[name].default:
            raise flags.ValidationError(f"{name} does nothing with --loss={loss}: leave it out.")
    return True


def _check_views_of_the_loss(values):
    if values["loss"] == "cross_entropy" and values["num_views"] != 1:
        raise flags.ValidationError("loss=cross_entropy learns from one view: add --num_views=1.")
    return True


def _check_linear_optimizer(values):
    if values["linear_optimizer"] != "lbfgs" or "linear" not in values["mode"]:
        return True
    unused = [f"--{name}" for name in LINEAR_TRAINING_FLAGS if is_given(flags.FLAGS, name)]
    if unused:
        raise flags.ValidationError(
            f"linear_optimizer=lbfgs fits the classifier without training steps, so "
            f"{', '.join(unused)} (from the command line or a recipe) would do nothing: leave "
            "these out, or train in steps with --linear_optimizer=momentum."
        )
    return True


def is_linear_fitted(flag_values: flags.FlagValues) -> bool:
    """Whether the linear stage is to fit its classifier by L-BFGS instead of training in steps."""
    optimizer = flag_values["linear_optimizer"].value
    is_trained = any(is_given(flag_values, name) for name in LINEAR_TRAINING_FLAGS)
    return optimizer == "lbfgs" or (optimizer == "auto" and not is_trained)


def _check_cross_entropy(values):
    has_weight = values["cross_entropy_weight"] > 0
    if values["stop_gradient_before_classifier"] and not has_weight:
        raise flags.ValidationError(
            "stop_gradient_before_classifier does nothing without --cross_entropy_weight above 0."
        )
    if values["pretrain_label_smoothing"] and not has_weight and values["loss"] != "cross_entropy":
        raise flags.ValidationError(
            "pretrain_label_smoothing does nothing without --loss=cross_entropy or "
            "--cross_entropy_weight above 0; the linear stage has --label_smoothing."
        )
    return True


def _check_queue(values):
    if not values["queue_size"]:
        if values["encoder_momentum"] != flags.FLAGS["encoder_momentum"].default:
            raise flags.ValidationError("encoder_momentum does nothing without --queue_size.")
        return True
    for name in NO_QUEUE_FLAGS:
        if values[name] != flags.FLAGS[name].default:
            raise flags.ValidationError(f"{name}={values[name]} cannot go with --queue_size.")
    if values["contrast_mode"] == "one_view" and values["num_views"] == 1:
        raise flags.ValidationError(
            "queue_size with --contrast_mode=one_view makes its keys of the views after the "
            "first: take --num_views=2."
        )
    return True


def _check_positives(values):
    if values["num_views"] == 1 and not values["use_labels"]:
        raise flags.ValidationError(
            "nouse_labels with num_views=1 leaves no positives: an example's only positives are "
            "then its other views."
        )
    return True


def _check_contrasts(values):
    is_contrastive = "pretrain" in values["mode"] and values["loss"] != "cross_entropy"
    if is_contrastive and values["batch_size"] == 1 and not values["queue_size"]:
        raise flags.ValidationError(
            f"batch_size=1 leaves --loss={values['loss']} no negatives to contrast with, so the "
            "loss would be 0 at every step: use --batch_size=2 or more."
        )
    return True


def _check_encoder(encoder):
    if encoder not in ENCODERS and not is_application(encoder):
        raise flags.ValidationError(
            f"{encoder!r} must be {', '.join(ENCODERS)} or {APPLICATIONS}NAME, such as "
            f"{APPLICATIONS}EfficientNetV2B0."
        )
    return True


def is_application(encoder: str) -> bool:
    """Whether --encoder names a network of keras.applications."""
    return encoder.startswith(APPLICATIONS)


def _check_depth(values):
    depth, encoder = values["resnet_depth"], values["encoder"]
    depths = {"resnet_v1": (18, 34, 50, 101, 152, 200), "resnext": (50, 101, 152, 200)}
    if encoder in depths and depth not in depths[encoder]:
        raise flags.ValidationError(
            f"resnet_depth={depth} is not a valid {encoder} depth: choose from {depths[encoder]}."
        )
    return True


def _check_stem(values):
    for name in STEM_FLAGS:
        if values[name] is not None and is_application(values["encoder"]):
            raise flags.ValidationError(
                f"{name} does nothing with --encoder={values['encoder']}, which has a stem of its "
                "own: leave it out."
            )
    return True


def _check_max_pool_padding(values):
    if values["initial_max_pool_padding"] != "same" and (
        values["use_initial_max_pool"] is False or is_application(values["encoder"])
    ):
        raise flags.ValidationError(
            "initial_max_pool_padding=symmetric needs a ResNet with an initial max pool: add "
            "--encoder=resnet_v1 --use_initial_max_pool."
        )
    return True


def _check_whitening(values):
    given = [values["whitening_mean"], values["whitening_std"]]
    if values["whitening"] != "given":
        if given != [None, None]:
            raise flags.ValidationError(
                "whitening_mean and whitening_std do nothing without --whitening=given."
            )
        return True
    if is_application(values["encoder"]):
        raise flags.ValidationError(
            f"whitening=given does nothing with --encoder={values['encoder']}, which prepares its "
            "images itself."
        )
    for name, value in zip(("whitening_mean", "whitening_std"), given, strict=True):
        if value is None:
            raise flags.ValidationError(
                f"whitening=given needs --{name}: three numbers, for red, green and blue."
            )
    return True


def _check_warm_start(values):
    path = values.pop("reference_ckpt")
    unused = [name for name, value in values.items() if value != WARM_STARTS[name]]
    if unused and path is None:
        raise flags.ValidationError(f"{', '.join(unused)}: does nothing without --reference_ckpt.")
    return True


def _check_data_dir(values):
    data_dir = values["data_dir"]
    if values["dataset"] == "digits" and data_dir:
        is_missing = "://" not in data_dir and not os.path.isdir(data_dir)
        raise flags.ValidationError(
            f"data_dir={data_dir} {'is not a folder, and it ' if is_missing else ''}does nothing "
            "with --dataset=digits, which is part of scikit-learn. For your own images add "
            "--dataset=folder (data_dir then holds train/ and test/, each with one folder per "
            "class); for a TensorFlow Datasets name add --dataset=NAME; for the digits leave "
            "--data_dir out."
        )
    return True


def _check_skipping(values):
    is_of_files = values["dataset"] == "folder" or values["embed_dir"]
    if values["skip_broken_images"] and not is_of_files:
        raise flags.ValidationError(
            "skip_broken_images looks at the files of --dataset=folder or --embed_dir; with "
            f"--dataset={values['dataset']} it does nothing."
        )
    return True


def _check_embed(values):
    if values["embed_split"] and values["embed_dir"]:
        raise flags.ValidationError(
            "embed_split names a split of --dataset, embed_dir a folder instead of it: give one."
        )
    other = [name for name in ("eval_dataset", "eval_data_dir") if values[name]]
    if values["embed_dir"] and other:
        raise flags.ValidationError(
            f"embed_dir and {other[0]} both name the images to embed: give one."
        )
    if values["embed_split"] and values["eval_split"]:
        raise flags.ValidationError("embed_split and eval_split both name the split: give one.")
    return True


def _check_eval_data(values):
    if values["eval_dataset"] == "folder" and not values["eval_data_dir"]:
        raise flags.ValidationError("eval_dataset=folder needs --eval_data_dir.")
    if values["eval_dataset"] == "digits" and values["eval_data_dir"]:
        raise flags.ValidationError("eval_dataset=digits is built in: leave out --eval_data_dir.")
    return True


def _check_logical_cpus(values):
    if values["logical_cpus"] > 1 and values["strategy"] != "mirrored":
        raise flags.ValidationError(
            f"logical_cpus={values['logical_cpus']} does nothing without --strategy=mirrored."
        )
    return True


def _check_tpu(values):
    name, strategy = values["tpu_name"], values["strategy"]
    if strategy == "tpu" and not name:
        raise flags.ValidationError(
            "strategy=tpu needs --tpu_name; on the TPU's own machine --tpu_name=local."
        )
    if name and strategy not in ("tpu", "auto"):
        raise flags.ValidationError(f"tpu_name={name} does nothing with --strategy={strategy}.")
    for flag in ("tpu_zone", "gcp_project"):
        if values[flag] and not name:
            raise flags.ValidationError(f"{flag}={values[flag]} does nothing without --tpu_name.")
    return True


def _check_tpu_computes(values):
    if values["tpu_name"] and values["jit_compile"]:
        raise flags.ValidationError("jit_compile does nothing on a TPU, where all is compiled.")
    if values["tpu_name"] and values["precision"] == "mixed_float16":
        raise flags.ValidationError("a TPU computes in --precision=mixed_bfloat16, not float16.")
    return True


def _check_deterministic(values):
    if values["deterministic"] and values["data_service"]:
        raise flags.ValidationError(
            "deterministic cannot hold with data_service, whose batches come in any order."
        )
    return True
