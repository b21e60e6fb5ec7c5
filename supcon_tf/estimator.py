"""`SupConClassifier`: the whole method behind scikit-learn's fit, predict, transform and score."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from supcon_tf import fitting, strategies
from supcon_tf.data.defaults import LARGE
from supcon_tf.data.in_memory import LabelEncoding, examples_in_memory, images_in_memory
from supcon_tf.data.sources import ArraySource
from supcon_tf.evaluation import metrics, predictions
from supcon_tf.fit_settings import Settings
from supcon_tf.losses.create import NAMES as LOSS_NAMES
from supcon_tf.models import contrastive
from supcon_tf.storage.artifacts import Artifacts
from supcon_tf.training import checkpoint, progress

# Of what `save` writes. Raised when its meaning changes.
FORMAT_VERSION = 1
# Parameters that say where and how loudly to train, not what.
NOT_SAVED = ("checkpoint_dir", "verbose")
_MODELS = ("classifier_", "encoder_")
# Parameters that `Settings.choose` calls the same.
SAME_IN_SETTINGS = (
    "batch_size", "num_views", "image_size", "horizontal_flip", "encoder", "encoder_weights",
    "freeze_batch_norm", "loss", "temperature", "cross_entropy_weight", "augmentation_magnitude",
)  # fmt: skip


class SupConClassifier(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClassifierMixin, BaseEstimator
):
    """An image classifier trained by supervised contrastive learning (Khosla et al. 2020).

    `fit` trains an encoder with the supervised contrastive loss and then fits a linear classifier
    to its embeddings, as the command does with `--mode=pretrain,linear`: the same defaults, and
    with the same examples and seed the same weights.

    Images are uint8 [N, H, W, 3] in 0..255, or gray [N, H, W]. Labels are strings, numbers or
    anything that can be sorted, [N]; or multi-hot [N, C] of booleans or 0 and 1 for images with
    several labels, for which the classifier decides each class on its own. A finite
    `tf.data.Dataset` of (image, label) replaces both arrays.

    What is None is chosen from the number, size, color and classes of the images, by the table in
    docs/own_data.md that the command uses for a folder.

    Args:
        epochs: Length of the contrastive training.
        time_budget_minutes: Minutes for the whole of `fit`, in place of `epochs`. The time of a
            step is measured, and the epochs are chosen so that the learning rate schedule ends in
            time.
        batch_size: Examples per step, over all replicas.
        num_views: Augmented views of each image in a step.
        temperature: Similarities in the supervised contrastive loss are divided by it.
        loss: "supcon", "npairs", "triplet" or "max_margin"; "cross_entropy" trains the encoder
            with a classifier instead; or a Keras loss on labels and features [N, V, D], such as
            `SupConLoss(use_labels=False)` (SimCLR).
        cross_entropy_weight: Weight of the cross-entropy of a classifier that is trained together
            with the encoder; 0 for none. It is chosen for "supcon" and 0 for other losses.
        label_smoothing: Label smoothing in the training of that classifier, or of "cross_entropy".
        encoder: "tiny", a ResNet for images of 8 to 32 pixels, or another name that
            `create_encoder` accepts; or a Keras model that takes float32 [B, S, S, 3] in 0..255
            and returns features [B, F], or the path of its `.keras` file or of a run of the
            command. `fit` trains a copy that starts from its weights.
        encoder_weights: "imagenet" for a network of `keras.applications`, or a `.weights.h5` or
            `.keras` file with weights for the encoder. None: random weights, or those of the
            model that `encoder` names.
        freeze_batch_norm: Keep the batch norm layers of a pretrained encoder as they are.
        augmentation: Augmentation of each view of an image after the random crop: "simclr",
            "randaugment", "autoaugment", "stacked_randaugment" or "identity".
        augmentation_magnitude: Strength of the color jitter of "simclr" and "stacked_randaugment",
            or level of "randaugment", up to 10, which has no default.
        horizontal_flip: Whether to mirror views at random. Color images are mirrored by default;
            gray ones are not, because they are often digits, letters or scans.
        image_size: Side in pixels to which images are brought.
        base_learning_rate: Peak learning rate of Adam for a batch of 256 examples; it grows in
            proportion to the batch.
        random_state: An int gives the same result every time. None draws a new seed.
        checkpoint_dir: Folder for checkpoints, `metrics.jsonl` and TensorBoard files. Calling
            `fit` again with the same arguments resumes a training that was interrupted, with the
            same result bit for bit. None keeps no files.
        verbose: 1 shows the progress, 0 nothing.

    Attributes:
        classes_: The labels in the order of `predict_proba`'s columns.
        encoder_: The trained encoder, float32 [B, S, S, 3] -> [B, F].
        classifier_: Encoder and linear head, float32 [B, S, S, 3] -> logits [B, C].
        epochs_, batch_size_, image_size_, horizontal_flip_, seed_: What `fit` used.
        settings_: Everything that was chosen or given, by the names of the command's flags.
        history_: The log of the training, one dictionary per line.
        validation_score_: `score` of the `validation_data`; only if there was any.

    >>> import numpy as np
    >>> from supcon_tf import SupConClassifier
    >>> random = np.random.default_rng(0)
    >>> images = random.integers(0, 100, (64, 8, 8)).astype("uint8")
    >>> images[1::2] += 150
    >>> labels = np.array(["dark", "bright"] * 32)
    >>> classifier = SupConClassifier(epochs=2, augmentation="identity", verbose=0)
    >>> classifier.fit(images[:48], labels[:48]).score(images[48:], labels[48:])
    1.0
    >>> classifier.predict(images[:2]).tolist()
    ['dark', 'bright']
    >>> classifier.transform(images[:2]).shape
    (2, 64)
    """

    def __init__(
        self,
        *,
        epochs: float | None = None,
        time_budget_minutes: float | None = None,
        batch_size: int | None = None,
        num_views: int | None = None,
        temperature: float = 0.1,
        loss: str | keras.losses.Loss = "supcon",
        cross_entropy_weight: float | None = None,
        label_smoothing: float | None = None,
        encoder: str | keras.Model | None = None,
        encoder_weights: str | None = None,
        freeze_batch_norm: bool = False,
        augmentation: str | None = None,
        augmentation_magnitude: float | None = None,
        horizontal_flip: bool | None = None,
        image_size: int | None = None,
        base_learning_rate: float | None = None,
        random_state: int | np.random.RandomState | None = 0,
        checkpoint_dir: str | os.PathLike | None = None,
        verbose: int = 1,
    ) -> None:
        self.epochs = epochs
        self.time_budget_minutes = time_budget_minutes
        self.batch_size = batch_size
        self.num_views = num_views
        self.temperature = temperature
        self.loss = loss
        self.cross_entropy_weight = cross_entropy_weight
        self.label_smoothing = label_smoothing
        self.encoder = encoder
        self.encoder_weights = encoder_weights
        self.freeze_batch_norm = freeze_batch_norm
        self.augmentation = augmentation
        self.augmentation_magnitude = augmentation_magnitude
        self.horizontal_flip = horizontal_flip
        self.image_size = image_size
        self.base_learning_rate = base_learning_rate
        self.random_state = random_state
        self.checkpoint_dir = checkpoint_dir
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, *, validation_data: Any = None) -> SupConClassifier:
        """Trains the encoder and fits the classifier.

        Args:
            X: Images, or a `tf.data.Dataset` of (image, label).
            y: Labels; None with a dataset.
            validation_data: (images, labels) or a dataset. The k-NN accuracy on it is shown
                during the training (for multi-hot labels the mean average precision of the
                neighbors' vote), and `validation_score_` is the classifier's score. It does not
                change the training.

        Raises:
            ValueError: If images, labels or a parameter cannot be used.
        """
        self._check_loss()
        images, labels = examples_in_memory(X, y)
        encoding = LabelEncoding.of(labels)
        source = encoding.source(images, labels)
        validation = None
        if validation_data is not None:
            pair = validation_data if isinstance(validation_data, tuple) else (validation_data,)
            validation = encoding.source(*examples_in_memory(*pair))
        strategy, folder = _strategy(), None
        if self.checkpoint_dir is not None:
            folder = os.fspath(self.checkpoint_dir)
        settings = self._settings(source, strategy, folder)
        with progress.shown(bool(self.verbose)):
            for line in (*settings.notes, _describe(settings, source)):
                progress.inform(f"fit: {line}")
            encoder, history, settings = fitting.train_encoder(
                strategy, source, settings, validation=validation, folder=folder
            )
            chosen = settings.chosen
            head, fitted = fitting.fit_linear_head(
                strategy, encoder, source, normalize_embedding=chosen.normalize_embedding
            )
            self._encoding, self.classes_ = encoding, encoding.classes
            self.epochs_, self.batch_size_ = chosen.pretrain_epochs, chosen.batch_size
            self.image_size_, self.horizontal_flip_ = chosen.image_size, chosen.horizontal_flip
            self.seed_, self.history_ = settings.seed, history
            self.settings_ = dataclasses.asdict(chosen)
            self._set_models(contrastive.create_classifier(encoder, head))
            text = f"fit: training accuracy {fitted.accuracy:.4f}"
            if validation is not None:
                metric = "mAP" if encoding.is_multi_label else "accuracy"
                self.validation_score_ = self._score(validation)
                text += f", validation {metric} {self.validation_score_:.4f}"
            progress.inform(f"{text}.")
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns the probability of every class, [N, C] in the order of `classes_`.

        For multi-hot labels each class has its own probability; they do not add up to 1.
        """
        from scipy.special import expit, softmax

        logits = self._outputs(X)[1].astype(np.float64)
        return expit(logits) if self._encoding.is_multi_label else softmax(logits, axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """Returns the most probable label of each image, or multi-hot rows [N, C].

        A multi-hot row holds the classes with a probability above 0.5.
        """
        logits = self._outputs(X)[1]
        if self._encoding.is_multi_label:
            return (logits > 0).astype(self._encoding.dtype)
        return self.classes_[np.argmax(logits, axis=1)]

    def transform(self, X: Any) -> np.ndarray:
        """Returns the embedding of each image: the encoder's output, float32 [N, F].

        Compare embeddings by cosine similarity.
        """
        return self._outputs(X)[0]

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Returns the accuracy, or for multi-hot labels the mean average precision.

        The mean average precision (mAP) is the mean over the classes that occur. Use
        `sklearn.metrics.accuracy_score` on `predict` for the share of images whose labels are all
        right.
        """
        check_is_fitted(self)
        images, labels = examples_in_memory(X, y)
        if sample_weight is not None:
            return super().score(images, labels, sample_weight)
        known = np.isin(labels, self.classes_) if labels.ndim == 1 else np.array(True)
        if not known.all():  # As in scikit-learn, an unknown label is a wrong answer.
            return float(np.mean(self.predict(images) == labels))
        return self._score(self._encoding.source(images, labels))

    def save(self, path: str | os.PathLike) -> None:
        """Writes the fitted classifier to a folder, which `load` reads.

        `classifier.keras` in it is a plain Keras model, images in 0..255 -> logits.

        Raises:
            ValueError: If the labels are neither text, numbers nor booleans.
        """
        check_is_fitted(self)
        folder = os.fspath(path)
        tf.io.gfile.makedirs(folder)
        saved = Artifacts(folder)
        parameters = {k: v for k, v in self.get_params(deep=False).items() if k not in NOT_SAVED}
        if isinstance(self.encoder, keras.Model):
            saved.save_model("initial_encoder.keras", self.encoder)
            parameters["encoder"] = {"file": "initial_encoder.keras"}
        if isinstance(self.loss, keras.losses.Loss):
            parameters["loss"] = keras.saving.serialize_keras_object(self.loss)
        if not isinstance(self.random_state, (int, type(None))):
            parameters["random_state"] = self.seed_
        saved.save_model("classifier.keras", self.classifier_)
        fitted = {k: v for k, v in vars(self).items() if k.endswith("_") and k not in _MODELS}
        saved.write_json(
            "estimator.json",
            {
                "format_version": FORMAT_VERSION,
                "parameters": parameters,
                "classes": self.classes_.tolist(),
                "classes_dtype": str(self.classes_.dtype),
                "is_multi_label": self._encoding.is_multi_label,
                "labels_dtype": self._encoding.dtype,
                "fitted": {k: v for k, v in fitted.items() if k != "classes_"},
            },
        )
        saved.seal()

    @classmethod
    def load(cls, path: str | os.PathLike) -> SupConClassifier:
        """Reads what `save` wrote.

        Raises:
            ValueError: If a file is missing or damaged, or of another format version.
        """
        saved = Artifacts(os.fspath(path), remedy="SupConClassifier(...).fit(...).save(path)")
        record = saved.read_json("estimator.json", dict)
        if record.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{saved.path('estimator.json')} has format version "
                f"{record.get('format_version')}; this release reads version {FORMAT_VERSION}."
            )
        parameters = record["parameters"]
        if isinstance(parameters["encoder"], dict):
            parameters["encoder"] = saved.load_model(parameters["encoder"]["file"])
        if isinstance(parameters["loss"], dict):
            parameters["loss"] = keras.saving.deserialize_keras_object(parameters["loss"])
        estimator = cls(**parameters)
        classes = np.array(record["classes"], dtype=record["classes_dtype"])
        estimator._encoding = LabelEncoding(
            classes, record["is_multi_label"], record["labels_dtype"]
        )
        estimator.classes_ = classes
        for name, value in record["fitted"].items():
            setattr(estimator, name, value)
        estimator._set_models(saved.load_model("classifier.keras"))
        return estimator

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.target_tags.required = True
        tags.target_tags.two_d_labels = True
        tags.classifier_tags.multi_label = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def __sklearn_is_fitted__(self):
        return hasattr(self, "classifier_")

    def __getstate__(self):
        state = super().__getstate__()
        # The classifier holds the encoder; the compiled function cannot be pickled.
        return {k: v for k, v in state.items() if k not in ("encoder_", "_compute")}

    def __setstate__(self, state):
        super().__setstate__(state)
        if "classifier_" in state:
            self._set_models(self.classifier_)

    @property
    def _n_features_out(self):
        return self.encoder_.output_shape[-1]

    def _check_loss(self):
        names = (*LOSS_NAMES, "cross_entropy")
        if isinstance(self.loss, str) and self.loss not in names:
            raise ValueError(
                f"Unknown loss={self.loss!r}: choose one of {', '.join(names)}, or a Keras loss "
                "such as SupConLoss()."
            )
        if self.loss != "supcon" and self.temperature != 0.1:
            remedy = "leave it out"
            if not isinstance(self.loss, str):
                remedy = "give the loss its temperature"
            raise ValueError(
                f"temperature={self.temperature} does nothing with loss={self.loss!r}: {remedy}."
            )

    def _settings(self, source, strategy, folder):
        if self.time_budget_minutes is not None and self.epochs is not None:
            raise ValueError(
                f"time_budget_minutes={self.time_budget_minutes} chooses the epochs, so "
                f"epochs={self.epochs} cannot be given too: leave one out."
            )
        if self.time_budget_minutes is not None and not self.time_budget_minutes > 0:
            raise ValueError(
                f"time_budget_minutes={self.time_budget_minutes}: expected more than 0, or None."
            )
        if self.augmentation == "randaugment" and self.augmentation_magnitude is None:
            raise ValueError(
                'augmentation="randaugment" needs augmentation_magnitude, a level up to 10, such '
                "as augmentation_magnitude=9."
            )
        # A training that is resumed keeps its seed, its time budget's choice and its network.
        record = folder and checkpoint.newest_record(os.path.join(folder, "checkpoints"))
        seed, before = self.random_state, record["settings"] if record else {}
        if seed is None and before:
            seed = before["seed"]
        if not isinstance(seed, (int, np.integer)):
            seed = check_random_state(seed).randint(2**31)
        length = {"pretrain_epochs": self.epochs, "time_budget_minutes": self.time_budget_minutes}
        if self.time_budget_minutes is not None and before:
            length = {name: before[name] for name in ("pretrain_epochs", "warmup_epochs")}
        return Settings.choose(
            source,
            num_replicas=strategy.num_replicas_in_sync,
            augmentation_type=self.augmentation,
            pretrain_base_learning_rate=self.base_learning_rate,
            pretrain_label_smoothing=self.label_smoothing,
            **{name: getattr(self, name) for name in SAME_IN_SETTINGS},
            seed=int(seed),
            is_large_carried=before["encoder"] == LARGE.encoder if before else None,
            recorded=before,
            **length,
        )

    def _set_models(self, classifier):
        self.classifier_ = classifier
        self.encoder_, head = contrastive.split_classifier(classifier)

        @tf.function(autograph=False, reduce_retracing=True)
        def compute(images):
            embeddings = self.encoder_(images, training=False)
            return embeddings, head(embeddings, training=False)

        self._compute = compute

    def _outputs(self, X):
        """Embeddings [N, F] and logits [N, C] of images, as `images_in_memory` accepts them."""
        check_is_fitted(self)
        images, strategy = images_in_memory(X), _strategy()
        replicas = strategy.num_replicas_in_sync
        # A few sizes of batches, because each is compiled once.
        size = min(fitting.EVAL_BATCH_SIZE, 1 << (len(images) - 1).bit_length())
        source = ArraySource(images, np.zeros(len(images), np.int32), ())
        batches = fitting.examples_in_order(
            source, self.image_size_, batch_size=-(-size // replicas) * replicas
        )
        return predictions.predict(strategy, self._compute, batches)[0]

    def _score(self, source):
        logits = self._outputs(source.images)[1]
        if self._encoding.is_multi_label:
            return metrics.mean_average_precision(logits, source.labels)
        return float(np.mean(np.argmax(logits, axis=1) == source.labels))


def _strategy():
    """The strategy in whose scope the caller is, else one device."""
    if tf.distribute.has_strategy():
        return tf.distribute.get_strategy()
    return strategies.create_strategy("one_device")


def _describe(settings, source):
    """What is trained on what, with every choice by the names of the flags."""
    texts = settings.chosen.texts()
    if settings.time_budget_minutes is not None:
        texts.pop("pretrain_epochs")
    loss = settings.loss if isinstance(settings.loss, str) else settings.loss.name
    what = " ".join(f"{name}={text}" for name, text in texts.items())
    classes = len(source.class_names)
    return f"{source.num_examples:,} images of {classes} classes: loss={loss} {what}"
