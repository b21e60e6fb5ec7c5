"""Embeddings of the training images, computed once per encoder and kept in the run directory."""

from __future__ import annotations

import io
import os

import numpy as np
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf import strategies
from supcon_tf.data import data_identity, sources
from supcon_tf.evaluation import predictions
from supcon_tf.evaluation.predict_images import Gallery
from supcon_tf.stages import inputs
from supcon_tf.stages.stage_folder import StageFolder
from supcon_tf.stages.trained import Trained
from supcon_tf.storage import files, npz
from supcon_tf.training import progress

ARRAYS, RECORD = "training_embeddings.npz", "training_embeddings.json"


def create_gallery(
    flags: FlagValues,
    strategy: tf.distribute.Strategy,
    folder: StageFolder,
    model: Trained,
    source: sources.Source,
) -> Gallery | None:
    """Returns the embeddings of all training images, from the folder if they are still valid.

    `training_embeddings.json` records what they depend on: the encoder, the training data and the
    evaluation crop. If any of it has changed, or if the file is damaged, they are computed again.

    Returns:
        The gallery on the chief, which writes the answers; None on the other workers.
    """
    identity = gallery_identity(flags, model, source)
    is_chief = strategies.is_chief(strategy)
    is_cached = is_chief and is_valid(folder.path, identity)
    # The workers compute together or not at all.
    (cached,) = strategies.broadcast_from_chief(strategy, [np.asarray(is_cached, np.float32)])
    path = folder.artifacts.path_to_write(ARRAYS)
    folder.artifacts.path_to_write(RECORD)
    if not cached:
        _compute_gallery(flags, strategy, model, source, path)
        record = {**identity, "sha256": files.sha256(path)}
        files.write_sealed(folder.artifacts.path_to_write(RECORD), record)
    elif is_chief:
        print(f"{folder.stage}: using the embeddings of the training images in {path}.")
    return _read_gallery(path) if is_chief else None


def gallery_identity(flags: FlagValues, model: Trained, source: sources.Source) -> dict:
    """Returns what the embeddings of the training images depend on."""
    return {
        "encoder": model.encoder_identity,
        "data": data_identity.identity_of(source).digest,
        "eval_crop_method": flags.eval_crop_method,
        "crop_padding": flags.crop_padding,
    }


def load_gallery(folder: str, identity: dict) -> Gallery | None:
    """Returns the embeddings in a folder, or None if they are missing or of another identity."""
    return _read_gallery(os.path.join(folder, ARRAYS)) if is_valid(folder, identity) else None


def is_valid(folder: str, identity: dict[str, str]) -> bool:
    """Returns whether a folder holds the embeddings of this identity; prints why it does not."""
    path, record = os.path.join(folder, ARRAYS), None
    if not tf.io.gfile.exists(path):
        return False
    try:
        record = files.read_sealed(os.path.join(folder, RECORD))
    except ValueError as error:
        print(error)
    if record is None or any(record.get(name) != value for name, value in identity.items()):
        print(f"{path} belongs to another encoder or other data: computing it again.")
        return False
    if files.sha256(path) != record["sha256"]:
        print(f"{path} is damaged: computing it again.")
        return False
    return True


def _compute_gallery(flags, strategy, model, source, path):
    """Writes the embeddings as they are computed, then labels and names."""
    count, num_features = source.num_examples, model.encoder.output_shape[-1]
    batches = inputs.eval_batches_from_flags(flags, source, image_size=model.image_size)
    bar = progress.ImageProgress("predict: training images", count)
    label_parts = []
    with files.writing(path) as temporary, npz.NpzWriter(temporary) as archive:
        with (
            archive.rows("embeddings", [count, num_features], np.float32) as write_rows,
            bar,
            inputs.naming_broken_images(source),
        ):
            parts = predictions.create_predictor(strategy, model.embeddings)(batches)
            for _, embeddings, labels in predictions.ordered(parts):
                write_rows(embeddings)
                label_parts.append(labels)
                bar.update(len(labels))
        for name, array in (
            ("labels", np.concatenate(label_parts)),
            ("names", np.array(sources.example_names(source))),
            ("class_names", np.array(source.class_names)),
        ):
            with archive.rows(name, array.shape, array.dtype) as write_rows:
                write_rows(array)


def _read_gallery(path):
    with tf.io.gfile.GFile(path, "rb") as file:
        arrays = dict(np.load(io.BytesIO(file.read())))
    return Gallery(
        arrays["embeddings"],
        arrays["labels"],
        arrays["names"].tolist(),
        tuple(arrays["class_names"].tolist()),
    )
