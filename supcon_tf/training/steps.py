"""One training step of each stage on one replica: loss, gradients, update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf

from supcon_tf.augment.blur import blurred_images
from supcon_tf.losses import supcon
from supcon_tf.losses.momentum_queue import MomentumQueue
from supcon_tf.models.contrastive import ContrastiveModel
from supcon_tf.training import gradient_cache, similarity


class TrainStep(Protocol):
    """What the training loop needs of a step.

    Call the step with a batch on each replica, under the strategy. It updates the variables and
    returns this replica's part of each metric, to be summed over the replicas: those named in
    `metric_names`, which include "loss", and "finite", which is NaN if a gradient was not finite.

    Attributes:
        global_batch_size: Examples of a batch over all replicas.
        metric_names: Names of the metrics.
        models: What a checkpoint saves besides the optimizers, by name.
        optimizers: The optimizers, by name.
        variables: The trained variables.
    """

    global_batch_size: int
    metric_names: list[str]
    models: dict[str, Any]
    optimizers: dict[str, keras.optimizers.Optimizer]
    variables: list[keras.Variable]

    @property
    def encoder(self) -> keras.Model:
        """The encoder, trained or not."""

    def __call__(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Takes one step."""

    def describe(self, metrics: dict[str, float]) -> dict[str, float]:
        """Turns the summed metrics of a step into those to log."""


