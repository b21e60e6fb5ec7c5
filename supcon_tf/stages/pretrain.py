"""Stage 1: train the encoder and the projection head with the contrastive loss."""

from __future__ import annotations

import time
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf.data import data_identity, sources
from supcon_tf.losses.create import create_loss
from supcon_tf.losses.momentum_queue import MomentumQueue
from supcon_tf.losses.pair_weights import GaussianWeights, HierarchyOfClasses
from supcon_tf.models import batch_norm, contrastive, convolution
from supcon_tf.stages import (
    budget,
    choices,
    inputs,
    memory_check,
    process,
    starting_encoder,
    trainer,
)
from supcon_tf.stages.knn import KnnEvaluation
from supcon_tf.stages.trained import write_classes
from supcon_tf.training import progress, steps
from supcon_tf.training.optimizers import WarmUpThenDecay

# Metrics of the last log line that go into the result of the stage.
REPORTED = (
    "loss", "collapse_ratio", "accuracy", "knn_accuracy", "knn_mean_average_precision",
    "knn_mean_absolute_error", "knn_r2",
)  # fmt: skip


def run(flags: FlagValues, strategy: tf.distribute.Strategy) -> dict:
    """Trains to the last step and saves the encoder; returns the figures of the stage."""
    splits = inputs.splits_from_flags(flags)
    train_source = splits.train
    _check_label_type(flags, train_source)
    chosen = choices.choose_from_data(flags, strategy, train_source, "pretrain")
    choices.choose_batch_size(flags, strategy, train_source, "pretrain")
    choices.choose_epochs(flags, train_source)
    choices.choose_warmup(flags, "pretrain")
    built_on = starting_encoder.inputs_of_encoder(flags)
    with process.open_folder(flags, strategy, "pretrain", inputs=built_on) as folder:
        folder.check_data(data_identity.identity_of(train_source))
        folder.measured["chosen"] = chosen
        if (result := folder.result()) is not None:
            folder.say_finished()
            return result

        # Data.
        train_source = inputs.training_examples_from_flags(flags, train_source)
        inputs.check_batches(flags, strategy, train_source)
        _check_microbatch_divides(flags, strategy)
        views = views_from_flags(flags, train_source)

        # Model, loss and optimizer.
        schedule = trainer.schedule_from_flags(flags, "pretrain", train_source.num_examples)
        whitening = inputs.whitening_from_flags(flags, train_source, folder, views.image_size)
        num_classes = len(train_source.class_names)
        with strategy.scope(), progress.waiting("pretrain: building the model"):
            step = step_from_flags(
                flags, views.image_size, num_classes, schedule, whitening, source=train_source
            )
        _warm_start(flags, step)
        memory_check.prepare_memory(flags, strategy, step, num_views=flags.num_views)
        if choices.is_budget_open(flags):
            schedule = budget.schedule_of_budget(
                flags, strategy, folder, step=step, splits=splits, source=train_source, views=views
            )
        _print_plan(flags, step, schedule)

        # Training.
        knn = KnnEvaluation.of_splits(flags, strategy, step.encoder, train_source, splits.held_out)
        knn_interval_steps = int(flags.knn_interval_epochs * schedule.steps_per_epoch)
        trainer.profile_steps_from_flags(flags, folder, schedule)  # Refused before it starts.
        folder.begin(schedule)
        inputs.record_validation_split(flags, folder)
        started = time.monotonic()
        last = trainer.train_stage(
            flags, strategy, folder, step=step, schedule=schedule, source=train_source,
            views=views, evaluation=(knn, knn_interval_steps) if knn else None,
        )  # fmt: skip

        # Saving.
        _save(step, folder, train_source)
        result = {
            "steps": schedule.total_steps,
            "seconds": round(time.monotonic() - started, 1),
            "image_size": views.image_size,
            "num_features": step.encoder.output_shape[-1],
            **{name: last[name] for name in REPORTED if name in last},
            **(knn.test_labels if knn else {}),
        }
        folder.finish(result)
        return result


