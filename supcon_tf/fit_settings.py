"""How `SupConClassifier` trains an encoder: what was asked for, and what follows the images."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from supcon_tf import strategies
from supcon_tf.data import defaults, image_facts
from supcon_tf.data.sources import ArraySource
from supcon_tf.models import contrastive, saved_encoder
from supcon_tf.storage import artifacts, encoder_files
from supcon_tf.training import memory


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an encoder is trained; `choose` completes them from the examples.

    Attributes:
        chosen: What follows the data, and the values that were given in its place. Its encoder is
            the name of `encoder` if that is a model.
        encoder: A name for `create_encoder`, or a Keras model whose weights are the start.
        encoder_weights: Weights that the encoder starts with; see `create_encoder`.
        freeze_batch_norm: Whether the batch norm layers of a pretrained encoder stay as they are.
        loss: One of `losses.create.NAMES`, "cross_entropy", or a Keras loss on projections.
        temperature: The temperature of "supcon".
        warmup_epochs: Length of the linear warm-up, at most that of the training.
        seed: All random numbers follow from it.
        time_budget_minutes: Decides the epochs and the warm-up when a step is measured; None if
            they are known.
        notes: Lines that explain the choices.
    """

    chosen: defaults.DataDefaults
    encoder: str | keras.Model = "tiny"
    encoder_weights: str | None = None
    freeze_batch_norm: bool = False
    loss: str | keras.losses.Loss = "supcon"
    temperature: float = 0.1
    warmup_epochs: float = 3.0
    seed: int = 0
    time_budget_minutes: float | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def choose(
        cls,
        source: ArraySource,
        *,
        num_replicas: int = 1,
        encoder: str | keras.Model | None = None,
        encoder_weights: str | None = None,
        freeze_batch_norm: bool = False,
        loss: str | keras.losses.Loss = "supcon",
        warmup_epochs: float | None = None,
        time_budget_minutes: float | None = None,
        is_large_carried: bool | None = None,
        recorded: Mapping[str, Any] | None = None,
        temperature: float = 0.1,
        seed: int = 0,
        **given: Any,
    ) -> Settings:
        """Replaces None by what the command would choose for a folder of these images.

        Args:
            source: The training examples.
            num_replicas: How many replicas share a batch.
            encoder, encoder_weights, freeze_batch_norm, loss, warmup_epochs, time_budget_minutes,
                temperature, seed: See `Settings`. An encoder may be the path of a saved one.
            is_large_carried: Whether the machine can carry the network for large images; None
                finds out.
            recorded: `record` of a training that is resumed. What is not given stays as it was,
                although this release may choose something else.
            **given: Fields of `defaults.DataDefaults`, or None.

        Raises:
            ValueError: If the batch or the image size does not fit the examples or the encoder,
                or if the encoder cannot be loaded.
        """
        facts = image_facts.facts_of(source)
        if encoder is None and encoder_weights is not None:  # The weights decide the network.
            encoder = defaults.TableRow.encoder
        encoder = _loaded(encoder, source, given.get("image_size"))
        _check_start_of_settings(encoder, encoder_weights, freeze_batch_norm)
        fixed = _kept(recorded, has_encoder=encoder is not None)
        fixed |= {name: value for name, value in given.items() if value is not None}
        fixed |= _fixed_by_encoder_and_loss(encoder, loss, fixed)
        notes: list[str] = []
        options: dict[str, Any] = {
            "num_replicas": num_replicas,
            "is_cross_entropy": loss == "cross_entropy",
            "is_many_measured": source.label_type == "class"
            and encoder_weights is None
            and not isinstance(encoder, keras.Model),
        }
        chosen = defaults.choose(facts, fixed, **options)
        if chosen.encoder == defaults.LARGE.encoder and "encoder" not in fixed:
            hours = time_budget_minutes and time_budget_minutes / 60
            if is_large_carried is None:
                reason = defaults.why_not_large(
                    facts, _machine_of_process(), chosen, longest_hours=hours
                )
                notes += [f"{reason}: choosing a smaller network."] if reason else []
                is_large_carried = reason is None
            chosen = defaults.choose(facts, fixed, is_large_carried=is_large_carried, **options)
        _check_chosen(chosen, source.num_examples, num_replicas, loss)
        longest = cls.warmup_epochs if warmup_epochs is None else warmup_epochs
        return cls(
            chosen=chosen,
            encoder=chosen.encoder if encoder is None else encoder,
            encoder_weights=encoder_weights,
            freeze_batch_norm=freeze_batch_norm,
            loss=loss,
            temperature=temperature,
            warmup_epochs=min(longest, chosen.pretrain_epochs),
            seed=seed,
            time_budget_minutes=time_budget_minutes,
            notes=tuple(notes),
        )

    def record(self) -> dict[str, Any]:
        """Returns the settings as JSON values; a model by a hash, a Keras loss by its options."""
        values = {
            **json.loads(json.dumps(dataclasses.asdict(self.chosen))),
            "encoder_weights": self.encoder_weights,
            "freeze_batch_norm": self.freeze_batch_norm,
            "temperature": self.temperature,
            "loss": self.loss,
            "warmup_epochs": self.warmup_epochs,
            "seed": self.seed,
        }
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

    def with_epochs(self, epochs: float, longest_warmup_epochs: float) -> Settings:
        """Returns the settings with a length that a time budget decided."""
        return dataclasses.replace(
            self,
            chosen=dataclasses.replace(self.chosen, pretrain_epochs=epochs),
            warmup_epochs=min(self.warmup_epochs, longest_warmup_epochs),
            time_budget_minutes=None,
        )


