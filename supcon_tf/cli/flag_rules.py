"""The rules between flags: each rejects a bad combination with one message before anything runs.

The rules for crops and augmentations are in `view_rules`, those of the loss in `loss_rules`, and
those for data and devices in `run_rules`.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from typing import Any

from absl import flags

from supcon_tf.cli import loss_rules, run_rules, view_rules
from supcon_tf.cli.declare import TRAINING_STAGES
from supcon_tf.cli.rules import is_given, register_rule
from supcon_tf.storage import encoder_files

# Flags that need --reference_ckpt, with their defaults.
WARM_STARTS = {
    "warm_start_encoder": True,
    "warm_start_projection_head": False,
    "warm_start_classifier": False,
    "ignore_missing_checkpoint_vars": False,
}
# Flags of the supervised contrastive loss alone.
SUPCON_FLAGS = (
    "use_labels", "temperature", "contrast_mode", "summation_location", "denominator_mode",
    "positives_cap", "scale_by_temperature", "epsilon", "pair_weights", "gaussian_bandwidth",
    "spread_weight", "denominator_weighting", "loss_cache_mb",
)  # fmt: skip
# Flags that must keep their default with --queue_size.
NO_QUEUE_FLAGS = (
    "loss", "summation_location", "denominator_mode", "positives_cap", "microbatch_size",
    "epsilon", "pair_weights", "spread_weight", "denominator_weighting", "loss_cache_mb",
)  # fmt: skip
# Flags that need a projection head.
PROJECTION_FLAGS = (
    "projection_head_layers", "projection_head_use_batch_norm",
    "projection_head_use_batch_norm_beta", "microbatch_size", "cross_entropy_weight",
    "warm_start_projection_head", "pretrain_use_projection_head_weight_decay",
)  # fmt: skip

# Flags of a linear stage that trains in steps. A classifier fitted by L-BFGS has no use for them.
LINEAR_TRAINING_FLAGS = (
    "linear_epochs", "linear_base_learning_rate", "linear_weight_decay", "linear_rmsprop_epsilon",
    "linear_warmup_epochs", "linear_learning_rate_decay", "linear_decay_rate",
    "linear_epochs_per_decay", "linear_decay_boundary_epochs", "linear_augmentation_type",
    "linear_crop_area_range", "label_smoothing", "zero_initialize_classifier",
    "warm_start_classifier",
)  # fmt: skip

# Flags that say which weights the encoder starts with.
STARTS = ("encoder_weights", "reference_ckpt", "warm_start_encoder")
STEM_FLAGS = ("first_conv_kernel_size", "first_conv_stride", "use_initial_max_pool")
ENCODERS = ("tiny", "resnet_v1", "resnext")
APPLICATIONS = "keras.applications."


def define_rules(stages: tuple[str, ...]) -> None:
    """Registers every rule in absl. Call it once per process, after the flags are defined."""
    flags.register_validator("mode", functools.partial(_check_mode, stages))
    for names in (
        ["pretrain_warmup_epochs", "pretrain_epochs"],
        ["linear_warmup_epochs", "linear_epochs"],
        ["finetune_warmup_epochs", "finetune_epochs"],
    ):
        register_rule(names, _check_warmup)
    register_rule(["time_budget_minutes", "pretrain_epochs", "mode"], _check_time_budget)
    for names in (
        ["pretrain_warmup_start", "pretrain_warmup_epochs"],
        ["linear_warmup_start", "linear_warmup_epochs"],
        ["finetune_warmup_start", "finetune_warmup_epochs"],
    ):
        register_rule(names, _check_warmup_start)
    register_rule(["loss", *SUPCON_FLAGS, *PROJECTION_FLAGS], _check_flags_of_the_loss)
    register_rule(["mode", "linear_optimizer"], _check_linear_optimizer)
    register_rule(["label_type", "mode", "linear_optimizer"], _check_ridge)
    register_rule(["mode", "linear_optimizer", "profile_steps"], _check_profile)
    register_rule(["loss", "num_views"], _check_views_of_the_loss)
    register_rule(
        [
            "loss",
            "cross_entropy_weight",
            "stop_gradient_before_classifier",
            "pretrain_label_smoothing",
            "dataset",
            "recipe",
        ],
        _check_cross_entropy,
    )
    register_rule(
        ["queue_size", "encoder_momentum", "num_views", "contrast_mode", *NO_QUEUE_FLAGS],
        _check_queue,
    )
    register_rule(["use_labels", "num_views"], _check_positives)
    register_rule(["mode", "loss", "batch_size", "queue_size"], _check_contrasts)
    register_rule(["positives_cap", "num_views"], _check_positives_cap)
    register_rule(
        ["microbatch_size", "use_global_batch_norm", "freeze_batch_norm"], _check_microbatch_norm
    )
    flags.register_validator("encoder", _check_encoder)
    register_rule(["resnet_depth", "encoder"], _check_depth)
    register_rule(["encoder", *STEM_FLAGS], _check_stem)
    register_rule(
        ["initial_max_pool_padding", "use_initial_max_pool", "encoder"], _check_max_pool_padding
    )
    register_rule(["whitening", "whitening_mean", "whitening_std", "encoder"], _check_whitening)
    register_rule(["reference_ckpt", *WARM_STARTS], _check_warm_start)
    register_rule(["mode", "encoder", *STARTS], _check_start)
    view_rules.define_view_rules()
    loss_rules.define_loss_rules()
    run_rules.define_run_rules()


def _check_mode(stages, modes):
    if not modes:
        raise flags.ValidationError(f"names no stage. Choose from {', '.join(stages)}.")
    for mode in modes:
        if mode not in stages:
            close = difflib.get_close_matches(mode, stages, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise flags.ValidationError(
                f"{mode!r} is not a stage. Choose from {', '.join(stages)}.{hint}"
            )
    if len(set(modes)) < len(modes):
        raise flags.ValidationError("names a stage twice. Name each stage once.")
    return True


def _check_warmup(values):
    warmup, epochs = values.values()
    name, length = values
    if warmup > epochs and is_given(flags.FLAGS, name):
        raise flags.ValidationError(
            f"{name}={warmup:g} (from the command line, a flagfile or a recipe) is longer than the "
            f"stage, which has {epochs:g} epochs. Use a shorter warm-up, such as "
            f"--{name}={epochs / 10:g}, or a longer stage, such as --{length}={10 * warmup:g}."
        )
    return True


def _check_time_budget(values):
    minutes, epochs = values["time_budget_minutes"], values["pretrain_epochs"]
    if minutes is not None and is_given(flags.FLAGS, "pretrain_epochs"):
        raise flags.ValidationError(
            f"time_budget_minutes={minutes:g} chooses the number of epochs, so "
            f"--pretrain_epochs={epochs:g} cannot be given too. Leave one out."
        )
    if minutes is not None and "pretrain" not in values["mode"]:
        raise flags.ValidationError(
            f"time_budget_minutes={minutes:g} chooses the length of pretraining, which "
            f"--mode={','.join(values['mode'])} does not run. Add pretrain to --mode, or leave "
            "--time_budget_minutes out."
        )
    return True


def _check_warmup_start(values):
    (name, start), (epochs_name, epochs) = values.items()
    if start and not epochs:
        raise flags.ValidationError(
            f"{name}={start:g} has no effect without a warm-up: set --{epochs_name} above 0."
        )
    return True


def _as_typed(name):
    """The flag with its value as on the command line, without the dashes: "nouse_labels"."""
    return flags.FLAGS[name].serialize().removeprefix("--")


def _check_positives_cap(values):
    cap, num_views = values["positives_cap"], values["num_views"]
    if cap != -1 and (cap < 0 or cap % num_views):
        raise flags.ValidationError(
            f"positives_cap={cap} must be -1 (no cap) or a multiple of num_views={num_views}, such "
            f"as --positives_cap={num_views * max(1, round(cap / num_views))}."
        )
    return True


def _check_microbatch_norm(values):
    is_exchanged = values["use_global_batch_norm"] and not values["freeze_batch_norm"]
    if values["microbatch_size"] is not None and is_exchanged:
        raise flags.ValidationError(
            f"microbatch_size={values['microbatch_size']} cannot be combined with batch norm over "
            "all replicas, which would exchange statistics inside the loop over pieces. Add "
            "--nouse_global_batch_norm."
        )
    return True


def _check_flags_of_the_loss(values):
    loss = values["loss"]
    unused = () if loss == "supcon" else SUPCON_FLAGS
    if loss == "cross_entropy":
        unused += PROJECTION_FLAGS
    for name in unused:
        if values[name] != flags.FLAGS[name].default:
            raise flags.ValidationError(
                f"{_as_typed(name)} has no effect with --loss={loss}. Leave it out."
            )
    return True


def _check_views_of_the_loss(values):
    if values["loss"] == "cross_entropy" and values["num_views"] != 1:
        raise flags.ValidationError(
            f"loss=cross_entropy trains on one view, but num_views={values['num_views']}. Add "
            "--num_views=1."
        )
    return True


def _check_linear_optimizer(values):
    if values["linear_optimizer"] != "lbfgs" or "linear" not in values["mode"]:
        return True
    unused = [f"--{name}" for name in LINEAR_TRAINING_FLAGS if is_given(flags.FLAGS, name)]
    if unused:
        raise flags.ValidationError(
            "linear_optimizer=lbfgs fits the classifier without training steps, so "
            f"{', '.join(unused)} (from the command line or a recipe) would have no effect. Leave "
            "them out, or train in steps with --linear_optimizer=momentum."
        )
    return True


def _check_ridge(values):
    """The regression on real targets is fitted in closed form, never trained in steps."""
    if values["label_type"] != "real" or "linear" not in values["mode"]:
        return True
    if values["linear_optimizer"] != "auto":
        raise flags.ValidationError(
            f"linear_optimizer={values['linear_optimizer']} trains a classifier, but with "
            "--label_type=real the linear stage fits a ridge regression. Leave it out."
        )
    unused = [f"--{name}" for name in LINEAR_TRAINING_FLAGS if is_given(flags.FLAGS, name)]
    if unused:
        raise flags.ValidationError(
            f"label_type=real makes the linear stage fit a ridge regression, so {', '.join(unused)}"
            " (from the command line or a recipe) would have no effect. Leave them out."
        )
    return True


def is_linear_fitted(flag_values: flags.FlagValues) -> bool:
    """Returns whether the linear stage fits its classifier by L-BFGS, without training steps."""
    optimizer = flag_values["linear_optimizer"].value
    is_trained = any(is_given(flag_values, name) for name in LINEAR_TRAINING_FLAGS)
    return optimizer == "lbfgs" or (optimizer == "auto" and not is_trained)


def profiled_stage(flag_values: flags.FlagValues) -> str | None:
    """Returns the stage that --profile_steps profiles: the first that trains in steps, if any."""
    stages = (mode for mode in flag_values["mode"].value or () if mode in TRAINING_STAGES)
    return next((x for x in stages if x != "linear" or not is_linear_fitted(flag_values)), None)


def _check_profile(values):
    if values["profile_steps"] and profiled_stage(flags.FLAGS) is None:
        raise flags.ValidationError(
            "profile_steps has no effect, because no stage of "
            f"--mode={','.join(values['mode'])} trains in steps. Leave it out, or train the linear "
            "classifier in steps with --linear_optimizer=momentum."
        )
    return True


def _check_cross_entropy(values):
    is_chosen_later = (
        values["dataset"] in ("folder", "csv")
        and values["loss"] == "supcon"
        and not values["recipe"]
        and not is_given(flags.FLAGS, "cross_entropy_weight")
    )
    return is_chosen_later or check_classifier(values)


def check_classifier(values: Mapping[str, Any]) -> bool:
    """Returns True, or raises an error for a flag of a classifier that is not trained.

    Where the data decide --cross_entropy_weight, this is called again after the choice.
    """
    has_weight = values["cross_entropy_weight"] > 0
    if values["stop_gradient_before_classifier"] and not has_weight:
        raise flags.ValidationError(
            "stop_gradient_before_classifier has no effect without joint training. Set "
            "--cross_entropy_weight above 0."
        )
    if values["pretrain_label_smoothing"] and not has_weight and values["loss"] != "cross_entropy":
        raise flags.ValidationError(
            f"pretrain_label_smoothing={values['pretrain_label_smoothing']:g} has no effect "
            "without --loss=cross_entropy or --cross_entropy_weight above 0. To smooth the labels "
            "of the linear stage, use --label_smoothing."
        )
    return True


def _check_queue(values):
    if not values["queue_size"]:
        if values["encoder_momentum"] != flags.FLAGS["encoder_momentum"].default:
            raise flags.ValidationError(
                f"encoder_momentum={values['encoder_momentum']:g} has no effect without a queue. "
                "Set --queue_size, or leave it out."
            )
        return True
    for name in NO_QUEUE_FLAGS:
        if values[name] != flags.FLAGS[name].default:
            raise flags.ValidationError(
                f"{name}={values[name]} cannot be combined with --queue_size. Leave one out."
            )
    if values["contrast_mode"] == "one_view" and values["num_views"] == 1:
        raise flags.ValidationError(
            "queue_size with --contrast_mode=one_view makes the keys from the views after the "
            "first, but num_views=1. Use --num_views=2."
        )
    return True


def _check_positives(values):
    if values["num_views"] == 1 and not values["use_labels"]:
        raise flags.ValidationError(
            "nouse_labels with num_views=1 leaves no positives: without labels, the only positives "
            "of an example are its other views. Use --num_views=2 or more."
        )
    return True


def _check_contrasts(values):
    is_contrastive = "pretrain" in values["mode"] and values["loss"] != "cross_entropy"
    if is_contrastive and values["batch_size"] == 1 and not values["queue_size"]:
        raise flags.ValidationError(
            f"batch_size=1 leaves no negatives for --loss={values['loss']}, so the loss would be 0 "
            "at every step. Use --batch_size=2 or more."
        )
    return True


def _check_encoder(encoder):
    if encoder not in ENCODERS and not has_own_layers(encoder):
        raise flags.ValidationError(
            f"must be one of {', '.join(ENCODERS)}, or {APPLICATIONS}NAME, such as "
            f"{APPLICATIONS}EfficientNetV2B0, or the path of an encoder: a .keras file or the "
            "model directory of a run, such as runs/first."
        )
    return True


def is_application(encoder: str) -> bool:
    """Returns whether --encoder names a network of keras.applications."""
    return encoder.startswith(APPLICATIONS)


def has_own_layers(encoder: str) -> bool:
    """Returns whether --encoder has its own layers, from Keras or a file, so that the flags of
    the resnets do not apply."""
    return is_application(encoder) or encoder_files.is_encoder_path(encoder)


def _check_depth(values):
    depth, encoder = values["resnet_depth"], values["encoder"]
    depths = {"resnet_v1": (18, 34, 50, 101, 152, 200), "resnext": (50, 101, 152, 200)}
    if encoder in depths and depth not in depths[encoder]:
        raise flags.ValidationError(
            f"resnet_depth={depth} is not a valid {encoder} depth. Choose from "
            f"{', '.join(map(str, depths[encoder]))}."
        )
    return True


def _check_stem(values):
    for name in STEM_FLAGS:
        if values[name] is not None and has_own_layers(values["encoder"]):
            raise flags.ValidationError(
                f"{name}={values[name]} has no effect with --encoder={values['encoder']}, which "
                "has its own first convolution. Leave it out."
            )
    return True


def _check_max_pool_padding(values):
    if values["initial_max_pool_padding"] != "same" and (
        values["use_initial_max_pool"] is False or has_own_layers(values["encoder"])
    ):
        raise flags.ValidationError(
            "initial_max_pool_padding=symmetric needs a ResNet with an initial max pool. Add "
            "--encoder=resnet_v1 --use_initial_max_pool."
        )
    return True


def _check_whitening(values):
    given = [values["whitening_mean"], values["whitening_std"]]
    if values["whitening"] != "given":
        if given != [None, None]:
            raise flags.ValidationError(
                "whitening_mean and whitening_std have no effect without --whitening=given. Add "
                "it, or leave them out."
            )
        return True
    if has_own_layers(values["encoder"]):
        raise flags.ValidationError(
            f"whitening=given has no effect with --encoder={values['encoder']}, which normalizes "
            "images itself. Leave out the whitening flags."
        )
    for name, value in zip(("whitening_mean", "whitening_std"), given, strict=True):
        if value is None:
            raise flags.ValidationError(
                f"whitening=given needs --{name}: three numbers for red, green and blue."
            )
    return True


def _check_warm_start(values):
    path = values.pop("reference_ckpt")
    unused = [name for name, value in values.items() if value != WARM_STARTS[name]]
    if unused and path is None:
        raise flags.ValidationError(
            f"{', --'.join(unused)}: no effect without --reference_ckpt. Name the weights to start "
            "from, or leave it out."
        )
    return True


def _check_start(values):
    encoder, weights, reference = (
        values[name] for name in ("encoder", "encoder_weights", "reference_ckpt")
    )
    if "pretrain" not in values["mode"]:
        return True
    if weights == encoder_files.IMAGENET and not is_application(encoder):
        raise flags.ValidationError(
            f"encoder_weights=imagenet has no weights for --encoder={encoder}. Use a network of "
            f"Keras, such as --encoder={APPLICATIONS}EfficientNetV2B0, or name a file of weights."
        )
    is_file = encoder_files.is_encoder_path(encoder)
    is_warm = reference is not None and values["warm_start_encoder"]
    if is_warm and (is_file or weights):
        other = f"encoder_weights={weights}" if weights else f"encoder={encoder}"
        raise flags.ValidationError(
            f"{other} and --reference_ckpt={reference} both name the weights that the encoder "
            "starts with. Leave one out, or add --nowarm_start_encoder to take only the "
            "projection head or the classifier of --reference_ckpt."
        )
    return True
