"""The flags of the optimizer and the learning rate: each training stage has its own."""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import flags

from supcon_tf.cli import flag_rules
from supcon_tf.cli.declare import TRAINING_STAGES, define
from supcon_tf.cli.flag_types import EPOCHS_MOST, Boolean, Enum, Number, NumberList
from supcon_tf.data import defaults

EPOCHS = Number(at_least=0, at_most=EPOCHS_MOST)
POSITIVE_EPOCHS = Number(above=0, at_most=EPOCHS_MOST)
PROBABILITY = Number(at_least=0, at_most=1)
OPTIMIZERS = ["momentum", "nesterov", "lars", "rmsprop", "adam", "adamw", "lamb"]
GROUPS = {"pretrain": "Pretraining", "linear": "Linear stage", "finetune": "Fine-tuning"}


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """How one stage trains: the values of its own flags, such as --pretrain_epochs.

    Attributes:
        epochs: length of the stage.
        optimizer: name of the optimizer.
        base_learning_rate: peak learning rate for a batch of 256 examples.
        weight_decay: strength of the weight decay.
        rmsprop_epsilon: epsilon inside RMSProp's square root.
        warmup_epochs: length of the learning rate's linear warm-up.
        warmup_start: learning rate at the start of the warm-up, as a fraction of the peak.
        learning_rate_decay: name of the schedule after the warm-up.
        decay_rate: factor of each drop of the learning rate.
        epochs_per_decay: epochs between the drops of the exponential schedule.
        decay_boundary_epochs: epochs after the warm-up at which the piecewise schedule drops.
    """

    epochs: float
    optimizer: str
    base_learning_rate: float
    weight_decay: float
    rmsprop_epsilon: float
    warmup_epochs: float
    warmup_start: float
    learning_rate_decay: str
    decay_rate: float
    epochs_per_decay: float
    decay_boundary_epochs: tuple[float, ...]


# Stage to field of `TrainingFlags` to the name of the flag, as declared below.
NAMES: dict[str, dict[str, str]] = {stage: {} for stage in TRAINING_STAGES}


def of_stage(flag_values: flags.FlagValues, stage: str) -> TrainingFlags:
    """Returns the values of a training stage's own flags (`NAMES` lists them).

    Args:
        flag_values: parsed flags.
        stage: "pretrain", "linear" or "finetune".
    """
    values: dict[str, Any] = {name: flag_values[flag].value for name, flag in NAMES[stage].items()}
    return TrainingFlags(**values)


def _define_per_stage(
    defaults_by_name: dict[str, Any],
    kind: flags.ArgumentParser,
    *,
    help: str,
    paper: dict[str, str] | None = None,
    common: tuple[str, ...] = (),
    unit: str | None = None,
    decides_fitted_linear: bool = False,
) -> None:
    """Declares flags that make up `TrainingFlags`, one for each stage that is named.

    Args:
        defaults_by_name: name of the flag, "<stage>_<field>", to its default.
        kind: their type.
        help: with {stage} for the name of the stage.
        paper: name of the flag to the paper's value.
        common: names of the flags that --help lists.
        unit, decides_fitted_linear: as for `declare.define`.
    """
    for name, default in defaults_by_name.items():
        stage, field = name.split("_", 1)
        NAMES[stage][field] = name
        define(
            name,
            kind,
            default=default,
            stages=(stage,),
            group=GROUPS[stage],
            help=help.format(stage=stage),
            unit=unit,
            paper=(paper or {}).get(name),
            common=name in common,
            decides_fitted_linear=decides_fitted_linear,
        )


