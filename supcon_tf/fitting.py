"""The training behind `SupConClassifier.fit`: examples in memory to an encoder and a linear head.

Every part is the one that the stages `pretrain` and `linear` of the command use, and every default
is the command's: the same examples, settings and seed give the same weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from supcon_tf.augment import policies
from supcon_tf.data import data_identity, defaults, pipeline, whitening
from supcon_tf.data.sources import ArraySource
from supcon_tf.evaluation import linear_fit, multi_label, predictions
from supcon_tf.losses.create import create_loss
from supcon_tf.models import applications, batch_norm, contrastive, saved_encoder
from supcon_tf.storage import artifacts, encoder_files
from supcon_tf.training import checkpoint, loop, stage_optimizer, steps

NUM_VIEWS = 2
EVAL_BATCH_SIZE = 256
# How often the training logs, saves and measures k-NN, and on how many examples of each set.
SUMMARY_STEPS, SAVE_STEPS = 20, 200
KNN_INTERVAL_EPOCHS, KNN_EXAMPLES = 10.0, 10_000


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an encoder is trained; `choose` completes them from the examples.

    Attributes:
        epochs: Length of the training.
        batch_size: Examples per step, over all replicas.
        image_size: Side of the images that the encoder sees, in pixels.
        horizontal_flip: Whether views are mirrored with probability 0.5.
        encoder: A name for `create_encoder`, or a Keras model whose weights are the start.
        encoder_weights: Weights that the encoder starts with; see `create_encoder`.
        freeze_batch_norm: Whether the batch norm layers of a pretrained encoder stay as they are.
        loss: One of `losses.create.NAMES`, "cross_entropy", or a Keras loss on projections.
        temperature: The temperature of "supcon".
        augmentation: One of `policies.AUGMENTATION_TYPES`.
        base_learning_rate: Peak learning rate of Adam for a batch of 256 examples.
        warmup_epochs: Length of the linear warm-up, at most `epochs`.
        seed: All random numbers follow from it.
    """

    epochs: float
    batch_size: int
    image_size: int
    horizontal_flip: bool
    encoder: str | keras.Model = "tiny"
    encoder_weights: str | None = None
    freeze_batch_norm: bool = False
    loss: str | keras.losses.Loss = "supcon"
    temperature: float = 0.1
    augmentation: str = "simclr"
    base_learning_rate: float = 0.012
    warmup_epochs: float = 3.0
    seed: int = 0

    @classmethod
    def choose(
        cls,
        source: ArraySource,
        *,
        num_replicas: int = 1,
        epochs: float | None = None,
        batch_size: int | None = None,
        image_size: int | None = None,
        horizontal_flip: bool | None = None,
        encoder: str | keras.Model = "tiny",
        **others,
    ) -> Settings:
        """Replaces None by what the command would choose for a folder of these images.

        Args:
            source: The training examples.
            num_replicas: How many replicas share a batch.
            epochs, batch_size, image_size, horizontal_flip, encoder: See `Settings`. Without
                `horizontal_flip`, color images are mirrored and gray ones are not, because most
                of those are digits, letters or scans.
            **others: Further attributes.

        Raises:
            ValueError: If the batch or the image size does not fit the examples or the encoder,
                or if the encoder cannot be loaded.
        """
        encoder = _loaded(encoder, source, image_size)
        _check_start_of_settings(encoder, others)
        count = source.num_examples
        batch_size = batch_size or defaults.batch_size(count, num_replicas)
        if not 1 <= batch_size <= count or batch_size % num_replicas:
            multiple = f"a multiple of {num_replicas} " if num_replicas > 1 else ""
            raise ValueError(
                f"batch_size={batch_size} does not fit {count:,} training images on "
                f"{num_replicas} replica(s): choose {multiple}up to {count}, or None."
            )
        if epochs is None:
            epochs = defaults.pretrain_epochs("arrays", count, batch_size)
        if not epochs >= 0:
            raise ValueError(f"epochs={epochs}: expected a number of at least 0, or None.")
        if horizontal_flip is None:
            horizontal_flip = bool((source.images != source.images[..., :1]).any())
        return cls(
            epochs=epochs,
            batch_size=batch_size,
            image_size=_image_size(source, encoder, image_size),
            horizontal_flip=horizontal_flip,
            encoder=encoder,
            warmup_epochs=min(cls.warmup_epochs, epochs),
            **others,
        )

    def record(self) -> dict[str, Any]:
        """Returns the settings as JSON values; a model by a hash, a Keras loss by its options."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if isinstance(self.encoder, keras.Model):
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "encoder.keras")
                self.encoder.save(path)
                values["encoder"] = f"model {artifacts.model_identity(path)[:16]}"
        if self.encoder_weights not in (None, encoder_files.IMAGENET):
            digest = saved_encoder.weights_identity(self.encoder_weights)
            values["encoder_weights"] = f"file {digest[:16]}"
        if isinstance(self.loss, keras.losses.Loss):
            values["loss"] = json.dumps(keras.saving.serialize_keras_object(self.loss))
        return values


def _loaded(encoder, source, image_size):
    """Loads an encoder that is named by a path."""
    if not isinstance(encoder, str) or not encoder_files.is_encoder_path(encoder):
        return encoder
    default = defaults.image_size(source.images.shape[1:3], encoder)
    return saved_encoder.load_encoder(encoder, image_size=image_size, default_image_size=default)


def _check_start_of_settings(encoder, others):
    weights, freezes = (others.get(name) for name in ("encoder_weights", "freeze_batch_norm"))
    if isinstance(encoder, str):
        if freezes and weights is None:
            raise ValueError(
                "freeze_batch_norm keeps the batch norm of a pretrained encoder, but "
                f"encoder={encoder!r} starts untrained: give encoder_weights, or a trained Keras "
                "model or its path as encoder."
            )
    elif weights == encoder_files.IMAGENET:
        raise ValueError(
            "encoder_weights='imagenet' needs the name of a network of Keras, such as "
            "encoder='keras.applications.EfficientNetV2B0', not a model."
        )


def _image_size(source, encoder, image_size):
    """The side in pixels: that of a model, the one that was asked for, or that of the images."""
    if not isinstance(encoder, keras.Model):
        return image_size or defaults.image_size(source.images.shape[1:3], encoder)
    contrastive.check_encoder(encoder)
    height, width = encoder.input_shape[1:3]
    if height != width or height is None or image_size not in (None, height):
        raise ValueError(
            f"The encoder {encoder.name!r} takes images of {height} x {width} pixels"
            + (f", but image_size={image_size}" if image_size else "")
            + ": expected one fixed side, as keras.Input([S, S, 3]) gives it, and image_size=None."
        )
    return height


def train_encoder(
    strategy: tf.distribute.Strategy,
    source: ArraySource,
    settings: Settings,
    *,
    validation: ArraySource | None = None,
    folder: str | None = None,
    name: str = "fit",
) -> tuple[keras.Model, list[dict[str, float]]]:
    """Trains an encoder with a contrastive loss, as the stage `pretrain` does.

    Args:
        strategy: Which devices train.
        source: The training examples; labels int32 [M], or bool [M, C] for several per image.
        settings: How to train.
        validation: Examples to measure k-NN on during training.
        folder: Where checkpoints and the log go; a training that was begun there is resumed.
            None keeps neither.
        name: What the progress bar is called.

    Returns:
        The encoder, and the lines of the log.

    Raises:
        ValueError: If the folder belongs to another training, or the loss is not finite.
    """
    schedule = stage_optimizer.schedule_of_epochs(
        settings.base_learning_rate,
        batch_size=settings.batch_size,
        num_examples=source.num_examples,
        epochs=settings.epochs,
        warmup_epochs=settings.warmup_epochs,
    )
    policy = policies.create_policy(settings.augmentation)
    with contextlib.ExitStack() as stack:
        is_kept = folder is not None
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        with initial_weights_from(settings.seed), strategy.scope():
            step = create_step(settings, source, schedule)

        def create_batches(start_step, host, num_hosts):
            return pipeline.create_train_batches(
                source,
                policy=policy,
                batch_size=settings.batch_size,
                image_size=settings.image_size,
                seed=settings.seed,
                num_views=1 if settings.loss == "cross_entropy" else NUM_VIEWS,
                start_step=start_step,
                crop_area_range=defaults.CROP_AREA_RANGE,
                horizontal_flip=settings.horizontal_flip,
                num_replicas=strategy.num_replicas_in_sync,
                host=host,
                num_hosts=num_hosts,
            )

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
    return clone_encoder(step.encoder), history


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
        head = contrastive.create_linear_head(num_features, num_classes)
        batch_norm.use_fused_batch_norm(encoder)
        return steps.ClassifierStep(
            encoder=encoder,
            linear_head=head,
            optimizer=create_optimizer(encoder, head),
            global_batch_size=settings.batch_size,
            train_encoder=True,
        )
    head = contrastive.ProjectionHead(name="projection_head")
    probe = contrastive.create_linear_head(num_features, num_classes, name="probe")
    model = contrastive.ContrastiveModel(encoder, head)
    return steps.ContrastiveStep(
        model=model,
        loss=_create_loss(settings),
        optimizer=create_optimizer(encoder, head),
        global_batch_size=settings.batch_size,
        num_views=NUM_VIEWS,
        probe=probe,
    )


def _create_encoder(settings, source):
    if isinstance(settings.encoder, keras.Model):
        encoder = clone_encoder(settings.encoder)
        saved_encoder.unfreeze_whole(encoder)
        if settings.encoder_weights is not None:
            saved_encoder.load_weights_into(encoder, settings.encoder_weights)
        return encoder
    options = {"weights": settings.encoder_weights}
    if not settings.encoder.startswith(applications.PREFIX):
        batches = examples_in_order(source, settings.image_size, limit=defaults.WHITENING_EXAMPLES)
        options["mean"], options["std"] = whitening.measure_whitening(batches)
    return contrastive.create_encoder(settings.encoder, image_size=settings.image_size, **options)


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
        before = {"freeze_batch_norm": False, **old.get("settings", {}), "data": old.get("data")}
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
    strategy: tf.distribute.Strategy, encoder: keras.Model, source: ArraySource
) -> tuple[keras.Model, linear_fit.LinearFit]:
    """Fits a linear head to the embeddings of all training images, as the stage `linear` does.

    Args:
        strategy: Which devices compute the embeddings.
        encoder: The trained encoder.
        source: The training examples.

    Returns:
        The head, embeddings [B, F] -> logits [B, C], and the fit.
    """
    embeddings, labels = predictions.predict(
        strategy,
        lambda images: encoder(images, training=False),
        examples_in_order(source, encoder.input_shape[1]),
    )
    num_classes = len(source.class_names)
    fitted = linear_fit.fit(embeddings, labels, num_classes)
    head = contrastive.create_linear_head(embeddings.shape[1], num_classes)
    head.set_weights([fitted.kernel, fitted.bias])
    return head, fitted
