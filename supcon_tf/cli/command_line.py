"""The flags of `python -m supcon_tf.main`: which there are, and which stage each decides.

Importing this module imports no TensorFlow, so that --help answers at once; defaults that
repeat those of a function are literals, and a test compares each pair.
"""

from __future__ import annotations

import copy
from pathlib import Path

from absl import flags

from supcon_tf.cli import flag_rules, input_flags, output_flags, training_flags

# Where the flags are defined.
FLAG_MODULES = (input_flags, training_flags, output_flags)
STAGES = ("pretrain", "linear", "finetune", "eval", "embed", "export", "preview")

# Which flags decide what a stage does, in the order of its recipe. `stage.flags` holds these.
COMMON_FLAGS = (
    "dataset", "data_dir", "skip_broken_images", "max_image_megapixels", "image_size",
    "eval_crop_method", "crop_padding", "seed", "strategy", "logical_cpus", "tpu_name",
    "tpu_zone", "gcp_project",
    "deterministic",
    "eval_batch_size", "steps_per_loop", "summary_interval_steps",
    "save_interval_steps", "max_checkpoints_to_keep",
)  # fmt: skip
INPUT_FLAGS = (
    "batch_size",
    "data_service",
    "num_images",
    "label_noise_prob",
    "class_balanced",
    "crop_compat",
    "horizontal_flip",
)
EVAL_DATA_FLAGS = ("eval_dataset", "eval_data_dir", "eval_split")
WARM_START_FLAGS = ("reference_ckpt", "ignore_missing_checkpoint_vars")
STAGE_FLAGS = {
    "pretrain": (
        *COMMON_FLAGS, *INPUT_FLAGS, *WARM_START_FLAGS, "warm_start_encoder",
        "warm_start_projection_head", "num_views", "crop_area_range",
        "augmentation_type", "augmentation_magnitude", "augmentation_compat",
        "randaugment_num_layers", "use_pytorch_color_jitter", "warp_probability",
        "blur_probability",
        "whitening", "whitening_mean", "whitening_std",
        "encoder", "resnet_depth", "resnet_width", "first_conv_kernel_size", "first_conv_stride",
        "use_initial_max_pool", "initial_max_pool_padding", "use_global_batch_norm",
        "projection_head_layers",
        "projection_head_use_batch_norm", "projection_head_use_batch_norm_beta",
        "normalize_embedding", "loss", "cross_entropy_weight", "stop_gradient_before_classifier",
        "pretrain_label_smoothing", "use_labels", "temperature", "contrast_mode",
        "summation_location", "denominator_mode", "positives_cap", "scale_by_temperature",
        "queue_size", "encoder_momentum", "microbatch_size", "precision", "jit_compile",
        "online_probe", "knn_interval_epochs",
        "pretrain_epochs", "pretrain_optimizer", "pretrain_base_learning_rate",
        "pretrain_weight_decay", "pretrain_rmsprop_epsilon", "pretrain_use_encoder_weight_decay",
        "pretrain_use_projection_head_weight_decay", "pretrain_warmup_epochs",
        "pretrain_warmup_start",
        "pretrain_learning_rate_decay",
        "pretrain_decay_rate", "pretrain_epochs_per_decay", "pretrain_decay_boundary_epochs",
        "use_bias_weight_decay",
    ),
    "linear": (
        *COMMON_FLAGS, *INPUT_FLAGS, *WARM_START_FLAGS, "warm_start_classifier",
        "linear_crop_area_range",
        "linear_augmentation_type", "augmentation_magnitude", "augmentation_compat",
        "randaugment_num_layers", "use_pytorch_color_jitter", "warp_probability",
        "blur_probability",
        "normalize_embedding", "zero_initialize_classifier", "label_smoothing", "jit_compile",
        "linear_epochs", "linear_optimizer", "linear_base_learning_rate",
        "linear_weight_decay", "linear_rmsprop_epsilon", "linear_warmup_epochs",
        "linear_warmup_start",
        "linear_learning_rate_decay",
        "linear_decay_rate", "linear_epochs_per_decay", "linear_decay_boundary_epochs",
        "use_bias_weight_decay",
    ),
    "finetune": (
        *COMMON_FLAGS, *INPUT_FLAGS, *WARM_START_FLAGS, "warm_start_classifier",
        "finetune_crop_area_range",
        "finetune_augmentation_type", "augmentation_magnitude", "augmentation_compat",
        "randaugment_num_layers", "use_pytorch_color_jitter", "warp_probability",
        "blur_probability",
        "normalize_embedding", "zero_initialize_classifier", "label_smoothing", "jit_compile",
        "finetune_epochs", "finetune_optimizer", "finetune_base_learning_rate",
        "finetune_weight_decay", "finetune_rmsprop_epsilon", "finetune_warmup_epochs",
        "finetune_warmup_start",
        "finetune_learning_rate_decay",
        "finetune_decay_rate", "finetune_epochs_per_decay", "finetune_decay_boundary_epochs",
        "use_bias_weight_decay",
    ),
    "eval": (*COMMON_FLAGS, *EVAL_DATA_FLAGS, "eval_train_examples"),
    "embed": (*COMMON_FLAGS, *EVAL_DATA_FLAGS, "embed_split", "embed_dir"),
    "export": ("seed",),
    "preview": (
        *COMMON_FLAGS, *INPUT_FLAGS, "num_views", "crop_area_range",
        "augmentation_type", "augmentation_magnitude", "augmentation_compat",
        "randaugment_num_layers", "use_pytorch_color_jitter", "warp_probability",
        "blur_probability", "preview_examples",
    ),
}  # fmt: skip
# Of the flags of the linear stage those that decide a classifier fitted by L-BFGS.
FITTED_LINEAR_FLAGS = (
    *COMMON_FLAGS, "num_images", "label_noise_prob", "class_balanced", "reference_ckpt",
    "normalize_embedding", "linear_optimizer",
)  # fmt: skip
# Flags that may differ when a stage goes on: they change where, how fast and how often, but
# not what is computed.
FREE_FLAGS = frozenset({
    "data_service", "strategy", "logical_cpus", "tpu_name", "tpu_zone", "gcp_project",
    "jit_compile", "deterministic", "eval_batch_size", "steps_per_loop",
    "summary_interval_steps", "save_interval_steps", "max_checkpoints_to_keep",
    "knn_interval_epochs", "max_image_megapixels",
})  # fmt: skip


