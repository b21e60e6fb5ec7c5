"""The flags of the run, the model, the loss and the trainings."""

from __future__ import annotations

import dataclasses

from absl import flags

from supcon_tf.cli import flag_rules
from supcon_tf.cli.flag_types import EPOCHS_MOST, Integer, Number, NumberList, OneOf, Text, define
from supcon_tf.data import defaults

INTERVAL = Integer(at_least=1)
PROBABILITY = Number(at_least=0, at_most=1)
EPOCHS = Number(at_least=0, at_most=EPOCHS_MOST)
LINEAR_OPTIMIZER_HELP = (
    "How the linear stage finds its classifier. lbfgs: embed the training images once, without "
    "augmentation, and fit a logistic regression on the standardised features to its optimum; "
    "--class_balanced weighs the classes alike. The others train in steps, as in the paper, with "
    f"{', '.join(flag_rules.LINEAR_TRAINING_FLAGS)}; momentum is 0.9 where there is one. auto: "
    "momentum if any of these flags is given, else lbfgs. Embeddings and logits of more than 1 GiB "
    "are too many for lbfgs; auto then trains with momentum and says so."
)


# The flags that each training stage has of its own, by field of `TrainingFlags`.
NAMES = {
    "pretrain": {
        "epochs": "pretrain_epochs", "optimizer": "pretrain_optimizer",
        "base_learning_rate": "pretrain_base_learning_rate",
        "weight_decay": "pretrain_weight_decay", "rmsprop_epsilon": "pretrain_rmsprop_epsilon",
        "warmup_epochs": "pretrain_warmup_epochs", "warmup_start": "pretrain_warmup_start",
        "learning_rate_decay": "pretrain_learning_rate_decay",
        "decay_rate": "pretrain_decay_rate", "epochs_per_decay": "pretrain_epochs_per_decay",
        "decay_boundary_epochs": "pretrain_decay_boundary_epochs",
    },
    "linear": {
        "epochs": "linear_epochs", "optimizer": "linear_optimizer",
        "base_learning_rate": "linear_base_learning_rate", "weight_decay": "linear_weight_decay",
        "rmsprop_epsilon": "linear_rmsprop_epsilon", "warmup_epochs": "linear_warmup_epochs",
        "warmup_start": "linear_warmup_start",
        "learning_rate_decay": "linear_learning_rate_decay", "decay_rate": "linear_decay_rate",
        "epochs_per_decay": "linear_epochs_per_decay",
        "decay_boundary_epochs": "linear_decay_boundary_epochs",
    },
    "finetune": {
        "epochs": "finetune_epochs", "optimizer": "finetune_optimizer",
        "base_learning_rate": "finetune_base_learning_rate",
        "weight_decay": "finetune_weight_decay", "rmsprop_epsilon": "finetune_rmsprop_epsilon",
        "warmup_epochs": "finetune_warmup_epochs", "warmup_start": "finetune_warmup_start",
        "learning_rate_decay": "finetune_learning_rate_decay",
        "decay_rate": "finetune_decay_rate", "epochs_per_decay": "finetune_epochs_per_decay",
        "decay_boundary_epochs": "finetune_decay_boundary_epochs",
    },
}  # fmt: skip


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


def of_stage(flag_values: flags.FlagValues, stage: str) -> TrainingFlags:
    """Returns the values of a training stage's own flags (`NAMES` lists them).

    Args:
        flag_values: parsed flags.
        stage: "pretrain", "linear" or "finetune".
    """
    return TrainingFlags(**{field: flag_values[name].value for field, name in NAMES[stage].items()})


