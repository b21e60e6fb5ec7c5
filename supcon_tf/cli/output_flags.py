"""The flags of what is done with a trained encoder: evaluation and embeddings."""

from __future__ import annotations

from supcon_tf.cli.declare import EVALUATING_STAGES, define
from supcon_tf.cli.flag_types import Enum, Integer, NameList, Text

GROUP = "Evaluation and embeddings"
# The stages that can read other data than that of the run.
OTHER_DATA_STAGES = ("eval", "embed", "report", "robustness")

define(
    "eval_batch_size",
    Integer(at_least=1, at_most=65_536),
    default=256,
    stages=EVALUATING_STAGES,
    group=GROUP,
    unit="examples",
    changes_result=False,
    decides_fitted_linear=True,
    help="Images per step wherever no training happens. Lower it if evaluation runs out of memory; "
    "it does not change any result.",
)
define(
    "eval_train_examples",
    Integer(at_least=0),
    default=10_000,
    stages=("eval",),
    group=GROUP,
    unit="examples",
    help="Number of training examples for the k-NN and logistic regression of --mode=eval, spread "
    "over the training split. 0 skips both.",
)
define(
    "eval_similarity_examples",
    Integer(at_least=0),
    default=10_000,
    stages=("eval",),
    group=GROUP,
    unit="examples",
    help="Number of test examples for the retrieval and geometry of --mode=eval, spread over the "
    "test split. Every pair is compared, so the time grows with the square. 0 skips both.",
)
define(
    "ood_dataset",
    Text(),
    default=None,
    unset_means="none, or folder with --ood_data_dir",
    stages=("eval",),
    group=GROUP,
    help="Dataset of images unlike the training images, to measure in --mode=eval how well the "
    "model notices them (out-of-distribution detection). folder (all images below --ood_data_dir), "
    "or a dataset as for --dataset, whose test split is used. Labels are ignored.",
)
define(
    "ood_data_dir",
    Text(),
    default=None,
    stages=("eval",),
    group=GROUP,
    help="Folder of images unlike the training images, for --ood_dataset. With a TensorFlow "
    "Datasets name: the directory of the prepared datasets.",
)
define(
    "eval_dataset",
    Text(),
    default=None,
    unset_means="the dataset of the run, or folder with --eval_data_dir",
    stages=OTHER_DATA_STAGES,
    group=GROUP,
    help="Dataset to evaluate or embed instead of the one that the run was trained on, in "
    "--mode=eval, embed and robustness. Accepts the same values as --dataset; classes are matched "
    "by name.",
)
define(
    "eval_data_dir",
    Text(),
    default=None,
    stages=OTHER_DATA_STAGES,
    group=GROUP,
    common=True,
    help="Directory of other images for --mode=eval, embed and robustness, laid out like "
    "--data_dir. Belongs to --eval_dataset.",
)
define(
    "eval_data_csv",
    Text(),
    default=None,
    stages=OTHER_DATA_STAGES,
    group=GROUP,
    help="CSV file of other images for --mode=eval, embed and robustness, like --data_csv. Belongs "
    "to --eval_dataset=csv; --label_type and --label_columns apply to it.",
)
define(
    "eval_split",
    Text(),
    default=None,
    unset_means="test",
    stages=OTHER_DATA_STAGES,
    group=GROUP,
    help="Split to evaluate or embed in --mode=eval, embed and robustness: train, validation or "
    "test. Of a TensorFlow Datasets name also in its own syntax, such as test[:10%]. Without a "
    "test split, test means the validation split.",
)
define(
    "embed_split",
    Enum(["train", "validation", "test"]),
    default=None,
    unset_means="test",
    stages=("embed",),
    group=GROUP,
    help="Split of --dataset to embed in --mode=embed.",
)
define(
    "embed_dir",
    Text(),
    default=None,
    stages=("embed",),
    group=GROUP,
    help="Folder of unlabeled JPEG and PNG images to embed with --mode=embed, instead of "
    "--dataset. Includes all subfolders.",
)
define(
    "predict_dir",
    Text(),
    default=None,
    stages=("predict",),
    group=GROUP,
    common=True,
    help="Folder of images without labels whose classes to predict with --mode=predict. Includes "
    "all subfolders. The answers are written to predict/predictions.csv and predictions.jsonl.",
)
define(
    "predict_top_k",
    Integer(at_least=1),
    default=5,
    stages=("predict",),
    group=GROUP,
    unit="classes",
    help="Number of most probable classes that --mode=predict lists for each image; at most all.",
)
define(
    "predict_neighbors",
    Integer(at_least=0),
    default=5,
    stages=("predict",),
    group=GROUP,
    unit="images",
    help="Number of most similar training images that --mode=predict lists for each image. 0 lists "
    "none; with a classifier, the training images are then not needed.",
)
define(
    "compare",
    NameList(),
    default=None,
    stages=("report",),
    group=GROUP,
    help="Model directories of other runs, separated by commas, that --mode=report shows beside "
    "this run: their flags, figures and curves, and the difference in accuracy on the same test "
    "images with its paired 95% interval.",
)
define(
    "inspect_features",
    Enum(["auto", "encoder", "pixels"]),
    default="auto",
    stages=("inspect",),
    group=GROUP,
    help="What --mode=inspect compares images by, to find wrong labels and outliers: the run's "
    "encoder or the pixels. auto uses the encoder if the run has one. Duplicates are always "
    "confirmed by their pixels.",
)
define(
    "robustness_examples",
    Integer(at_least=0),
    default=10_000,
    stages=("robustness",),
    group=GROUP,
    unit="examples",
    help="Number of test examples that --mode=robustness corrupts, spread over the test split. 0 "
    "uses all. Each is corrupted up to 75 times, which takes about 0.3 s at 32 pixels and 10 s at "
    "224 pixels: see --robustness_workers.",
)
define(
    "robustness_workers",
    Integer(at_least=1, at_most=1024),
    default=1,
    stages=("robustness",),
    group=GROUP,
    unit="processes",
    changes_result=False,
    help="Processes that corrupt images in --mode=robustness; 1 means the main process. Raise it "
    "up to the number of CPU cores; each process needs about 0.3 GB. It does not change any "
    "result.",
)
define(
    "robustness_baseline",
    Text(),
    default=None,
    unset_means="alexnet for imagenet2012, else none",
    stages=("robustness",),
    group=GROUP,
    help="Classifier whose error rates mCE and relative mCE of --mode=robustness are divided by: "
    "alexnet (published error rates on ImageNet-C), none, or a JSON file such as the "
    "robustness.json of another run.",
    paper="AlexNet (Fig. 3)",
)
