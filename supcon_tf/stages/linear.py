"""Stage 2: a linear classifier on the frozen encoder, fitted by L-BFGS or trained in steps."""

from __future__ import annotations

import contextlib
import dataclasses
import time

import numpy as np
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf import strategies
from supcon_tf.cli import flag_rules
from supcon_tf.evaluation import linear_fit, metrics
from supcon_tf.models import contrastive
from supcon_tf.stages import choices, classify, inputs, process
from supcon_tf.stages.trained import PretrainedEncoder
from supcon_tf.training import progress
from supcon_tf.training.metrics_log import MetricsLog


def run(flags: FlagValues, strategy: tf.distribute.Strategy) -> dict:
    """Fits the classifier with L-BFGS or trains it in steps; returns the stage's figures."""
    if flag_rules.is_linear_fitted(flags):
        pretrained = PretrainedEncoder.of(flags)
        with strategy.scope(), progress.waiting("linear: loading the encoder"):
            encoder = pretrained.load()
        train_source, test_source = inputs.sources_from_flags(flags)
        if _can_be_fitted(flags, encoder, train_source):
            choices.set_flag(flags, "linear_optimizer", "lbfgs")
            return _fit(flags, strategy, encoder, pretrained, train_source, test_source)
    if flags.linear_optimizer == "auto":
        choices.set_flag(flags, "linear_optimizer", "momentum")
    return classify.train_classifier(
        flags,
        strategy,
        "linear",
        augmentation_type=flags.linear_augmentation_type,
        crop_area_range=flags.linear_crop_area_range,
    )


def _can_be_fitted(flags, encoder, source):
    """Returns whether embeddings and logits fit in memory.

    If they do not, prints that the classifier is trained in steps; raises ValueError if the user
    asked for lbfgs.
    """
    num_features, num_classes = encoder.output_shape[-1], len(source.class_names)
    num_examples = choices.count_training_examples(flags, source)
    size = linear_fit.fit_bytes(num_examples, num_features, num_classes)
    if size <= linear_fit.MAX_BYTES:
        return True
    reason = (
        f"{num_examples:,} training images with {num_features:,} features and "
        f"{num_classes:,} classes need {size / 2**30:.1f} GiB, more than the "
        f"{linear_fit.MAX_BYTES / 2**30:g} GiB that --linear_optimizer=lbfgs may use"
    )
    if flags.linear_optimizer == "lbfgs":
        raise ValueError(
            f"{reason}: train the classifier in steps with --linear_optimizer=momentum, or on "
            "fewer images with --num_images."
        )
    print(f"linear: {reason}, so the classifier is trained in steps: --linear_optimizer=momentum.")
    return False


def _fit(flags, strategy, encoder, pretrained, train_source, test_source):
    """Embeds the training images on all replicas. The chief fits the classifier for all."""
    built_on = {"encoder": pretrained.identity()}
    with process.open_folder(flags, strategy, "linear", inputs=built_on) as folder:
        classify.check_training_data(folder, train_source, pretrained)
        if (result := folder.result()) is not None:
            folder.say_finished()
            return result
        train_source = inputs.training_examples_from_flags(flags, train_source)
        inputs.check_eval_batches(flags, strategy)
        num_features, num_classes = encoder.output_shape[-1], len(train_source.class_names)
        print(
            f"linear: {num_classes} classes on {num_features} features of {pretrained.path}, "
            f"fitted by L-BFGS to the embeddings of {train_source.num_examples:,} training images.",
            flush=True,
        )
        folder.begin()
        inputs.record_validation_split(flags, folder)
        started = time.monotonic()
        with progress.waiting("linear: embedding the training images"):
            embeddings, labels = classify.predict_source(
                flags, strategy, encoder, train_source, image_size=encoder.input_shape[1]
            )
        with strategy.scope():
            head = contrastive.create_linear_head(
                num_features, num_classes, normalize_embedding=flags.normalize_embedding
            )
        with progress.waiting("linear: fitting the classifier"):
            fitted = _fit_on_chief(flags, strategy, embeddings, labels, num_classes)
        head.set_weights([fitted.kernel, fitted.bias])
        if fitted.iterations == metrics.PROBE_MAX_ITERATIONS:
            print(f"linear: L-BFGS stopped at its limit of {fitted.iterations:,} iterations.")
        figures = {"loss": fitted.loss, "accuracy": fitted.accuracy}
        log = MetricsLog(folder.path, is_chief=folder.is_chief)
        with contextlib.closing(log):
            log.write(fitted.iterations, figures)
        return classify.finish_classifier(
            flags,
            strategy,
            folder,
            encoder=encoder,
            linear_head=head,
            class_names=train_source.class_names,
            test_source=test_source,
            started=started,
            figures={"steps": fitted.iterations, "train_accuracy": fitted.accuracy},
        )


def _fit_on_chief(flags, strategy, embeddings, labels, num_classes):
    """Fits on the chief and sends the result to every worker, because rounding may differ."""
    shape = (embeddings.shape[1], num_classes)
    fitted = linear_fit.LinearFit(np.zeros(shape), np.zeros(num_classes), 0, 0.0, 0.0)
    if strategies.is_chief(strategy):
        fitted = linear_fit.fit(
            embeddings,
            labels,
            num_classes,
            normalize_embedding=flags.normalize_embedding,
            class_balanced=flags.class_balanced,
        )
    kernel, bias, iterations, loss, accuracy = strategies.broadcast_from_chief(
        strategy, [np.asarray(value, np.float32) for value in dataclasses.astuple(fitted)]
    )
    return linear_fit.LinearFit(kernel, bias, int(iterations), float(loss), float(accuracy))