_define_per_stage(
    {"pretrain_epochs": 30},
    EPOCHS,
    unit="epochs",
    common=("pretrain_epochs",),
    help=f"Length of the pretrain stage. The default is {defaults.describe_pretrain_epochs()} "
    "--time_budget_minutes chooses it by time.",
    paper={"pretrain_epochs": "350, or 700 for ResNet-200 (Section 4.4)"},
)
define(
    "time_budget_minutes",
    Number(above=0, at_most=1e6),
    default=None,
    unset_means="no limit: --pretrain_epochs decides",
    stages=(),
    group="Pretraining",
    unit="minutes",
    common=True,
    help="Time for the whole command, from its start. The pretrain stage measures the time of a "
    "step, and chooses --pretrain_epochs so that its learning rate schedule ends in time; the time "
    "of the evaluations and of the stages after it is estimated and set aside. linear and finetune "
    "keep their own lengths. The choice is printed and recorded: a run that is resumed keeps it, "
    "also on a slower machine. It takes the place of the epochs and the warm-up of a recipe, and "
    "cannot be combined with --pretrain_epochs.",
)
_define_per_stage(
    {"linear_epochs": 20},
    EPOCHS,
    unit="epochs",
    common=("linear_epochs",),
    help="Length of the linear stage when it trains in steps. 0 keeps the classifier that "
    "pretraining trained, if it trained one.",
    paper={"linear_epochs": "90 for ImageNet, 100 for CIFAR (released code)"},
)
_define_per_stage(
    {"finetune_epochs": 10}, EPOCHS, unit="epochs", help="Length of the finetune stage."
)
_define_per_stage(
    {"pretrain_optimizer": "adam", "finetune_optimizer": "adam"},
    Enum(OPTIMIZERS),
    common=("pretrain_optimizer",),
    help="Optimizer of the {stage} stage. momentum, nesterov, lars and rmsprop use momentum 0.9.",
    paper={"pretrain_optimizer": "lars for ImageNet, momentum for CIFAR (Section 4.4, Table 8)"},
)
_define_per_stage(
    {"linear_optimizer": "auto"},
    Enum(["auto", "lbfgs", *OPTIMIZERS]),
    common=("linear_optimizer",),
    decides_fitted_linear=True,
    help="How the linear stage trains its classifier: auto, lbfgs or an optimizer. auto (the "
    "default) chooses momentum if any of "
    f"{', '.join('--' + name for name in flag_rules.LINEAR_TRAINING_FLAGS)} is given, else lbfgs. "
    "lbfgs embeds the training images once, without augmentation, and fits a logistic "
    "regression on the standardized features to its optimum; --class_balanced weights the classes "
    "equally. The others train in steps, as in the paper; momentum, nesterov, lars and rmsprop use "
    "momentum 0.9. lbfgs cannot be used if embeddings and logits exceed 1 GiB; auto then prints a "
    "line and trains with momentum.",
    paper={"linear_optimizer": "rmsprop for ImageNet, momentum for CIFAR (Section 4.4, Table 8)"},
)
_define_per_stage(
    {
        "pretrain_base_learning_rate": 0.012,
        "linear_base_learning_rate": 10.0,
        "finetune_base_learning_rate": 0.012,
    },
    Number(at_least=0, at_most=1e6),
    common=("pretrain_base_learning_rate",),
    help="Peak learning rate of the {stage} stage for a batch of 256 examples. The optimizer uses "
    "this value times batch_size / 256. Change it together with the optimizer.",
    paper={
        "pretrain_base_learning_rate": "0.4 for ImageNet, 0.5 for CIFAR (released code)",
        "linear_base_learning_rate": "0.05 for ImageNet, 2.5 for CIFAR (released code)",
    },
)
_define_per_stage(
    {"pretrain_weight_decay": 0.0, "linear_weight_decay": 0.0, "finetune_weight_decay": 0.0},
    Number(at_least=0, at_most=1e3),
    help="Weight decay of the {stage} stage: an L2 penalty, or decoupled from the gradient with "
    "adamw and lamb. It never applies to batch norm.",
    paper={
        "pretrain_weight_decay": "1e-3 for ResNet-50 on ImageNet, else 1e-4 (released code)",
        "linear_weight_decay": "1e-6 for ImageNet, 0 for CIFAR (released code)",
    },
)
_define_per_stage(
    {
        "pretrain_rmsprop_epsilon": 1.0,
        "linear_rmsprop_epsilon": 0.001,
        "finetune_rmsprop_epsilon": 0.001,
    },
    Number(at_least=1e-12, at_most=1e6),
    help="Epsilon inside the square root of rmsprop in the {stage} stage.",
)
_define_per_stage(
    {"pretrain_warmup_epochs": 3, "linear_warmup_epochs": 0, "finetune_warmup_epochs": 1},
    EPOCHS,
    unit="epochs",
    help="Epochs over which the learning rate of the {stage} stage rises linearly to its peak. The "
    "default is lowered if the stage is shorter.",
    paper={
        "pretrain_warmup_epochs": "12 for ImageNet, 10 for CIFAR (released code)",
        "linear_warmup_epochs": "12 for ImageNet, 0 for CIFAR (released code)",
    },
)
_define_per_stage(
    {"pretrain_warmup_start": 0.0, "linear_warmup_start": 0.0, "finetune_warmup_start": 0.0},
    PROBABILITY,
    unit="fraction of the peak learning rate",
    help="Learning rate at the start of the warm-up of the {stage} stage. SupContrast starts at "
    "0.01, which is 0.02 of its peak of 0.5.",
)
_define_per_stage(
    {
        "pretrain_learning_rate_decay": "cosine",
        "linear_learning_rate_decay": "cosine",
        "finetune_learning_rate_decay": "cosine",
    },
    Enum(["cosine", "cosine_per_epoch", "exponential", "piecewise", "none"]),
    help="Learning rate schedule of the {stage} stage after the warm-up. cosine decays to 0 step "
    "by step. cosine_per_epoch, as in SupContrast, has one rate per epoch, counted from the start "
    "of the stage, and ends at the peak times the cube of --{stage}_decay_rate. exponential drops "
    "every --{stage}_epochs_per_decay epochs, piecewise at --{stage}_decay_boundary_epochs. none "
    "keeps the peak.",
    paper={
        "pretrain_learning_rate_decay": "cosine with lars (Table 8)",
        "linear_learning_rate_decay": "exponential with rmsprop (Table 8)",
    },
)
_define_per_stage(
    {"pretrain_decay_rate": 0.1, "linear_decay_rate": 0.1, "finetune_decay_rate": 0.1},
    Number(above=0, at_most=1),
    help="Factor of each drop of the learning rate in the {stage} stage, with the exponential and "
    "piecewise schedules. cosine_per_epoch ends at the cube of this factor.",
    paper={"linear_decay_rate": "0.97 for ImageNet, 0.2 for CIFAR (released code)"},
)
_define_per_stage(
    {
        "pretrain_epochs_per_decay": 2.4,
        "linear_epochs_per_decay": 2.4,
        "finetune_epochs_per_decay": 2.4,
    },
    POSITIVE_EPOCHS,
    unit="epochs",
    help="Epochs between two drops of the exponential learning rate schedule in the {stage} stage.",
    paper={"linear_epochs_per_decay": "0.5 for ImageNet (released code)"},
)
_define_per_stage(
    {
        "pretrain_decay_boundary_epochs": "30,60,80,90",
        "linear_decay_boundary_epochs": "30,60,80,90",
        "finetune_decay_boundary_epochs": "30,60,80,90",
    },
    NumberList(POSITIVE_EPOCHS, increasing="strictly"),
    unit="epochs after the warm-up",
    help="When the piecewise learning rate schedule drops in the {stage} stage.",
    paper={"linear_decay_boundary_epochs": "60,75,90 for CIFAR (released code)"},
)
define(
    "pretrain_use_encoder_weight_decay",
    Boolean(),
    default=True,
    stages=("pretrain",),
    group="Pretraining",
    help="Apply weight decay to the encoder in pretraining.",
    paper="true (released code)",
)
define(
    "pretrain_use_projection_head_weight_decay",
    Boolean(),
    default=True,
    stages=("pretrain",),
    group="Pretraining",
    help="Apply weight decay to the projection head in pretraining.",
    paper="true (released code)",
)
define(
    "label_smoothing",
    PROBABILITY,
    default=0.0,
    stages=("linear", "finetune"),
    group="All training stages",
    help="Label smoothing of the cross-entropy in the linear and finetune stages. Pretraining has "
    "--pretrain_label_smoothing.",
    paper="0.05 for ImageNet, 0 for CIFAR (released code)",
)
define(
    "use_bias_weight_decay",
    Boolean(),
    default=True,
    stages=TRAINING_STAGES,
    group="All training stages",
    help="Apply weight decay to biases too.",
    paper="true (released code)",
)
