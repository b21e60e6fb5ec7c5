"""An estimate of the memory that training needs, and the memory that is available."""

from __future__ import annotations

import dataclasses
import math
import os
import sys

import keras
import tensorflow as tf

from supcon_tf import strategies
from supcon_tf.training.steps import TrainStep

# Peak memory of a training step besides the gradients, as a fraction of the outputs of all layers
# of the encoder for all images that it processes at once. `python benchmarks/memory.py` measured,
# as growth of the resident size, on two CPU cores with TensorFlow 2.21 (images, fraction):
#   tiny       32 px: 512, 0.88; 2,048, 0.82; 64 px: 512, 0.81
#   ResNet-18  32 px: 128, 0.78; 256, 0.76; bfloat16 256, 0.85; 128 px: 64, 0.98; 224 px: 32, 0.83
#   MobileNetV2, DenseNet121, EfficientNetV2B0 of Keras at 64 px: 0.95, 1.04, 1.41
#   ResNet-50  32 px: 64, 0.69; 128, 0.70; 128 px: 32, 0.81; 224 px: 32, 0.67; bfloat16 32, 0.76
# The factor is below all of them, because a run that fits must never be rejected.
ACTIVATION_FACTOR = 0.62


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The memory of a training in bytes.

    Attributes:
        state: Weights and optimizer slots, which exist once the models are built.
        gradients: The gradients of all trained weights.
        activations: What the backward pass needs of the forward pass.
        evaluation: The largest output of a layer for one evaluation batch.
    """

    state: int
    gradients: int
    activations: int
    evaluation: int

    @property
    def missing(self) -> int:
        """What is needed in addition to the memory that the process already uses."""
        return max(self.gradients + self.activations, self.evaluation)


def estimate(
    step: TrainStep,
    *,
    images_per_replica: int,
    eval_images_per_replica: int,
    num_replicas: int = 1,
) -> Estimate:
    """Estimates a lower bound of the memory that a training needs.

    Args:
        step: A step that trains its encoder.
        images_per_replica: Images (all views) that the encoder processes at once.
        eval_images_per_replica: The same in an evaluation.
        num_replicas: Number of replicas that share the memory of this machine.
    """
    total, largest = output_bytes(step.encoder)
    state = [
        variable
        for part in (*step.models.values(), *step.optimizers.values())
        for variable in getattr(part, "variables", ())
    ]
    return Estimate(
        state=num_replicas * _bytes(state),
        gradients=num_replicas * _bytes(step.variables),
        activations=int(num_replicas * images_per_replica * total * ACTIVATION_FACTOR),
        evaluation=num_replicas * eval_images_per_replica * largest,
    )


def estimate_on_host(
    strategy: tf.distribute.Strategy,
    step: TrainStep,
    *,
    images_per_replica: int,
    eval_batch_size: int,
) -> Estimate:
    """Estimates what the replicas of this machine need together.

    Args:
        strategy: The strategy of the training.
        step: A step that trains its encoder.
        images_per_replica: Images (all views) that the encoder processes at once.
        eval_batch_size: Images that all replicas together process at once in an evaluation.
    """
    num_replicas = strategy.num_replicas_in_sync
    return estimate(
        step,
        images_per_replica=images_per_replica,
        eval_images_per_replica=eval_batch_size // num_replicas,
        num_replicas=num_replicas // strategies.num_hosts(strategy),
    )


def output_bytes(encoder: keras.Model) -> tuple[int, int]:
    """Returns the bytes of the outputs of all layers for one image, and of the largest output."""
    sizes = [0]
    for layer in encoder._flatten_layers(include_self=False):
        if isinstance(layer, (keras.Model, keras.layers.InputLayer)):
            continue  # The layers of a nested model are visited one by one.
        for node in layer._inbound_nodes:
            if isinstance(layer, keras.layers.MultiHeadAttention):
                sizes += _attention_bytes(layer, node)
            for output in tf.nest.flatten(node.output_tensors):
                elements = math.prod(size or 1 for size in output.shape[1:])
                sizes.append(elements * tf.as_dtype(output.dtype).size)
    return sum(sizes), max(sizes)


def _attention_bytes(layer, node):
    """Bytes of what attention keeps inside: queries, keys, values, and the scores twice (before and
    after the softmax), which grow with the square of the number of tokens."""
    options = layer.get_config()
    heads, key_dim = options["num_heads"], options["key_dim"]
    value_dim = options["value_dim"] or key_dim
    query, value = (tensor.shape[-2] or 1 for tensor in node.input_tensors[:2])
    elements = [query * key_dim, value * key_dim, value * value_dim, query * value]
    size = tf.as_dtype(layer.compute_dtype).size
    return [heads * count * size for count in (*elements, elements[-1])]


def _bytes(variables):
    return sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables)


def available_bytes(root: str = "/") -> int | None:
    """Returns the memory that this process can still allocate, or None if it is unknown.

    On Linux, this is the available memory and free swap of the system, or less if a control group,
    such as that of a container or a job, has a limit. On macOS it is all installed memory.

    Args:
        root: Where to find /proc and /sys.
    """
    if sys.platform == "darwin":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = [_system_bytes(root), *_control_group_bytes(root)]
    return min((value for value in found if value is not None), default=None)


def _system_bytes(root):
    fields = _fields(os.path.join(root, "proc/meminfo"))
    if "MemAvailable:" not in fields:
        return None
    return 1024 * (fields["MemAvailable:"] + fields.get("SwapFree:", 0))


def _control_group_bytes(root):
    """Yields the memory left in each control group of this process (versions 2 and 1)."""
    version_2 = ("memory.max", "memory.current", "inactive_file")
    version_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    for line in _read_text(os.path.join(root, "proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = "sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup"
        limit, usage, cache = version_1 if controllers else version_2
        parts = path.strip("/").split("/")
        for depth in range(len(parts) + 1):  # The limits of its parents apply too.
            folder = os.path.join(root, base, *parts[:depth])
            texts = [_read_text(os.path.join(folder, name)).strip() for name in (limit, usage)]
            if all(text.isdigit() for text in texts):
                cached = _fields(os.path.join(folder, "memory.stat")).get(cache, 0)
                yield int(texts[0]) - int(texts[1]) + cached


def _fields(path):
    """Reads a file of lines `name number ...` as a dictionary."""
    lines = (line.split() for line in _read_text(path).splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}


def _read_text(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
