"""Stage 2: a linear classifier on the frozen encoder, fitted by L-BFGS or trained in steps.

For real targets it is a ridge regression.
"""

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
from supcon_tf.stages import choices, classify, computed_outputs, inputs, process
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
            if train_source.label_type == "real":
                return _fit(flags, strategy, encoder, pretrained, train_source, test_source)
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
    num_features, num_classes = encoder.output_shape[-1], _num_outputs(source)
    num_examples = choices.count_training_examples(flags, source)
    size = linear_fit.fit_bytes(num_examples, num_features, num_classes)
    if size <= linear_fit.MAX_BYTES:
        return True
    reason = (
        f"{num_examples:,} training images with {num_features:,} features and "
        f"{num_classes:,} classes need {size / 2**30:.1f} GiB, more than the "
        f"{linear_fit.MAX_BYTES / 2**30:g} GiB that --linear_optimizer=lbfgs may use"
    )
    if source.label_type == "real":
        raise ValueError(f"{reason}: fit the regression to fewer images with --num_images.")
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
        all_examples = train_source
        train_source = inputs.training_examples_from_flags(flags, all_examples)
        inputs.check_eval_batches(flags, strategy)
        num_features, num_outputs = encoder.output_shape[-1], _num_outputs(train_source)
        is_real = train_source.label_type == "real"
        what = "a number" if is_real else f"{num_outputs} classes"
        how = "ridge regression" if is_real else "L-BFGS"
        print(
            f"linear: {what} on {num_features} features of {pretrained.path}, fitted by {how} to "
            f"the embeddings of {train_source.num_examples:,} training images.",
            flush=True,
        )
        folder.begin()
        inputs.record_validation_split(flags, folder)
        started = time.monotonic()
        with progress.waiting("linear: embedding the training images"):
            embeddings, labels = classify.predict_source(
                flags,
                strategy,
                encoder,
                train_source,
                image_size=encoder.input_shape[1],
                stage="linear",
            )
        if train_source is all_examples and "eval" in flags.mode:
            found = {"unnormalized_embeddings": embeddings}
            computed_outputs.keep(
                flags, "linear", train_source, found, labels, encoder=built_on["encoder"]
            )
        with strategy.scope():
            head = contrastive.create_linear_head(
                num_features, num_outputs, normalize_embedding=flags.normalize_embedding
            )
        fit = _fit_ridge_on_chief if is_real else _fit_on_chief
        with progress.waiting("linear: fitting the classifier"):
            (kernel, bias), num_steps, logged, extra = fit(
                flags, strategy, embeddings, labels, num_outputs
            )
        head.set_weights([kernel, bias])
        if num_steps == metrics.PROBE_MAX_ITERATIONS:
            print(f"linear: L-BFGS stopped at its limit of {num_steps:,} iterations.")
        log = MetricsLog(folder.path, stage="linear", is_chief=folder.is_chief)
        with contextlib.closing(log):
            log.write(num_steps, logged)
        return classify.finish_classifier(
            flags,
            strategy,
            folder,
            encoder=encoder,
            linear_head=head,
            class_names=train_source.class_names,
            test_source=test_source,
            started=started,
            figures={
                "steps": num_steps,
                **{f"train_{name}": value for name, value in logged.items() if name != "loss"},
                **extra,
            },
        )


def _num_outputs(source):
    """Returns the outputs of the linear head: one per class, or one for real targets."""
    return len(source.class_names) or 1


def _fit_on_chief(flags, strategy, embeddings, labels, num_classes):
    """Fits on the chief and sends the result to every worker, because rounding may differ.

    Returns:
        The weights of the head, the number of iterations, the figures of the training examples,
        and further figures of the fit.
    """
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
    figures = {"loss": float(loss), "accuracy": float(accuracy)}
    return (kernel, bias), int(iterations), figures, {}


def _fit_ridge_on_chief(flags, strategy, embeddings, targets, num_outputs):
    """Fits a ridge regression as `_fit_on_chief` fits a classifier; it has no iterations."""
    shape = (embeddings.shape[1], num_outputs)
    fitted = linear_fit.RidgeFit(np.zeros(shape), np.zeros(num_outputs), 0.0, 0.0, 0.0)
    if strategies.is_chief(strategy):
        fitted = linear_fit.fit_ridge(
            embeddings, targets, normalize_embedding=flags.normalize_embedding
        )
    kernel, bias, *rest = strategies.broadcast_from_chief(
        strategy, [np.asarray(value, np.float32) for value in dataclasses.astuple(fitted)]
    )
    penalty, error, r2 = (float(value) for value in rest)
    return (kernel, bias), 0, {"mean_absolute_error": error, "r2": r2}, {"penalty": penalty}
