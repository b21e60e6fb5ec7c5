"""The training loop: one step, many steps per call, a log, checkpoints, a stop on NaN."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from supcon_tf import blur, losses, microbatch, optimizers
from supcon_tf.checkpoint import CheckpointFolder
from supcon_tf.metrics_log import MetricsLog
from supcon_tf.models import ContrastiveModel


class ContrastiveStep:
    """One step of pretraining on one replica, with an online linear probe beside it.

    The probe sees the encoder's embedding of view 0 behind a stop-gradient and has an
    optimizer of its own, so it shows what a linear classifier would reach and changes nothing.

    Args:
        model, loss, optimizer: what is trained; the loss gives one value per example.
        probe: [B, F] -> logits [B, C], or None.
        global_batch_size: N.
        num_views: V.
        weight_decay, decay_biases: see `optimizers.l2_gradients`; 0 for LARS.
        microbatch_size: examples of a replica's batch that the encoder sees at once; None for
            all of them. See `microbatch.cached_gradients`.
    """

    def __init__(
        self,
        *,
        model: ContrastiveModel,
        loss: losses.SupConLoss,
        optimizer: keras.optimizers.Optimizer,
        global_batch_size: int,
        num_views: int = 2,
        probe: keras.Model | None = None,
        weight_decay: float = 0.0,
        decay_biases: bool = True,
        microbatch_size: int | None = None,
    ):
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.microbatch_size = microbatch_size
        self.global_batch_size = global_batch_size
        self.probe = probe
        self.weight_decay, self.decay_biases = weight_decay, decay_biases
        self.metric_names = ["loss"]
        self.optimizers = {"optimizer": optimizer}
        self.models = {"model": model}
        optimizer.build(model.trainable_variables)
        if probe is not None:
            self.metric_names += ["probe_loss", "probe_accuracy"]
            self.optimizers["probe_optimizer"] = keras.optimizers.Adam(0.01)
            self.optimizers["probe_optimizer"].build(probe.trainable_variables)
            self.models["probe"] = probe
        self._collapse_loss = None
        is_plain = loss.denominator_mode == "all" and loss.positives_cap == -1
        if is_plain and global_batch_size * num_views > 2:
            scale = loss.temperature if loss.scale_by_temperature else 1.0
            self._collapse_loss = scale * losses.collapse_loss(global_batch_size, num_views)

    def __call__(self, batch) -> dict[str, tf.Tensor]:
        loss, gradients, embeddings = self._gradients(batch)
        is_finite = apply_gradients(
            gradients,
            self.optimizer,
            self.model.trainable_variables,
            weight_decay=self.weight_decay,
            decay_biases=self.decay_biases,
        )
        metrics = {"loss": loss, "finite": is_finite}
        if self.probe is not None:
            metrics |= self._train_probe(tf.stop_gradient(embeddings[:, 0]), batch["label"])
        return metrics

    def _gradients(self, batch):
        """Loss, gradients and embeddings [B, V, F], all at once or in pieces."""
        images = blurred_images(batch)

        def loss_of(projections):
            return self._mean(self.loss.call(batch["label"], projections))

        if self.microbatch_size is not None:
            return microbatch.cached_gradients(
                self.model, images, loss_of, microbatch_size=self.microbatch_size
            )
        with tf.GradientTape() as tape:
            embeddings, projections = self.model(images, training=True, return_embeddings=True)
            loss = loss_of(projections)
        return loss, tape.gradient(loss, self.model.trainable_variables), embeddings

    def describe(self, metrics: dict[str, float]) -> dict[str, float]:
        """Adds the collapse ratio: the loss over that of equal embeddings, 1.0 = collapsed."""
        if self._collapse_loss:
            metrics["collapse_ratio"] = metrics["loss"] / self._collapse_loss
        return metrics

    def _train_probe(self, embeddings, labels):
        with tf.GradientTape() as tape:
            logits = self.probe(embeddings, training=True)
            loss = self._mean(sparse_cross_entropy(labels, logits))
        variables = self.probe.trainable_variables
        gradients = tape.gradient(loss, variables)
        apply_gradients(gradients, self.optimizers["probe_optimizer"], variables)
        return {"probe_loss": loss, "probe_accuracy": self._mean(is_correct(labels, logits))}

    def _mean(self, values):
        """This replica's part of the mean over the global batch: the parts are summed."""
        return tf.reduce_sum(values) / self.global_batch_size


