"""The flags of data and augmentation."""

from __future__ import annotations

from absl import flags

from supcon_tf.cli.flag_types import Integer, Number, NumberList, Text, define

PROBABILITY = Number(at_least=0, at_most=1)
AREA_RANGE = NumberList(Number(above=0, at_most=1), length=2, increasing="or equal")


def define_data_flags():
    define(
        "dataset",
        Text(),
        "digits",
        "digits (embedded), folder (JPEG and PNG files under --data_dir), or the name of a "
        "TensorFlow Datasets image classification dataset.",
    )
    define(
        "data_dir",
        Text(),
        None,
        "For --dataset=folder, which it implies if it looks like one: the directory that holds "
        "train/ and test/ (or validation/ or val/), each with one folder of images per class. For "
        "a TensorFlow Datasets name: the directory with the prepared datasets.",
    )
    define(
        "data_service",
        Text(),
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
    define(
        "max_image_megapixels",
        Number(above=0, at_most=10_000),
        50.0,
        "Refuse images of more megapixels than this, by their header, before they are decoded: "
        "a small file can claim a size that fills the memory.",
    )
    define(
        "num_images",
        Integer(at_least=0),
        0,
        "Train on the first so many examples (of a folder: of each class in turn); 0: on all.",
    )
    define(
        "label_noise_prob",
        PROBABILITY,
        0.0,
        "Share of training labels replaced by a class drawn from all, the same in every epoch.",
    )
    flags.DEFINE_bool(
        "class_balanced",
        False,
        "Draw every class equally often. An epoch is still as many examples as there are: those "
        "of rare classes come several times, of frequent classes not all. Not for TFDS.",
    )
    define(
        "batch_size",
        Integer(at_least=1),
        64,
        "Examples per step over all replicas. The default is lowered to a smaller training split.",
    )
    define(
        "microbatch_size",
        Integer(at_least=1),
        None,
        "Gradient caching, for batches whose activations do not fit: the encoder sees so many "
        "examples of a replica's batch at once, twice; the loss sees the whole batch. Batch norm "
        "statistics are then per piece (moving averages are updated once per image), so it needs "
        "--nouse_global_batch_norm.",
    )
    define(
        "eval_batch_size", Integer(at_least=1, at_most=65_536), 256, "Examples per evaluation step."
    )
    define(
        "image_size",
        Integer(at_least=8, at_most=4_096),
        None,
        "Side in pixels. Default: that of the data, at most 224, with the tiny encoder 32.",
    )
    flags.DEFINE_enum(
        "eval_crop_method",
        "auto",
        ["auto", "resize_then_crop", "crop_then_resize", "crop_then_distort", "identity"],
        "Of images that are evaluated. auto: those of the right size as they are, of larger "
        "ones the central 7/8; the others as in the reference, with --crop_padding.",
    )
    define(
        "crop_padding",
        Integer(at_least=0, at_most=4_096),
        32,
        "Pixels that evaluation cuts off the short side resized to image_size + crop_padding.",
    )
    define("num_views", Integer(at_least=1, at_most=100), 2, "Augmented views of each example.")
    define(
        "crop_area_range",
        AREA_RANGE,
        "0.5,1.0",
        "Share of the image that a random crop covers: low,high.",
    )
    for stage in ("linear", "finetune"):
        define(
            f"{stage}_crop_area_range",
            AREA_RANGE,
            "0.8,1.0",
            f"The same for the {stage} stage, whose test images are cropped little.",
        )
    flags.DEFINE_enum(
        "crop_compat",
        "reference",
        ["reference", "torchvision"],
        "How random crops for training are drawn. reference: as the paper's TensorFlow code "
        "(tf.image.sample_distorted_bounding_box: heights uniform, at least a tenth of the "
        "image). torchvision: as RandomResizedCrop in SupContrast (areas uniform, so crops are "
        "larger on average). Images that are reduced in size are not antialiased.",
    )
    flags.DEFINE_enum(
        "horizontal_flip",
        "auto",
        ["auto", "true", "false"],
        "Mirror views with probability 0.5; auto: unless the classes are digits or letters.",
    )


def define_augmentation_flags():
    types = [
        "autoaugment", "autoaugment_cifar10", "autoaugment_svhn", "randaugment", "simclr",
        "stacked_randaugment", "identity",
    ]  # fmt: skip
    flags.DEFINE_enum("augmentation_type", "simclr", types, "What views meet after crop and flip.")
    for stage in ("linear", "finetune"):
        flags.DEFINE_enum(
            f"{stage}_augmentation_type", "identity", types, f"The same for the {stage} stage."
        )
    define(
        "augmentation_magnitude",
        Number(at_least=0, at_most=10),
        0.5,
        "simclr: strength of the jitter, 1.0 for ImageNet; randaugment: level up to 10. "
        "AutoAugment's tables carry their own. 0 turns every augmentation off.",
    )
    flags.DEFINE_enum(
        "augmentation_compat",
        "pillow",
        ["pillow", "reference"],
        "pillow: operations equal Pillow's, distances scale with the image, and crops are rounded "
        "to the nearest level; reference: as the library that the published recipes used, which "
        "drops fractions when it resizes.",
    )
    define("randaugment_num_layers", Integer(at_least=1, at_most=100), 2, "Operations per view.")
    flags.DEFINE_bool(
        "use_pytorch_color_jitter", False, "torchvision's colour jitter instead of TensorFlow's."
    )
    define(
        "warp_probability",
        PROBABILITY,
        0.0,
        "Of the spline warp in simclr and stacked_randaugment; 0 in the published recipes.",
    )

    define(
        "preview_examples",
        Integer(at_least=1, at_most=1_000),
        8,
        "Rows of the picture that --mode=preview makes.",
    )
    define(
        "blur_probability",
        PROBABILITY,
        0.0,
        "Of the Gaussian blur at the end of simclr and stacked_randaugment in training; 0.5 for "
        "ImageNet, 0 for CIFAR in the published recipes.",
    )
