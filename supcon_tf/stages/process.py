"""What holds for the whole process and for all workers: the strategy, and the folder of a stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import keras
import tensorflow as tf
from absl.flags import FlagValues
from absl.logging import converter

from supcon_tf import strategies
from supcon_tf.cli import command_line, tensorflow_start
from supcon_tf.cli.declare import TRAINING_STAGES
from supcon_tf.stages.stage_folder import StageFolder


class _Process:
    """The state of the process."""

    started_at = time.monotonic()


def start(flags: FlagValues, started_at: float | None = None) -> tf.distribute.Strategy:
    """Creates the strategy, applies the process-wide settings, and prints what runs on what.

    Args:
        flags: The parsed flags.
        started_at: `time.monotonic()` at the start of the program; now by default.

    Raises:
        ValueError: If the devices do not exist, or with --jit_compile over several replicas.
    """
    _Process.started_at = time.monotonic() if started_at is None else started_at
    if flags.logical_cpus > 1:
        strategies.split_cpu(flags.logical_cpus)
    if flags.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.config.set_dtype_policy(flags.precision)
    if flags["verbosity"].present:  # TensorFlow's logger is separate from absl's.
        level = converter.absl_to_standard(tensorflow_start.verbosity(flags))
        tf.get_logger().setLevel(level)
    strategy = strategies.create_strategy(
        flags.strategy,
        tpu_name=flags.tpu_name,
        tpu_zone=flags.tpu_zone,
        gcp_project=flags.gcp_project,
    )
    if flags.jit_compile and strategy.num_replicas_in_sync > 1:
        raise ValueError(
            f"jit_compile does not work with {strategy.num_replicas_in_sync} replicas: XLA cannot "
            "compile the exchange between them. Remove --jit_compile, or use "
            "--strategy=one_device."
        )
    print(describe_run(flags), describe_devices(flags, strategy), sep="\n", flush=True)
    if not strategies.is_chief(strategy):
        print("Worker 0, the chief, logs the progress.", flush=True)
    return strategy


def seconds_since_start() -> float:
    """Returns how long this run of the command has taken so far."""
    return time.monotonic() - _Process.started_at


def describe_run(flags: FlagValues) -> str:
    """Describes in one line which stages run, and where their files go."""
    stages = ", ".join(flags.mode)
    return f"Run: {stages}; the files go to {command_line.model_dir(flags)}."


def describe_devices(flags: FlagValues, strategy: tf.distribute.Strategy) -> str:
    """Describes hardware, strategy, precision and versions in one line."""
    replicas, hosts = strategy.num_replicas_in_sync, strategies.num_hosts(strategy)
    scope = "over all replicas" if flags.use_global_batch_norm else "of each replica"
    training = ""
    if set(flags.mode) & set(TRAINING_STAGES):
        training = f" {flags.batch_size / replicas:g} examples per replica,"
    several = "" if replicas == 1 else f", batch norm {scope}"
    return (
        f"Hardware: {_hardware()}; {strategies.strategy_name(strategy)}: {replicas} replica(s) on "
        f"{hosts} host(s),{training} {flags.precision}{several}. TensorFlow {tf.__version__}, "
        f"Keras {keras.__version__}."
    )


def _hardware():
    """Names the devices that compute: their number and model where TensorFlow knows it."""
    if tpus := tf.config.list_logical_devices("TPU"):
        return f"TPU with {len(tpus)} cores"
    if gpus := tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpus[0])
        name = details.get("device_name", "GPU")
        return f"{len(gpus)} x {name}" if len(gpus) > 1 else name
    count = strategies.count_cpus()
    return f"CPU with {count} core{'' if count == 1 else 's'}"


@contextlib.contextmanager
def open_folder(
    flags: FlagValues,
    strategy: tf.distribute.Strategy,
    stage: str,
    *,
    inputs: dict[str, str] | None = None,
    always_restarts: bool = False,
) -> Iterator[StageFolder]:
    """Opens the `StageFolder` of a stage on every worker: the chief holds it, the others read it.

    The chief enters first, because it may reject the flags. No worker leaves before the others,
    because the next stage reads what the chief writes at the end of this one.

    Args:
        flags: The parsed flags.
        strategy: The strategy of the run.
        stage: The name of the stage.
        inputs: See `StageFolder`.
        always_restarts: See `StageFolder`.
    """
    is_chief = strategies.is_chief(strategy)
    if not is_chief:
        strategies.gather_from_workers(strategy, 0)
    folder = StageFolder(
        flags, stage, inputs=inputs, always_restarts=always_restarts, is_chief=is_chief
    )
    with folder:
        if is_chief:
            strategies.gather_from_workers(strategy, 0)
        yield folder
        strategies.gather_from_workers(strategy, 0)
