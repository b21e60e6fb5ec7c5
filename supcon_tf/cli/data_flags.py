"""The flags of the training data and of its batches."""

from __future__ import annotations

from supcon_tf.cli.declare import BATCH_STAGES, IMAGE_STAGES, TRAINING_STAGES, define
from supcon_tf.cli.flag_types import Boolean, Enum, Integer, NameList, Number, Text

# The stages that read images for another purpose than to inspect all of them.
TRAINING_READERS = tuple(stage for stage in IMAGE_STAGES if stage != "inspect")

define(
    "dataset",
    Text(),
    default="digits",
    stages=IMAGE_STAGES,
    group="Data",
    common=True,
    decides_fitted_linear=True,
    help="Training data: digits (bundled), folder (in --data_dir), csv (in --data_csv), or a "
    "TensorFlow Datasets name such as cifar10. The digits come with "
    "scikit-learn. A TensorFlow Datasets name must be an image classification dataset; it is "
    "downloaded if needed.",
    paper="imagenet2012, cifar10, cifar100",
)
define(
    "data_dir",
    Text(),
    default=None,
    stages=IMAGE_STAGES,
    group="Data",
    common=True,
    is_location=True,
    decides_fitted_linear=True,
    help="Directory of your own images: one folder per class, or train/ with one folder per class "
    "and optionally test/ and validation/. The last may also be named valid/ or val/; images are "
    "JPEG, PNG, WebP, BMP or GIF. A directory with such a layout implies --dataset=folder. With "
    "--dataset=csv: the directory that file names are relative to. With a TensorFlow Datasets "
    "name: the directory of the prepared datasets.",
)
define(
    "data_csv",
    Text(),
    default=None,
    stages=IMAGE_STAGES,
    group="Data",
    common=True,
    is_location=True,
    decides_fitted_linear=True,
    help="CSV file of images and labels, with the header filename,label. Implies "
    "--dataset=csv. File names are relative to the CSV file, or to --data_dir. An optional column "
    "split contains train, validation or test.",
)
define(
    "label_type",
    Enum(["class", "multi_label", "hierarchy", "real"]),
    default="class",
    stages=IMAGE_STAGES,
    group="Data",
    decides_fitted_linear=True,
    help="What the labels of --dataset=csv are: one class, several classes, a class per level, or "
    "a number. Numbers are class names unless it is real. multi_label: classes separated by | in "
    "one column, or a column of 0 and 1 per class. hierarchy: one of --label_columns per level, "
    "from coarse to fine; training uses the finest level, or all of them with "
    "--pair_weights=hierarchy. real: pretrain with --pair_weights=gaussian or --nouse_labels.",
)
define(
    "label_columns",
    NameList(),
    default="label",
    stages=IMAGE_STAGES,
    group="Data",
    decides_fitted_linear=True,
    help="Columns of --data_csv that contain the label. Several columns need "
    "--label_type=multi_label or --label_type=hierarchy.",
)
define(
    "validation_split",
    Number(at_least=0, below=1),
    default=None,
    unset_means="0.2 if there are neither validation nor test images, else 0",
    stages=IMAGE_STAGES,
    group="Data",
    decides_fitted_linear=True,
    help="Fraction of the training images to hold out for validation, with --dataset=folder or "
    "csv. Figures during training are then measured on these images. A file is held out because "
    "of its name and --seed alone, so it keeps its side when you add files. 0 holds out none.",
)
for split, alternative in (("train", ""), ("test", ", or validation if there is no test split")):
    define(
        f"{split}_split",
        Text(),
        default=None,
        unset_means=f"{split}{alternative}",
        stages=IMAGE_STAGES,
        group="Data",
        decides_fitted_linear=True,
        help=f"The {split} split of a TensorFlow Datasets name, in its own syntax, such as "
        "train[:80%] or train+validation. See https://www.tensorflow.org/datasets/splits.",
    )
