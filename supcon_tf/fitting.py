"""The training behind `SupConClassifier.fit`: examples in memory to an encoder and a linear head.

Every part is the one that the stages `pretrain` and `linear` of the command use, and every default
is the command's: the same examples, settings and seed give the same weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from supcon_tf.augment import policies
from supcon_tf.data import data_identity, defaults, pipeline, whitening
from supcon_tf.data.sources import ArraySource
from supcon_tf.evaluation import linear_fit, multi_label, predictions
from supcon_tf.fit_settings import Settings
from supcon_tf.losses.create import create_loss
from supcon_tf.models import applications, batch_norm, contrastive, convolution, saved_encoder
from supcon_tf.training import (
    checkpoint,
    loop,
    memory,
    memory_reservation,
    progress,
    stage_optimizer,
    steps,
    time_budget,
)

EVAL_BATCH_SIZE = 256
# How often the training logs, saves and measures k-NN, and on how many examples of each set.
SUMMARY_STEPS, SAVE_STEPS = 20, 200
KNN_INTERVAL_EPOCHS, KNN_EXAMPLES = 10.0, 10_000


class TrainedEncoder(NamedTuple):
    """What `train_encoder` returns: the encoder, the lines of the log, and how it was trained."""

    encoder: keras.Model
    history: list[dict[str, float]]
    settings: Settings


def train_encoder(
    strategy: tf.distribute.Strategy,
    source: ArraySource,
    settings: Settings,
    *,
    validation: ArraySource | None = None,
    folder: str | None = None,
    name: str = "fit",
) -> TrainedEncoder:
    """Trains an encoder with a contrastive loss, as the stage `pretrain` does.

    Args:
        strategy: Which devices train.
        source: The training examples; labels int32 [M], or bool [M, C] for several per image.
        settings: How to train. Its time budget counts from this call.
        validation: Examples to measure k-NN on during training.
        folder: Where checkpoints and the log go; a training that was begun there is resumed.
            None keeps neither.
        name: What the progress bar is called.

    Raises:
        ValueError: If the folder belongs to another training, or the loss is not finite.
    """
    started_at = time.monotonic()
    schedule = _schedule(settings, source)
    policy = policies.create_policy(
        settings.chosen.augmentation_type, magnitude=settings.chosen.augmentation_magnitude
    )
    with contextlib.ExitStack() as stack:
        is_kept = folder is not None
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        with initial_weights_from(settings.seed), strategy.scope():
            step = create_step(settings, source, schedule)
        _reserve_memory(strategy, step, settings)

        def create_batches(start_step, host, num_hosts):
            return pipeline.create_train_batches(
                source,
                policy=policy,
                batch_size=settings.chosen.batch_size,
                image_size=settings.chosen.image_size,
                seed=settings.seed,
                num_views=settings.chosen.num_views,
                start_step=start_step,
                crop_area_range=settings.chosen.crop_area_range,
                horizontal_flip=settings.chosen.horizontal_flip,
                num_replicas=strategy.num_replicas_in_sync,
                host=host,
                num_hosts=num_hosts,
            )

        if settings.time_budget_minutes is not None:
            settings = _fit_time_budget(
                settings, strategy, step, create_batches, source, validation, started_at
            )
            schedule = _schedule(settings, source)
            stage_optimizer.change_schedule(step.optimizers["optimizer"], schedule)
        loop.train(
            strategy=strategy,
            step=step,
            create_batches=create_batches,
            checkpoints=_open_checkpoints(folder, step, source, settings, is_kept),
            log_folder=folder,
            total_steps=schedule.total_steps,
            steps_per_epoch=schedule.steps_per_epoch,
            schedule=schedule,
            steps_per_loop=SUMMARY_STEPS,
            summary_interval_steps=SUMMARY_STEPS,
            save_interval_steps=SAVE_STEPS if is_kept else max(schedule.total_steps, 1),
            evaluate=_knn_of(strategy, step.encoder, source, validation),
            evaluate_interval_steps=int(KNN_INTERVAL_EPOCHS * schedule.steps_per_epoch),
            name=name,
        )
        history = _read_log(os.path.join(folder, "metrics.jsonl"))
    batch_norm.unfreeze_batch_norm(step.encoder)
    return TrainedEncoder(clone_encoder(step.encoder), history, settings)


def _reserve_memory(strategy, step, settings):
    if not memory_reservation.can_reserve():
        return
    images = settings.chosen.num_views * settings.chosen.batch_size
    needed = memory.estimate_on_host(
        strategy,
        step,
        images_per_replica=images // strategy.num_replicas_in_sync,
        eval_batch_size=EVAL_BATCH_SIZE,
    )
    memory_reservation.reserve(needed.missing)


def _schedule(settings, source):
    return stage_optimizer.schedule_of_epochs(
        settings.chosen.pretrain_base_learning_rate,
        batch_size=settings.chosen.batch_size,
        num_examples=source.num_examples,
        epochs=settings.chosen.pretrain_epochs,
        warmup_epochs=settings.warmup_epochs,
    )


def _fit_time_budget(settings, strategy, step, create_batches, source, validation, started_at):
    """The settings with the epochs that fit in their time budget."""
    with progress.waiting("fit: measuring the time of a step for time_budget_minutes"):
        measured = time_budget.measure_step(strategy, step, create_batches)
    chosen, minutes = settings.chosen, settings.time_budget_minutes
    steps_per_epoch = source.num_examples / chosen.batch_size
    evaluated = min(source.num_examples, KNN_EXAMPLES)
    evaluated += min(validation.num_examples, KNN_EXAMPLES) if validation else 0
    plan = time_budget.plan_training(
        minutes,
        time.monotonic() - started_at,
        measured,
        steps_per_epoch=steps_per_epoch,
        images_per_step=chosen.batch_size * chosen.num_views,
        evaluated_images=evaluated if validation else 0,
        evaluation_interval_epochs=KNN_INTERVAL_EPOCHS,
        images_afterwards=source.num_examples,
        stages_afterwards=1,
    )
    if plan.is_too_short:
        raise ValueError(
            f"time_budget_minutes={minutes:g} is too short to train: {plan.seconds_passed:.0f} s "
            f"have passed, and about {plan.seconds_afterwards:.0f} s are needed afterwards. Use at "
            f"least time_budget_minutes={plan.least_minutes}."
        )
    progress.inform(
        f"fit: a step takes {measured.later:.3g} s; {minutes:g} minutes are enough for "
        f"epochs={plan.epochs:g}."
    )
    return settings.with_epochs(plan.epochs, plan.longest_warmup_epochs)


def _read_log(path):
    if not os.path.exists(path):  # A training of no steps has no log.
        return []
    with open(path, encoding="utf-8") as log:
        return [json.loads(line) for line in log]


def create_step(
    settings: Settings,
    source: ArraySource,
    schedule: keras.optimizers.schedules.LearningRateSchedule,
) -> steps.ContrastiveStep | steps.ClassifierStep:
    """Creates the encoder, what is trained with it, the loss and the optimizer.

    In the order of the stage `pretrain`, so that the same seed gives the same initial weights.

    Raises:
        ValueError: If the loss is unknown or does not fit the labels.
    """
    if settings.loss == "npairs" and source.label_type == "multi_label":
        raise ValueError(
            "loss='npairs' needs one class per image, and these labels are multi-hot: use "
            "loss='supcon', 'triplet' or 'max_margin'."
        )
    encoder = _create_encoder(settings, source)
    if settings.freeze_batch_norm:
        batch_norm.freeze_batch_norm(encoder)
    num_features, num_classes = encoder.output_shape[-1], len(source.class_names)

    def create_optimizer(*models):
        parts = [(model, True) for model in models]
        return stage_optimizer.optimizer_of_parts("adam", schedule, parts=parts)

    if settings.loss == "cross_entropy":
        head = contrastive.create_linear_head(
            num_features, num_classes, normalize_embedding=settings.chosen.normalize_embedding
        )
        batch_norm.use_fused_batch_norm(encoder)
        convolution.use_lean_gradients(encoder)
        return steps.ClassifierStep(
            encoder=encoder,
            linear_head=head,
            optimizer=create_optimizer(encoder, head),
            global_batch_size=settings.chosen.batch_size,
            label_smoothing=settings.chosen.pretrain_label_smoothing,
            train_encoder=True,
        )
    parts, classification, weight = [encoder], None, settings.chosen.cross_entropy_weight
    normalizes = settings.chosen.normalize_embedding
    if weight:
        linear_head = contrastive.create_linear_head(
            num_features, num_classes, normalize_embedding=normalizes
        )
        parts.append(linear_head)
        classification = steps.ClassificationTerm(
            linear_head, weight=weight, label_smoothing=settings.chosen.pretrain_label_smoothing
        )
    head = contrastive.ProjectionHead(name="projection_head")
    probe = contrastive.create_linear_head(num_features, num_classes, name="probe")
    model = contrastive.ContrastiveModel(encoder, head, normalize_embedding=normalizes)
    return steps.ContrastiveStep(
        model=model,
        loss=_create_loss(settings),
        optimizer=create_optimizer(*parts, head),
        global_batch_size=settings.chosen.batch_size,
        num_views=settings.chosen.num_views,
        probe=probe,
        classification=classification,
    )


def _create_encoder(settings, source):
    if isinstance(settings.encoder, keras.Model):
        encoder = clone_encoder(settings.encoder)
        saved_encoder.unfreeze_whole(encoder)
        if settings.encoder_weights is not None:
            saved_encoder.load_weights_into(encoder, settings.encoder_weights)
        return encoder
    chosen, options = settings.chosen, {"weights": settings.encoder_weights}
    if not settings.encoder.startswith(applications.PREFIX):
        batches = examples_in_order(source, chosen.image_size, limit=defaults.WHITENING_EXAMPLES)
        mean, std = whitening.measure_whitening(batches)
        options |= {"mean": mean, "std": std}
        options |= {"depth": chosen.resnet_depth, "width": chosen.resnet_width}
    return contrastive.create_encoder(settings.encoder, image_size=chosen.image_size, **options)


def _create_loss(settings):
    if not isinstance(settings.loss, str):
        return settings.loss
    options = {"temperature": settings.temperature} if settings.loss == "supcon" else {}
    return create_loss(settings.loss, **options)


def clone_encoder(encoder: keras.Model) -> keras.Model:
    """Returns a copy of a functional or Sequential model with the same weights."""
    clone = keras.models.clone_model(encoder)
    clone.set_weights(encoder.get_weights())
    return clone


@contextlib.contextmanager
def initial_weights_from(seed: int) -> Iterator[None]:
    """Within, Keras draws weights from a seed; Python and NumPy keep their own random numbers."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    keras.utils.set_random_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _open_checkpoints(folder, step, source, settings, is_kept):
    record = {}
    if is_kept:
        data = data_identity.identity_of(source).digest
        record = {"seed": settings.seed, "settings": settings.record(), "data": data}

    def check(old):
        if not is_kept:
            return
        added = {"freeze_batch_norm": False, "pretrain_label_smoothing": 0.0}
        before = {**added, **old.get("settings", {}), "data": old.get("data")}
        after = {**record["settings"], "data": record["data"]}
        changed = [
            "the training data" if key == "data" else f"{key}: {before.get(key)}  ->  {value}"
            for key, value in after.items()
            if before.get(key) != value
        ]
        if changed:
            raise ValueError(
                "it was written by a training that differs in\n  "
                + "\n  ".join(changed)
                + "\nUse the old values, or another checkpoint_dir."
            )

    return checkpoint.CheckpointFolder(
        os.path.join(folder, "checkpoints"),
        record=record,
        check_record=check,
        **step.models,
        **step.optimizers,
    )