def _check_label_type(flags, source):
    """Raises ValueError if the labels are of a kind that the loss cannot use."""
    if source.label_type != "multi_label":
        if flags.pair_weights == "jaccard":
            raise ValueError(
                "--pair_weights=jaccard compares the labels of images with several labels, but "
                "these images have one class each. Leave it out."
            )
        return
    if flags.denominator_weighting == "class":
        raise ValueError(
            "--denominator_weighting=class averages over the images of each class, so it needs "
            "one class per image, but these images have several labels. Leave it out."
        )
    if flags.loss == "npairs":
        raise ValueError(
            "--loss=npairs needs one class per image, but these images have several labels. Use "
            "--loss=supcon, triplet or max_margin."
        )
    if flags.queue_size and flags.use_labels:
        raise ValueError(
            f"--queue_size={flags.queue_size} needs one class per image, but these images have "
            "several labels. Use --queue_size=0, or --nouse_labels."
        )


def views_from_flags(flags: FlagValues, source: sources.Source) -> inputs.Views:
    """Describes the views of pretraining."""
    return inputs.Views(
        image_size=choices.image_size_from_flags(flags, source),
        policy=inputs.policy_from_flags(flags, flags.augmentation_type),
        num_views=flags.num_views,
        crop_area_range=flags.crop_area_range,
    )


def loss_from_flags(flags: FlagValues, source: sources.Source | None = None) -> keras.losses.Loss:
    """Creates the contrastive loss, which returns one value per example.

    Args:
        flags: The parsed flags.
        source: The training examples, whose targets or hierarchy --pair_weights uses.
    """
    if flags.loss != "supcon":
        return create_loss(flags.loss)
    return create_loss(
        "supcon",
        temperature=flags.temperature,
        contrast_mode=flags.contrast_mode,
        summation_location=flags.summation_location,
        denominator_mode=flags.denominator_mode,
        positives_cap=flags.positives_cap,
        scale_by_temperature=flags.scale_by_temperature,
        epsilon=flags.epsilon,
        pair_weights=_pair_weights_from_flags(flags, source),
        spread_weight=flags.spread_weight,
        denominator_weighting=flags.denominator_weighting,
        cache_mb=flags.loss_cache_mb,
        use_labels=flags.use_labels,
    )


def _pair_weights_from_flags(flags, source):
    """The weights of --pair_weights, which know the targets or the hierarchy of the source."""
    if flags.pair_weights == "gaussian":
        bandwidth = flags.gaussian_bandwidth
        if bandwidth is None:
            spread = float(np.std(source.labels))
            if not spread:
                raise ValueError(
                    "--pair_weights=gaussian: all training targets are equal, so there is nothing "
                    "to learn from them. Check --label_columns."
                )
            bandwidth = spread / 4
            print(
                f"pretrain: --gaussian_bandwidth={bandwidth:.4g}, a quarter of the standard "
                f"deviation of the training targets, {spread:.4g}."
            )
        return GaussianWeights(bandwidth)
    if flags.pair_weights == "hierarchy":
        levels = [*source.parents, np.arange(len(source.class_names))]
        return HierarchyOfClasses(np.stack(levels, axis=1).tolist())
    return flags.pair_weights


def step_from_flags(
    flags: FlagValues,
    image_size: int,
    num_classes: int,
    schedule: WarmUpThenDecay,
    whitening: tuple[Sequence[float] | None, Sequence[float] | None],
    *,
    source: sources.Source | None = None,
) -> steps.ContrastiveStep | steps.ClassifierStep:
    """Creates model, loss and optimizer; call it under the scope of the strategy.

    Args:
        flags: The parsed flags.
        image_size: Side of the images in pixels.
        num_classes: Number of classes, for a classifier that is trained along.
        schedule: The learning rate.
        whitening: Mean and standard deviation of the channels, or (None, None).
        source: The training examples, see `loss_from_flags`.
    """
    encoder = starting_encoder.encoder_from_flags(flags, image_size, whitening)
    linear_head = None
    if flags.loss == "cross_entropy" or flags.cross_entropy_weight:
        linear_head = contrastive.create_linear_head(
            encoder.output_shape[-1], num_classes, normalize_embedding=flags.normalize_embedding
        )
    if flags.loss != "cross_entropy":
        return _contrastive_step(flags, encoder, linear_head, num_classes, schedule, source)
    batch_norm.use_fused_batch_norm(encoder)
    convolution.use_lean_gradients(encoder)
    parts = [(encoder, flags.pretrain_use_encoder_weight_decay), (linear_head, True)]
    return steps.ClassifierStep(
        encoder=encoder,
        linear_head=linear_head,
        optimizer=trainer.optimizer_from_flags(flags, "pretrain", schedule, parts=parts),
        global_batch_size=flags.batch_size,
        label_smoothing=flags.pretrain_label_smoothing,
        train_encoder=True,
    )