def define_run_flags(stages: tuple[str, ...]):
    flags.DEFINE_list(
        "mode",
        "pretrain,linear,eval",
        f"Stages to run, in this order: a comma-separated list of {', '.join(stages)}. SIGTERM "
        "and SIGINT finish the step, save and exit with 75 or 130; the same command resumes.",
    )
    define(
        "recipe",
        Text(),
        None,
        "Name of a recipe that comes with the package; other flags override it.",
    )
    define(
        "model_dir",
        Text(),
        None,
        "Directory of the run, where every stage writes its folder. Default: runs/<recipe>, else "
        "runs/<dataset>. Stages without pretrain in --mode take the dataset and the flags of the "
        "run that is there, unless the command line sets them.",
    )
    define("seed", Integer(at_least=0), 0, "All random numbers follow from it.")
    flags.DEFINE_enum(
        "strategy",
        "auto",
        ["auto", "one_device", "mirrored", "multi_worker", "tpu"],
        "mirrored: one replica per GPU (without GPUs: per logical CPU), contrast over all of "
        "them; multi_worker: over the processes that TF_CONFIG or SLURM names; auto: tpu with "
        "--tpu_name, multi_worker if there are several processes, mirrored for several GPUs, "
        "else one_device.",
    )
    define(
        "tpu_name",
        Text(),
        None,
        "Cloud TPU to use, or local on the TPU's own machine, or its grpc://.",
    )
    define("tpu_zone", Text(), None, "Its zone, if it is not that of this machine.")
    define("gcp_project", Text(), None, "Its project, if it is not that of this machine.")
    define(
        "logical_cpus",
        Integer(at_least=1, at_most=128),
        1,
        "Split the CPU into this many devices, to try mirrored.",
    )
    flags.DEFINE_enum(
        "precision",
        "float32",
        ["float32", "mixed_bfloat16", "mixed_float16"],
        "What the encoder and the head compute in. Weights, outputs and loss are float32 always; "
        "mixed_float16 scales the loss.",
    )
    flags.DEFINE_bool(
        "jit_compile", False, "Compile the step with XLA: for one GPU; slower on CPUs."
    )
    flags.DEFINE_bool(
        "deterministic", False, "Only operations that give the same bits every time; slower."
    )
    flags.DEFINE_bool(
        "use_global_batch_norm", True, "Batch norm statistics over all replicas, not each its own."
    )
    define(
        "steps_per_loop",
        INTERVAL,
        20,
        "Largest number of training steps per call of the compiled loop. Slow steps run in smaller "
        "groups, so that the progress is shown every two seconds. Does not change the result.",
    )
    define(
        "summary_interval_steps",
        INTERVAL,
        20,
        "Training steps between lines of metrics.jsonl. The progress shows, all of the last batch: "
        "loss; positives and negatives, the mean cosine similarity of projections of the same "
        "class (or image, with --nouse_labels) and of different ones, which separate as training "
        "works; probe, the accuracy of the online linear classifier; accuracy, that of a "
        "classifier that is trained; further k-NN, the accuracy of the last k-NN evaluation on "
        "test images, the speed, and the time left at that speed. metrics.jsonl holds "
        "collapse_ratio too, the loss divided by that of equal embeddings: it starts near 1 and "
        "stays well above 0 in a healthy run.",
    )
    define("save_interval_steps", INTERVAL, 200, "Steps between checkpoints.")
    define("max_checkpoints_to_keep", INTERVAL, 5, "Older ones are deleted.")
    flags.DEFINE_bool(
        "override_flags", False, "Go on with a stage although its flags differ from the saved ones."
    )


