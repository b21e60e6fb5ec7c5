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
        encoder_path: the file that it comes from.
        projector: [B, F] -> unit vectors [B, D]; None if the encoder has none.
        linear_head: [B, F] -> logits [B, C]; None without a classifier.
        class_names: of the classifier; None without one.
    """

    encoder: keras.Model
    encoder_path: str
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

    Raises:
        ValueError: nothing was trained, a classifier is needed and missing, or the encoder was
            trained again after the classifier.
    """
    run = RunDirectory.of(flags)
    classifier_path, encoder_path = run.classifier, run.encoder
    has_encoder = tf.io.gfile.exists(encoder_path)
    projector = None
    if has_encoder and tf.io.gfile.exists(run.projection_head):
        projector = keras.models.load_model(run.projection_head)
    if tf.io.gfile.exists(classifier_path):
        folder = os.path.dirname(classifier_path)
        inputs = read_json(os.path.join(folder, "inputs.json")) or {}
        if has_encoder and inputs.get("encoder") != fingerprint(encoder_path):
            raise ValueError(
                f"{classifier_path} was trained on another encoder than {encoder_path}. Delete "
                f"{folder} and run its stage again."
            )
        if os.path.basename(folder) == "finetune":
            projector = None  # It belongs to the encoder before the fine-tuning.
        encoder, head = models.split_classifier(keras.models.load_model(classifier_path))
        names = tuple(read_json(os.path.join(folder, "class_names.json")))
        return Trained(encoder, classifier_path, projector, head, names)
    if needs_classifier:
        raise ValueError(
            f"There is no classifier at {classifier_path}: run --mode=linear or "
            "--mode=finetune with this --model_dir first."
        )
    if not has_encoder:
        raise ValueError(
            f"There is no trained encoder in {run.path}: run "
            "--mode=pretrain,linear with this --model_dir first."
        )
    return Trained(keras.models.load_model(encoder_path), encoder_path, projector, None, None)