def _kept(recorded, has_encoder):
    """The settings of a training that is resumed; a given encoder decides its own."""
    if not recorded:
        return {}
    of_encoder = ("encoder", "resnet_depth", "resnet_width", "image_size")
    kept = {"pretrain_label_smoothing": 0.0}  # Older releases did not record it.
    for field in dataclasses.fields(defaults.DataDefaults):
        if field.name in recorded and not (has_encoder and field.name in of_encoder):
            value = recorded[field.name]
            kept[field.name] = tuple(value) if isinstance(value, list) else value
    kept.pop("encoder", None)  # The table chooses it again, for the same machine.
    return kept


def _check_chosen(chosen, count, num_replicas, loss):
    size, smoothing = chosen.batch_size, chosen.pretrain_label_smoothing
    if not 1 <= size <= count or size % num_replicas:
        multiple = f"a multiple of {num_replicas} " if num_replicas > 1 else ""
        raise ValueError(
            f"batch_size={size} does not fit {count:,} training images on "
            f"{num_replicas} replica(s): choose {multiple}up to {count}, or None."
        )
    if not chosen.pretrain_epochs >= 0:
        raise ValueError(
            f"epochs={chosen.pretrain_epochs}: expected a number of at least 0, or None."
        )
    if not 0 <= smoothing <= 1:
        raise ValueError(f"label_smoothing={smoothing}: expected 0 to 1, or None.")
    if smoothing and not chosen.cross_entropy_weight and loss != "cross_entropy":
        raise ValueError(
            f"label_smoothing={smoothing} has no effect without a classifier that is trained with "
            "the encoder: set cross_entropy_weight above 0, or leave label_smoothing out."
        )


def _loaded(encoder, source, image_size):
    """Loads an encoder that is named by a path."""
    if not isinstance(encoder, str) or not encoder_files.is_encoder_path(encoder):
        return encoder
    default = defaults.image_size(source.images.shape[1:3], encoder)
    return saved_encoder.load_encoder(encoder, image_size=image_size, default_image_size=default)


def _check_start_of_settings(encoder, weights, freezes):
    if encoder is None or isinstance(encoder, str):
        if freezes and weights is None:
            raise ValueError(
                "freeze_batch_norm keeps the batch norm of a pretrained encoder, but "
                f"encoder={encoder!r} without encoder_weights starts untrained: give "
                "encoder_weights, or a trained Keras model or its path as encoder."
            )
    elif weights == encoder_files.IMAGENET:
        raise ValueError(
            "encoder_weights='imagenet' needs the name of a network of Keras, such as "
            "encoder='keras.applications.EfficientNetV2B0', not a model."
        )


def _fixed_by_encoder_and_loss(encoder, loss, given):
    """The settings that an encoder and a loss do not leave open."""
    fixed: dict[str, Any] = {}
    if isinstance(encoder, keras.Model):
        fixed = {"encoder": encoder.name, "image_size": _side_of(encoder, given.get("image_size"))}
    elif encoder is not None:
        fixed = {"encoder": encoder}
    if loss == "cross_entropy" and given.get("num_views", 1) != 1:
        raise ValueError(
            f"num_views={given['num_views']} does nothing with loss='cross_entropy', which sees "
            "one view of each image: leave it out."
        )
    if loss != "supcon":  # The table chooses both for that loss.
        fixed["cross_entropy_weight"] = given.get("cross_entropy_weight", 0.0)
        fixed["num_views"] = given.get("num_views", 1 if loss == "cross_entropy" else 2)
    if fixed.get("cross_entropy_weight") and loss == "cross_entropy":
        raise ValueError(
            f"cross_entropy_weight={fixed['cross_entropy_weight']} does nothing with "
            "loss='cross_entropy': leave it out."
        )
    return fixed


def _side_of(encoder, image_size):
    """The side in pixels of the images that a model takes."""
    contrastive.check_encoder(encoder)
    height, width = encoder.input_shape[1:3]
    if height != width or height is None or image_size not in (None, height):
        raise ValueError(
            f"The encoder {encoder.name!r} takes images of {height} x {width} pixels"
            + (f", but image_size={image_size}" if image_size else "")
            + ": expected one fixed side, as keras.Input([S, S, 3]) gives it, and image_size=None."
        )
    return height


def _machine_of_process():
    kinds = ("GPU", "TPU")
    return defaults.Machine(
        has_accelerator=any(tf.config.list_logical_devices(kind) for kind in kinds),
        num_cpus=strategies.count_cpus(),
        memory_bytes=memory.available_bytes(),
    )