class ClassifierStep:
    """One step of the linear stage on one replica: only the linear head learns.

    Args:
        encoder: frozen, in inference mode.
        linear_head: [B, F] -> logits [B, C].
        optimizer, global_batch_size, weight_decay: as for `ContrastiveStep`.
        label_smoothing: share of the target spread over all classes.
    """

    def __init__(
        self,
        *,
        encoder: keras.Model,
        linear_head: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        global_batch_size: int,
        weight_decay: float = 0.0,
        decay_biases: bool = True,
        label_smoothing: float = 0.0,
    ):
        self.encoder, self.linear_head, self.optimizer = encoder, linear_head, optimizer
        self.global_batch_size = global_batch_size
        self.weight_decay, self.decay_biases = weight_decay, decay_biases
        self.label_smoothing = label_smoothing
        self.metric_names = ["loss", "accuracy"]
        self.optimizers = {"optimizer": optimizer}
        self.models = {"linear_head": linear_head}
        optimizer.build(linear_head.trainable_variables)

    def __call__(self, batch) -> dict[str, tf.Tensor]:
        images = blurred_images(batch)[:, 0]
        embeddings = self.encoder(images, training=False)
        with tf.GradientTape() as tape:
            logits = self.linear_head(embeddings, training=True)
            values = sparse_cross_entropy(batch["label"], logits, self.label_smoothing)
            loss = tf.reduce_sum(values) / self.global_batch_size
        variables = self.linear_head.trainable_variables
        finite = apply_gradients(
            tape.gradient(loss, variables),
            self.optimizer,
            variables,
            weight_decay=self.weight_decay,
            decay_biases=self.decay_biases,
        )
        accuracy = tf.reduce_sum(is_correct(batch["label"], logits)) / self.global_batch_size
        return {"loss": loss, "accuracy": accuracy, "finite": finite}

    def describe(self, metrics: dict[str, float]) -> dict[str, float]:
        return metrics


def blurred_images(batch) -> tf.Tensor:
    """The views as float32 [B, V, S, S, 3] in 0..255, blurred where the batch says so.

    Beyond the border of an image lies grey, which is 0 where the reference blurs: in [-1, 1].
    """
    images = tf.cast(batch["image"], tf.float32)
    if "blur_sigma" not in batch:
        return images
    flat = tf.reshape(images, [-1, *images.shape[2:]])  # [B * V, S, S, 3]
    sigmas = tf.reshape(batch["blur_sigma"], [-1])
    blurred = blur.gaussian_blur(flat - 127.5, tf.maximum(sigmas, blur.SIGMA_RANGE[0])) + 127.5
    chosen = tf.where((sigmas > 0)[:, None, None, None], blurred, flat)
    return tf.reshape(chosen, tf.shape(images))


def apply_gradients(gradients, optimizer, variables, *, weight_decay=0.0, decay_biases=True):
    """Updates the variables; returns this replica's share of 1.0, or NaN for a broken gradient.

    Keras' optimizers sum the gradients over the replicas, so the loss must be the replica's
    part of the global mean.
    """
    num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
    gradients = optimizers.l2_gradients(
        gradients,
        variables,
        weight_decay=weight_decay,
        decay_biases=decay_biases,
        num_replicas=num_replicas,
    )
    optimizer.apply(gradients, variables)
    is_finite = tf.math.is_finite(tf.linalg.global_norm(gradients))
    return tf.where(is_finite, 1.0 / num_replicas, math.nan)


