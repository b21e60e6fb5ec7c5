"""The flags of the run as a whole: stages, directories, checkpoints, logs and devices."""

from __future__ import annotations

from supcon_tf.cli.declare import IMAGE_STAGES, STAGES, TRAINING_STAGES, define
from supcon_tf.cli.flag_types import Boolean, Enum, Integer, NameList, NumberList, Text

INTERVAL = Integer(at_least=1)

define(
    "mode",
    NameList(),
    default="pretrain,linear,eval",
    stages=(),
    group="Run",
    common=True,
    help=f"Stages to run, in this order: any of {', '.join(STAGES)}. SIGTERM and SIGINT finish "
    "the current step, save a checkpoint and exit with status 75 or 130; run the same command "
    "again to resume.",
)
define(
    "recipe",
    Text(),
    default=None,
    stages=(),
    group="Run",
    common=True,
    help="Set of flags that comes with the package, such as supcon_cifar10_resnet50. Flags on the "
    "command line override the recipe. A wrong name prints the list of recipes.",
)
define(
    "model_dir",
    Text(),
    default=None,
    unset_means="runs/<recipe or dataset>",
    stages=(),
    group="Run",
    common=True,
    help="Directory of the run, where each stage writes to its own folder. If --mode does not "
    "include pretrain, the dataset and the other flags are taken from the run in this directory, "
    "except those given on the command line.",
)
define(
    "seed",
    Integer(at_least=0),
    default=0,
    stages=IMAGE_STAGES,
    group="Run",
    decides_fitted_linear=True,
    help="Seed of all random numbers. The same seed gives the same batches, initial weights and "
    "--validation_split.",
)
define(
    "override_flags",
    Boolean(),
    default=False,
    stages=(),
    group="Run",
    help="Resume even if the flags have changed. Without it, a stage whose flags differ from the "
    "saved ones stops with an error that lists the differences.",
)
define(
    "save_interval_steps",
    INTERVAL,
    default=200,
    stages=TRAINING_STAGES,
    group="Checkpoints and logs",
    unit="steps",
    changes_result=False,
    help="Training steps between checkpoints. A killed run resumes from the newest checkpoint.",
)
define(
    "max_checkpoints_to_keep",
    INTERVAL,
    default=5,
    stages=TRAINING_STAGES,
    group="Checkpoints and logs",
    unit="checkpoints",
    changes_result=False,
    help="Number of checkpoints to keep per stage. Older checkpoints are deleted.",
)
define(
    "summary_interval_steps",
    INTERVAL,
    default=20,
    stages=TRAINING_STAGES,
    group="Checkpoints and logs",
    unit="steps",
    changes_result=False,
    help="Training steps between two lines of metrics.jsonl. Each line describes the last batch: "
    "loss; positives and negatives, the mean cosine similarity between projections of the same "
    "class (of the same image with --nouse_labels) and of different classes, which move apart as "
    "training works; probe, the accuracy of the online linear classifier; accuracy, that of the "
    "classifier being trained; collapse_ratio, the loss divided by the loss of identical "
    "embeddings, which starts near 1 and stays well above 0 in a healthy run. The progress line "
    "also shows the latest k-NN accuracy on test images, the speed and the remaining time.",
)
define(
    "profile_steps",
    NumberList(Integer(at_least=0), length=2, increasing="strictly"),
    default=None,
    stages=TRAINING_STAGES,
    group="Checkpoints and logs",
    unit="steps",
    changes_result=False,
    help="Steps a,b between which to profile the first stage of --mode that trains in steps, such "
    "as 100,110. The profile is written to the folder tensorboard/ of the stage, where "
    "TensorBoard's profile plugin finds it. These steps run one at a time. Choose a "
    "above 0 to leave out the compilation of the first step.",
)
define(
    "steps_per_loop",
    INTERVAL,
    default=20,
    stages=TRAINING_STAGES,
    group="Devices and speed",
    unit="steps",
    changes_result=False,
    help="Maximum number of training steps per call of the compiled loop. Raise it for fast steps "
    "on a TPU or GPU. Slow steps run in smaller groups, so that the progress is updated every two "
    "seconds.",
)
define(
    "strategy",
    Enum(["auto", "one_device", "mirrored", "multi_worker", "tpu"]),
    default="auto",
    stages=IMAGE_STAGES,
    group="Devices and speed",
    common=True,
    changes_result=False,
    decides_fitted_linear=True,
    help="Which devices to use: auto, one_device, mirrored, multi_worker or tpu. auto (the "
    "default) picks tpu with --tpu_name, multi_worker if TF_CONFIG or SLURM names several "
    "processes, mirrored for several GPUs, else one_device. mirrored uses one replica per GPU, or "
    "per logical CPU without GPUs. multi_worker uses all processes that TF_CONFIG or SLURM names. "
    "The loss always contrasts over the batch of all replicas.",
)
define(
    "precision",
    Enum(["float32", "mixed_bfloat16", "mixed_float16"]),
    default="float32",
    stages=("pretrain",),
    group="Devices and speed",
    common=True,
    help="Precision of the encoder: float32, mixed_bfloat16 or mixed_float16. Use mixed_bfloat16 "
    "on TPUs and recent GPUs, mixed_float16 (with loss scaling) on older GPUs. Weights, outputs "
    "and the loss are always float32.",
)
define(
    "jit_compile",
    Boolean(),
    default=False,
    stages=TRAINING_STAGES,
    group="Devices and speed",
    changes_result=False,
    help="Compile the training step with XLA. Try it on a single GPU; it is slower on CPUs.",
)
define(
    "deterministic",
    Boolean(),
    default=False,
    stages=IMAGE_STAGES,
    group="Devices and speed",
    changes_result=False,
    decides_fitted_linear=True,
    help="Use only operations that give bit-for-bit the same result on every run. Slower on GPUs.",
)
define(
    "logical_cpus",
    Integer(at_least=1, at_most=128),
    default=1,
    stages=IMAGE_STAGES,
    group="Devices and speed",
    unit="devices",
    changes_result=False,
    decides_fitted_linear=True,
    help="Number of logical devices to split the CPU into. Use it with --strategy=mirrored to try "
    "training on several replicas without GPUs.",
)
define(
    "tpu_name",
    Text(),
    default=None,
    stages=IMAGE_STAGES,
    group="Devices and speed",
    changes_result=False,
    decides_fitted_linear=True,
    help="Cloud TPU to use: its name, its grpc:// address, or local on the TPU VM itself.",
)
define(
    "tpu_zone",
    Text(),
    default=None,
    unset_means="the zone of this machine",
    stages=IMAGE_STAGES,
    group="Devices and speed",
    changes_result=False,
    decides_fitted_linear=True,
    help="Zone of the Cloud TPU named by --tpu_name.",
)
define(
    "gcp_project",
    Text(),
    default=None,
    unset_means="the project of this machine",
    stages=IMAGE_STAGES,
    group="Devices and speed",
    changes_result=False,
    decides_fitted_linear=True,
    help="Google Cloud project of the Cloud TPU named by --tpu_name.",
)
