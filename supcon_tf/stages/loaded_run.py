"""A run of the command in Python: its models, and what they say about other images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf import strategies
from supcon_tf.cli import command_line
from supcon_tf.data import data_identity, in_memory, sources
from supcon_tf.data.image_files import check_files
from supcon_tf.evaluation import predictions
from supcon_tf.evaluation.predict_images import Gallery, class_probabilities, target_values
from supcon_tf.evaluation.prediction_files import PRESENT_FROM
from supcon_tf.models import contrastive
from supcon_tf.stages import inputs, trained, training_embeddings
from supcon_tf.stages.run_directory import RunDirectory
from supcon_tf.storage.run_paths import FLAG_FILE, run_path
from supcon_tf.training import progress

# The latest first: its classifier is the one that is loaded.
TRAINING_STAGES = ("finetune", "linear", "pretrain")


class Neighbors(NamedTuple):
    """The most similar training images of N images, nearest first.

    Attributes:
        names: Text [N, k]: the paths of image files, or the numbers of the examples.
        labels: The class of each, text [N, k]; or multi-hot, bool [N, k, C]; or the number of
            each, float32 [N, k].
        similarities: Cosine similarity of the embeddings, float32 [N, k].
    """

    names: np.ndarray
    labels: np.ndarray
    similarities: np.ndarray


def load_run(path: str | os.PathLike) -> LoadedRun:
    """Loads the models that the command trained in a model directory.

    The classifier is that of the latest stage, as for `--mode=predict`: fine-tuned, else linear,
    else the one that pretraining trained. A run that was only pretrained has none.

    >>> run = supcon_tf.load_run("runs/mine")
    >>> run.predict(images)                      # Class names.
    >>> run.nearest(["a.jpg"], k=3).names        # The most similar training images.

    Args:
        path: The `--model_dir` of the run.

    Raises:
        ValueError: If there is no such directory, if no stage has finished, or if a file is
            damaged.
    """
    path = os.fspath(path)
    if not tf.io.gfile.isdir(path):
        raise ValueError(
            f"There is no run at {path}: expected the --model_dir of a run of the command."
        )
    return LoadedRun(path)


class LoadedRun:
    """What `load_run` returns.

    Images are uint8 [N, H, W, 3] in 0..255 of any size, or gray [N, H, W], or paths of image
    files. They are cropped as the run's evaluation crops them.

    Attributes:
        path: The model directory.
        stage: The stage that trained the classifier, or the encoder if there is no classifier.
        encoder: Images float32 [B, S, S, 3] in 0..255 -> embeddings float32 [B, F].
        classifier: The same images -> logits [B, C]; None for a run without a classifier. For
            real targets, the predicted numbers [B, 1].
        class_names: The C classes, in the order of the logits.
        image_size: S, side of the images in pixels.
    """

    def __init__(self, path: str):
        self.path = path
        self._flags = flags_of_run(path)
        self._model = trained.load_trained(self._flags)
        self._gallery: Gallery | None = None
        self.stage, self.encoder = self._model.stage, self._model.encoder
        self.image_size = self._model.image_size
        self.classifier: keras.Model | None = None
        if self._model.linear_head is not None:
            self.classifier = contrastive.create_classifier(self.encoder, self._model.linear_head)

    @property
    def class_names(self) -> tuple[str, ...]:
        if self._model.class_names is not None:
            return self._model.class_names
        return self._training_images().class_names

    def __repr__(self) -> str:
        return f"<run {self.path}: {self.stage}, {self.image_size} px>"

    def embed(self, images: Any) -> np.ndarray:
        """Returns the embedding of each image, float32 [N, F]; compare them by cosine similarity.

        Raises:
            ValueError: If the images have another form or cannot be read.
        """
        return self._outputs(images)["unnormalized_embeddings"]

    def predict_proba(self, images: Any) -> np.ndarray:
        """Returns the probability of each class, float64 [N, C].

        With several labels per image each class has its own probability. Without a
        classifier it is the vote of the nearest training images, which must then still be where
        they were.

        Raises:
            ValueError: If the run predicts numbers, or if the images cannot be used.
        """
        if self._is_real():
            raise ValueError(f"{self.path} predicts numbers, not classes: use predict.")
        outputs = self._outputs(images)
        gallery = self._training_images() if self.classifier is None else None
        return class_probabilities(
            outputs["unnormalized_embeddings"],
            outputs.get("logits"),
            gallery,
            self._model.is_multi_label,
        )

    def predict(self, images: Any) -> np.ndarray | list[list[str]]:
        """Returns the name of the most probable class of each image, text [N].

        With several labels per image, returns a list of the classes of each image: those with a
        probability of at least 0.5. A run on real targets returns numbers, float [N].
        """
        if self._is_real():
            outputs = self._outputs(images)
            gallery = self._training_images() if self.classifier is None else None
            embeddings = outputs["unnormalized_embeddings"]
            return target_values(embeddings, outputs.get("logits"), gallery)
        probabilities, names = self.predict_proba(images), np.array(self.class_names)
        if self._model.is_multi_label:
            return [names[row >= PRESENT_FROM].tolist() for row in probabilities]
        return names[probabilities.argmax(axis=1)]

    def nearest(self, images: Any, k: int = 5) -> Neighbors:
        """Finds the most similar training images of each image.

        The embeddings of the training images are those that `--mode=predict` saved, if they are
        there, else they are computed once.

        Raises:
            ValueError: If the training data cannot be read, or is not what the run was trained on.
        """
        embeddings, gallery = self.embed(images), self._training_images()
        indices, similarities = gallery.nearest(embeddings, k)
        labels = gallery.labels[indices]
        if labels.ndim == 2 and labels.dtype.kind == "i":  # Numbers of classes.
            labels = np.array(gallery.class_names)[labels]
        return Neighbors(np.asarray(gallery.names)[indices], labels, similarities)

    def _is_real(self):
        if self._model.linear_head is None:
            return self._flags.label_type == "real"
        return self._model.is_real

    def _outputs(self, images):
        source = _source_of(images)
        return self._compute(self._model.outputs, source)[0]

    def _compute(self, function, source):
        """Results and labels of every image, in order."""
        batches = inputs.eval_batches_from_flags(self._flags, source, image_size=self.image_size)
        strategy = strategies.create_strategy("one_device")
        with inputs.naming_broken_images(source):
            return predictions.predict(strategy, function, batches)

    def _training_images(self) -> Gallery:
        if self._gallery is None:
            source = inputs.splits_from_flags(self._flags).train
            RunDirectory(self.path).check_data(
                self.stage, data_identity.identity_of(source), "Restore that data."
            )
            identity = training_embeddings.gallery_identity(self._flags, self._model, source)
            self._gallery = training_embeddings.load_gallery(
                run_path(self.path, "predict"), identity
            ) or self._new_gallery(source)
        return self._gallery

    def _new_gallery(self, source):
        with progress.waiting("Computing the embeddings of the training images"):
            embeddings, labels = self._compute(self._model.embeddings, source)
        return Gallery(embeddings, labels, sources.example_names(source), source.class_names)


def has_run(path: str) -> bool:
    """Returns whether a training stage recorded its flags in a model directory."""
    return any(tf.io.gfile.exists(run_path(path, stage, FLAG_FILE)) for stage in TRAINING_STAGES)


def flags_of_run(path: str) -> FlagValues:
    """Returns the flags of the latest training stage; defaults if none recorded any."""
    lines: list[str] = []
    for stage in TRAINING_STAGES:
        file = run_path(path, stage, FLAG_FILE)
        if tf.io.gfile.exists(file):
            with tf.io.gfile.GFile(file) as text:
                lines = text.read().splitlines()
            break
    return command_line.peek(["", *lines, f"--model_dir={path}"])


def _source_of(images: Any) -> sources.Source:
    """Returns images in memory, or image files by path, as a source without labels."""
    if isinstance(images, (str, os.PathLike)):
        images = [images]
    if isinstance(images, Sequence) and images and isinstance(images[0], (str, os.PathLike)):
        paths = tuple(os.fspath(image) for image in images)
        missing = [path for path in paths if not tf.io.gfile.exists(path)]
        if missing:
            raise ValueError(f"There is no image at {', '.join(missing[:5])}.")
        labels = np.full(len(paths), sources.NO_LABEL, np.int32)
        return check_files(sources.FileSource(paths, labels, ()), skip_broken_images=False)
    array = in_memory.images_in_memory(images)
    return sources.ArraySource(array, np.full(len(array), sources.NO_LABEL, np.int32), ())
