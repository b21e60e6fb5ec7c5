"""Every flag of `python -m supcon_tf.main`, with its help and its rules.

Importing this module imports no TensorFlow, so that --help answers at once; defaults that
repeat those of a function are literals, and a test compares each pair.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from supcon_tf import flag_rules

STAGES = ("pretrain", "linear", "eval", "preview")

# Which flags decide what a stage does, in the order of its recipe. `stage.flags` holds these.
COMMON_FLAGS = (
    "dataset", "data_dir", "skip_broken_images", "image_size", "eval_crop_method",
    "crop_padding", "seed", "strategy", "logical_cpus",
    "eval_batch_size", "steps_per_loop", "summary_interval_steps",
    "save_interval_steps", "max_checkpoints_to_keep",
)  # fmt: skip
INPUT_FLAGS = (
    "batch_size",
    "data_service",
    "num_images",
    "label_noise_prob",
    "class_balanced",
    "horizontal_flip",
)
STAGE_FLAGS = {
    "pretrain": (
        *COMMON_FLAGS, *INPUT_FLAGS, "num_views", "crop_area_range",
        "augmentation_type", "augmentation_magnitude", "augmentation_compat",
        "randaugment_num_layers", "use_pytorch_color_jitter", "warp_probability",
        "blur_probability",
        "whitening", "whitening_mean", "whitening_std",
        "encoder", "resnet_depth", "resnet_width", "first_conv_kernel_size", "first_conv_stride",
        "use_initial_max_pool", "use_global_batch_norm", "projection_head_layers",
        "projection_head_use_batch_norm", "projection_head_use_batch_norm_beta",
        "normalize_embedding", "use_labels", "temperature", "contrast_mode",
        "summation_location", "denominator_mode", "positives_cap", "scale_by_temperature",
        "microbatch_size", "online_probe", "knn_interval_epochs",
        "pretrain_epochs", "pretrain_optimizer", "pretrain_base_learning_rate",
        "pretrain_weight_decay", "pretrain_warmup_epochs", "pretrain_learning_rate_decay",
        "pretrain_decay_rate", "pretrain_epochs_per_decay", "pretrain_decay_boundary_epochs",
        "use_bias_weight_decay",
    ),
    "linear": (
        *COMMON_FLAGS, *INPUT_FLAGS, "linear_crop_area_range",
        "linear_augmentation_type", "augmentation_magnitude", "augmentation_compat",
        "randaugment_num_layers", "use_pytorch_color_jitter", "warp_probability",
        "blur_probability",
        "normalize_embedding", "zero_initialize_classifier", "label_smoothing",
        "linear_epochs", "linear_optimizer", "linear_base_learning_rate",
        "linear_weight_decay", "linear_warmup_epochs", "linear_learning_rate_decay",
        "linear_decay_rate", "linear_epochs_per_decay", "linear_decay_boundary_epochs",
        "use_bias_weight_decay",
    ),
    "eval": COMMON_FLAGS,
    "preview": (
        *COMMON_FLAGS, *INPUT_FLAGS, "num_views", "crop_area_range",
        "augmentation_type", "augmentation_magnitude", "augmentation_compat",
        "randaugment_num_layers", "use_pytorch_color_jitter", "warp_probability",
        "blur_probability", "preview_examples",
    ),
}  # fmt: skip
# Flags that may differ when a stage goes on: they change where, how fast and how often, but
# not what is computed.
FREE_FLAGS = frozenset({
    "data_service", "strategy", "logical_cpus", "eval_batch_size", "steps_per_loop",
    "summary_interval_steps", "save_interval_steps", "max_checkpoints_to_keep",
    "knn_interval_epochs",
})  # fmt: skip


def define_flags() -> None:
    """Defines every flag and validator; once per process."""
    _define_run_flags()
    _define_data_flags()
    _define_model_flags()
    _define_loss_flags()
    _define_stage_flags("pretrain", optimizer="adam", learning_rate=0.012, epochs=30, warmup=3)
    _define_stage_flags("linear", optimizer="momentum", learning_rate=10.0, epochs=20, warmup=0)
    flag_rules.define_rules(STAGES)


def _define_run_flags():
    flags.DEFINE_list(
        "mode",
        "pretrain,linear,eval",
        f"Stages to run, in this order: a comma-separated list of {', '.join(STAGES)}.",
    )
    flags.DEFINE_string(
        "recipe", None, "Name of a recipe that comes with the package; other flags override it."
    )
    flags.DEFINE_string(
        "model_dir",
        None,
        "Where every stage writes its folder. Default: runs/<recipe>, else runs/<dataset>.",
    )
    flags.DEFINE_integer("seed", 0, "All random numbers follow from it.", lower_bound=0)
    flags.DEFINE_enum(
        "strategy",
        "auto",
        ["auto", "one_device", "mirrored"],
        "mirrored: one replica per GPU (without GPUs: per logical CPU), contrast over all of "
        "them; auto: mirrored for several GPUs, else one_device.",
    )
    flags.DEFINE_integer(
        "logical_cpus", 1, "Split the CPU into this many devices, to try mirrored.", lower_bound=1
    )
    flags.DEFINE_bool(
        "use_global_batch_norm", True, "Batch norm statistics over all replicas, not each its own."
    )
    flags.DEFINE_integer("steps_per_loop", 20, "Steps per call of the loop.", lower_bound=1)
    flags.DEFINE_integer("summary_interval_steps", 20, "Steps between log lines.", lower_bound=1)
    flags.DEFINE_integer("save_interval_steps", 200, "Steps between checkpoints.", lower_bound=1)
    flags.DEFINE_integer("max_checkpoints_to_keep", 5, "Older ones are deleted.", lower_bound=1)
    flags.DEFINE_bool(
        "override_flags", False, "Go on with a stage although its flags differ from the saved ones."
    )


def _define_data_flags():
    flags.DEFINE_string(
        "dataset",
        "digits",
        "digits (embedded), folder (JPEG and PNG files under --data_dir), or the name of a "
        "TensorFlow Datasets image classification dataset.",
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "For folder: the directory that holds train/ and test/ or validation/, with one folder "
        "per class. Otherwise the directory of TensorFlow Datasets.",
    )
    flags.DEFINE_string(
        "data_service",
        None,
        "Address of a tf.data service dispatcher, grpc://host:port, whose workers make the "
        "training batches. Their order and an exact resume are given up.",
    )
    flags.DEFINE_bool(
        "skip_broken_images",
        False,
        "For folder: decode every image at the start, and list and leave out those that cannot "
        "be, instead of stopping at them.",
    )
    flags.DEFINE_integer(
        "num_images",
        0,
        "Train on the first so many examples (of a folder: of each class in turn); 0: on all.",
        lower_bound=0,
    )
    flags.DEFINE_float(
        "label_noise_prob",
        0.0,
        "Share of training labels replaced by a class drawn from all, the same in every epoch.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    flags.DEFINE_bool(
        "class_balanced",
        False,
        "Draw every class equally often. An epoch is still as many examples as there are: those "
        "of rare classes come several times, of frequent classes not all. Not for TFDS.",
    )
    flags.DEFINE_integer("batch_size", 64, "Examples per step over all replicas.", lower_bound=1)
    flags.DEFINE_integer(
        "microbatch_size",
        None,
        "Gradient caching, for batches whose activations do not fit: the encoder sees so many "
        "examples of a replica's batch at once, twice; the loss sees the whole batch. Batch norm "
        "statistics are then per piece (moving averages are updated once per image), so it needs "
        "--nouse_global_batch_norm.",
        lower_bound=1,
    )
    flags.DEFINE_integer("eval_batch_size", 256, "Examples per evaluation step.", lower_bound=1)
    flags.DEFINE_integer(
        "image_size",
        None,
        "Side in pixels. Default: that of the data, at most 224, with the tiny encoder 32.",
        lower_bound=8,
    )
    flags.DEFINE_enum(
        "eval_crop_method",
        "auto",
        ["auto", "resize_then_crop", "crop_then_resize", "crop_then_distort", "identity"],
        "Of images that are evaluated. auto: those of the right size as they are, of larger "
        "ones the central 7/8; the others as in the reference, with --crop_padding.",
    )
    flags.DEFINE_integer(
        "crop_padding",
        32,
        "Pixels that evaluation cuts off the short side resized to image_size + crop_padding.",
        lower_bound=0,
    )
    flags.DEFINE_integer("num_views", 2, "Augmented views of each example.", lower_bound=1)
    flags.DEFINE_list(
        "crop_area_range", ["0.5", "1.0"], "Share of the image that a random crop covers: low,high."
    )
    flags.DEFINE_list(
        "linear_crop_area_range",
        ["0.8", "1.0"],
        "The same for the linear stage, whose test images are cropped little.",
    )
    flags.DEFINE_enum(
        "horizontal_flip",
        "auto",
        ["auto", "true", "false"],
        "Mirror views with probability 0.5; auto: unless the classes are digits or letters.",
    )
    _define_augmentation_flags()


def _define_augmentation_flags():
    types = [
        "autoaugment", "autoaugment_cifar10", "autoaugment_svhn", "randaugment", "simclr",
        "stacked_randaugment", "identity",
    ]  # fmt: skip
    flags.DEFINE_enum("augmentation_type", "simclr", types, "What views meet after crop and flip.")
    flags.DEFINE_enum(
        "linear_augmentation_type", "identity", types, "The same for the linear stage."
    )
    flags.DEFINE_float(
        "augmentation_magnitude",
        0.5,
        "simclr: strength of the jitter, 1.0 for ImageNet; randaugment: level up to 10. "
        "AutoAugment's tables carry their own. 0 turns every augmentation off.",
    )
    flags.DEFINE_enum(
        "augmentation_compat",
        "pillow",
        ["pillow", "reference"],
        "pillow: operations equal Pillow's, distances scale with the image; reference: as the "
        "library that the published recipes used.",
    )
    flags.DEFINE_integer("randaugment_num_layers", 2, "Operations per view.", lower_bound=1)
    flags.DEFINE_bool(
        "use_pytorch_color_jitter", False, "torchvision's colour jitter instead of TensorFlow's."
    )
    flags.DEFINE_float(
        "warp_probability",
        0.0,
        "Of the spline warp in simclr and stacked_randaugment; 0 in the published recipes.",
        lower_bound=0.0,
        upper_bound=1.0,
    )

    flags.DEFINE_integer(
        "preview_examples", 8, "Rows of the picture that --mode=preview makes.", lower_bound=1
    )
    flags.DEFINE_float(
        "blur_probability",
        0.0,
        "Of the Gaussian blur at the end of simclr and stacked_randaugment in training; 0.5 for "
        "ImageNet, 0 for CIFAR in the published recipes.",
        lower_bound=0.0,
        upper_bound=1.0,
    )


def _define_model_flags():
    flags.DEFINE_enum(
        "whitening",
        "auto",
        ["auto", "none", "given"],
        "Subtract the mean and divide by the deviation of the images. auto: the known constants "
        "of CIFAR, for folder measured on training images, else none.",
    )
    for name in ("mean", "std"):
        flags.DEFINE_list(
            f"whitening_{name}",
            None,
            f"For --whitening=given: {name} of red, green and blue, of images in [-1, 1].",
        )
    flags.DEFINE_enum(
        "encoder",
        "tiny",
        ["tiny", "resnet_v1", "resnext"],
        "tiny: a 7-layer ResNet for images of 8 to 32 pixels; the others as in the paper.",
    )
    flags.DEFINE_integer("resnet_depth", 50, "18, 34, 50, 101, 152 or 200; ResNeXt from 50.")
    flags.DEFINE_integer("resnet_width", 1, "Multiplies the channels.", lower_bound=1)
    flags.DEFINE_integer("first_conv_kernel_size", 3, "7 for ImageNet, 3 for CIFAR.", lower_bound=1)
    flags.DEFINE_integer("first_conv_stride", 1, "2 for ImageNet, 1 for CIFAR.", lower_bound=1)
    flags.DEFINE_bool("use_initial_max_pool", False, "true for ImageNet, false for CIFAR.")
    flags.DEFINE_list(
        "projection_head_layers", ["128"], "Sizes of the projection head's layers, as 2048,128."
    )
    flags.DEFINE_bool("projection_head_use_batch_norm", False, "Batch norm between the layers.")
    flags.DEFINE_bool("projection_head_use_batch_norm_beta", True, "... with a learned offset.")
    flags.DEFINE_bool(
        "normalize_embedding", True, "L2-normalise the encoder's output before head and classifier."
    )
    flags.DEFINE_bool("zero_initialize_classifier", False, "Zeros instead of Glorot uniform.")
    flags.DEFINE_bool("online_probe", True, "Watch a linear classifier during pretraining.")
    flags.DEFINE_float(
        "knn_interval_epochs",
        10.0,
        "Epochs between k-NN accuracies of the embeddings; 0: only at the end.",
        lower_bound=0.0,
    )


def _define_loss_flags():
    flags.DEFINE_bool("use_labels", True, "false: self-supervised, SimCLR.")
    flags.DEFINE_float("temperature", 0.1, "Temperature of the contrastive loss, above 0.")
    flags.DEFINE_enum(
        "contrast_mode", "all_views", ["all_views", "one_view"], "Which views are anchors."
    )
    flags.DEFINE_enum(
        "summation_location",
        "outside",
        ["outside", "inside"],
        "Sum over positives outside (Eq. 2) or inside (Eq. 3) the logarithm.",
    )
    flags.DEFINE_enum(
        "denominator_mode",
        "all",
        ["all", "one_positive", "only_negatives"],
        "What the positive is compared with.",
    )
    flags.DEFINE_integer(
        "positives_cap", -1, "Positives beside an example's own views; a multiple of --num_views."
    )
    flags.DEFINE_bool("scale_by_temperature", True, "Multiply the loss by the temperature.")
    flags.DEFINE_float(
        "label_smoothing", 0.0, "Of the linear stage's cross-entropy.", 0.0, upper_bound=1.0
    )
    flags.DEFINE_bool("use_bias_weight_decay", True, "Whether biases decay too.")


def _define_stage_flags(stage, *, optimizer, learning_rate, epochs, warmup):
    flags.DEFINE_float(f"{stage}_epochs", epochs, f"Length of the {stage} stage.", lower_bound=0.0)
    flags.DEFINE_enum(
        f"{stage}_optimizer",
        optimizer,
        ["momentum", "nesterov", "lars", "rmsprop", "adam"],
        "Momentum is 0.9 where there is one.",
    )
    flags.DEFINE_float(
        f"{stage}_base_learning_rate",
        learning_rate,
        "Per 256 examples: the learning rate is this times batch_size / 256.",
        lower_bound=0.0,
    )
    flags.DEFINE_float(f"{stage}_weight_decay", 0.0, "L2; never on batch norm.", lower_bound=0.0)
    flags.DEFINE_float(f"{stage}_warmup_epochs", warmup, "Linear from 0.", lower_bound=0.0)
    flags.DEFINE_enum(
        f"{stage}_learning_rate_decay",
        "cosine",
        ["cosine", "exponential", "piecewise", "none"],
        "What follows the warm-up.",
    )
    flags.DEFINE_float(f"{stage}_decay_rate", 0.1, "Factor of each exponential or piecewise drop.")
    flags.DEFINE_float(
        f"{stage}_epochs_per_decay", 2.4, "Length of an exponential stair.", lower_bound=0.0
    )
    flags.DEFINE_list(
        f"{stage}_decay_boundary_epochs",
        ["30", "60", "80", "90"],
        "Where piecewise drops, in epochs after the warm-up.",
    )


def recipe_path(name: str) -> Path:
    """The flagfile of a recipe, in the installed package or in the checkout.

    Raises:
        flags.Error: no such recipe.
    """
    here = Path(__file__).parent
    folder = next(path for path in (here / "flags", here.parent / "flags") if path.is_dir())
    path = folder / f"{name}.flags"
    if not path.is_file():
        names = sorted(path.stem for path in folder.glob("*.flags"))
        raise flags.Error(f"There is no recipe {name!r}; there are {', '.join(names)}.")
    return path


def expand_recipe(argv: list[str]) -> list[str]:
    """Puts the flags of --recipe before all others, so that others override it."""
    for index, argument in enumerate(argv[1:], start=1):
        name, separator, value = argument.partition("=")
        if name not in ("--recipe", "-recipe"):
            continue
        if not separator:
            value = argv[index + 1] if index + 1 < len(argv) else ""
        return [argv[0], f"--flagfile={recipe_path(value)}", *argv[1:]]
    return argv


def model_dir(flag_values: flags.FlagValues) -> str:
    """--model_dir, or its default."""
    name = flag_values.recipe or flag_values.dataset.replace("/", "_").replace(":", "_")
    return flag_values.model_dir or f"runs/{name}"


def stage_flags(flag_values: flags.FlagValues, stage: str) -> dict[str, str]:
    """Name to `--name=value` for every flag that decides what the stage does."""
    return {
        name: flag_values[name].serialize()
        for name in STAGE_FLAGS[stage]
        if flag_values[name].value is not None
    }
