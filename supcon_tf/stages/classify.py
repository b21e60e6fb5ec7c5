"""What the linear and finetune stages share: training in steps, and what they save."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf import strategies
from supcon_tf.data import data_identity, sources
from supcon_tf.evaluation import predictions
from supcon_tf.models import batch_norm, contrastive, convolution, saved_encoder
from supcon_tf.stages import choices, frozen_features, inputs, memory_check, process, trainer
from supcon_tf.stages import figures as stage_figures
from supcon_tf.stages.run_directory import RunDirectory
from supcon_tf.stages.stage_folder import StageFolder
from supcon_tf.stages.trained import PretrainedEncoder, write_classes
from supcon_tf.training import progress, steps


def train_classifier(
    flags: FlagValues,
    strategy: tf.distribute.Strategy,
    stage: str,
    *,
    augmentation_type: str,
    crop_area_range: tuple[float, float],
    train_encoder: bool = False,
) -> dict:
    """Trains a classifier to the last step; returns the figures of the stage.

    The test accuracy does not influence the training.

    Args:
        flags: The parsed flags.
        strategy: The strategy of the run.
        stage: "linear" or "finetune", which names the folder and the flags.
        augmentation_type: The augmentation policy of the training images.
        crop_area_range: Smallest and largest area of a random crop, as fractions of the image.
        train_encoder: Whether to train all layers instead of the linear head alone.
    """
    pretrained, kept = PretrainedEncoder.of(flags), _kept_head(flags, stage)
    built_on = {"encoder": pretrained.identity()}
    if kept:
        built_on["linear_head"] = kept.identity("linear_head.keras")
    train_source, test_source = inputs.sources_from_flags(flags)
    choices.choose_batch_size(flags, strategy, train_source, stage)
    choices.choose_warmup(flags, stage)
    with process.open_folder(flags, strategy, stage, inputs=built_on) as folder:
        check_training_data(folder, train_source, pretrained)
        if (result := folder.result()) is not None:
            folder.say_finished()
            return result

        train_source = inputs.training_examples_from_flags(flags, train_source)
        inputs.check_batches(flags, strategy, train_source)
        policy = inputs.policy_from_flags(flags, augmentation_type)
        schedule = trainer.schedule_from_flags(flags, stage, train_source.num_examples)
        class_names = train_source.class_names

        with strategy.scope(), progress.waiting(f"{stage}: loading the encoder"):
            encoder = pretrained.load()
            if train_encoder:
                saved_encoder.unfreeze_whole(encoder)
                batch_norm.use_fused_batch_norm(encoder)
                convolution.use_lean_gradients(encoder)
                if flags.freeze_batch_norm:
                    batch_norm.freeze_batch_norm(encoder)
            linear_head = _linear_head_from_flags(flags, encoder, len(class_names), kept)
            views = inputs.Views(encoder.input_shape[1], policy, 1, crop_area_range)
            embeds_once = not train_encoder and frozen_features.can_be_used(
                flags, encoder, train_source, views, num_classes=len(class_names),
                steps_left=schedule.total_steps - trainer.steps_done(folder),
            )  # fmt: skip
            # Not in the precision of the policy: embeddings are float32.
            trunk = keras.layers.Identity(dtype="float32") if embeds_once else encoder
            step = _step_from_flags(flags, stage, trunk, linear_head, schedule, train_encoder)
        if flags.reference_ckpt and flags.warm_start_classifier:
            trainer.warm_start_part(flags, "classifier", linear_head)
        num_features = encoder.output_shape[-1]
        _print_start(flags, stage, pretrained, kept, num_features, schedule, len(class_names))
        if train_encoder:
            memory_check.prepare_memory(flags, strategy, step, num_views=1)

        trainer.profile_steps_from_flags(flags, folder, schedule)  # Refused before it starts.
        folder.begin(schedule)
        inputs.record_validation_split(flags, folder)
        started = time.monotonic()
        create_batches = None
        if embeds_once:
            with progress.waiting("linear: embedding the training images once"):
                embeddings, labels = predict_source(
                    flags, strategy, encoder, train_source, image_size=views.image_size,
                    stage=stage, crop=frozen_features.training_crop(views),
                )  # fmt: skip
            features = frozen_features.FrozenFeatures(embeddings, labels)
            create_batches = functools.partial(features.create_batches, flags, strategy)
        last = trainer.train_stage(
            flags, strategy, folder, step=step, schedule=schedule, source=train_source,
            views=views, create_batches=create_batches,
        )  # fmt: skip
        if train_encoder:
            batch_norm.unfreeze_batch_norm(encoder)
            with progress.waiting(f"{stage}: saving the encoder"):
                folder.artifacts.save_model("encoder.keras", encoder)
        figures = {
            "steps": schedule.total_steps, "train_accuracy_of_last_batch": last.get("accuracy"),
        }  # fmt: skip
        return finish_classifier(
            flags, strategy, folder, encoder=encoder, linear_head=linear_head,
            class_names=class_names, test_source=test_source, started=started, figures=figures,
        )  # fmt: skip


def _kept_head(flags, stage):
    """Returns the artifacts of pretraining if the linear stage keeps its classifier, else None."""
    run = RunDirectory.of(flags)
    if stage != "linear" or flags.linear_epochs or not run.has("pretrain", "linear_head.keras"):
        return None
    return run.artifacts("pretrain")


def _linear_head_from_flags(flags, encoder, num_classes, kept):
    if kept:
        return kept.load_model("linear_head.keras")
    return contrastive.create_linear_head(
        encoder.output_shape[-1],
        num_classes,
        normalize_embedding=flags.normalize_embedding,
        zero_initialize=flags.zero_initialize_classifier,
    )


def _print_start(flags, stage, pretrained, kept, num_features, schedule, num_classes):
    """Prints what is trained, on which features, and for how long."""
    if kept:
        path = kept.path("linear_head.keras")
        print(f"linear: --linear_epochs=0, so the classifier of pretraining is kept: {path}.")
    learning_rate = choices.describe_learning_rate(flags, stage, schedule.peak_learning_rate)
    print(
        f"{stage}: {num_classes} classes on {num_features} features of "
        f"{pretrained.path}, {schedule.total_steps:,} steps, {learning_rate}."
    )


def _step_from_flags(flags, stage, encoder, linear_head, schedule, train_encoder):
    parts = [(linear_head, True), *([(encoder, True)] if train_encoder else [])]
    return steps.ClassifierStep(
        encoder=encoder,
        linear_head=linear_head,
        optimizer=trainer.optimizer_from_flags(flags, stage, schedule, parts=parts),
        global_batch_size=flags.batch_size,
        label_smoothing=flags.label_smoothing,
        train_encoder=train_encoder,
    )


def finish_classifier(
    flags: FlagValues,
    strategy: tf.distribute.Strategy,
    folder: StageFolder,
    *,
    encoder: keras.Model,
    linear_head: keras.Model,
    class_names: Sequence[str],
    test_source: sources.Source,
    started: float,
    figures: dict,
) -> dict:
    """Evaluates the classifier on validation or test images, saves it, and finishes the stage.

    Args:
        flags: The parsed flags.
        strategy: The strategy of the run.
        folder: The folder of the stage.
        encoder: The encoder.
        linear_head: [B, F] -> logits [B, C].
        class_names: The classes in the order of the logits.
        test_source: The validation images, or the test images if there are none.
        started: `time.monotonic()` at the start of the training.
        figures: What the training adds to the result.

    Returns:
        The result of the stage.
    """
    with strategy.scope():
        classifier = contrastive.create_classifier(encoder, linear_head)
    with progress.waiting(
        f"{folder.stage}: evaluating on {test_source.num_examples:,} held-out images"
    ):
        logits, labels = predict_source(
            flags,
            strategy,
            classifier,
            test_source,
            image_size=encoder.input_shape[1],
            stage=folder.stage,
        )
    with progress.waiting(f"{folder.stage}: saving the classifier"):
        folder.artifacts.save_model("classifier.keras", classifier)
    write_classes(folder.artifacts, class_names, test_source.label_type)
    result = {
        **figures,
        "seconds": round(time.monotonic() - started, 1),
        **stage_figures.of_classifier(logits, labels, class_names),
    }
    folder.finish(result)
    return result


def predict_source(
    flags: FlagValues,
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    source: sources.Source,
    *,
    image_size: int,
    stage: str,
    crop: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the outputs [M, ...] of a model on every image of a source, and the labels [M].

    A `crop`, uint8 [H, W, 3] -> uint8 [S, S, 3], replaces that of --eval_crop_method.
    """
    bar = progress.ImageProgress(stage, source.num_examples, is_shown=strategies.is_chief(strategy))
    with inputs.naming_broken_images(source), bar:
        return predictions.predict(
            strategy,
            lambda images: model(images, training=False),
            functools.partial(
                inputs.eval_batches_from_flags(flags, source, image_size=image_size), crop=crop
            ),
            count=bar.update,
        )


def check_training_data(
    folder: StageFolder, source: sources.Source, pretrained: PretrainedEncoder
) -> None:
    """Raises ValueError if the training data changed since this stage or pretraining used it."""
    built_on = "pretrain" if pretrained.is_own else None
    folder.check_data(data_identity.identity_of(source), built_on=built_on)
