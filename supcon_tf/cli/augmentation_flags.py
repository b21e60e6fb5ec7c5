"""The flags of random crops and augmentation, and of the crop for evaluation."""

from __future__ import annotations

from supcon_tf.cli.declare import BATCH_STAGES, EVALUATING_STAGES, define
from supcon_tf.cli.flag_types import Boolean, Enum, Integer, Number, NumberList

PROBABILITY = Number(at_least=0, at_most=1)
AREA_RANGE = NumberList(Number(above=0, at_most=1), length=2, increasing="or equal")
POLICIES = Enum(
    [
        "autoaugment", "autoaugment_cifar10", "autoaugment_svhn", "randaugment", "simclr",
        "stacked_randaugment", "identity",
    ]
)  # fmt: skip

define(
    "num_views",
    Integer(at_least=1, at_most=100),
    default=2,
    stages=("pretrain", "preview"),
    group="Augmentation",
    unit="views",
    help="Number of augmented views of each example in pretraining. For small color images of few "
    "classes in a folder or CSV file the default is 1.",
    paper="2 (Section 3.1)",
)
define(
    "augmentation_type",
    POLICIES,
    default="simclr",
    stages=("pretrain", "preview"),
    group="Augmentation",
    common=True,
    help="Augmentation policy applied to each view after the random crop and flip in pretraining. "
    "simclr jitters colors. The autoaugment policies use the learned tables for ImageNet, CIFAR-10 "
    "and SVHN. stacked_randaugment combines randaugment with color jitter. identity applies none. "
    "--mode=preview draws a picture of the result.",
    paper="autoaugment for ResNet-50, stacked_randaugment for ResNet-101 and ResNet-200 (Table 3)",
)
define(
    "linear_augmentation_type",
    POLICIES,
    default="identity",
    stages=("linear",),
    group="Augmentation",
    help="Augmentation policy applied to training images of the linear stage after the random crop "
    "and flip. Used when the linear stage trains in steps.",
    paper="autoaugment (Table 9)",
)
define(
    "finetune_augmentation_type",
    POLICIES,
    default="identity",
    stages=("finetune",),
    group="Augmentation",
    help="Augmentation policy applied to training images of the finetune stage after the random "
    "crop and flip.",
)
define(
    "augmentation_magnitude",
    Number(at_least=0, at_most=10),
    default=0.5,
    stages=BATCH_STAGES,
    group="Augmentation",
    help="Strength of the augmentation. For simclr: strength of the color jitter, 0.5 for CIFAR "
    "and 1.0 for ImageNet in the paper's code. For randaugment: level of the operations, up to 10, "
    "which you must give. "
    "The tables of AutoAugment have their own levels. 0 turns off every augmentation policy.",
)
define(
    "augmentation_compat",
    Enum(["pillow", "reference"]),
    default="pillow",
    stages=BATCH_STAGES,
    group="Augmentation",
    help="Which implementation the augmentation operations match. pillow: equal to Pillow, with "
    "distances that scale with the image size, and resized values rounded to the nearest integer. "
    "reference: equal to the library of the paper's code, which truncates resized values; use it "
    "to reproduce published recipes.",
)
define(
    "randaugment_num_layers",
    Integer(at_least=1, at_most=100),
    default=2,
    stages=BATCH_STAGES,
    group="Augmentation",
    unit="operations",
    help="Number of operations that randaugment applies to each view. stacked_randaugment always "
    "applies two.",
)
define(
    "stacked_randaugment_magnitude",
    Number(above=0, at_most=10),
    default=10.0,
    stages=BATCH_STAGES,
    group="Augmentation",
    help="Level of the RandAugment operations within stacked_randaugment, up to 10. "
    "--augmentation_magnitude is the strength of its color jitter.",
    paper="varied in the supplement; 10 in the released code",
)
define(
    "use_pytorch_color_jitter",
    Boolean(),
    default=False,
    stages=BATCH_STAGES,
    group="Augmentation",
    help="Jitter colors as torchvision does instead of as TensorFlow does.",
    paper="true for CIFAR (released code)",
)
define(
    "warp_probability",
    PROBABILITY,
    default=0.0,
    stages=BATCH_STAGES,
    group="Augmentation",
    help="Probability of a random spline warp in simclr and stacked_randaugment.",
    paper="0 (released code)",
)
define(
    "blur_probability",
    PROBABILITY,
    default=0.0,
    stages=BATCH_STAGES,
    group="Augmentation",
    help="Probability of a Gaussian blur after simclr or stacked_randaugment. Use it for "
    "photographs of 64 pixels or more.",
    paper="0.5 for ImageNet, 0 for CIFAR (released code)",
)
define(
    "crop_area_range",
    AREA_RANGE,
    default="0.5,1.0",
    stages=("pretrain", "preview"),
    group="Augmentation",
    unit="fraction of the image area",
    common=True,
    help="Smallest and largest random crop in pretraining, as low,high. Lower the first number for "
    "photographs, where an object is recognizable by a part of it.",
    paper="0.08,1 for ImageNet, 0.2,1 for CIFAR (released code)",
)
for stage, name in (
    ("linear", "linear_crop_area_range"),
    ("finetune", "finetune_crop_area_range"),
):
    define(
        name,
        AREA_RANGE,
        default="0.8,1.0",
        stages=(stage,),
        group="Augmentation",
        unit="fraction of the image area",
        help=f"Smallest and largest random crop in the {stage} stage, as low,high. The default is "
        "milder than in pretraining, because evaluation images are cropped only a little.",
    )
