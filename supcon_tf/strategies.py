"""Distribution strategies: which devices and worker processes train together."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import threading
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from supcon_tf import collectives

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


def create_strategy(
    name: str = "auto",
    *,
    tpu_name: str | None = None,
    tpu_zone: str | None = None,
    gcp_project: str | None = None,
) -> tf.distribute.Strategy:
    """Creates a distribution strategy for the devices that TensorFlow sees.

    Args:
        name: One of
            "one_device": the first GPU, or the CPU;
            "mirrored": all GPUs, or all logical CPUs if there is no GPU;
            "multi_worker": the processes named by TF_CONFIG or SLURM, each with its GPUs or its
            CPU (create it before TensorFlow initializes any device);
            "tpu": a TPU slice;
            "auto": tpu with a tpu_name, multi_worker if TF_CONFIG or SLURM names several
            processes, mirrored with several GPUs, else one_device.
        tpu_name: Name of the TPU; "local" on a TPU host.
        tpu_zone: Zone of the TPU.
        gcp_project: Google Cloud project of the TPU.

    Raises:
        ValueError: The name is unknown, the TPU does not respond, or there is no cluster of several
            processes.
    """
    if name not in STRATEGIES:
        raise ValueError(f"Unknown strategy {name!r}: choose one of {', '.join(STRATEGIES)}.")
    if name == "tpu" or (name == "auto" and tpu_name):
        return _create_tpu_strategy(tpu_name, tpu_zone, gcp_project)
    resolver = find_cluster() if name in ("auto", "multi_worker") else None
    if resolver:
        print(
            f"{resolver.task_type} {resolver.task_id} of {_count_tasks(resolver)} workers: waiting "
            "for the other workers.",
            flush=True,
        )
        with _keeping_sigterm():
            return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    if name == "multi_worker":
        raise ValueError(
            "strategy=multi_worker requires a cluster, but TF_CONFIG does not name several workers "
            "and this is not a SLURM step of several tasks. Start every worker with "
            'TF_CONFIG=\'{"cluster": {"worker": ["host0:port", "host1:port"]}, '
            '"task": {"type": "worker", "index": 0}}\', or start all workers with srun.'
        )
    gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
    cpus = [device.name for device in tf.config.list_logical_devices("CPU")]
    if name == "auto":
        name = "mirrored" if len(gpus) > 1 else "one_device"
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy((gpus or cpus)[0])
    return tf.distribute.MirroredStrategy(gpus or cpus)


@contextlib.contextmanager
def _keeping_sigterm():
    """Restores Python's SIGTERM handler, which TensorFlow's coordination service replaces."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _create_tpu_strategy(tpu_name, tpu_zone, gcp_project):
    if not tpu_name:
        raise ValueError(
            "strategy=tpu needs the TPU's name: add --tpu_name, or --tpu_name=local on a TPU host."
        )
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
            tpu=tpu_name, zone=tpu_zone, project=gcp_project
        )
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except Exception as error:  # The cloud API, the network and the driver raise any type.
        raise ValueError(
            f"No TPU responds for tpu_name={tpu_name}, tpu_zone={tpu_zone}, "
            f"gcp_project={gcp_project} ({_first_line(error)}). Check these flags; on a TPU host "
            "use --tpu_name=local, with the package tensorflow-tpu installed."
        ) from error


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def find_cluster() -> tf.distribute.cluster_resolver.ClusterResolver | None:
    """Finds the cluster of several workers in TF_CONFIG or SLURM; None if there is none.

    Raises:
        ValueError: TF_CONFIG is not valid JSON, or names jobs other than workers.
    """
    if os.environ.get("TF_CONFIG"):
        return _cluster_of_tf_config()
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # Set for what srun starts.
        return _cluster_of_slurm()
    return None


def _cluster_of_tf_config():
    text = os.environ["TF_CONFIG"]
    try:
        config = json.loads(text)
        cluster = {job: list(tasks) for job, tasks in config.get("cluster", {}).items()}
        task = config.get("task", {})
        job, index = task.get("type", "worker"), int(task.get("index", 0))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"TF_CONFIG={text} is not valid: {error}. Expected JSON such as "
            '{"cluster": {"worker": ["host0:port", "host1:port"]}, '
            '"task": {"type": "worker", "index": 0}}.'
        ) from error
    if sum(map(len, cluster.values())) < 2:
        return None
    if set(cluster) - {"chief", "worker"}:
        raise ValueError(
            f"TF_CONFIG names the jobs {', '.join(cluster)}; expected only 'worker' and at most "
            "one 'chief'. For evaluation run the stage --mode=eval instead of a separate job."
        )
    if job not in cluster or not 0 <= index < len(cluster[job]):
        raise ValueError(
            f"TF_CONFIG sets the task {job} {index}, which is not in its cluster {cluster}."
        )
    return tf.distribute.cluster_resolver.TFConfigClusterResolver()


