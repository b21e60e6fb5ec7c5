"""Compares the peak memory of a pretraining step with the estimate that rejects too large runs.

    .venv/bin/python benchmarks/memory.py

Each case runs two steps in its own process, on a batch that is already in memory. "measured" is the
increase of the resident size from the built model to the peak. "estimated" must never exceed it,
because a run that fits must never be rejected.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

# Encoder, depth, image size, number of examples (with two views each), precision.
CASES = (
    ("tiny", 0, 32, 256, "float32"),
    ("tiny", 0, 32, 1024, "float32"),
    ("tiny", 0, 64, 256, "float32"),
    ("resnet_v1", 18, 32, 64, "float32"),
    ("resnet_v1", 18, 32, 128, "float32"),
    ("resnet_v1", 18, 128, 32, "float32"),
    ("resnet_v1", 18, 224, 16, "float32"),
    ("resnet_v1", 18, 32, 128, "mixed_bfloat16"),
    ("resnet_v1", 50, 32, 32, "float32"),
    ("resnet_v1", 50, 32, 64, "float32"),
    ("resnet_v1", 50, 128, 16, "float32"),
    ("resnet_v1", 50, 224, 16, "float32"),
    ("resnet_v1", 50, 224, 16, "mixed_bfloat16"),
    ("keras.applications.MobileNetV2", 0, 64, 64, "float32"),
    ("keras.applications.EfficientNetV2B0", 0, 64, 64, "float32"),
    ("keras.applications.DenseNet121", 0, 64, 32, "float32"),
)


def resident_bytes(peak=False):
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def measure(architecture, depth, image_size, examples, precision):
    import keras
    import numpy as np
    import tensorflow as tf

    from supcon_tf.losses import supcon
    from supcon_tf.models import contrastive
    from supcon_tf.training import memory, optimizers, steps

    keras.config.set_dtype_policy(precision)
    options = {"depth": depth} if depth else {}
    encoder = contrastive.create_encoder(architecture, image_size=image_size, **options)
    step = steps.ContrastiveStep(
        model=contrastive.ContrastiveModel(encoder),
        loss=supcon.SupConLoss(reduction=None),
        optimizer=optimizers.create_optimizer("momentum", 0.1),
        global_batch_size=examples,
    )
    pixels = np.random.default_rng(0).integers(
        0, 256, [examples, 2, image_size, image_size, 3], np.uint8
    )
    batch = {"image": tf.constant(pixels), "label": tf.range(examples) % 10}
    before = resident_bytes()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # Reset the peak.
    run = tf.function(step)
    for _ in range(2):
        float(run(batch)["loss"])
    measured = resident_bytes(peak=True) - before
    total, _ = memory.output_bytes(encoder)
    needed = memory.estimate(step, images_per_replica=2 * examples, eval_images_per_replica=0)
    return {
        "outputs": 2 * examples * total,
        "estimated": needed.missing,
        "measured": measured,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help="Measure only the cases with this encoder.")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(*json.loads(arguments.case))))
        return
    for case in (case for case in CASES if arguments.only in case[0]):
        done = subprocess.run(
            [sys.executable, __file__, f"--case={json.dumps(case)}"],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{case}: {done.stderr[-2000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        sizes = ", ".join(f"{name} {size / 2**20:,.0f} MB" for name, size in found.items())
        share = found["measured"] / found["outputs"]
        print(f"{case}: {sizes}, measured / outputs {share:.3f}", flush=True)


if __name__ == "__main__":
    main()
