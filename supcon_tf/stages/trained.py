"""What the training stages left in the model directory, for the stages that use it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import keras
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf.models import contrastive
from supcon_tf.stages.run_directory import RunDirectory, artifacts_of, find_part
from supcon_tf.storage.artifacts import Artifacts


@dataclasses.dataclass(frozen=True)
class PretrainedEncoder:
    """The file of the encoder that a classifier is built on.

    Attributes:
        path: The path of the file.
        is_own: Whether the pretraining of this run made it.
    """

    path: str
    is_own: bool

    @classmethod
    def of(cls, flags: FlagValues) -> PretrainedEncoder:
        """Finds the encoder of this run's pretraining, else that of --reference_ckpt.

        Raises:
            ValueError: If there is neither.
        """
        run = RunDirectory.of(flags)
        if run.has("pretrain", "encoder.keras"):
            return cls(run.encoder, True)
        if not flags.reference_ckpt:
            raise ValueError(
                f"There is no pretrained encoder at {run.encoder}: run --mode=pretrain with this "
                "--model_dir first, or use --reference_ckpt to name the model directory or the "
                "encoder.keras of another run."
            )
        if flags.reference_ckpt.endswith(".pth"):
            raise ValueError(
                f"reference_ckpt={flags.reference_ckpt} contains weights without their network. "
                "First make an encoder from them: run --mode=pretrain --pretrain_epochs=0 with the "
                "same --reference_ckpt and --model_dir."
            )
        path = find_part(flags.reference_ckpt, "encoder")
        return cls(path, path == run.encoder)

    def load(self) -> keras.Model:
        """Loads the encoder after checking its file."""
        return artifacts_of(self.path).load_model(os.path.basename(self.path))

    def identity(self) -> str:
        """Returns a hash of the layers and weights of the encoder."""
        artifacts, name = artifacts_of(self.path), os.path.basename(self.path)
        artifacts.check(name)
        return artifacts.identity(name)


@dataclasses.dataclass(frozen=True)
class Trained:
    """The trained models of a run.

    Attributes:
        encoder: Images float32 [B, S, S, 3] in 0..255 -> float32 [B, F].
        path: The file of the classifier; without a classifier, of the encoder.
        stage: The stage that wrote that file.
        projector: [B, F] -> unit vectors [B, D]; None if the encoder has no projection head.
        linear_head: [B, F] -> logits [B, C]; None without a classifier.
        class_names: The classes of the classifier; None without a classifier.
        encoder_identity: A hash of the encoder's layers and weights.
        label_type: "class", whose probabilities are the softmax of the logits; "multi_label", whose
            probabilities are their sigmoids; or "real", whose only logit is the predicted number.
    """

    encoder: keras.Model
    path: str
    stage: str
    projector: keras.Model | None
    linear_head: keras.Model | None
    class_names: tuple[str, ...] | None
    encoder_identity: str
    label_type: str = "class"

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may show any number of classes."""
        return self.label_type == "multi_label"

    @property
    def is_real(self) -> bool:
        """Whether a number is predicted instead of a class."""
        return self.label_type == "real"

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.encoder.input_shape[1]

    def embeddings(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the unnormalized embeddings [B, F]."""
        return self.encoder(images, training=False)

    def outputs(self, images: tf.Tensor, *, training: bool = False) -> dict[str, tf.Tensor]:
        """Returns unnormalized_embeddings [B, F] and, with a classifier, logits [B, C].

        With `training`, batch norm uses the statistics of these images.
        """
        embeddings = self.encoder(images, training=training)
        results = {"unnormalized_embeddings": embeddings}
        if self.linear_head is not None:
            results["logits"] = self.linear_head(embeddings, training=False)
        return results


def load_trained(flags: FlagValues, *, needs_classifier: bool = False) -> Trained:
    """Loads the classifier with its encoder, or the pretrained encoder alone.

    The classifier is that of the latest stage: finetune, else linear, else the one that
    pretraining trained with --loss=cross_entropy or --cross_entropy_weight.

    Args:
        flags: The parsed flags.
        needs_classifier: Whether an encoder alone is not enough.

    Raises:
        ValueError: If nothing was trained, if a classifier is needed and missing, or if the
            encoder was trained again after the classifier.
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
    encoder, projector = pretrained.load_model("encoder.keras"), _load_projector(pretrained)
    identity = pretrained.identity("encoder.keras")
    if not has_classifier:
        return Trained(encoder, run.encoder, "pretrain", projector, None, None, identity)
    print(f"Using the classifier that pretraining trained, {run.linear_head}.")
    head = pretrained.load_model("linear_head.keras")
    names = tuple(pretrained.read_json("class_names.json", list))
    return Trained(
        encoder, run.linear_head, "pretrain", projector, head, names, identity,
        _read_label_type(pretrained),
    )  # fmt: skip


def _load_classifier(run, stage):
    """Loads what finetune or linear saved."""
    artifacts, pretrained = run.artifacts(stage), run.artifacts("pretrain")
    path = artifacts.path("classifier.keras")
    old, has_encoder = (run.inputs(stage) or {}).get("encoder"), pretrained.has("encoder.keras")
    if has_encoder and old not in (None, pretrained.identity("encoder.keras")):
        pretrained.check("encoder.keras")  # If its record is damaged, this raises.
        raise ValueError(
            f"{path} was trained on another encoder than the current {run.encoder}. Delete "
            f"{artifacts.folder} and run --mode={stage} again."
        )
    # The projection head belongs to the encoder before fine-tuning.
    projector = _load_projector(pretrained) if has_encoder and stage != "finetune" else None
    encoder, head = contrastive.split_classifier(artifacts.load_model("classifier.keras"))
    names = tuple(artifacts.read_json("class_names.json", list))
    # The linear stage does not change the encoder, so its embeddings stay those of pretraining.
    identity = old if old and stage == "linear" else artifacts.identity("classifier.keras")
    label_type = _read_label_type(artifacts)
    return Trained(encoder, path, stage, projector, head, names, identity, label_type)


def _read_label_type(artifacts):
    """Reads what `write_classes` recorded; runs of earlier releases recorded nothing."""
    name = "label_type.json"
    return artifacts.read_json(name, str) if artifacts.has(name) else "class"


def write_classes(artifacts: Artifacts, class_names: Sequence[str], label_type: str) -> None:
    """Writes which classes the logits of a classifier belong to, and how many an image may have."""
    artifacts.write_json("class_names.json", list(class_names))
    artifacts.write_json("label_type.json", label_type)


def _load_projector(pretrained):
    name = "projection_head.keras"
    return pretrained.load_model(name) if pretrained.has(name) else None
