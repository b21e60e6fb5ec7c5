"""What holds for the whole process and all workers: the strategy, and a stage's folder."""

from __future__ import annotations

import contextlib

import keras
import tensorflow as tf

from supcon_tf import strategies
from supcon_tf.stages.run_directory import StageFolder


def start(flags) -> tf.distribute.Strategy:
    """Makes the strategy, sets what holds for the whole process, and says what it runs on.

    Raises:
        ValueError: no such devices, or jit_compile over several replicas.
    """
    if flags.logical_cpus > 1:
        strategies.split_cpu(flags.logical_cpus)
    if flags.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.config.set_dtype_policy(flags.precision)
    strategy = strategies.create_strategy(
        flags.strategy,
        tpu_name=flags.tpu_name,
        tpu_zone=flags.tpu_zone,
        gcp_project=flags.gcp_project,
    )
    if flags.jit_compile and strategy.num_replicas_in_sync > 1:
        raise ValueError(
            f"jit_compile over {strategy.num_replicas_in_sync} replicas does not run: XLA cannot "
            "compile what they exchange. Leave it out, or take --strategy=one_device."
        )
    print(describe_devices(flags, strategy), flush=True)
    if not strategies.is_chief(strategy):
        print("The output of the chief, worker 0, tells how the run goes.", flush=True)
    return strategy


def describe_devices(flags, strategy) -> str:
    """What the run runs on, in one line."""
    replicas, hosts = strategy.num_replicas_in_sync, strategies.num_hosts(strategy)
    kind = next(kind for kind in ("TPU", "GPU", "CPU") if tf.config.list_logical_devices(kind))
    scope = "over all replicas" if flags.use_global_batch_norm else "of each replica"
    return (
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}; "
        f"{strategies.strategy_name(strategy)}: {replicas} replica(s) on {hosts} host(s) ({kind}), "
        f"{flags.batch_size / replicas:g} examples per replica, {flags.precision}, "
        f"batch norm {scope}."
    )


@contextlib.contextmanager
def open_folder(flags, strategy, stage: str, **options):
    """The `StageFolder` of a stage that all workers run: the chief's, which the others read.

    The chief goes in first, because it may refuse the flags, and nobody leaves before the
    others: the next stage reads what the chief has written at the end of this one.
    """
    is_chief = strategies.is_chief(strategy)
    if not is_chief:
        strategies.gather_from_workers(strategy, 0)
    with StageFolder(flags, stage, is_chief=is_chief, **options) as folder:
        if is_chief:
            strategies.gather_from_workers(strategy, 0)
        yield folder
        strategies.gather_from_workers(strategy, 0)