def define_model_flags():
    flags.DEFINE_enum(
        "whitening",
        "auto",
        ["auto", "none", "given"],
        "Subtract the mean and divide by the deviation of the images. auto: the known constants "
        "of CIFAR, for folder measured on training images, else none.",
    )
    means, deviations = Number(at_least=-1, at_most=1), Number(at_least=1e-4, at_most=1)
    for name, each in (("mean", means), ("std", deviations)):
        define(
            f"whitening_{name}",
            NumberList(each, length=3),
            None,
            f"For --whitening=given: {name} of red, green and blue, of images in [-1, 1].",
        )
    define(
        "encoder",
        Text(),
        "tiny",
        "tiny: a 7-layer ResNet for images of 8 to 32 pixels; resnet_v1 or resnext as in the "
        "paper; or a network of Keras, untrained, such as keras.applications.EfficientNetV2B0. "
        "That prepares images in its own way: the resnet, stem and whitening flags are not for it.",
    )
    define(
        "resnet_depth",
        OneOf((18, 34, 50, 101, 152, 200)),
        50,
        "18, 34, 50, 101, 152 or 200; ResNeXt from 50.",
    )
    define("resnet_width", Integer(at_least=1, at_most=64), 1, "Multiplies the channels.")
    define(
        "first_conv_kernel_size",
        Integer(at_least=1, at_most=64),
        None,
        "Kernel size of the first convolution of tiny, resnet_v1 and resnext. The default follows "
        "the image size: 7 from 64 pixels (as for ImageNet), 3 below (as for CIFAR).",
    )
    define(
        "first_conv_stride",
        Integer(at_least=1, at_most=64),
        None,
        "Stride of the first convolution of tiny, resnet_v1 and resnext. The default follows the "
        "image size: 2 from 64 pixels, 1 below.",
    )
    flags.DEFINE_bool(
        "use_initial_max_pool",
        None,
        "Whether a max pool follows the first convolution of tiny, resnet_v1 and resnext. The "
        "default follows the image size: true from 64 pixels, false below.",
    )
    flags.DEFINE_enum(
        "initial_max_pool_padding",
        "same",
        ["same", "symmetric"],
        "Padding of the initial max pool. same pads as TensorFlow and the paper's code do; "
        "symmetric pads one pixel on every side as PyTorch does. Use symmetric to load weights of "
        "a torchvision ResNet, such as SupContrast's ImageNet checkpoint.",
    )
    define(
        "projection_head_layers",
        NumberList(Integer(at_least=1, at_most=65_536)),
        "128",
        "Sizes of the projection head's layers, as 2048,128.",
    )
    flags.DEFINE_bool("projection_head_use_batch_norm", False, "Batch norm between the layers.")
    flags.DEFINE_bool("projection_head_use_batch_norm_beta", True, "... with a learned offset.")
    flags.DEFINE_bool(
        "normalize_embedding", True, "L2-normalise the encoder's output before head and classifier."
    )
    flags.DEFINE_bool("zero_initialize_classifier", False, "Zeros instead of Glorot uniform.")
    flags.DEFINE_bool(
        "online_probe",
        True,
        "Train a linear classifier beside pretraining, "
        "which shows how good the embeddings are and does not change the encoder.",
    )
    define(
        "knn_interval_epochs",
        EPOCHS,
        10.0,
        "Epochs between evaluations of the embeddings by k-nearest neighbours on test images; 0 "
        "evaluates only at the end.",
    )


def define_warm_start_flags():
    define(
        "reference_ckpt",
        Text(),
        None,
        "Weights to start from: the model directory of a finished run, or an encoder's .keras "
        "file, or the .pth of a SupContrast or torchvision ResNet. linear and finetune take its "
        "encoder when --model_dir holds no pretrained one.",
    )
    flags.DEFINE_bool("warm_start_encoder", True, "pretrain starts with its encoder.")
    flags.DEFINE_bool(
        "warm_start_projection_head", False, "pretrain starts with its projection head."
    )
    flags.DEFINE_bool(
        "warm_start_classifier", False, "linear and finetune start with its linear head."
    )
    flags.DEFINE_bool(
        "ignore_missing_checkpoint_vars",
        False,
        "List weights that it lacks or has in another shape, and keep their initial values.",
    )


def define_loss_flags():
    flags.DEFINE_enum(
        "loss",
        "supcon",
        ["supcon", "npairs", "triplet", "max_margin", "cross_entropy"],
        "What pretraining minimises. cross_entropy trains the encoder with a linear classifier "
        "and takes --num_views=1; eval uses that classifier unless the linear stage makes another.",
    )
    define(
        "cross_entropy_weight",
        Number(at_least=0, at_most=1e6),
        0.0,
        "Joint training: adds this times the cross-entropy of a linear classifier on view 0 to the "
        "loss of pretraining. eval uses that classifier unless the linear stage makes another.",
    )
    flags.DEFINE_bool(
        "stop_gradient_before_classifier",
        False,
        "In joint training the classifier learns and leaves the encoder alone.",
    )
    define(
        "pretrain_label_smoothing",
        PROBABILITY,
        0.0,
        "Label smoothing of the cross-entropy in pretraining.",
    )
    flags.DEFINE_bool("use_labels", True, "false: self-supervised, SimCLR.")
    define(
        "temperature",
        Number(at_least=1e-4, at_most=1e4, advice="the paper uses 0.1"),
        0.1,
        "Temperature of the contrastive loss, above 0.",
    )
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
    define(
        "positives_cap",
        Integer(at_least=-1),
        -1,
        "Positives beside an example's own views; a multiple of --num_views.",
    )
    flags.DEFINE_bool("scale_by_temperature", True, "Multiply the loss by the temperature.")
    define(
        "queue_size",
        Integer(at_least=0, at_most=2**24),
        0,
        "Number of past keys to keep as extra contrasts, made by a network that follows the "
        "encoder; for small batches. 0: with the batch alone. With --contrast_mode=one_view view "
        "0 is compared with keys of the other views, at half the cost.",
    )
    define(
        "encoder_momentum",
        Number(at_least=0, below=1, advice="0.999 is usual"),
        0.999,
        "With --queue_size: the share that the following network keeps of itself in each step.",
    )
    define(
        "label_smoothing", PROBABILITY, 0.0, "Label smoothing of the linear and finetune stages."
    )
    flags.DEFINE_bool("use_bias_weight_decay", True, "Whether biases decay too.")
    for part in ("encoder", "projection_head"):
        name = part.replace("_", " ")
        flags.DEFINE_bool(
            f"pretrain_use_{part}_weight_decay", True, f"Whether the {name} decays in pretraining."
        )


