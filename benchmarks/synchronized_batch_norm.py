"""Images per second with batch norm over several replicas: one exchange per direction, and Keras'.

.venv/bin/python benchmarks/synchronized_batch_norm.py

The pretraining step of a ResNet with the CIFAR stem at 32 px on logical CPUs, each a replica of a
MirroredStrategy. Both sides have the same layers; one computes them as this package does, the other
with Keras' own operations. They are measured in turns in processes of their own, and each is paused
while the other is measured. Every view counts as an image.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

import records
from paused import PausedWorker, answer_rates
from train_step import create_encoder

OURS, KERAS = "one exchange", "Keras"
SIDES = (OURS, KERAS)
NUM_CLASSES = 10


def create_step(side, replicas, depth, images):
    """Returns a function that takes one step and returns its loss."""
    import keras
    import numpy as np
    import tensorflow as tf

    from supcon_tf import strategies
    from supcon_tf.losses import supcon
    from supcon_tf.models import contrastive
    from supcon_tf.training import optimizers, steps

    strategies.split_cpu(replicas)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(replicas)])
    examples = images // 2
    with strategy.scope():
        keras.utils.set_random_seed(0)
        encoder = create_encoder(depth, use_global_batch_norm=True)
        step = steps.ContrastiveStep(
            model=contrastive.ContrastiveModel(encoder, use_fused_batch_norm=side == OURS),
            loss=supcon.SupConLoss(reduction=None),
            optimizer=optimizers.create_optimizer("momentum", 0.1),
            global_batch_size=examples,
        )
    pixels = np.random.default_rng(0).integers(0, 256, [examples, 2, 32, 32, 3], np.uint8)
    labels = np.arange(examples, dtype=np.int32) % NUM_CLASSES
    share = examples // replicas

    def of_replica(context):
        rows = slice(context.replica_id_in_sync_group * share, None)
        return {"image": tf.constant(pixels[rows][:share]),
                "label": tf.constant(labels[rows][:share])}  # fmt: skip

    batch = strategy.experimental_distribute_values_from_function(of_replica)

    @tf.function(autograph=False)
    def run(batch):
        losses = strategy.run(lambda batch: step(batch)["loss"], args=(batch,))
        return strategy.reduce("SUM", losses, axis=None)

    return lambda: float(run(batch))


def serve(side, replicas, depth, images):
    """Prints the first losses; for every input line, images per second and peak memory in GB."""
    run = create_step(side, replicas, depth, images)
    print(json.dumps([run() for _ in range(3)]), flush=True)
    answer_rates(run, images)


def measure(arguments):
    """Measures both sides in turns; returns the row of the results."""
    case = [arguments.replicas, arguments.depth, arguments.images]
    workers = {
        side: PausedWorker([sys.executable, __file__, f"--worker={json.dumps([side, *case])}"])
        for side in SIDES
    }
    answers = {side: [] for side in SIDES}
    for _ in range(arguments.rounds):
        for side, worker in workers.items():
            answers[side].append(worker.ask(arguments.seconds))
    for worker in workers.values():
        worker.kill()
    return {
        "replicas": arguments.replicas,
        "depth": arguments.depth,
        "images": arguments.images,
        "sides": answers,
        "first_losses": {side: worker.greeting for side, worker in workers.items()},
    }


def create_table(facts):
    """Median images per second and peak memory of both sides, and the ratio of the medians."""
    rows = []
    for row in facts["rows"]:
        rates = {side: [rate for rate, _ in row["sides"][side]] for side in SIDES}
        cells = [
            f"{records.spread(rates[side])}, {row['sides'][side][-1][1]:.1f}" for side in SIDES
        ]
        ratio = statistics.median(rates[OURS]) / statistics.median(rates[KERAS])
        case = [f"ResNet-{row['depth']}", str(row["images"]), str(row["replicas"])]
        rows.append([*case, *cells, f"{ratio:.2f}"])
    head = ["encoder", "images", "replicas", *(f"{side}: images/s, GB" for side in SIDES)]
    return records.table([*head, "ratio"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--depth", type=int, default=18)
    parser.add_argument("--images", type=int, default=128, help="per step, over all replicas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of one measurement")
    parser.add_argument("--results", help="JSON file for every round")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(*json.loads(arguments.worker))
        return
    rows = [measure(arguments)]
    records.write(arguments.results, rows)
    print(create_table({"rows": rows}))


if __name__ == "__main__":
    main()
