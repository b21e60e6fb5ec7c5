"""What the training stages left in the model directory, for the stages that use it."""

from __future__ import annotations

import dataclasses
import os

import keras
import tensorflow as tf

from supcon_tf import models
from supcon_tf.files import read_json
from supcon_tf.stages.run_directory import RunDirectory, fingerprint


@dataclasses.dataclass(frozen=True)
class Trained:
    """Models of one model directory.

    Attributes:
        encoder: images float32 [B, S, S, 3] in 0..255 -> float32 [B, F].
        path: the file of the classifier; without one, of the encoder.
        projector: [B, F] -> unit vectors [B, D]; None if the encoder has none.
        linear_head: [B, F] -> logits [B, C]; None without a classifier.
        class_names: of the classifier; None without one.
    """

    encoder: keras.Model
    path: str
    projector: keras.Model | None
    linear_head: keras.Model | None
    class_names: tuple[str, ...] | None

    @property
    def image_size(self) -> int:
        return self.encoder.input_shape[1]

    def outputs(self, images: tf.Tensor, *, training: bool = False) -> dict[str, tf.Tensor]:
        """unnormalized_embeddings [B, F], and logits [B, C] if there is a classifier.

        With `training`, batch norm uses the statistics of these images.
        """
        embeddings = self.encoder(images, training=training)
        results = {"unnormalized_embeddings": embeddings}
        if self.linear_head is not None:
            results["logits"] = self.linear_head(embeddings, training=False)
        return results


def load(flags, *, needs_classifier: bool = False) -> Trained:
    """The classifier with its encoder, or the pretrained encoder alone.

    The classifier is that of the latest stage: finetune, else linear, else the one that
    pretraining trained with --loss=cross_entropy or --cross_entropy_weight.

    Raises:
        ValueError: nothing was trained, a classifier is needed and missing, or the encoder was
            trained again after the classifier.
    """
    run = RunDirectory.of(flags)
    has_encoder = tf.io.gfile.exists(run.encoder)
    projector = None
    if has_encoder and tf.io.gfile.exists(run.projection_head):
        projector = keras.models.load_model(run.projection_head)
    if tf.io.gfile.exists(run.classifier):
        return _load_classifier(run, projector)
    if not has_encoder:
        raise ValueError(
            f"There is no trained encoder in {run.path}: run "
            "--mode=pretrain,linear with this --model_dir first."
        )
    names = read_json(run.file("pretrain", "class_names.json"))
    has_classifier = names is not None and tf.io.gfile.exists(run.linear_head)
    if needs_classifier and not has_classifier:
        raise ValueError(
            f"There is no classifier at {run.classifier}: run --mode=linear or "
            "--mode=finetune with this --model_dir first."
        )
    encoder = keras.models.load_model(run.encoder)
    if not has_classifier:
        return Trained(encoder, run.encoder, projector, None, None)
    print(f"Classifier: the one that pretraining trained, {run.linear_head}.")
    head = keras.models.load_model(run.linear_head)
    return Trained(encoder, run.linear_head, projector, head, tuple(names))


def _load_classifier(run, projector):
    """What finetune or linear saved."""
    folder = os.path.dirname(run.classifier)
    inputs = read_json(os.path.join(folder, "inputs.json")) or {}
    if tf.io.gfile.exists(run.encoder) and inputs.get("encoder") != fingerprint(run.encoder):
        raise ValueError(
            f"{run.classifier} was trained on another encoder than {run.encoder}. Delete "
            f"{folder} and run its stage again."
        )
    if os.path.basename(folder) == "finetune":
        projector = None  # It belongs to the encoder before the fine-tuning.
    encoder, head = models.split_classifier(keras.models.load_model(run.classifier))
    names = tuple(read_json(os.path.join(folder, "class_names.json")))
    return Trained(encoder, run.classifier, projector, head, names)
