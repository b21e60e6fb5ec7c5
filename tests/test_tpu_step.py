"""The training step holds nothing that a TPU does not run, whatever the recipe."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

from supcon_tf.cli import command_line
from tpu import lowering
from tpu.graph_check import find_problems
from tpu.replica import OneOfManyStrategy

ROOT = Path(__file__).parent.parent


if "mode" not in flags.FLAGS:
    command_line.define_flags()

RECIPES = sorted(path.stem for path in (ROOT / "flags").glob("*.flags"))
# One that gathers labels, and one with a head with batch norm and blur.
FAMILIES = ("supcon_imagenet", "simclr_imagenet")
TINY = (
    "--encoder=tiny", "--image_size=8", "--batch_size=8", "--first_conv_kernel_size=3",
    "--first_conv_stride=1", "--nouse_initial_max_pool",
)  # fmt: skip
# The loss of cached embeddings is that of the others, so one step holds both.
OPTIONS = [
    ("--summation_location=inside", "--denominator_mode=one_positive",
     "--microbatch_size=1", "--nouse_global_batch_norm"),
]  # fmt: skip
MORE_OPTIONS = [
    ("--augmentation_type=stacked_randaugment", "--blur_probability=0.5"),
    ("--positives_cap=2", "--contrast_mode=one_view"),
    ("--nouse_labels", "--pretrain_optimizer=rmsprop"),
]


@pytest.fixture
def parsed():
    """Parses the command line into absl's flags, for one test."""

    def parse(*arguments):
        flags.FLAGS(command_line.expand_recipe(["supcon_tf", *arguments]))
        return flags.FLAGS

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    with flagsaver.flagsaver():
        yield parse
    keras.config.set_dtype_policy(policy)


# Of the recipes in a row one is lowered: with the tiny encoder theirs are the same program, because
# they differ only in these flags, which are data, networks, numbers and what the host does.
SAME_PROGRAM = [
    ("cross_entropy_imagenet_resnet50", "cross_entropy_imagenet_resnet200"),
    ("supcon_imagenet_resnet50", "supcon_imagenet_resnet101", "supcon_imagenet_resnet200"),
    *(
        (f"supcontrast_{loss}_cifar10_resnet50", f"supcontrast_{loss}_cifar100_resnet50")
        for loss in ("cross_entropy", "simclr", "supcon")
    ),
]
SAME_PROGRAM_FLAGS = {
    "recipe", "dataset", "resnet_depth", "batch_size", "augmentation_type", "pretrain_epochs",
    "pretrain_base_learning_rate", "pretrain_weight_decay",
}  # fmt: skip
LOWERED = [name for name in RECIPES if not any(name in names[1:] for names in SAME_PROGRAM)]


@pytest.mark.parametrize("names", SAME_PROGRAM, ids=lambda names: names[0])
def test_recipes_of_one_program_differ_in_nothing_else(names):
    def flags_of(name):
        values = command_line.peek(command_line.expand_recipe(["", f"--recipe={name}"]))
        return {flag: values[flag].value for flag in command_line.STAGE_FLAGS["pretrain"]}

    first, *others = map(flags_of, names)
    for other in others:
        assert {flag for flag in first if first[flag] != other[flag]} <= SAME_PROGRAM_FLAGS


def is_of_a_family(recipe):
    return any(recipe.startswith(family) and recipe.endswith("50") for family in FAMILIES)


@pytest.mark.parametrize(
    "recipe",
    [
        recipe if is_of_a_family(recipe) else pytest.param(recipe, marks=pytest.mark.slow)
        for recipe in LOWERED
    ],
)
def test_the_step_of_a_recipe_is_lowered_for_one_of_four_cores(parsed, recipe):
    values = parsed(f"--recipe={recipe}", *TINY)
    size = (2_000, 10) if values.dataset == "folder" else None  # Examples and classes.
    hlo, work = lowering.lower(values, num_cores=4, dataset_size=size)
    assert work.batch_per_core == 2 and work.num_parameters > 10_000
    # Every gradient and the gathered embeddings are exchanged.
    assert b"all-reduce" in hlo


@pytest.mark.parametrize(
    "options",
    [*OPTIONS, *(pytest.param(each, marks=pytest.mark.slow) for each in MORE_OPTIONS)],
    ids=" ".join,
)
def test_the_step_of_other_options_is_lowered(parsed, options):
    hlo, _ = lowering.lower(parsed(*TINY, *options), num_cores=4)
    assert b"all-reduce" in hlo


