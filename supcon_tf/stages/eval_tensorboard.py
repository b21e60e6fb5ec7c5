"""What an evaluation writes for TensorBoard: its figures, pictures, and the projector's files."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from scipy.special import softmax

from supcon_tf.data import sources
from supcon_tf.report import eval_pictures
from supcon_tf.stages import figures as stage_figures
from supcon_tf.stages import projector_files
from supcon_tf.stages.stage_folder import StageFolder
from supcon_tf.storage import files
from supcon_tf.storage.run_paths import TENSORBOARD
from supcon_tf.training.reference_tags import reference_eval_scalars

THUMBNAILS = "thumbnails"


def with_thumbnails(images: tf.Tensor, outputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Adds small images to the outputs of a model, for `thumbnails_of`.

    Args:
        images: float32 [B, S, S, 3] in 0..255.
        outputs: What the model computes from them.

    Returns:
        The outputs and int32 [B, K]: four bytes in one number, because replicas cannot exchange
        bytes.
    """
    side = min(projector_files.TILE_PX, max(2, images.shape[1] // 2 * 2))  # Even: bytes by four.
    small = images
    if side != images.shape[1]:
        small = tf.image.resize(images, [side, side], antialias=True)
    small = tf.cast(tf.clip_by_value(tf.round(small), 0, 255), tf.uint8)
    packed = tf.bitcast(tf.reshape(small, [-1, side * side * 3 // 4, 4]), tf.int32)
    return {**outputs, THUMBNAILS: packed}


def thumbnails_of(packed: np.ndarray) -> np.ndarray:
    """Returns the images uint8 [M, S, S, 3] that `with_thumbnails` added, S at most 32."""
    side = int(np.sqrt(packed.shape[1] * 4 // 3))
    return np.ascontiguousarray(packed).view(np.uint8).reshape([-1, side, side, 3])


def write_tensorboard(
    folder: StageFolder,
    result: dict,
    outputs: dict[str, np.ndarray],
    labels: np.ndarray,
    *,
    source: sources.Source,
    class_names: tuple[str, ...],
    confusion: np.ndarray | None,
) -> None:
    """Writes the folder `tensorboard/` of the evaluation in place of that of an earlier one.

    Args:
        folder: The folder of the stage.
        result: The content of `eval.json`.
        outputs: "logits", "unnormalized_embeddings" and the thumbnails, for M examples.
        labels: [M] or [M, C], in the numbers of `class_names`.
        source: The examples.
        class_names: The classes of the classifier; empty for real targets.
        confusion: The confusion matrix int [C, C], or None.
    """
    if not folder.is_chief:
        return
    scalars = _scalars(result)
    path = folder.file(TENSORBOARD)
    try:
        files.remove(path)
        tf.io.gfile.makedirs(path)
        writer = tf.summary.create_file_writer(path)
        with writer.as_default(step=0):
            for name, value in (scalars | reference_eval_scalars(result)).items():
                tf.summary.scalar(name, value)
            for name, picture in _pictures(outputs["logits"], labels, class_names, confusion):
                tf.summary.image(name, picture[None])
        writer.close()
        _write_projector(path, outputs, labels, source, class_names)
    except (OSError, tf.errors.OpError) as error:
        raise files.cannot_write(path, error) from error


def _scalars(result):
    """Returns the figures of the evaluation, those of a group under `group/name`."""
    found = {name: value for name, value in result.items() if isinstance(value, float)}
    for group in ("retrieval", "geometry"):
        figures = result.get(group) or {}
        found |= {f"{group}/{name}": x for name, x in figures.items() if isinstance(x, float)}
    return found


def _pictures(logits, labels, class_names, confusion):
    """Yields name and picture; none for real targets, which have neither."""
    if confusion is not None:
        yield "confusion_matrix", eval_pictures.draw_confusion_matrix(confusion, class_names)
    if stage_figures.is_real(labels):
        return
    is_class, scores = labels, logits
    if labels.ndim == 1:
        is_class = labels[:, None] == np.arange(logits.shape[1])
        scores = softmax(logits.astype(np.float64), axis=1)
    if is_class.any():
        yield (
            "precision_recall", eval_pictures.draw_precision_recall(scores, is_class, class_names),
        )  # fmt: skip


def _write_projector(path, outputs, labels, source, class_names):
    embeddings = outputs["unnormalized_embeddings"]
    chosen = projector_files.choose_points(*embeddings.shape)
    names = sources.example_names(source)
    logits = outputs["logits"][chosen]
    columns: dict = {"name": [names[index] for index in chosen]}
    if stage_figures.is_real(labels):
        columns["label"] = [f"{value:.4g}" for value in labels[chosen]]
        columns["prediction"] = [f"{value:.4g}" for value in logits[:, 0]]
    elif labels.ndim == 2:
        columns["label"] = [_listed_classes(row, class_names) for row in labels[chosen]]
        columns["prediction"] = [_listed_classes(row > 0, class_names) for row in logits]
    else:
        predicted = logits.argmax(axis=1)
        columns["label"] = [class_names[label] for label in labels[chosen]]
        columns["prediction"] = [class_names[label] for label in predicted]
        columns["correct"] = ["yes" if x else "no" for x in predicted == labels[chosen]]
    images = thumbnails_of(outputs[THUMBNAILS][chosen]) if THUMBNAILS in outputs else None
    projector_files.write_projector_files(path, embeddings[chosen], columns, images)


def _listed_classes(row, class_names):
    return ", ".join(class_names[index] for index in np.flatnonzero(row))