define(
    "holdout_classes",
    NameList(),
    default=None,
    stages=TRAINING_READERS,
    group="Data",
    decides_fitted_linear=True,
    help="Classes to leave out of training, separated by commas. --mode=eval then measures how "
    "well the embeddings retrieve the held-out classes and how well the model notices them as "
    "unknown. Of a TensorFlow Datasets name, every label is read once to count the examples.",
)
define(
    "exclude",
    Text(),
    default=None,
    stages=TRAINING_READERS,
    group="Data",
    is_location=True,
    decides_fitted_linear=True,
    help="The issues.csv of --mode=inspect, with yes in the column confirmed of the images to "
    "leave out of every split. A relative path is looked up in the current directory, then in "
    "--model_dir. Not available for TensorFlow Datasets.",
)
define(
    "exclude_kinds",
    NameList(),
    default=None,
    stages=TRAINING_READERS,
    group="Data",
    decides_fitted_linear=True,
    help="Kinds of rows of --exclude to leave out without confirmation, separated by commas: "
    "mislabeled, contradiction, duplicate, leak, outlier or odd_image. Rows with no in the column "
    "confirmed are kept.",
)
define(
    "image_size",
    Integer(at_least=8, at_most=4_096),
    default=None,
    unset_means="the size of the data",
    stages=("pretrain", "preview"),
    group="Data",
    unit="pixels",
    common=True,
    help="Height and width of the images that the encoder sees. The default is at most 224, or at "
    "most 32 with --encoder=tiny, or 48 if the images of a folder or CSV file have 64 or more.",
    paper="224 for ImageNet, 32 for CIFAR (released code)",
)
define(
    "batch_size",
    Integer(at_least=1),
    default=64,
    stages=BATCH_STAGES,
    group="Data",
    unit="examples",
    common=True,
    help="Training examples per step, over all replicas. The contrastive loss gains from large "
    "batches. The default is lowered if the training split is smaller, and raised to 128 or 256 "
    "for a folder or CSV file with more than 32 or 100 classes.",
    paper="6144, or 4096 for ResNet-200; 2048 suffices for most purposes (Section 4.4)",
)
define(
    "num_images",
    Integer(at_least=0),
    default=0,
    stages=BATCH_STAGES,
    group="Data",
    unit="examples",
    decides_fitted_linear=True,
    help="Number of training examples to use; 0 uses all of them. The first examples of the split "
    "are taken; for a folder, the first of each class in turn.",
)
define(
    "images_per_class",
    Integer(at_least=0),
    default=0,
    stages=BATCH_STAGES,
    group="Data",
    unit="examples",
    decides_fitted_linear=True,
    help="Number of training examples of each class to use, the first of the split; 0 uses all of "
    "them. Unlike --num_images, it keeps the classes balanced for every kind of dataset.",
)
define(
    "label_noise_prob",
    Number(at_least=0, at_most=1),
    default=0.0,
    stages=(*BATCH_STAGES, "inspect"),
    group="Data",
    decides_fitted_linear=True,
    help="Fraction of training labels to replace by a random class, for experiments with noisy "
    "labels. Each replaced label stays the same in every epoch.",
)
define(
    "class_balanced",
    Boolean(),
    default=False,
    stages=BATCH_STAGES,
    group="Data",
    decides_fitted_linear=True,
    help="Draw every class equally often. Use it when some classes are rare. An epoch keeps its "
    "number of examples: examples of rare classes are repeated, and some of frequent classes are "
    "left out. Of TensorFlow Datasets it keeps the encoded images in memory, up to 2 GiB.",
)
define(
    "skip_broken_images",
    Boolean(),
    default=False,
    stages=TRAINING_READERS,
    group="Data",
    decides_fitted_linear=True,
    help="Skip image files that cannot be decoded, instead of stopping with an error. Decodes "
    "every file once before the run starts and lists those that it skips. For --dataset=folder, "
    "--dataset=csv, --embed_dir and --predict_dir.",
)
define(
    "max_image_megapixels",
    Number(above=0, at_most=10_000),
    default=50.0,
    stages=IMAGE_STAGES,
    group="Data",
    unit="megapixels",
    changes_result=False,
    decides_fitted_linear=True,
    help="Largest image to decode. The size is read from the file header first, because a small "
    "file can claim a size that fills the memory. Raise it for very large photographs.",
)
define(
    "microbatch_size",
    Integer(at_least=1),
    default=None,
    unset_means="the whole batch at once",
    stages=("pretrain",),
    group="Data",
    unit="examples per replica",
    help="Process each replica's batch in pieces of this size (gradient caching), for batches that "
    "do not fit into memory. The encoder runs twice; the loss still sees the whole batch. Batch "
    "norm then uses the statistics of each piece, so --nouse_global_batch_norm is required.",
)
define(
    "data_service",
    Text(),
    default=None,
    stages=TRAINING_STAGES,
    group="Data",
    changes_result=False,
    help="Address of a tf.data service dispatcher, as grpc://host:port, whose workers make the "
    "training batches. Use it when the input pipeline is slower than the training. Batches then "
    "come in any order, and a resumed run does not repeat them exactly.",
)
