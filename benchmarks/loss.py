"""Time and memory of the loss, forward and backward, compared with dense implementations.

    .venv/bin/python benchmarks/loss.py --torch_env=FOLDER

The inputs are 2 views with 128 features, with labels of 1,000 classes. Each case runs in its own
process. Memory is the increase from just before the first call, when inputs and libraries are
loaded, to the peak. `dense` computes the equations with tiled masks like
https://github.com/google-research/google-research/tree/master/supcon. `PML` is SupConLoss of
pytorch-metric-learning, which this script installs with PyTorch in a separate environment if
--torch_env is given.

`blocked` is the loss with its default of 192 MB for exponentials that the gradient uses again, and
`blocked, no cache` the loss with cache_mb=0. --cache_mb=400 adds a case with another value.

The limit is the time that the exact algorithm needs for its matrix products and exponentials alone:
(4 - c) N^2 D operations (N rows; each pair of rows once forward and once backward, and twice for
the gradient) and (1 - c / 2) N^2 exponentials, if a share c of them is kept for the gradient, at
the rates measured in the same run for single operations of this shape.

--family measures the options that weight pairs, spread a class or average over classes, in turns
with the plain loss in one process, at one batch size:

    .venv/bin/python benchmarks/loss.py --family --batches=6144

--replicas=1,2,4 measures the processor time of one replica, whose share of the pairs
becomes smaller:

    .venv/bin/python benchmarks/loss.py --replicas=1,2,4 --batches=6144
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

import records
from train_step import install_torch

ROOT = pathlib.Path(__file__).parents[1]
NUM_VIEWS, NUM_FEATURES, NUM_CLASSES = 2, 128, 1000
LARGEST_DENSE = 6144
TEMPERATURE = 0.1
PML = "pytorch-metric-learning"
FAMILY_OPTIONS = {
    "jaccard, 20 labels": '`pair_weights="jaccard"`, 20 labels',
    "jaccard, 1,000 labels": '`pair_weights="jaccard"`, 1,000 labels',
    "hierarchy, 3 levels": '`pair_weights="hierarchy"`, 3 levels',
    "gaussian": '`pair_weights="gaussian"`',
    "spread": "`spread_weight=0.5`",
    "class averages": '`denominator_weighting="class"`',
}


def dense_supcon_loss(labels, features):
    """Eq. 2 with logits, masks and exponentials [V B, V B], like the reference."""
    import tensorflow as tf

    batch = tf.shape(features)[0]
    num_rows = batch * NUM_VIEWS
    features = tf.math.l2_normalize(features, axis=-1)
    rows = tf.reshape(tf.transpose(features, [1, 0, 2]), [num_rows, NUM_FEATURES])
    logits = tf.matmul(rows, rows, transpose_b=True) / TEMPERATURE
    logits -= tf.stop_gradient(tf.reduce_max(logits, axis=1, keepdims=True))
    exponentials = tf.exp(logits)

    same = tf.cast(labels[:, None] == labels[None, :], tf.float32)
    not_self = 1.0 - tf.eye(num_rows)
    positives = tf.tile(same, [NUM_VIEWS, NUM_VIEWS]) * not_self
    negatives = tf.tile(1.0 - same, [NUM_VIEWS, NUM_VIEWS])
    num_positives = tf.reduce_sum(positives, axis=1)

    denominator = tf.reduce_sum(exponentials * negatives, axis=1, keepdims=True)
    denominator += tf.reduce_sum(exponentials * positives, axis=1, keepdims=True)
    log_probs = (logits - tf.math.log(denominator)) * positives
    losses = -tf.math.divide_no_nan(tf.reduce_sum(log_probs, axis=1), num_positives)
    return tf.reduce_mean(tf.reshape(losses, [NUM_VIEWS, batch]), axis=0) * TEMPERATURE


def tensorflow_step(loss, batch, jit_compile):
    import tensorflow as tf

    features = tf.random.stateless_normal([batch, NUM_VIEWS, NUM_FEATURES], [1, 2])
    labels = tf.random.stateless_uniform([batch], [1, 2], 0, NUM_CLASSES, tf.int32)

    @tf.function(jit_compile=jit_compile)
    def step(labels, features):
        with tf.GradientTape() as tape:
            tape.watch(features)
            value = tf.reduce_mean(loss(labels, features))
        return value, tape.gradient(value, features)

    def run():
        value, gradient = step(labels, features)
        gradient.numpy()
        return float(value)

    # Start the threads of TensorFlow before the baseline of the memory is measured.
    tf.reduce_sum(tf.matmul(features[0], features[0], transpose_b=True)).numpy()
    return run


def torch_step(batch):
    import torch
    from pytorch_metric_learning.losses import SupConLoss

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(NUM_VIEWS * batch, NUM_FEATURES, generator=generator)
    labels = torch.randint(NUM_CLASSES, [batch], generator=generator).repeat(NUM_VIEWS)
    loss = SupConLoss(temperature=TEMPERATURE)

    def run():
        rows = features.clone().requires_grad_()
        value = loss(rows, labels)
        value.backward()
        return float(value) * TEMPERATURE

    return run


def family_cases(batch):
    """Name to (labels, options of `supcon_loss`)."""
    import numpy as np
    import tensorflow as tf

    random = np.random.default_rng(0)
    classes = random.integers(0, NUM_CLASSES, batch).astype(np.int32)
    fine = random.integers(0, NUM_CLASSES, batch)
    return {
        "plain": (tf.constant(classes), {}),
        "jaccard, 20 labels": (
            tf.constant(random.random((batch, 20)) < 0.1),
            {"pair_weights": "jaccard"},
        ),
        "jaccard, 1,000 labels": (
            tf.constant(random.random((batch, 1000)) < 0.003),
            {"pair_weights": "jaccard"},
        ),
        "hierarchy, 3 levels": (
            tf.constant(np.stack([fine // 100, fine // 10, fine], axis=1).astype(np.int32)),
            {"pair_weights": "hierarchy"},
        ),
        "gaussian": (
            tf.constant(random.normal(size=batch).astype(np.float32)),
            {"pair_weights": "gaussian"},
        ),
        "spread": (tf.constant(classes), {"spread_weight": 0.5}),
        "class averages": (tf.constant(classes), {"denominator_weighting": "class"}),
    }


def measure_family(batch, rounds, jit_compile):
    """Returns the seconds of each case, forward and backward, in turns.

    On a machine that does other work too, the seconds of the processor, summed over the threads,
    vary less than the time that passes.
    """
    import tensorflow as tf

    from supcon_tf.losses.supcon import supcon_loss

    features = tf.random.stateless_normal([batch, NUM_VIEWS, NUM_FEATURES], [1, 2])
    steps = {}
    for name, (labels, options) in family_cases(batch).items():

        @tf.function(jit_compile=jit_compile)
        def step(features, labels=labels, options=options):
            with tf.GradientTape() as tape:
                tape.watch(features)
                value = tf.reduce_mean(supcon_loss(labels, features, **options))
            return value, tape.gradient(value, features)

        steps[name] = step
        step(features)[1].numpy()  # Traces.
    seconds, of_processor = ({name: [] for name in steps} for _ in range(2))
    for _ in range(rounds):
        for name, step in steps.items():
            before, processor_before = time.perf_counter(), time.process_time()
            step(features)[1].numpy()
            seconds[name].append(time.perf_counter() - before)
            of_processor[name].append(time.process_time() - processor_before)
    return {"batch": batch, "jit_compile": jit_compile, "seconds": seconds,
            "processor_seconds": of_processor}  # fmt: skip


def create_family_table(facts):
    """The medians of each loss, and their ratio to the plain loss."""
    rows = []
    for row in facts["rows"]:
        for name in row["seconds"]:
            cells = [f"{row['batch']:,}", FAMILY_OPTIONS.get(name, name)]
            for times in (row["seconds"], row["processor_seconds"]):
                ratio = statistics.median(times[name]) / statistics.median(times["plain"])
                cells += [records.spread(times[name]), f"{ratio:.2f}"]
            rows.append(cells)
    head = ["batch", "loss", "seconds", "over plain", "CPU seconds", "over plain"]
    return records.table(head, rows, text_columns=2)


def measure_replicas(arguments):
    """Prints the processor seconds of one replica, for strategies of several sizes."""
    batch = int(arguments.batches.split(",")[0])
    seconds = {int(text): [] for text in arguments.replicas.split(",")}
    for _ in range(arguments.repeats):
        for count, found in seconds.items():
            found += in_own_process(sys.executable, f"replicas, {count}", batch)
    rows = [{"batch": batch, "replicas": count, "seconds": each} for count, each in seconds.items()]
    records.write(arguments.results, rows)
    print(create_replica_table({"rows": rows}))


def replica_seconds(num_replicas, batch):
    """Processor seconds of one step over the replicas: [repeats], each with one thread.

    Each replica holds its share of the batch and computes its share of the pairs. The seconds of
    all threads are added up, so that it does not matter how many replicas share a core.
    """
    import tensorflow as tf

    from supcon_tf import strategies
    from supcon_tf.losses.supcon import supcon_loss

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(num_replicas)
    strategies.split_cpu(num_replicas)
    devices = [f"CPU:{index}" for index in range(num_replicas)]
    strategy = tf.distribute.MirroredStrategy(devices)
    features = tf.random.stateless_normal([batch, NUM_VIEWS, NUM_FEATURES], [1, 2])
    labels = tf.random.stateless_uniform([batch], [1, 2], 0, NUM_CLASSES, tf.int32)
    share = batch // num_replicas

    def place(tensor):
        def of_replica(context):
            return tensor[context.replica_id_in_sync_group * share :][:share]

        return strategy.experimental_distribute_values_from_function(of_replica)

    @tf.function
    def step(labels, features):
        def on_replica(labels, features):
            with tf.GradientTape() as tape:
                tape.watch(features)
                value = tf.reduce_sum(supcon_loss(labels, features)) / batch
            return tape.gradient(value, features)

        return strategy.run(on_replica, args=(labels, features))

    placed = place(labels), place(features)
    seconds = []
    for repeat in range(4):  # The first one traces.
        before = time.process_time()
        for gradient in strategy.experimental_local_results(step(*placed)):
            gradient.numpy()
        if repeat:
            seconds.append(time.process_time() - before)
    return seconds


def create_replica_table(facts):
    """Processor seconds of one replica: of all of them, divided by their number."""
    first = facts["rows"][0]
    alone = statistics.median(first["seconds"]) / first["replicas"]
    rows = []
    for row in facts["rows"]:
        each = [seconds / row["replicas"] for seconds in row["seconds"]]
        ratio = alone / statistics.median(each) * first["replicas"]
        cells = [f"{row['batch']:,}", str(row["replicas"]), records.spread(each), f"{ratio:.2f}"]
        rows.append(cells)
    head = ["batch", "replicas", "processor seconds of one replica", "less by"]
    return records.table(head, rows, text_columns=0)


def cache_of(name):
    """The cache in MB of a case: 0 of "blocked, no cache", 400 of "blocked, 400 MB"."""
    from supcon_tf.losses.options import SupConOptions

    _, _, variant = name.partition(", ")
    if variant == "no cache":
        return 0.0
    return float(variant.removesuffix(" MB")) if variant.endswith(" MB") else SupConOptions.cache_mb


def peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name, batch):
    """Runs one case in this process and prints its result."""
    if name == "PML":
        run = torch_step(batch)
    elif name == "dense":
        run = tensorflow_step(dense_supcon_loss, batch, jit_compile=False)
    else:
        from supcon_tf.losses.supcon import supcon_loss

        loss = functools.partial(supcon_loss, cache_mb=cache_of(name))
        run = tensorflow_step(loss, batch, jit_compile=name == "blocked, jit")
    idle = peak_megabytes()
    start = time.perf_counter()
    loss = run()  # Traces and compiles, which is negligible for the largest batches.
    first = time.perf_counter() - start
    seconds, start = [first] if first > 30 else [], time.perf_counter()
    while not seconds or (first <= 30 and len(seconds) < 100 and time.perf_counter() - start < 4):
        before = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - before)
    return {
        "loss": loss,
        "seconds": statistics.median(seconds),
        "megabytes": peak_megabytes() - idle,
        "total_megabytes": peak_megabytes(),
    }


def measure_rates():
    """Measures the rates of products [2048, 128] x [128, 2048], and of exponentials of them."""
    import tensorflow as tf

    rows = tf.random.stateless_normal([2048, NUM_FEATURES], [1, 2]) / 16
    matrix = tf.matmul(rows, rows, transpose_b=True)

    def rate(function, amount):
        timed = tf.function(function)
        seconds = []
        for _ in range(40):
            before = time.perf_counter()
            timed().numpy()
            seconds.append(time.perf_counter() - before)
        return amount / min(
            seconds
        )  # The fastest one, because it was disturbed least by other load.

    return {
        "operations": rate(
            lambda: tf.matmul(rows, rows, transpose_b=True), 2 * 2048**2 * NUM_FEATURES
        ),
        "exponentials": rate(lambda: tf.exp(matrix), 2048**2),
    }


def in_own_process(python, name, batch=0):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [python, __file__, f"--case={name}", f"--batch={batch}"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{name} at batch {batch} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def compare(batches, torch_python, repeats, cache_mb, results):
    """Measures every case at every batch size, in turns, and prints the table."""
    rates = in_own_process(sys.executable, "rates")
    peer = {"peer_versions": records.versions(torch_python, ["torch", PML])} if torch_python else {}
    names = ["blocked", "blocked, no cache", "blocked, jit"]
    if cache_mb:
        names.insert(1, f"blocked, {cache_mb} MB")
    names += ["dense", *(["PML"] if torch_python else [])]
    rows = []
    for batch in batches:
        cases = {name: [] for name in names if not is_too_large(name, batch)}
        for _ in range(repeats if batch <= LARGEST_DENSE else 1):
            for name, runs in cases.items():
                python = torch_python if name == "PML" else sys.executable
                runs.append(in_own_process(python, name, batch))
        rows.append({"batch": batch, "cases": cases})
        records.write(results, rows, rates=rates, **peer)
        print(f"batch {batch:,} is measured.", file=sys.stderr, flush=True)
    print(create_table({"rows": rows, "rates": rates}))


def create_table(facts):
    """Medians over the repeats, one row per batch size: seconds and memory, then the ratios."""
    rates = facts["rates"]
    names = list(dict.fromkeys(name for row in facts["rows"] for name in row["cases"]))
    compared = [name for name in ("blocked, no cache", "dense", "PML") if name in names]
    measured, ratios = [], []
    for row in facts["rows"]:
        batch = f"{row['batch']:,}"
        measured.append([batch, *measured_cells(row["cases"], names)])
        ratios.append([batch, *ratio_cells(row["cases"], compared, row["batch"], rates)])
    return "\n\n".join(
        [
            records.table(["batch", *(f"{name}: s, MB" for name in names)], measured, 0),
            records.table(
                ["batch", *(f"{name} / blocked" for name in compared), "limit / blocked"], ratios, 0
            ),
            f"A matrix product of inner size {NUM_FEATURES} reaches "
            f"{rates['operations'] / 1e9:.0f} GFLOP/s, and the exponential function "
            f"{rates['exponentials'] / 1e9:.2f} billion values per second. Each value is the "
            "median over separate processes, which ran in turns.",
        ]
    )


def is_too_large(name, batch):
    return name in ("dense", "PML") and batch > LARGEST_DENSE


def median_of(runs, key):
    return statistics.median(run[key] for run in runs)


def measured_cells(cases, names):
    """Seconds and megabytes of each case, empty for one that was too large."""
    return [
        f"{median_of(cases[name], 'seconds'):.3g}, {median_of(cases[name], 'megabytes'):,.0f}"
        if name in cases
        else ""
        for name in names
    ]


def ratio_cells(cases, compared, batch, rates):
    """The time of other cases over that of `blocked`, and how near that is to its limit."""
    seconds, pairs = median_of(cases["blocked"], "seconds"), (NUM_VIEWS * batch) ** 2
    cells = [
        f"{median_of(cases[name], 'seconds') / seconds:.2f}" if name in cases else ""
        for name in compared
    ]
    kept = min(1.0, cache_of("blocked") * 1e6 / (4 * pairs / 2))
    limit = (4 - kept) * pairs * NUM_FEATURES / rates["operations"]
    limit += (1 - kept / 2) * pairs / rates["exponentials"]
    return [*cells, f"{limit / seconds:.0%}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", default="128,512,2048,6144,16384,65536")
    parser.add_argument(
        "--repeats", type=int, default=3, help="processes per case for batch sizes up to 6,144"
    )
    parser.add_argument("--torch_env", help="environment for PyTorch; created if missing")
    parser.add_argument("--cache_mb", type=int, help="also measure the loss with this cache")
    parser.add_argument("--family", action="store_true", help="measure the family of losses")
    parser.add_argument("--rounds", type=int, default=7, help="of --family")
    parser.add_argument("--jit_compile", action="store_true", help="for --family")
    parser.add_argument("--replicas", help="measure the cost of one replica of 1,2,4 instead")
    parser.add_argument("--results", help="JSON file for every repeat")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if arguments.family:
        rows = [
            measure_family(int(batch), arguments.rounds, arguments.jit_compile)
            for batch in arguments.batches.split(",")
        ]
        records.write(arguments.results, rows)
        print(create_family_table({"rows": rows}))
    elif arguments.replicas:
        measure_replicas(arguments)
    elif arguments.case == "rates":
        print(json.dumps(measure_rates()))
    elif (arguments.case or "").startswith("replicas, "):
        count = int(arguments.case.removeprefix("replicas, "))
        print(json.dumps(replica_seconds(count, arguments.batch)))
    elif arguments.case:
        print(json.dumps(measure(arguments.case, arguments.batch)))
    else:
        batches = [int(batch) for batch in arguments.batches.split(",")]
        torch_python = install_torch(arguments.torch_env, PML) if arguments.torch_env else None
        compare(batches, torch_python, arguments.repeats, arguments.cache_mb, arguments.results)


if __name__ == "__main__":
    main()