@pytest.mark.slow
def test_the_step_compiles_and_runs_as_one_program(parsed):
    """With blur and a head with batch norm: on one core, on the CPU's XLA.

    Without --slow, the recipe of SimCLR lowers these parts above, and a smaller step is compiled
    and run in test_strategies.py.
    """
    options = parsed(
        "--augmentation_type=simclr", "--blur_probability=0.5", "--projection_head_layers=8,8",
        "--projection_head_use_batch_norm", *TINY,
    )  # fmt: skip
    keras.utils.set_random_seed(0)
    step, specs, _, _ = lowering.create_step(options, num_cores=1)
    run = tf.function(step, jit_compile=True)
    rng = np.random.default_rng(0)
    batch = {
        "image": tf.constant(rng.integers(0, 256, specs["image"].shape), tf.uint8),
        "label": tf.constant([0, 0, 1, 1, 2, 2, 3, 3]),
        "blur_sigma": tf.constant(rng.uniform(-1, 2, specs["blur_sigma"].shape), tf.float32),
    }
    losses = [float(run(batch)["loss"]) for _ in range(8)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


BROKEN = {
    "Where": lambda x: tf.boolean_mask(x, x > 0.5),
    "Unique": lambda x: tf.unique(tf.cast(x, tf.int32)).y,
    "DynamicPartition": lambda x: tf.dynamic_partition(x, tf.cast(x, tf.int32), 2)[0],
    "EagerPyFunc": lambda x: tf.py_function(lambda y: y, [x], tf.float32),
    "PrintV2": lambda x: tf.print(x) and x,
    "AsString": lambda x: tf.strings.length(tf.strings.as_string(x)),
    "DecodeJpeg": lambda x: tf.io.decode_jpeg(tf.strings.as_string(x[0])),
    "ImageProjectiveTransformV3": lambda x: tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.reshape(x, [1, 2, 2, 1]),
        transforms=tf.zeros([1, 8]),
        output_shape=[2, 2],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    ),
    # Allowed by the list, refused by XLA.
    "MatrixLogarithm": lambda x: tf.linalg.logm(tf.cast(tf.reshape(x, [2, 2]), tf.complex64)),
}


@pytest.mark.parametrize("op_type", BROKEN)
def test_a_broken_step_is_named_with_its_place(op_type):
    def step(batch):
        return BROKEN[op_type](batch["x"])

    with pytest.raises(lowering.UnfitStep) as caught:
        lowering.lower_step(step, {"x": tf.TensorSpec([4])}, OneOfManyStrategy(2))
    problem = caught.value.problems[0]
    assert op_type in [problem.op_type for problem in caught.value.problems]
    assert Path(__file__).name in problem.place


def test_ops_inside_loops_and_branches_are_found():
    @tf.function(input_signature=[tf.TensorSpec([4])])
    def step(x):
        return tf.while_loop(
            lambda i, _: i < 2,
            lambda i, y: (i + 1, y + tf.cast(tf.shape(tf.where(y > 0))[0], tf.float32)),
            [0, x],
        )[1]

    (problem,) = find_problems(step.get_concrete_function())
    assert problem.op_type == "Where" and "in the function" in problem.place


def test_a_replica_gathers_and_sums_over_all():
    """The program of one of four replicas: all-reduces over four, at the right sizes."""

    def step(batch):
        context = tf.distribute.get_replica_context()
        assert context.num_replicas_in_sync == 4
        gathered = context.all_gather(batch["x"], axis=0)
        assert gathered.shape == [8, 3]
        return context.all_reduce(tf.distribute.ReduceOp.MEAN, gathered)

    specs = {"x": tf.TensorSpec([2, 3])}
    hlo = lowering.lower_step(step, specs, OneOfManyStrategy(4))
    assert hlo.count(b"all-reduce") >= 2


def test_cores_that_cannot_share_the_batch_are_refused(parsed):
    with pytest.raises(ValueError, match="batch_size=8 cannot be shared evenly by 3 cores"):
        lowering.lower(parsed(*TINY), num_cores=3)


def test_a_dataset_of_unknown_size_is_refused(parsed):
    with pytest.raises(ValueError, match="'food101' is unknown: add --num_examples"):
        lowering.lower(parsed(*TINY, "--dataset=food101"), num_cores=4)
    options = parsed(
        *TINY, "--dataset=food101", "--pretrain_epochs=2", "--pretrain_warmup_epochs=0"
    )
    *_, work = lowering.create_step(options, num_cores=4, dataset_size=(80, 101))
    assert work.total_steps == 20