class ClassificationTerm:
    """The cross-entropy that joint training adds to a contrastive loss.

    As in the reference implementation, the classifier sees only the embedding of view 0.

    Args:
        linear_head: [B, F] -> logits [B, C].
        weight: Weight of the cross-entropy; that of the contrastive loss is 1.
        label_smoothing: Fraction of the target that is spread over all classes.
        stop_gradient: Whether the classifier learns without influencing the encoder.
    """

    def __init__(
        self,
        linear_head: keras.Model,
        *,
        weight: float = 1.0,
        label_smoothing: float = 0.0,
        stop_gradient: bool = False,
    ):
        self.linear_head, self.weight = linear_head, weight
        self.label_smoothing, self.stop_gradient = label_smoothing, stop_gradient

    def __call__(self, labels: tf.Tensor, embeddings: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Labels [B], embeddings [B, V, F] -> unweighted cross-entropies [B], logits [B, C]."""
        embeddings = embeddings[:, 0]
        if self.stop_gradient:
            embeddings = tf.stop_gradient(embeddings)
        logits = self.linear_head(embeddings, training=True)
        return sparse_cross_entropy(labels, logits, self.label_smoothing), logits


class ContrastiveStep:
    """One step of pretraining on one replica; see `TrainStep`.

    An online linear probe can be trained along. It sees the encoder's embedding of view 0 behind
    a stop-gradient and has its own optimizer, so it shows what a linear classifier would reach
    without changing the encoder.

    Args:
        model: The model to train.
        loss: A contrastive loss that returns one value per example.
        optimizer: The optimizer.
        global_batch_size: Examples of a batch over all replicas, N.
        num_views: Views of each example, V.
        probe: [B, F] -> logits [B, C], or None.
        classification: Trains a classifier jointly; None for the contrastive loss alone.
        queue: Its keys are the contrasts, instead of the other projections of the batch.
        microbatch_size: Examples of a replica's batch that the encoder processes at once; None
            for all of them. See `gradient_cache.cached_gradients`.
    """

    def __init__(
        self,
        *,
        model: ContrastiveModel,
        loss: keras.losses.Loss,
        optimizer: keras.optimizers.Optimizer,
        global_batch_size: int,
        num_views: int = 2,
        probe: keras.Model | None = None,
        classification: ClassificationTerm | None = None,
        queue: MomentumQueue | None = None,
        microbatch_size: int | None = None,
    ):
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.microbatch_size = microbatch_size
        self.global_batch_size = global_batch_size
        self.probe = probe
        self.metric_names = ["loss", *similarity.NAMES]
        self.optimizers = {"optimizer": optimizer}
        self.models = {"model": model, **_random_states(model)}
        self.variables = list(model.trainable_variables)
        self.classification, self.linear_head = classification, None
        if classification is not None:
            self.metric_names += ["contrastive_loss", "cross_entropy", "accuracy"]
            self.linear_head = classification.linear_head
            self.models["linear_head"] = self.linear_head
            self.variables += self.linear_head.trainable_variables
        optimizer.build(self.variables)
        if probe is not None:
            self.metric_names += ["probe_loss", "probe_accuracy"]
            self.optimizers["probe_optimizer"] = keras.optimizers.Adam(0.01)
            self.optimizers["probe_optimizer"].build(probe.trainable_variables)
            self.models["probe"] = probe
        self.queue = queue
        if queue is not None:
            self.models["momentum_queue"] = queue
        else:
            self._collapse_loss = _collapse_loss(loss, global_batch_size, num_views)

    @property
    def encoder(self) -> keras.Model:
        return self.model.encoder

    def __call__(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        images, labels, keys = blurred_images(batch), batch["label"], None
        if self.queue is not None:
            images, key_images = self.queue.split(images)
            keys = self.queue.keys(key_images)
        metrics, gradients, embeddings = self._gradients(images, labels, keys)
        metrics["finite"] = apply_gradients(gradients, self.optimizer, self.variables)
        if self.queue is not None:
            self.queue.advance(labels, keys, self.model)
        if self.probe is not None:
            metrics |= self._train_probe(tf.stop_gradient(embeddings[:, 0]), labels)
        return metrics

    def _gradients(self, images, labels, keys):
        """Returns metrics, gradients and embeddings [B, V, F], computed at once or in pieces.

        The gradients are those of the scaled loss if the optimizer scales it, as for float16.
        """

        def objective(embeddings, projections):
            if keys is None:
                losses_of_examples = self.loss.call(labels, projections)
            else:
                losses_of_examples = self.queue.losses_of(labels, projections, keys)
            loss = self._mean(losses_of_examples)
            # Real targets are no classes: then only views of one image are positives.
            is_class = getattr(self.loss, "use_labels", True) and not labels.dtype.is_floating
            sums = similarity.similarity_sums(labels if is_class else None, projections)
            if self.classification is None:
                return self.optimizer.scale_loss(loss), {"loss": loss, **sums}
            values, logits = self.classification(labels, embeddings)
            total = loss + self.classification.weight * self._mean(values)
            return self.optimizer.scale_loss(total), {
                "loss": total,
                "contrastive_loss": loss,
                "cross_entropy": self._mean(values),
                "accuracy": self._mean(is_correct(labels, logits)),
                **sums,
            }

        if self.microbatch_size is not None:
            return gradient_cache.cached_gradients(
                self.model,
                images,
                objective,
                microbatch_size=self.microbatch_size,
                other_variables=self.variables[len(self.model.trainable_variables) :],
            )
        with tf.GradientTape() as tape:
            embeddings, projections = self.model(images, training=True, return_embeddings=True)
            loss, metrics = objective(embeddings, projections)
        return metrics, tape.gradient(loss, self.variables), embeddings

    def describe(self, metrics: dict[str, float]) -> dict[str, float]:
        """Adds mean similarities of the projections and the collapse ratio to the metrics.

        The collapse ratio is the loss divided by that of equal embeddings; 1.0 means collapsed.
        """
        sums = {name: metrics.pop(name) for name in similarity.NAMES}
        metrics |= similarity.mean_similarities(sums)
        if self.queue is None and self._collapse_loss:
            contrastive = metrics.get("contrastive_loss", metrics["loss"])
            metrics["collapse_ratio"] = contrastive / self._collapse_loss
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
        """Returns this replica's part of the mean over the global batch; the parts are summed."""
        return tf.reduce_sum(values) / self.global_batch_size


class ClassifierStep:
    """One step of a classifier with cross-entropy on view 0, on one replica; see `TrainStep`.

    The linear stage trains only the linear head. Fine-tuning and cross-entropy pretraining also
    train the encoder.

    Args:
        encoder: Images [B, S, S, 3] -> [B, F]. Frozen and in inference mode unless it is trained.
        linear_head: [B, F] -> logits [B, C].
        optimizer: The optimizer.
        global_batch_size: Examples of a batch over all replicas.
        label_smoothing: Fraction of the target that is spread over all classes.
        train_encoder: Whether to train the encoder too, with batch statistics.
    """

    def __init__(
        self,
        *,
        encoder: keras.Model,
        linear_head: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        global_batch_size: int,
        label_smoothing: float = 0.0,
        train_encoder: bool = False,
    ):
        self._encoder, self.linear_head, self.optimizer = encoder, linear_head, optimizer
        self.global_batch_size = global_batch_size
        self.label_smoothing = label_smoothing
        self.train_encoder = train_encoder
        self.metric_names = ["loss", "accuracy"]
        self.optimizers = {"optimizer": optimizer}
        self.models = {"linear_head": linear_head}
        self.variables = list(linear_head.trainable_variables)
        if train_encoder:
            self.models |= {"encoder": encoder, **_random_states(encoder)}
            self.variables += encoder.trainable_variables
        optimizer.build(self.variables)

    @property
    def encoder(self) -> keras.Model:
        return self._encoder

    def __call__(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        images = blurred_images(batch)[:, 0]
        if not self.train_encoder:  # Outside the tape, which would keep the activations.
            embeddings = self.encoder(images, training=False)
        with tf.GradientTape() as tape:
            if self.train_encoder:
                embeddings = self.encoder(images, training=True)
            logits = self.linear_head(embeddings, training=True)
            values = sparse_cross_entropy(batch["label"], logits, self.label_smoothing)
            loss = tf.reduce_sum(values) / self.global_batch_size
            scaled_loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, self.variables)
        finite = apply_gradients(gradients, self.optimizer, self.variables)
        accuracy = tf.reduce_sum(is_correct(batch["label"], logits)) / self.global_batch_size
        return {"loss": loss, "accuracy": accuracy, "finite": finite}

    def describe(self, metrics: dict[str, float]) -> dict[str, float]:
        return metrics


def _random_states(model):
    """Returns the RNG state of dropout layers, which TensorFlow's checkpoints do not find.

    Some networks of keras.applications have dropout. A resumed run must draw the same masks as a
    run that was not interrupted.
    """
    states = [v.value for v in model.non_trainable_variables if "seed_generator" in v.path]
    if not states:
        return {}
    holder = tf.Module(name="random_states")
    holder.states = states
    return {"random_states": holder}


def apply_gradients(
    gradients: Sequence[Any],
    optimizer: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
) -> tf.Tensor:
    """Updates the variables.

    Keras' optimizers sum the gradients over the replicas, so the loss must be this replica's part
    of the global mean. With loss scaling, Keras skips a step whose gradient is not finite and
    halves the scale, which is how it finds the scale; such a gradient is an error only once the
    scale is 1 or below.

    Args:
        gradients: One per variable; None where a variable has no gradient. `tf.IndexedSlices` are
            converted to dense tensors.
        optimizer: Must be built for the variables.
        variables: The variables to update.

    Returns:
        This replica's share of 1.0, or NaN if a gradient is not finite.
    """
    # The gradient of an embedding table can hold the same row more than once, for example from
    # several replicas. Keras' AdamW and LAMB add the squares of these rows instead of squaring
    # their sum.
    gradients = [
        tf.convert_to_tensor(gradient) if isinstance(gradient, tf.IndexedSlices) else gradient
        for gradient in gradients
    ]
    num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
    is_finite = tf.math.is_finite(tf.linalg.global_norm(gradients))
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        # Keras checks the gradients of one replica before their sum; all must decide alike.
        broken = tf.where(is_finite, 0.0, math.nan)
        if num_replicas > 1:
            broken = tf.distribute.get_replica_context().all_reduce("SUM", broken)
        gradients = [gradients[0] + tf.cast(broken, gradients[0].dtype), *gradients[1:]]
        is_finite = ~tf.math.is_nan(broken) | (optimizer.dynamic_scale.value > 1.0)
    optimizer.apply(gradients, variables)
    return tf.where(is_finite, 1.0 / num_replicas, math.nan)


def sparse_cross_entropy(
    labels: tf.Tensor, logits: tf.Tensor, label_smoothing: float = 0.0
) -> tf.Tensor:
    """Computes the cross-entropy per example [B] of labels under logits [B, C].

    Args:
        labels: Class numbers int [B]; or bool [B, C] for any number of classes per image, whose
            cross-entropy is the mean of the binary ones over the classes.
        logits: Before the softmax, or before the sigmoid of each class.
        label_smoothing: Fraction of the target that is spread over all classes.
    """
    if labels.dtype == tf.bool:
        return keras.losses.binary_crossentropy(
            tf.cast(labels, logits.dtype), logits, from_logits=True, label_smoothing=label_smoothing
        )
    targets = tf.one_hot(labels, logits.shape[-1])
    return keras.losses.categorical_crossentropy(
        targets, logits, from_logits=True, label_smoothing=label_smoothing
    )


def is_correct(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns 1.0 where the largest logit [B, C] is that of the label [B], else 0.0. [B].

    Of labels bool [B, C], the fraction of the classes that are decided correctly.
    """
    if labels.dtype == tf.bool:
        return tf.reduce_mean(tf.cast((logits > 0) == labels, tf.float32), axis=1)
    hits = tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels
    return tf.cast(hits, tf.float32)


def _collapse_loss(loss, global_batch_size, num_views):
    """Returns the contrastive loss of equal embeddings, or None if no closed form is known."""
    is_known = isinstance(loss, supcon.SupConLoss) and loss.options.has_collapse_loss
    if not is_known or global_batch_size * num_views <= 2:
        return None
    scale = loss.temperature if loss.scale_by_temperature else 1.0
    return scale * supcon.collapse_loss(global_batch_size, num_views)