def _knn_of(strategy, encoder, source, validation) -> Callable[[], dict[str, float]] | None:
    """A function that measures k-NN on the validation examples; None without any."""
    if validation is None:
        return None
    embed = predictions.create_predictor(strategy, lambda images: encoder(images, training=False))
    size = encoder.input_shape[1]
    parts = [examples_in_order(each, size, limit=KNN_EXAMPLES) for each in (source, validation)]

    def measure():
        arrays = [array for part in parts for array in predictions.in_order(embed(part))]
        return multi_label.knn_figure(*arrays)

    return measure


def examples_in_order(
    source: ArraySource,
    image_size: int,
    *,
    batch_size: int = EVAL_BATCH_SIZE,
    limit: int | None = None,
) -> tf.data.Dataset:
    """Returns every example once, in order, without augmentation."""
    return pipeline.create_eval_batches(
        source, batch_size=batch_size, image_size=image_size, limit=limit
    )


def fit_linear_head(
    strategy: tf.distribute.Strategy,
    encoder: keras.Model,
    source: ArraySource,
    *,
    normalize_embedding: bool = True,
) -> tuple[keras.Model, linear_fit.LinearFit]:
    """Fits a linear head to the embeddings of all training images, as the stage `linear` does.

    Args:
        strategy: Which devices compute the embeddings.
        encoder: The trained encoder.
        source: The training examples.
        normalize_embedding: Whether the head normalizes embeddings.

    Returns:
        The head, embeddings [B, F] -> logits [B, C], and the fit.
    """
    embeddings, labels = predictions.predict(
        strategy,
        lambda images: encoder(images, training=False),
        examples_in_order(source, encoder.input_shape[1]),
    )
    num_classes = len(source.class_names)
    fitted = linear_fit.fit(
        embeddings, labels, num_classes, normalize_embedding=normalize_embedding
    )
    head = contrastive.create_linear_head(
        embeddings.shape[1], num_classes, normalize_embedding=normalize_embedding
    )
    head.set_weights([fitted.kernel, fitted.bias])
    return head, fitted
