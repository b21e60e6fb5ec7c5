"""A training run of a few steps: a small encoder on drawn images."""

import json
import os
import re

import keras
import numpy as np
import tensorflow as tf

from supcon_tf.augment import policies
from supcon_tf.data import pipeline, sources
from supcon_tf.losses.supcon import SupConLoss
from supcon_tf.models import contrastive
from supcon_tf.training import loop, optimizers, steps
from supcon_tf.training.checkpoint import CheckpointFolder

SIDE = 8
BATCH_SIZE = 8


def one_device():
    return tf.distribute.OneDeviceStrategy("CPU:0")


def create_encoder(filters=4, *, side=SIDE, synchronized=True):
    """A small encoder with the parts that matter here: a convolution and batch norm."""
    images = keras.Input([side, side, 3], dtype="float32")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(images)
    x = keras.layers.Conv2D(filters, 3, strides=2, use_bias=False)(x)
    x = keras.layers.BatchNormalization(momentum=0.9, synchronized=synchronized)(x)
    x = keras.layers.Flatten()(keras.layers.ReLU()(x))
    return keras.Model(images, keras.layers.Dense(6)(x))


def create_step(strategy, *, learning_rate=0.5, probe=False, filters=4, optimizer="momentum"):
    """The same initial weights whatever the strategy and whether there is a probe."""
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = contrastive.ContrastiveModel(
            create_encoder(filters), contrastive.ProjectionHead([5])
        )
        probe = contrastive.create_linear_head(6, 3, name="probe") if probe else None
        return steps.ContrastiveStep(
            model=model,
            loss=SupConLoss(reduction=None),
            optimizer=optimizers.create_optimizer(optimizer, learning_rate, weight_decay=1e-3),
            global_batch_size=BATCH_SIZE,
            probe=probe,
        )


def create_source(num_examples=24):
    rng = np.random.default_rng(0)
    labels = np.arange(num_examples, dtype=np.int32) % 3
    images = rng.integers(0, 120, (num_examples, SIDE, SIDE, 3)) + 60 * labels[:, None, None, None]
    return sources.ArraySource(images.astype(np.uint8), labels, ("a", "b", "c"))


def run(strategy, step, folder, total_steps, **options):
    options = {
        "create_batches": lambda start_step, host, num_hosts: pipeline_batches(
            start_step, strategy.num_replicas_in_sync
        ),
        "steps_per_loop": 4,
        "summary_interval_steps": 2,
        "save_interval_steps": 2,
        "schedule": lambda step: 0.5,
        **options,
    }
    return loop.train(
        strategy=strategy,
        step=step,
        checkpoints=CheckpointFolder(
            os.path.join(folder, "checkpoints"), **step.models, **step.optimizers
        ),
        log_folder=str(folder),
        total_steps=total_steps,
        steps_per_epoch=3.0,
        **options,
    )


def state(step):
    """Every weight, moving statistic and optimizer slot, by name without the layers' counters."""
    return {
        f"{name}/{index}/{re.sub(r'_[0-9]+', '', variable.path)}": np.array(variable.numpy())
        for name, holder in {**step.models, **step.optimizers}.items()
        for index, variable in enumerate(holder.variables)
    }


def read_log(folder):
    with open(os.path.join(folder, "metrics.jsonl")) as file:
        return [json.loads(line) for line in file]


def pipeline_batches(start_step=0, num_replicas=1):
    return pipeline.create_train_batches(
        create_source(),
        policy=policies.create_policy("identity"),
        batch_size=BATCH_SIZE,
        image_size=SIDE,
        seed=0,
        start_step=start_step,
        num_replicas=num_replicas,
    )


def folder_of(tmp_path, variable, **options):
    return CheckpointFolder(str(tmp_path / "checkpoints"), variable=variable, **options)
