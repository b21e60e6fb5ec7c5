"""One training step of ResNet-50 with batch size 6,144 on one machine, by gradient caching.

    .venv/bin/python benchmarks/large_batch.py

The script has two parts, each in separate processes:

* The step: seconds and peak memory of ResNet-50 with the CIFAR stem at 32 px, 6,144 examples x 2
  views, with a microbatch of 64 examples.
* The check: the same step with a smaller batch, compared with four replicas on logical CPUs without
  gradient caching. The local batch of each replica is the microbatch, and each has its own batch
  norm, so the loss and the gradient norm must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

from train_step import create_encoder

ROOT = pathlib.Path(__file__).parents[1]
TEMPERATURE, NUM_CLASSES, NUM_VIEWS, IMAGE_SIZE = 0.1, 10, 2, 32


def create_model(depth):
    import keras

    from supcon_tf.models import contrastive

    keras.utils.set_random_seed(0)
    encoder = create_encoder(depth, use_global_batch_norm=False)
    return contrastive.ContrastiveModel(encoder, contrastive.ProjectionHead((2048, 128)))


def create_batch(batch):
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (batch, NUM_VIEWS, IMAGE_SIZE, IMAGE_SIZE, 3)
    return rng.integers(0, 256, shape, dtype=np.uint8), rng.integers(NUM_CLASSES, size=batch)


def cached_step(batch, microbatch, depth, update):
    """Runs a step with gradient caching on one device; returns the loss and gradient norm."""
    import tensorflow as tf

    from supcon_tf.losses import supcon
    from supcon_tf.training import gradient_cache as caching
    from supcon_tf.training import optimizers

    model, (images, labels) = create_model(depth), create_batch(batch)
    loss = supcon.SupConLoss(temperature=TEMPERATURE, reduction=None)
    optimizer = optimizers.create_optimizer("lars", 0.1)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(images, labels):
        def objective(_, projections):
            value = tf.reduce_sum(loss.call(labels, projections)) / batch
            return value, value

        value, gradients, _ = caching.cached_gradients(
            model, images, objective, microbatch_size=microbatch
        )
        if update:
            optimizer.apply(gradients, model.trainable_variables)
        return value, tf.linalg.global_norm(gradients)

    images, labels = tf.constant(images), tf.constant(labels)
    started = time.perf_counter()
    value, norm = (float(x) for x in step(images, labels))
    return {"loss": value, "gradient_norm": norm, "seconds": time.perf_counter() - started}


def replicated_step(batch, replicas, depth):
    """Runs the same step without caching, on logical CPUs that each process a local batch."""
    import tensorflow as tf

    from supcon_tf import strategies
    from supcon_tf.losses import supcon

    strategies.split_cpu(replicas)
    strategy = strategies.create_strategy("mirrored")
    with strategy.scope():
        model = create_model(depth)
    loss = supcon.SupConLoss(temperature=TEMPERATURE, reduction=None)
    images, labels = create_batch(batch)
    share = batch // replicas

    def place(array):
        def of_replica(context):
            return tf.constant(array[context.replica_id_in_sync_group * share :][:share])

        return strategy.experimental_distribute_values_from_function(of_replica)

    @tf.function
    def step(images, labels):
        def on_replica(images, labels):
            with tf.GradientTape() as tape:
                value = tf.reduce_sum(loss.call(labels, model(images, training=True))) / batch
            gradients = tape.gradient(value, model.trainable_variables)
            context = tf.distribute.get_replica_context()
            value, gradients = context.all_reduce("SUM", [value, gradients])
            return value, tf.linalg.global_norm(gradients)

        return strategy.run(on_replica, args=(images, labels))

    started = time.perf_counter()
    results = [
        strategy.experimental_local_results(x)[0] for x in step(place(images), place(labels))
    ]
    value, norm = (float(x) for x in results)
    return {"loss": value, "gradient_norm": norm, "seconds": time.perf_counter() - started}


def in_own_process(**case):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__, f"--case={json.dumps(case)}"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{case} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def run_case(kind, batch, microbatch, depth):
    if kind == "cached":
        result = cached_step(batch, microbatch, depth, update=True)
    else:
        result = replicated_step(batch, batch // microbatch, depth)
    result["gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(result))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=6144)
    parser.add_argument("--microbatch", type=int, default=64)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        run_case(**json.loads(arguments.case))
        return
    depth, check = arguments.depth, {"batch": 128, "microbatch": 32, "depth": arguments.depth}
    print(
        "| step | loss | gradient norm | seconds | peak GB |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for name, case in (
        ("128 examples, cached in pieces of 32", {"kind": "cached", **check}),
        ("128 examples, 4 replicas of 32", {"kind": "replicated", **check}),
        (
            f"{arguments.batch:,} examples, cached in pieces of {arguments.microbatch}",
            {"kind": "cached", "batch": arguments.batch, "microbatch": arguments.microbatch}
            | {"depth": depth},
        ),
    ):
        row = in_own_process(**case)
        print(
            f"| {name} | {row['loss']:.6f} | {row['gradient_norm']:.6f} | {row['seconds']:,.0f} | "
            f"{row['gigabytes']:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
