"""The flags of the loss of pretraining."""

from __future__ import annotations

from supcon_tf.cli.declare import define
from supcon_tf.cli.flag_types import Boolean, Enum, Integer, Number
from supcon_tf.data import defaults
from supcon_tf.losses.options import DENOMINATOR_WEIGHTINGS, LOSS_VARIANTS

define(
    "loss",
    Enum(["supcon", "npairs", "triplet", "max_margin", "cross_entropy"]),
    default="supcon",
    stages=("pretrain",),
    group="Loss",
    common=True,
    help="Loss of pretraining: supcon, npairs, triplet, max_margin or cross_entropy. cross_entropy "
    "trains the encoder with a linear classifier and needs --num_views=1; the eval stage uses that "
    "classifier unless the linear stage trains another. npairs, triplet and max_margin are "
    "baselines.",
    paper="supcon (Eq. 2)",
)
define(
    "loss_variant",
    Enum(list(LOSS_VARIANTS)),
    default=None,
    unset_means="the flags of the loss as they are",
    stages=("pretrain",),
    group="Loss",
    changes_result=False,
    help="A supervised contrastive loss of the literature by name. It sets the flags of the loss "
    "and prints them; docs/losses.md says which one fits which data.",
    paper="supcon (Eq. 2), supcon_in (Eq. 3)",
)
define(
    "temperature",
    Number(at_least=1e-4, at_most=1e4, advice="the paper uses 0.1"),
    default=0.1,
    stages=("pretrain",),
    group="Loss",
    common=True,
    help="Temperature that divides the similarities in the contrastive loss. Lower values give "
    "more weight to hard positives and negatives.",
    paper="0.1 (Section 4.4)",
)
define(
    "use_labels",
    Boolean(),
    default=True,
    stages=("pretrain",),
    group="Loss",
    common=True,
    help="Treat all examples of a class as positives; --nouse_labels is self-supervised, as "
    "SimCLR. Without labels, the only positives of an image are its own other views.",
    paper="true (Eq. 2)",
)
define(
    "contrast_mode",
    Enum(["all_views", "one_view"]),
    default="all_views",
    stages=("pretrain",),
    group="Loss",
    help="Which views serve as anchors of the contrastive loss. all_views: every view. one_view: "
    "the first view of each example, contrasted with all views.",
    paper="all_views (Eq. 2)",
)
define(
    "summation_location",
    Enum(["outside", "inside"]),
    default="outside",
    stages=("pretrain",),
    group="Loss",
    help="Whether the sum over positives is outside (Eq. 2) or inside (Eq. 3) the logarithm.",
    paper="outside; inside is 11 points less accurate on ImageNet (Table 1)",
)
define(
    "denominator_mode",
    Enum(["all", "one_positive", "only_negatives"]),
    default="all",
    stages=("pretrain",),
    group="Loss",
    help="Which pairs the denominator of the contrastive loss sums over. all: every other view. "
    "one_positive: the positive in the numerator and the negatives. only_negatives: the negatives.",
    paper="all (Eq. 2)",
)
define(
    "positives_cap",
    Integer(at_least=-1),
    default=-1,
    stages=("pretrain",),
    group="Loss",
    unit="positives",
    help="Maximum number of positives per anchor, in addition to the other views of the same "
    "image. -1 sets no limit; other values must be a multiple of --num_views.",
    paper="-1 (Table 5)",
)
define(
    "scale_by_temperature",
    Boolean(),
    default=True,
    stages=("pretrain",),
    group="Loss",
    help="Multiply the contrastive loss by the temperature, so that the size of its gradients does "
    "not depend on it.",
    paper="true (supplementary material)",
)
define(
    "epsilon",
    Number(at_least=0, at_most=1e4),
    default=0.0,
    stages=("pretrain",),
    group="Loss",
    help="Margin of the contrastive loss: positives count with exp(s - epsilon) in the "
    "denominator, with s the similarity divided by --temperature. 0 for no margin. Used with "
    "--denominator_mode=one_positive.",
)
define(
    "pair_weights",
    Enum(["jaccard", "hierarchy", "gaussian"]),
    default=None,
    unset_means="1 within a class and 0 otherwise",
    stages=("pretrain",),
    group="Loss",
    help="How much two images are positives of each other, from 0 to 1. jaccard: the labels that "
    "both have, over those that either has (--label_type=multi_label). hierarchy: the depth of "
    "their common ancestor (--label_type=hierarchy). gaussian: by the distance of their targets "
    "(--label_type=real).",
)
define(
    "gaussian_bandwidth",
    Number(above=0),
    default=None,
    unset_means="a quarter of the standard deviation of the training targets",
    stages=("pretrain",),
    group="Loss",
    help="Bandwidth of --pair_weights=gaussian, in the units of the targets. Two images whose "
    "targets differ by it have the weight 0.61; by twice as much, 0.14.",
)
define(
    "spread_weight",
    Number(at_least=0, at_most=1),
    default=0.0,
    stages=("pretrain",),
    group="Loss",
    help="Weight of a second loss that keeps the images of a class apart; the contrastive loss "
    "has the weight 1 - spread_weight. Use it for coarse classes that contain finer ones. Needs "
    "--num_views=2 or more.",
)
define(
    "denominator_weighting",
    Enum(list(DENOMINATOR_WEIGHTINGS)),
    default="example",
    stages=("pretrain",),
    group="Loss",
    help="What counts the same in the denominator of the contrastive loss. example: each view. "
    "class: each class of the batch, for classes of very different sizes.",
)
define(
    "loss_cache_mb",
    Number(at_least=0, at_most=1e6),
    default=192.0,
    stages=("pretrain",),
    group="Loss",
    changes_result=False,
    unit="megabytes per replica",
    help="Memory in which the contrastive loss keeps similarities for its gradient; what does not "
    "fit is computed again. It does not change the result. Used by batches of more than 512 images "
    "with two views.",
)
define(
    "queue_size",
    Integer(at_least=0, at_most=2**24),
    default=0,
    stages=("pretrain",),
    group="Loss",
    unit="keys",
    help="Number of past keys to keep as extra contrasts (0 disables the queue). Keys come from a "
    "copy of the encoder that follows it slowly (see --encoder_momentum). Use it to train with "
    "small batches. With --contrast_mode=one_view the first view is compared with keys of the "
    "other views, at half the cost.",
    paper="8192 with a batch of 256 (Section 4.4)",
)
define(
    "encoder_momentum",
    Number(at_least=0, below=1, advice="0.999 is usual"),
    default=0.999,
    stages=("pretrain",),
    group="Loss",
    help="Momentum of the encoder that makes the keys of --queue_size. In each step its weights "
    "become momentum * weights + (1 - momentum) * the encoder's weights.",
)
define(
    "cross_entropy_weight",
    Number(at_least=0, at_most=1e6),
    default=0.0,
    stages=("pretrain",),
    group="Loss",
    help="Weight of a cross-entropy loss to add to the contrastive loss (joint training). A linear "
    "classifier on the first view is trained with it; the eval stage uses that classifier unless "
    "the linear stage trains another. For color images in a folder or CSV file the default is 1.",
)
define(
    "stop_gradient_before_classifier",
    Boolean(),
    default=False,
    stages=("pretrain",),
    group="Loss",
    help="In joint training (see --cross_entropy_weight), train only the classifier with the "
    "cross-entropy and leave the encoder to the contrastive loss.",
)
define(
    "pretrain_label_smoothing",
    Number(at_least=0, at_most=1),
    default=0.0,
    stages=("pretrain",),
    group="Loss",
    help="Label smoothing of the cross-entropy in pretraining, with --loss=cross_entropy or "
    "--cross_entropy_weight. For a folder or CSV file with at least "
    f"{defaults.MANY_EXAMPLES:,} color images below 64 px and one view the default is 0.1.",
    paper="0.05 for ImageNet (released code)",
)