def define_flags() -> None:
    """Defines every flag and validator; once per process."""
    training_flags.define_run_flags(STAGES)
    input_flags.define_data_flags()
    input_flags.define_augmentation_flags()
    training_flags.define_model_flags()
    training_flags.define_warm_start_flags()
    training_flags.define_loss_flags()
    training_flags.define_stage_flags(
        "pretrain", optimizer="adam", learning_rate=0.012, epochs=30, warmup=3, rmsprop_epsilon=1.0
    )
    training_flags.define_stage_flags(
        "linear",
        optimizer="auto",
        learning_rate=10.0,
        epochs=20,
        warmup=0,
        rmsprop_epsilon=0.001,
    )
    training_flags.define_stage_flags(
        "finetune",
        optimizer="adam",
        learning_rate=0.012,
        epochs=10,
        warmup=1,
        rmsprop_epsilon=0.001,
    )
    output_flags.define_output_flags()
    flag_rules.define_rules(STAGES)


def recipe_path(name: str) -> Path:
    """The flagfile of a recipe, in the installed package or in the checkout.

    Raises:
        flags.Error: no such recipe.
    """
    here = Path(__file__).parent.parent  # The package.
    folder = next(path for path in (here / "flags", here.parent / "flags") if path.is_dir())
    path = folder / f"{name}.flags"
    if not path.is_file():
        names = sorted(path.stem for path in folder.glob("*.flags"))
        raise flags.Error(f"There is no recipe {name!r}; there are {', '.join(names)}.")
    return path


def peek(argv: list[str]) -> flags.FlagValues:
    """What the arguments say so far, with their flagfiles, without checking any rule.

    `peek(argv)[name].present` is above 0 where the arguments give the flag. Unknown flags are
    left to the real parsing.

    Raises:
        flags.Error: a value of the wrong type, or a flagfile that cannot be read.
    """
    values = flags.FlagValues()
    for name in own_flags():
        flag = copy.deepcopy(flags.FLAGS[name])
        flag.unparse()
        flag.validators = []
        values[name] = flag
    values(argv, known_only=True)
    return values


def own_flags() -> list[str]:
    """The names of all flags that this program defines."""
    modules = flags.FLAGS.flags_by_module_dict()
    return [flag.name for module in FLAG_MODULES for flag in modules[module.__name__]]


def expand_recipe(argv: list[str]) -> list[str]:
    """Puts the flags of --recipe, also of one in a flagfile, before all others, which override it.

    Raises:
        flags.Error: see `peek`; or no such recipe.
    """
    recipe = peek(argv).recipe
    if recipe is None:
        return argv
    return [argv[0], f"--flagfile={recipe_path(recipe)}", *argv[1:]]


def model_dir(flag_values: flags.FlagValues) -> str:
    """--model_dir, or its default."""
    name = flag_values.recipe or flag_values.dataset.replace("/", "_").replace(":", "_")
    return flag_values.model_dir or f"runs/{name}"


def stage_flag_names(flag_values: flags.FlagValues, stage: str) -> tuple[str, ...]:
    """The names of the flags that decide what the stage does, with these values."""
    if stage == "linear" and flag_rules.is_linear_fitted(flag_values):
        return FITTED_LINEAR_FLAGS
    return STAGE_FLAGS[stage]


def stage_flags(flag_values: flags.FlagValues, stage: str) -> dict[str, str]:
    """Name to `--name=value` for every flag that decides what the stage does."""
    return {
        name: flag_values[name].serialize()
        for name in stage_flag_names(flag_values, stage)
        if flag_values[name].value is not None
    }
