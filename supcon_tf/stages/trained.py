"""What the training stages left in the model directory, for the stages that use it."""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf

from supcon_tf.models import contrastive
from supcon_tf.stages.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class Trained:
    """Models of one model directory.

    Attributes:
        encoder: images float32 [B, S, S, 3] in 0..255 -> float32 [B, F].
        path: the file of the classifier; without one, of the encoder.
        stage: the stage that made that file.
        projector: [B, F] -> unit vectors [B, D]; None if the encoder has none.
        linear_head: [B, F] -> logits [B, C]; None without a classifier.
        class_names: of the classifier; None without one.
    """

    encoder: keras.Model
    path: str
    stage: str
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


def load_trained(flags, *, needs_classifier: bool = False) -> Trained:
    """The classifier with its encoder, or the pretrained encoder alone.

    The classifier is that of the latest stage: finetune, else linear, else the one that
    pretraining trained with --loss=cross_entropy or --cross_entropy_weight.

    Raises:
        ValueError: nothing was trained, a classifier is needed and missing, or the encoder was
            trained again after the classifier.
    """
    run = RunDirectory.of(flags)
    stage, pretrained = run.classifier_stage, run.artifacts("pretrain")
    if run.has(stage, "classifier.keras"):
        return _load_classifier(run, stage)
    has_encoder = pretrained.has("encoder.keras")
    has_classifier = has_encoder and pretrained.has("linear_head.keras")
    if needs_classifier and not has_classifier:
        raise ValueError(
            f"There is no classifier at {run.file(stage, 'classifier.keras')}: run --mode=linear "
            "or --mode=finetune with this --model_dir first."
        )
    if not has_encoder:
        raise ValueError(
            f"There is no trained encoder in {run.path}: run "
            "--mode=pretrain,linear with this --model_dir first."
        )
    encoder, projector = pretrained.load_model("encoder.keras"), _projector(pretrained)
    if not has_classifier:
        return Trained(encoder, run.encoder, "pretrain", projector, None, None)
    print(f"Classifier: the one that pretraining trained, {run.linear_head}.")
    head = pretrained.load_model("linear_head.keras")
    names = tuple(pretrained.read_json("class_names.json", list))
    return Trained(encoder, run.linear_head, "pretrain", projector, head, names)


def _load_classifier(run, stage):
    """What finetune or linear saved."""
    artifacts, pretrained = run.artifacts(stage), run.artifacts("pretrain")
    path = artifacts.path("classifier.keras")
    old, has_encoder = (run.inputs(stage) or {}).get("encoder"), pretrained.has("encoder.keras")
    if has_encoder and old not in (None, pretrained.identity("encoder.keras")):
        pretrained.check("encoder.keras")  # If its record is damaged, this says so.
        raise ValueError(
            f"{path} was trained on another encoder than {run.encoder}. Delete "
            f"{artifacts.folder} and run its stage again."
        )
    # The projection head belongs to the encoder before the fine-tuning.
    projector = _projector(pretrained) if has_encoder and stage != "finetune" else None
    encoder, head = contrastive.split_classifier(artifacts.load_model("classifier.keras"))
    names = tuple(artifacts.read_json("class_names.json", list))
    return Trained(encoder, path, stage, projector, head, names)


def _projector(pretrained):
    name = "projection_head.keras"
    return pretrained.load_model(name) if pretrained.has(name) else None
