"""Lowers a recipe's pretraining step, as one replica of a slice runs it, to serialized HLO."""

from __future__ import annotations

import dataclasses
import re

import tensorflow as tf
from absl import flags as absl_flags

from supcon_tf.stages import inputs, pretrain, starting_encoder, trainer
from tpu.graph_check import find_problems
from tpu.problems import Problem, UnfitStep
from tpu.replica import OneOfManyStrategy

# Numbers of training examples and classes, so that no dataset is needed.
DATASETS = {
    "imagenet2012": (1_281_167, 1_000),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "digits": (1_437, 10),
}
_UNSUPPORTED = re.compile(
    r"unsupported operations.*?: (?P<type>\w+) \(.*?\{\{node (?P<name>\S+?)\}\}", re.DOTALL
)
_CREATED_AT = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


@dataclasses.dataclass(frozen=True)
class Workload:
    """The work of each core."""

    num_cores: int
    batch_per_core: int
    num_views: int
    image_size: int
    total_steps: int
    num_parameters: int


def lower(flags, *, num_cores: int, dataset_size: tuple[int, int] | None = None):
    """Traces the whole training step of one core and lowers it to HLO.

    The precision is that of Keras' global dtype policy.

    Args:
        flags: Parsed flags of the command.
        num_cores: Number of replicas that share flags.batch_size.
        dataset_size: Numbers of training examples and classes, for datasets not in DATASETS.

    Returns:
        Serialized HLO and the `Workload`.

    Raises:
        UnfitStep: The step has ops that a TPU does not run; names them.
        ValueError: The cores cannot share the batch evenly, or the dataset's size is unknown.
    """
    step, specs, strategy, workload = create_step(flags, num_cores, dataset_size)
    return lower_step(step, specs, strategy), workload


def create_step(flags, num_cores: int, dataset_size: tuple[int, int] | None = None):
    """Builds the step; returns it with the specs of its batch, its strategy and the `Workload`."""
    if flags.batch_size % num_cores:
        raise ValueError(
            f"batch_size={flags.batch_size} cannot be shared evenly by {num_cores} cores."
        )
    num_examples, num_classes = dataset_size or _dataset_size(flags.dataset)
    strategy = OneOfManyStrategy(num_cores)
    schedule = trainer.schedule_from_flags(flags, "pretrain", num_examples)
    image_size = flags.image_size or starting_encoder.side_of_encoder(flags) or 224
    whitening = ((0.0,) * 3, (1.0,) * 3) if flags.whitening != "none" else (None, None)
    with strategy.scope():
        step = pretrain.step_from_flags(flags, image_size, num_classes, schedule, whitening)
    specs = _batch_specs(flags, flags.batch_size // num_cores, image_size)
    workload = Workload(
        num_cores=num_cores,
        batch_per_core=flags.batch_size // num_cores,
        num_views=flags.num_views,
        image_size=image_size,
        total_steps=schedule.total_steps,
        num_parameters=sum(v.shape.num_elements() for v in _variables(step)),
    )
    return step, specs, strategy, workload


def lower_step(step, specs: dict[str, tf.TensorSpec], strategy) -> bytes:
    """Serialized HLO of step(batch) on one replica.

    Raises:
        UnfitStep: as `lower`.
    """

    # A flat signature: the compiler's front end takes shapes, but not in a dictionary.
    @tf.function(jit_compile=True, input_signature=list(specs.values()))
    def run(*values):
        return strategy.run(step, args=(dict(zip(specs, values, strict=True)),))

    problems = find_problems(run.get_concrete_function())
    if problems:
        raise UnfitStep(problems)
    try:
        compiler_ir = run.experimental_get_compiler_ir(*specs.values())
        return compiler_ir(stage="hlo_serialized", platform_name="CPU")
    except (ValueError, tf.errors.OpError) as error:
        raise UnfitStep([_explain(str(error))]) from error


def _explain(message):
    """Finds the op that XLA does not support in TensorFlow's message."""
    found = _UNSUPPORTED.search(message)
    places = _CREATED_AT.findall(message)
    place = ":".join(places[-1]) if places else "in the graph"
    if found is None:
        return Problem("the step", "as a whole", message.strip(), place)
    return Problem(found["type"], found["name"], "XLA has no such op", place)


def _batch_specs(flags, batch, image_size):
    side = [image_size, image_size, 3]
    specs = {
        "image": tf.TensorSpec([batch, flags.num_views, *side], tf.uint8, name="image"),
        "label": tf.TensorSpec([batch], tf.int32, name="label"),
    }
    policy = inputs.policy_from_flags(flags, flags.augmentation_type)
    if flags.blur_probability and policy.ends_with_blur:
        shape = [batch, flags.num_views]
        specs["blur_sigma"] = tf.TensorSpec(shape, tf.float32, name="blur_sigma")
    return specs


def _variables(step):
    return [v.value for model in step.models.values() for v in model.trainable_variables]


def _dataset_size(name):
    name = name.split(":")[0]
    if name not in DATASETS:
        raise ValueError(
            f"The size of the dataset {name!r} is unknown: add --num_examples and --num_classes. "
            f"Known datasets: {', '.join(DATASETS)}."
        )
    return DATASETS[name]


def with_batch(flags: absl_flags.FlagValues, batch_size: int, microbatch_size: int | None = None):
    """Sets the global batch size, and the examples per core and piece of gradient caching."""
    flags.batch_size = batch_size
    if microbatch_size is not None:
        flags["use_global_batch_norm"].value = False  # Which gradient caching needs.
    flags["microbatch_size"].value = microbatch_size