def define_stage_flags(stage, *, optimizer, learning_rate, epochs, warmup, rmsprop_epsilon):
    length = f"Length of the {stage} stage."
    optimizers = ["momentum", "nesterov", "lars", "rmsprop", "adam", "adamw", "lamb"]
    optimizer_help = "Momentum is 0.9 where there is one."
    if stage == "pretrain":
        length = f"Length of the pretrain stage. Default: {defaults.describe_pretrain_epochs()}"
    if stage == "linear":
        length += " 0 keeps the classifier that pretraining trained, if it trained one."
        optimizers = ["auto", "lbfgs", *optimizers]
        optimizer_help = LINEAR_OPTIMIZER_HELP
    define(f"{stage}_epochs", EPOCHS, epochs, length)
    flags.DEFINE_enum(f"{stage}_optimizer", optimizer, optimizers, optimizer_help)
    define(
        f"{stage}_base_learning_rate",
        Number(at_least=0, at_most=1e6),
        learning_rate,
        "Per 256 examples: the learning rate is this times batch_size / 256.",
    )
    define(
        f"{stage}_weight_decay",
        Number(at_least=0, at_most=1e3),
        0.0,
        "L2 (adamw and lamb: decoupled from the gradient); never on batch norm.",
    )
    define(
        f"{stage}_rmsprop_epsilon",
        Number(at_least=1e-12, at_most=1e6),
        rmsprop_epsilon,
        "Inside rmsprop's square root.",
    )
    define(
        f"{stage}_warmup_epochs",
        EPOCHS,
        warmup,
        f"Epochs over which the learning rate of the {stage} stage rises linearly to its "
        "peak. The default is cut to the length of a shorter stage.",
    )
    define(
        f"{stage}_warmup_start",
        PROBABILITY,
        0.0,
        f"Learning rate at the start of the {stage} stage's warm-up, as a share of the peak. "
        "SupContrast starts at 0.01, which is 0.02 of its peak of 0.5.",
    )
    flags.DEFINE_enum(
        f"{stage}_learning_rate_decay",
        "cosine",
        ["cosine", "cosine_per_epoch", "exponential", "piecewise", "none"],
        f"How the learning rate of the {stage} stage decays after the warm-up. cosine: to 0 with "
        "every step. cosine_per_epoch: as SupContrast, one rate per epoch, counted from the "
        f"start of the stage, down to the cube of --{stage}_decay_rate.",
    )
    define(
        f"{stage}_decay_rate",
        Number(above=0, at_most=1),
        0.1,
        f"Factor of each exponential or piecewise drop in the {stage} stage; cosine_per_epoch ends "
        "at its cube.",
    )
    define(
        f"{stage}_epochs_per_decay",
        Number(above=0, at_most=EPOCHS_MOST),
        2.4,
        "Length of an exponential stair.",
    )
    define(
        f"{stage}_decay_boundary_epochs",
        NumberList(Number(above=0, at_most=EPOCHS_MOST), increasing="strictly"),
        "30,60,80,90",
        "Where piecewise drops, in epochs after the warm-up.",
    )