def _contrastive_step(flags, encoder, linear_head, num_classes, schedule, source):
    """The step of the contrastive loss; with a linear head, of both losses together."""
    head = contrastive.ProjectionHead(
        flags.projection_head_layers,
        use_batch_norm=flags.projection_head_use_batch_norm,
        use_batch_norm_beta=flags.projection_head_use_batch_norm_beta,
        use_global_batch_norm=flags.use_global_batch_norm,
        name="projection_head",  # A fixed name, so that its weights are found by name.
    )
    parts = [(encoder, flags.pretrain_use_encoder_weight_decay)]
    classification = probe = queue = None
    if linear_head is not None:
        parts.append((linear_head, True))
        classification = steps.ClassificationTerm(
            linear_head,
            weight=flags.cross_entropy_weight,
            label_smoothing=flags.pretrain_label_smoothing,
            stop_gradient=flags.stop_gradient_before_classifier,
        )
    parts.append((head, flags.pretrain_use_projection_head_weight_decay))
    if flags.online_probe and num_classes:
        probe = contrastive.create_linear_head(encoder.output_shape[-1], num_classes, name="probe")
    model = contrastive.ContrastiveModel(
        encoder, head, normalize_embedding=flags.normalize_embedding
    )
    loss = loss_from_flags(flags, source)
    if flags.queue_size:
        queue = MomentumQueue(
            model, loss, queue_size=flags.queue_size, momentum=flags.encoder_momentum
        )
    return steps.ContrastiveStep(
        model=model,
        loss=loss,
        queue=queue,
        optimizer=trainer.optimizer_from_flags(flags, "pretrain", schedule, parts=parts),
        global_batch_size=flags.batch_size,
        num_views=flags.num_views,
        probe=probe,
        classification=classification,
        microbatch_size=flags.microbatch_size,
    )


def _warm_start(flags, step):
    if not flags.reference_ckpt:
        return
    if flags.warm_start_encoder:
        trainer.warm_start_part(flags, "encoder", step.encoder)
    if flags.warm_start_projection_head:
        trainer.warm_start_part(flags, "projection_head", step.model.projection_head)
    if flags.queue_size:
        step.queue.copy_weights(step.model)


def _print_plan(flags, step, schedule):
    encoder, size = step.encoder, step.encoder.input_shape[1]
    learning_rate = choices.describe_learning_rate(flags, "pretrain", schedule.peak_learning_rate)
    views = progress.counted(flags.num_views, "view")
    print(
        f"pretrain: {schedule.total_steps:,} steps of {flags.batch_size} images x "
        f"{views} of {size} px ({flags.pretrain_epochs:g} epochs); {encoder.name} "
        f"encoder with {_count_parameters(encoder):,} parameters; {learning_rate}."
    )
    for line in starting_encoder.describe_start(flags, encoder):
        print(f"          {line}")
    if isinstance(step, steps.ContrastiveStep):
        same, other = (
            ("the same class", "different classes")
            if flags.use_labels and flags.pair_weights != "gaussian"
            else ("the same image", "different images")
        )
        print(
            f"          positives, negatives: mean cosine similarity of views of {same} and of "
            f"{other}; they move apart as training works."
        )


def _count_parameters(model):
    return sum(int(variable.value.shape.num_elements()) for variable in model.trainable_variables)


def _save(step, folder, source):
    """Saves the encoder and what was trained with it, and removes parts of an earlier run."""
    write_classes(folder.artifacts, source.class_names, source.label_type)
    batch_norm.unfreeze_batch_norm(step.encoder)
    parts = {"linear_head.keras": step.linear_head, "encoder.keras": step.encoder}
    if isinstance(step, steps.ContrastiveStep):
        parts = {"projection_head.keras": contrastive.create_projector(step.model), **parts}
    with progress.waiting("pretrain: saving the encoder"):
        for name, model in parts.items():
            if model is not None:
                folder.artifacts.save_model(name, model)
            elif folder.is_chief:
                folder.artifacts.remove(name)


def _check_microbatch_divides(flags, strategy):
    replicas = strategy.num_replicas_in_sync
    per_replica = flags.batch_size // replicas
    if flags.microbatch_size is not None and per_replica % flags.microbatch_size:
        raise ValueError(
            f"microbatch_size={flags.microbatch_size} must divide the batch of a replica, "
            f"{per_replica} (--batch_size={flags.batch_size} over {replicas} replica(s))."
        )
