"""Embeddings of any dataset or folder of images, in one npz file."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from supcon_tf import evaluation, progress, sources
from supcon_tf.stages import setup, trained


def run(flags, strategy) -> dict:
    """Writes embeddings.npz; always anew."""
    with strategy.scope(), progress.waiting("embed: loading the encoder"):
        model = trained.load(flags)
    with setup.open_folder(flags, strategy, "embed", always_anew=True) as folder:
        setup.check_eval_batches(flags, strategy)
        source, what = _source(flags)
        names = sources.example_names(source)
        path = folder.file_to_write("embeddings.npz")
        # The embeddings of a large dataset do not fit in memory: they wait on disk.
        with tempfile.TemporaryDirectory() as scratch:
            arrays = _embed(flags, strategy, model, source, os.path.join(scratch, "embeddings"))
            arrays["names"] = np.array(names)
            if source.class_names:
                arrays["label_names"] = np.array(source.class_names)
            if model.class_names:
                arrays["prediction_names"] = np.array(model.class_names)
            folder.begin()
            with progress.waiting(f"embed: writing {path}"):
                _write_npz(path, os.path.join(scratch, "embeddings.npz"), arrays)
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        print(
            f"embed: {source.num_examples:,} images of {what} in {path}\n       "
            + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        )
        return {"path": path, "num_examples": source.num_examples, "arrays": shapes}


def _source(flags):
    """Which images, and what they are called on the screen."""
    if flags.embed_dir:
        return setup.load_unlabelled(flags, flags.embed_dir), flags.embed_dir
    split = flags.embed_split or "test"
    train, test = setup.load_sources(flags)
    return {"train": train, "test": test}[split], f"{flags.dataset}, {split}"


def _embed(flags, strategy, model, source, scratch):
    """Arrays in the order of the source; labels and predictions where there are any."""
    count, num_features = source.num_examples, model.encoder.output_shape[-1]
    embeddings = np.memmap(scratch, np.float32, "w+", shape=(count, num_features))
    labels, predictions = np.zeros([2, count], np.int32)
    batches = setup.create_eval_batches(flags, source, image_size=model.image_size)
    progress = tqdm(total=count, desc="embed", unit="image", dynamic_ncols=True)
    with progress, setup.naming_broken_images(source):
        predictions_of = evaluation.create_predictor(strategy, model.outputs)
        for index, outputs, batch_labels in predictions_of(batches):
            embeddings[index] = outputs["unnormalized_embeddings"]
            labels[index] = batch_labels
            if "logits" in outputs:
                predictions[index] = np.argmax(outputs["logits"], axis=1)
            progress.update(len(index))
    arrays = {"embeddings": embeddings}
    if source.class_names:
        arrays["labels"] = labels
    if model.linear_head is not None:
        arrays["predictions"] = predictions
    return arrays


def _write_npz(path, scratch, arrays):
    """Through a local file, because a zip archive is written back and forth."""
    np.savez(scratch, **arrays)
    tf.io.gfile.copy(scratch, path + ".writing", overwrite=True)
    tf.io.gfile.rename(path + ".writing", path, overwrite=True)
