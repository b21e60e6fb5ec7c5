"""Embeddings of a dataset or of a folder of images, in one npz file."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf import strategies
from supcon_tf.data import sources
from supcon_tf.evaluation import predictions
from supcon_tf.stages import computed_outputs, eval_data, inputs, process, trained
from supcon_tf.storage import files, npz
from supcon_tf.training import progress


def run(flags: FlagValues, strategy: tf.distribute.Strategy) -> dict:
    """Writes embeddings.npz; runs again even if it is finished."""
    with strategy.scope(), progress.waiting("embed: loading the encoder"):
        model = trained.load_trained(flags)
    with process.open_folder(flags, strategy, "embed", always_restarts=True) as folder:
        inputs.check_eval_batches(flags, strategy)
        source, what = _source(flags, model)
        folder.begin()
        path = folder.artifacts.path_to_write("embeddings.npz")
        shapes = _write(flags, strategy, model, source, path)
        folder.seal()
        print(
            f"embed: wrote {source.num_examples:,} images of {what} to {path}\n       "
            + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        )
        return {"path": path, "num_examples": source.num_examples, "arrays": shapes}


def _source(flags, model):
    """Returns the images and their name for messages."""
    if flags.embed_dir:
        return inputs.unlabeled_from_flags(flags, flags.embed_dir), flags.embed_dir
    data = eval_data.eval_data_from_flags(flags, flags.embed_split or flags.eval_split or "test")
    if data.is_own:
        eval_data.check_own(flags, model.stage)
    return data.source, data.name


def _write(flags, strategy, model, source, path):
    """Writes the arrays in the order of the source; returns their shapes.

    The embeddings are written as they are computed, because those of a large dataset may fit
    neither in memory nor in a temporary folder.
    """
    count, num_features = source.num_examples, model.encoder.output_shape[-1]
    labels = predicted = np.zeros([0], np.int32)
    arrays = {}
    with files.writing(path) as temporary, npz.NpzWriter(temporary) as archive:
        with archive.rows("embeddings", [count, num_features], np.float32) as write_rows:
            for index, outputs, batch_labels in _outputs(flags, strategy, model, source):
                write_rows(outputs["unnormalized_embeddings"])
                labels = _with_rows(labels, count, index, batch_labels)
                if "logits" in outputs:
                    logits = outputs["logits"]
                    predicted = _with_rows(predicted, count, index, _predicted(model, logits))
        if source.class_names or source.label_type == "real":
            arrays["labels"] = labels
        if model.linear_head is not None:
            arrays["predictions"] = predicted
        arrays["names"] = np.array(sources.example_names(source))
        if source.class_names:
            arrays["label_names"] = np.array(source.class_names)
        if model.class_names:
            arrays["prediction_names"] = np.array(model.class_names)
        for name, array in arrays.items():
            with archive.rows(name, array.shape, array.dtype) as write_rows:
                write_rows(array)
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    return {"embeddings": [count, num_features], **shapes}


def _predicted(model, logits):
    """Returns the class int [B], the classes bool [B, C], or the number float32 [B]."""
    if model.is_real:
        return logits[:, 0]
    return logits > 0 if model.is_multi_label else np.argmax(logits, axis=1)


def _with_rows(array, count, index, rows):
    """The array of `count` rows with some of them set; created when the first rows arrive."""
    rows = rows.astype(np.int32) if rows.dtype == np.int64 else rows
    if not len(array):
        array = np.zeros([count, *rows.shape[1:]], rows.dtype)
    array[index] = rows
    return array


def _outputs_of_eval(flags, model, source):
    """The outputs and labels of all images if `eval` has computed them, else None."""
    return computed_outputs.recall(
        flags,
        source,
        ["unnormalized_embeddings", "logits"],
        encoder=model.encoder_identity,
        classifier=files.sha256(model.path),
    )


def _outputs(flags, strategy, model, source):
    """Yields (index, outputs, labels) of parts of the source, in order."""
    if "eval" in flags.mode and (found := _outputs_of_eval(flags, model, source)):
        yield np.arange(source.num_examples), *found
        return
    batches = inputs.eval_batches_from_flags(flags, source, image_size=model.image_size)
    is_chief = strategies.is_chief(strategy)
    bar = progress.ImageProgress("embed", source.num_examples, is_shown=is_chief)
    with bar, inputs.naming_broken_images(source):
        parts = predictions.create_predictor(strategy, model.outputs)(batches)
        for index, outputs, labels in predictions.ordered(parts):
            yield index, outputs, labels
            bar.update(len(index))
