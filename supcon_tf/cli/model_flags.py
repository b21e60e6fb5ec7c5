"""The flags of the encoder, the projection head and the weights that they start with."""

from __future__ import annotations

from supcon_tf.cli.declare import TRAINING_STAGES, define
from supcon_tf.cli.flag_types import (
    EPOCHS_MOST,
    Boolean,
    Enum,
    Integer,
    Number,
    NumberList,
    OneOf,
    Text,
)
from supcon_tf.data import defaults

GROUP = "Encoder and head"

define(
    "encoder",
    Text(),
    default="tiny",
    stages=("pretrain",),
    group=GROUP,
    common=True,
    help="Network to train: tiny, resnet_v1, resnext, one of Keras such as "
    "keras.applications.EfficientNetV2B0, or a pretrained one: a .keras file or the model "
    "directory of a run. tiny is a 7-layer ResNet for images of 8 to 32 pixels. resnet_v1 and "
    "resnext take --resnet_depth. For images of 64 pixels or more in a folder or CSV file, the "
    "default is resnet_v1 of depth 18 where the machine can train it. A .keras file maps float32 "
    "images in 0..255 to features; its image size decides --image_size. The resnet, first_conv, "
    "max_pool and whitening flags do not apply to networks of Keras or files.",
    paper="resnet_v1 (Table 2)",
)
define(
    "encoder_weights",
    Text(),
    default=None,
    unset_means="random weights, or those of the file that --encoder names",
    stages=("pretrain",),
    group="Starting weights",
    help="Weights that the encoder starts with: imagenet for a network of keras.applications, or a "
    ".weights.h5 or .keras file or the model directory of a run, for an encoder of the same "
    "architecture. Keras downloads the ImageNet weights to ~/.keras/models, or takes the file from "
    "there.",
)
define(
    "freeze_batch_norm",
    Boolean(),
    default=False,
    stages=("pretrain", "finetune"),
    group="Starting weights",
    help="Keep the batch norm layers of a pretrained encoder as they are: they normalize with "
    "their stored statistics, and statistics, scale and offset do not change. Use it to fine-tune "
    "with few images or small batches.",
)
define(
    "resnet_depth",
    OneOf((18, 34, 50, 101, 152, 200)),
    default=50,
    stages=("pretrain",),
    group=GROUP,
    unit="layers",
    common=True,
    help="Depth of --encoder=resnet_v1 and --encoder=resnext. resnext starts at 50.",
    paper="50, 101 and 200 (Table 3)",
)
define(
    "resnet_width",
    Integer(at_least=1, at_most=64),
    default=1,
    stages=("pretrain",),
    group=GROUP,
    help="Multiplier for the number of channels of resnet_v1 and resnext.",
    paper="1 (released code)",
)
define(
    "first_conv_kernel_size",
    Integer(at_least=1, at_most=64),
    default=None,
    unset_means="7 for images of 64 pixels or more, else 3",
    stages=("pretrain",),
    group=GROUP,
    unit="pixels",
    help="Kernel size of the first convolution of tiny, resnet_v1 and resnext.",
    paper="7 for ImageNet, 3 for CIFAR (released code)",
)
define(
    "first_conv_stride",
    Integer(at_least=1, at_most=64),
    default=None,
    unset_means="2 for images of 64 pixels or more, else 1",
    stages=("pretrain",),
    group=GROUP,
    unit="pixels",
    help="Stride of the first convolution of tiny, resnet_v1 and resnext.",
    paper="2 for ImageNet, 1 for CIFAR (released code)",
)
define(
    "use_initial_max_pool",
    Boolean(),
    default=None,
    unset_means="true for images of 64 pixels or more, else false",
    stages=("pretrain",),
    group=GROUP,
    help="Add a max pool after the first convolution of tiny, resnet_v1 and resnext.",
    paper="true for ImageNet, false for CIFAR (released code)",
)
define(
    "initial_max_pool_padding",
    Enum(["same", "symmetric"]),
    default="same",
    stages=("pretrain",),
    group=GROUP,
    help="Padding of the max pool after the first convolution. same pads as TensorFlow and the "
    "paper's code do; symmetric pads one pixel on every side as PyTorch does. Use symmetric to "
    "load weights of a torchvision ResNet, such as SupContrast's ImageNet checkpoint.",
)
define(
    "use_global_batch_norm",
    Boolean(),
    default=True,
    stages=("pretrain",),
    group=GROUP,
    help="Compute batch norm statistics over all replicas. With --nouse_global_batch_norm each "
    "replica uses its own, which is faster.",
    paper="true for ImageNet, false for SupCon on CIFAR-10 (released code)",
)
define(
    "whitening",
    Enum(["auto", "none", "given"]),
    default="auto",
    stages=("pretrain",),
    group=GROUP,
    help="Subtract a mean and divide by a standard deviation per color channel before the encoder. "
    "auto (the default) uses the known constants for CIFAR, measures them on training images for "
    "--dataset=folder, and does nothing for other data. given uses --whitening_mean and "
    "--whitening_std.",
    paper="CIFAR only (released code)",
)
define(
    "whitening_mean",
    NumberList(Number(at_least=-1, at_most=1), length=3),
    default=None,
    stages=("pretrain",),
    group=GROUP,
    help="Mean of red, green and blue for --whitening=given, of images scaled to [-1, 1].",
)
define(
    "whitening_std",
    NumberList(Number(at_least=1e-4, at_most=1), length=3),
    default=None,
    stages=("pretrain",),
    group=GROUP,
    help="Standard deviation of red, green and blue for --whitening=given, of images scaled to "
    "[-1, 1].",
)
define(
    "normalize_embedding",
    Boolean(),
    default=True,
    stages=TRAINING_STAGES,
    group=GROUP,
    decides_fitted_linear=True,
    help="L2-normalize the embedding before the projection head and the classifier. For a "
    f"folder or CSV file with at least {defaults.MANY_EXAMPLES:,} color images below 64 px, one "
    "view and a classifier that is trained with the encoder, the default is false.",
    paper="true (Section 3.1); false for CIFAR (released code)",
)
define(
    "projection_head_layers",
    NumberList(Integer(at_least=1, at_most=65_536)),
    default="128",
    stages=("pretrain",),
    group=GROUP,
    unit="features",
    common=True,
    help="Output size of each layer of the projection head, as 2048,128. The last size is that of "
    "the vectors that are contrasted.",
    paper="128 or 2048,128 (Section 3.1)",
)
define(
    "projection_head_use_batch_norm",
    Boolean(),
    default=False,
    stages=("pretrain",),
    group=GROUP,
    help="Add batch norm after every layer of the projection head except the last.",
)
define(
    "projection_head_use_batch_norm_beta",
    Boolean(),
    default=True,
    stages=("pretrain",),
    group=GROUP,
    help="Learn beta in the projection head's batch norm. Needs --projection_head_use_batch_norm.",
)
define(
    "zero_initialize_classifier",
    Boolean(),
    default=False,
    stages=("linear", "finetune"),
    group=GROUP,
    help="Initialize the classifier's kernel with zeros instead of Glorot uniform values.",
    paper="false for SupCon, true for SimCLR (released code)",
)
define(
    "online_probe",
    Boolean(),
    default=True,
    stages=("pretrain",),
    group="Pretraining",
    help="Train a linear classifier alongside pretraining. Its accuracy shows how good the "
    "embeddings are; it does not change the encoder. There is none with --label_type=real.",
)
define(
    "knn_interval_epochs",
    Number(at_least=0, at_most=EPOCHS_MOST),
    default=10.0,
    stages=("pretrain",),
    group="Pretraining",
    unit="epochs",
    changes_result=False,
    help="Epochs between k-nearest-neighbor evaluations of the embeddings on test images. 0 "
    "evaluates only at the end of pretraining.",
)
define(
    "reference_ckpt",
    Text(),
    default=None,
    stages=TRAINING_STAGES,
    group="Starting weights",
    common=True,
    decides_fitted_linear=True,
    help="Weights to start from: a finished run's --model_dir, an encoder's .keras file, or a .pth "
    "file. The .pth file is that of a SupContrast or torchvision ResNet. The linear and finetune "
    "stages use its encoder if --model_dir contains no pretrained one.",
)
define(
    "warm_start_encoder",
    Boolean(),
    default=True,
    stages=("pretrain",),
    group="Starting weights",
    help="Start pretraining with the encoder of --reference_ckpt.",
)
define(
    "warm_start_projection_head",
    Boolean(),
    default=False,
    stages=("pretrain",),
    group="Starting weights",
    help="Start pretraining with the projection head of --reference_ckpt.",
)
define(
    "warm_start_classifier",
    Boolean(),
    default=False,
    stages=("linear", "finetune"),
    group="Starting weights",
    help="Start the linear and finetune stages with the classifier of --reference_ckpt.",
)
define(
    "ignore_missing_checkpoint_vars",
    Boolean(),
    default=False,
    stages=TRAINING_STAGES,
    group="Starting weights",
    help="Keep the initial values of weights that --reference_ckpt lacks or has in another shape, "
    "and list them, instead of stopping with an error.",
)