def sparse_cross_entropy(labels, logits, label_smoothing=0.0):
    """Cross-entropy per example [B] of class numbers [B] under logits [B, C]."""
    targets = tf.one_hot(labels, logits.shape[-1])
    return keras.losses.categorical_crossentropy(
        targets, logits, from_logits=True, label_smoothing=label_smoothing
    )


def is_correct(labels, logits):
    """1.0 where the largest logit is the label's, else 0.0. [B]."""
    hits = tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels
    return tf.cast(hits, tf.float32)


def create_loop(strategy: tf.distribute.Strategy, step) -> Callable:
    """A function (iterator, num_steps) -> (steps done, metrics of the last one), one graph.

    It ends early at a step whose loss or gradient is not finite. The loop is outside
    `strategy.run`, because a collective inside a loop of the replica function fails under
    MirroredStrategy.
    """
    names = [*step.metric_names, "finite"]

    @tf.function
    def run_steps(iterator, num_steps):
        done, is_finite = 0, True
        metrics = dict.fromkeys(names, tf.constant(0.0))
        while is_finite and done < num_steps:
            per_replica = strategy.run(step, args=(next(iterator),))
            metrics = {
                name: strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica[name], axis=None)
                for name in names
            }
            is_finite = tf.math.is_finite(metrics["finite"]) & tf.math.is_finite(metrics["loss"])
            done += 1
        return done, metrics

    return run_steps