def _cluster_of_slurm():
    """The hosts of SLURM, with the devices that this process sees.

    TensorFlow's SLURM resolver divides by the number of GPUs that nvidia-smi reports, which fails
    on nodes without GPUs, so it is only used to find hosts and ports. A task uses all GPUs that it
    sees: run several tasks per node with `srun --gpus-per-task`.
    """
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        gpus_per_node=int(os.environ["SLURM_STEP_NUM_TASKS"]), gpus_per_task=1, auto_set_gpu=False
    )
    spec = resolver.cluster_spec()
    task_type, task_id = resolver.get_task_info()
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        spec,
        task_type=task_type,
        task_id=task_id,
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )


def split_cpu(num_devices: int) -> None:
    """Splits the CPU into logical devices. Call it before TensorFlow initializes any device."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    devices = [tf.config.LogicalDeviceConfiguration() for _ in range(num_devices)]
    tf.config.set_logical_device_configuration(cpu, devices)


def count_cpus() -> int:
    """Returns how many CPUs this process may use, which is how many threads TensorFlow starts."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the files of the run: the "chief" task, else worker 0.

    With a strategy of one process, that process is the chief.
    """
    if not is_multi_worker(strategy):
        return True
    resolver = strategy.cluster_resolver
    has_chief = "chief" in resolver.cluster_spec().jobs
    return resolver.task_type == ("chief" if has_chief else "worker") and resolver.task_id == 0


def is_multi_worker(strategy: tf.distribute.Strategy) -> bool:
    """Whether the strategy spans several worker processes."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    return _count_tasks(strategy.cluster_resolver) > 1


def num_hosts(strategy: tf.distribute.Strategy) -> int:
    """Number of hosts, or of worker processes, that feed the replicas."""
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return strategy.extended.num_hosts
    return _count_tasks(strategy.cluster_resolver) if is_multi_worker(strategy) else 1


def _count_tasks(resolver):
    spec = resolver.cluster_spec()
    return sum(spec.num_tasks(job) for job in spec.jobs) if spec else 1


def strategy_name(strategy: tf.distribute.Strategy) -> str:
    """Name of the strategy among `STRATEGIES`, or the class name of any other strategy."""
    kinds = {
        "one_device": tf.distribute.OneDeviceStrategy,
        "multi_worker": tf.distribute.MultiWorkerMirroredStrategy,
        "mirrored": tf.distribute.MirroredStrategy,
        "tpu": tf.distribute.TPUStrategy,
    }
    names = (name for name, kind in kinds.items() if isinstance(strategy, kind))
    return next(names, type(strategy).__name__)


def gather_from_workers(strategy: tf.distribute.Strategy, value: int) -> list[int]:
    """Collects the value of every worker process; waits until all workers call it."""
    if not is_multi_worker(strategy):
        return [value]
    everybody = _gather_function(strategy)(tf.constant([value], tf.int64))
    replicas_per_worker = strategy.num_replicas_in_sync // num_hosts(strategy)
    return everybody.numpy()[::replicas_per_worker].tolist()


def broadcast_from_chief(
    strategy: tf.distribute.Strategy, arrays: list[np.ndarray]
) -> list[np.ndarray]:
    """Sends the chief's arrays to every worker.

    Args:
        strategy: The strategy that the workers share.
        arrays: float32; on the other workers, arrays of the same shapes.
    """
    if not is_multi_worker(strategy):
        return arrays
    flat = np.concatenate([np.ravel(array) for array in arrays]).astype(np.float32)
    everybody = _gather_function(strategy)(tf.constant(flat[None]))  # [replicas, ...]
    parts = np.split(everybody.numpy()[0], np.cumsum([array.size for array in arrays])[:-1])
    return [part.reshape(array.shape) for part, array in zip(parts, arrays, strict=True)]


@functools.lru_cache(maxsize=1)
def _gather_function(strategy):
    @tf.function(autograph=False)
    def gather_all(value):
        everybody = strategy.run(collectives.gather, args=(value,))
        return strategy.experimental_local_results(everybody)[0]

    return gather_all


@contextlib.contextmanager
def working_together(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Runs a worker among others: only the chief prints, and all stop when one is lost.

    TensorFlow detects a worker that exited by its connection and a worker that hangs by its missing
    heartbeats, and aborts the computation of the others.

    Raises:
        tf.errors.UnavailableError: Another worker exited or hangs.
    """
    with contextlib.ExitStack() as stack:
        if not is_chief(strategy):
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            yield
        except tf.errors.OpError as error:
            reason = _lost_worker(error)
            if not is_multi_worker(strategy) or not reason:
                raise
            raise tf.errors.UnavailableError(
                None,
                None,
                f"Another worker exited or does not respond, so this one stops too ({reason}). "
                "Look for the first error in the output of the other workers. When it is fixed, "
                "run the same command on every worker to resume from the last checkpoint.",
            ) from error


def _lost_worker(error):
    """TensorFlow's reason if the error is about a lost worker, else None."""
    lines = str(error).strip().splitlines()
    for line in lines:
        _, found, reason = line.partition("Collective ops is aborted by: ")
        if found:
            return reason
    is_lost = isinstance(error, (tf.errors.UnavailableError, tf.errors.AbortedError))
    return lines[0] if is_lost else None