define(
    "crop_compat",
    Enum(["reference", "torchvision"]),
    default="reference",
    stages=BATCH_STAGES,
    group="Augmentation",
    help="How random crops are drawn. reference: as in the paper's TensorFlow code "
    "(tf.image.sample_distorted_bounding_box), with uniform heights and at least a tenth of the "
    "image. torchvision: as RandomResizedCrop in SupContrast, with uniform areas, so that crops "
    "are larger on average. Neither antialiases images that it shrinks.",
)
define(
    "fast_decode",
    Boolean(),
    default=False,
    stages=BATCH_STAGES,
    group="Augmentation",
    help="Decode a JPEG file at 1/2, 1/4 or 1/8 of its size if all its crops stay at least about "
    "--image_size pixels high and wide. This saves time if photographs are several times as large "
    "as --image_size. It changes the views: the image is smoothed before it is resized. "
    "Evaluation, and a linear stage that embeds the images once, decode all pixels.",
)
define(
    "horizontal_flip",
    Enum(["auto", "true", "false"]),
    default="auto",
    stages=BATCH_STAGES,
    group="Augmentation",
    help="Mirror each view with probability 0.5. auto (the default) mirrors unless the classes are "
    "digits or letters.",
)
define(
    "eval_crop_method",
    Enum(["auto", "resize_then_crop", "crop_then_resize", "crop_then_distort", "identity"]),
    default="auto",
    stages=EVALUATING_STAGES,
    group="Augmentation",
    decides_fitted_linear=True,
    help="How to crop evaluation images. auto (the default) keeps images that already have the "
    "target size and takes the central 7/8 of larger ones. resize_then_crop, crop_then_resize and "
    "crop_then_distort are those of the paper's code and use --crop_padding. identity requires "
    "images of the target size.",
    paper="resize_then_crop for ImageNet, identity for CIFAR (released code)",
)
define(
    "crop_padding",
    Integer(at_least=0, at_most=4_096),
    default=32,
    stages=EVALUATING_STAGES,
    group="Augmentation",
    unit="pixels",
    decides_fitted_linear=True,
    help="Border that is cropped from evaluation images: with --eval_crop_method=resize_then_crop "
    "the short side is resized to image_size + crop_padding before the central crop. auto and "
    "identity ignore it.",
    paper="32 for ImageNet, 0 for CIFAR (released code)",
)
define(
    "preview_examples",
    Integer(at_least=1, at_most=1_000),
    default=8,
    stages=("preview",),
    group="Augmentation",
    unit="rows",
    help="Number of training images, one per row, in the picture that --mode=preview draws.",
)