def train(
    *,
    strategy: tf.distribute.Strategy,
    step,
    create_batches: Callable[[int], tf.data.Dataset],
    checkpoints: CheckpointFolder,
    log_folder: str,
    total_steps: int,
    steps_per_epoch: float,
    schedule: Callable,
    steps_per_loop: int = 10,
    summary_interval_steps: int = 10,
    save_interval_steps: int = 100,
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluate_interval_steps: int = 0,
    explain_failure: Callable[[int, int], str] | None = None,
    name: str = "train",
) -> dict[str, float]:
    """Trains from the newest checkpoint to total_steps and saves there.

    Args:
        strategy: under whose scope the step's models and optimizers were made.
        step: a ContrastiveStep or ClassifierStep.
        create_batches: start step -> the batches of this host's replicas.
        checkpoints: of the step's models and optimizers.
        log_folder: for metrics.jsonl and tensorboard/.
        steps_per_epoch: for the log.
        schedule: step -> learning rate, for the log.
        steps_per_loop: steps per call of the compiled loop, at most.
        summary_interval_steps, save_interval_steps: how often to log and save.
        evaluate: measured every evaluate_interval_steps (0: never) and at the end.
        explain_failure: (first step, last step) -> what may have broken the input.
        name: shown before the progress bar.

    Returns:
        The last logged metrics; empty for a stage of no steps.

    Raises:
        ValueError: loss or gradient is not finite, or the input is broken.
    """
    at = checkpoints.restore_latest()
    if at:
        print(f"{name}: continuing at step {at:,} of {total_steps:,}.")
    log = MetricsLog(log_folder, start_step=at)
    batches = strategy.distribute_datasets_from_function(lambda _: create_batches(at))
    iterator, run_steps = iter(batches), create_loop(strategy, step)
    intervals = (summary_interval_steps, save_interval_steps, evaluate_interval_steps)
    progress = tqdm(
        total=total_steps,
        initial=at,
        desc=name,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 20.0,  # A log file wants few lines.
    )
    speed = _Speed(step.global_batch_size)
    while at < total_steps:
        stops = [(at // interval + 1) * interval for interval in intervals if interval]
        count = min(steps_per_loop, total_steps - at, *(stop - at for stop in stops))
        try:
            done, values = run_steps(iterator, tf.constant(count))
        except tf.errors.InvalidArgumentError as error:
            reason = explain_failure(at, at + count - 1) if explain_failure else None
            raise ValueError(
                f"A step between {at + 1} and {at + count} failed: {reason or error.message}"
            ) from error
        at += int(done)
        values = {key: float(value) for key, value in values.items()}
        _stop_if_not_finite(values, at, checkpoints)
        speed.count(int(done))
        is_last = at == total_steps
        is_evaluated = evaluate and (is_last or _is_due(at, evaluate_interval_steps))
        if is_last or is_evaluated or _is_due(at, summary_interval_steps):
            metrics = step.describe({key: values[key] for key in step.metric_names})
            metrics["learning_rate"] = float(schedule(at - 1))
            metrics["epoch"] = at / steps_per_epoch
            metrics["images_per_second"] = speed.images_per_second()
            if is_evaluated:
                metrics |= evaluate()
            log.write(at, metrics)
            progress.set_postfix_str(_postfix(metrics), refresh=False)
        progress.update(int(done))
        if is_last or _is_due(at, save_interval_steps):
            checkpoints.save(at)
        speed.restart()
    progress.close()
    log.close()
    return log.last


class _Speed:
    """Images per second since the last report, without the time of evaluations and saves."""

    def __init__(self, images_per_step):
        self._images_per_step = images_per_step
        self._images, self._seconds, self._started = 0, 0.0, time.monotonic()

    def count(self, num_steps):
        self._images += num_steps * self._images_per_step
        self._seconds += time.monotonic() - self._started

    def restart(self):
        self._started = time.monotonic()

    def images_per_second(self):
        rate = self._images / self._seconds
        self._images, self._seconds = 0, 0.0
        return rate


def _is_due(step, interval):
    return bool(interval) and step % interval == 0


def _stop_if_not_finite(values, step, checkpoints):
    if math.isfinite(values["finite"]) and math.isfinite(values["loss"]):
        return
    saved = checkpoints.steps()
    last = f"the last good checkpoint is of step {saved[-1]}" if saved else "nothing was saved yet"
    raise ValueError(
        f"Loss or gradient is not finite at step {step} (loss {values['loss']}); {last}. Try a "
        "lower learning rate, a longer warm-up, or a higher temperature."
    )


def _postfix(metrics):
    names = {
        "loss": "loss {:.4f}",
        "collapse_ratio": "collapse {:.2f}",
        "accuracy": "acc {:.3f}",
        "probe_accuracy": "probe {:.3f}",
        "knn_accuracy": "knn {:.3f}",
        "learning_rate": "lr {:.3g}",
        "images_per_second": "{:,.0f} img/s",
    }
    return ", ".join(text.format(metrics[name]) for name, text in names.items() if name in metrics)


def predict(
    strategy: tf.distribute.Strategy, function: Callable, batches: tf.data.Dataset
) -> tuple[np.ndarray, np.ndarray]:
    """Applies a function to every example of `pipeline.create_eval_batches`, in order.

    Args:
        strategy: splits each batch over its replicas.
        function: images float32 [B, S, S, 3] in 0..255 -> float32 [B, K].
        batches: of global batches that the replicas divide.

    Returns:
        The results [M, K] and the labels [M].
    """

    @tf.function
    def predict_batch(batch):
        def on_replica(batch):
            return function(tf.cast(batch["image"], tf.float32)), batch["label"], batch["index"]

        return strategy.run(on_replica, args=(batch,))

    results = []
    for batch in strategy.experimental_distribute_dataset(batches):
        per_replica = [strategy.experimental_local_results(x) for x in predict_batch(batch)]
        results.append([np.concatenate([x.numpy() for x in part]) for part in per_replica])
    outputs, labels, index = (np.concatenate(part) for part in zip(*results, strict=True))
    kept = np.flatnonzero(index >= 0)
    kept = kept[np.argsort(index[kept])]
    return outputs[kept], labels[kept]
