"""Predictions for a folder of images: classes, probabilities and the nearest training images."""

from __future__ import annotations

import contextlib
import functools

import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf import strategies
from supcon_tf.data import data_identity, sources
from supcon_tf.data.folder_layout import printable
from supcon_tf.evaluation import prediction_files, predictions
from supcon_tf.evaluation.predict_images import NUM_VOTERS, predict_images, predict_targets
from supcon_tf.stages import inputs, process, trained, training_embeddings
from supcon_tf.stages.run_directory import RunDirectory
from supcon_tf.storage import files
from supcon_tf.training import progress

NUM_SHOWN = 3  # Images whose predictions are printed.


def run(flags: FlagValues, strategy: tf.distribute.Strategy) -> dict:
    """Writes predictions.csv and predictions.jsonl; runs again even if it is finished."""
    with strategy.scope(), progress.waiting("predict: loading the model"):
        model = trained.load_trained(flags)
    with process.open_folder(flags, strategy, "predict", always_restarts=True) as folder:
        inputs.check_eval_batches(flags, strategy)
        source = inputs.unlabeled_from_flags(flags, flags.predict_dir)
        train_source = _training_source(flags, model)
        folder.begin()
        gallery = None
        if train_source is not None:
            gallery = training_embeddings.create_gallery(
                flags, strategy, folder, model, train_source
            )
        is_real = model.is_real
        if model.linear_head is None:
            is_real = train_source.label_type == "real"
        class_names = () if is_real else model.class_names or train_source.class_names
        if is_real:
            answers = functools.partial(predict_targets, gallery=gallery)
        else:
            answers = functools.partial(
                predict_images,
                gallery=gallery,
                class_names=class_names,
                top_k=flags.predict_top_k,
                is_multi_label=_has_several_labels(model, gallery),
            )
        rows = _answer_images(flags, strategy, model, source, answers)
        if strategies.is_chief(strategy):
            paths = _write_tables(flags, folder, rows, len(class_names))
            folder.seal()
            print(_describe_answers(flags, model, rows, paths))
        return {
            "path": folder.file("predictions.csv"),
            "num_examples": source.num_examples,
            "method": "knn" if model.linear_head is None else model.stage,
        }


def _training_source(flags, model):
    """Returns the training images, or None if nothing needs them.

    Raises:
        ValueError: If they cannot be read, or if they are not what the run was trained on.
    """
    if model.linear_head is not None and not flags.predict_neighbors:
        return None
    advice = (
        "Restore them, or train a classifier with --mode=linear and use --predict_neighbors=0."
        if model.linear_head is None
        else "Restore them, or use --predict_neighbors=0 to predict without them."
    )
    try:
        source = inputs.splits_from_flags(flags).train
    except ValueError as error:
        raise ValueError(f"predict needs the training images. {error} {advice}") from error
    RunDirectory.of(flags).check_data(model.stage, data_identity.identity_of(source), advice)
    return source


def _answer_images(flags, strategy, model, source, answers):
    """Returns one row per image; on workers other than the chief, which only compute, none.

    `answers` is `predict_images` or `predict_targets` with the arguments that only it has.
    """
    batches = inputs.eval_batches_from_flags(flags, source, image_size=model.image_size)
    if not strategies.is_chief(strategy):
        with inputs.naming_broken_images(source):
            for _ in predictions.create_predictor(strategy, model.outputs)(batches):
                pass
        return []
    bar = progress.ImageProgress("predict", source.num_examples)
    rows = []
    with bar, inputs.naming_broken_images(source):
        for row in answers(
            model.outputs,
            batches,
            sources.example_names(source),
            num_neighbors=flags.predict_neighbors,
            strategy=strategy,
        ):
            rows.append(row)
            bar.update(1)
    return rows


def _has_several_labels(model, gallery):
    """Whether an image may show any number of classes, as those did that were learned from."""
    if model.linear_head is None:
        return gallery is not None and gallery.labels.ndim == 2
    return model.is_multi_label


def _write_tables(flags, folder, rows, num_classes):
    """Writes both tables and returns their paths."""
    paths = []
    for name in ("predictions.csv", "predictions.jsonl"):
        paths.append(folder.artifacts.path_to_write(name))
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(files.writing(paths[-1]))
            file = stack.enter_context(tf.io.gfile.GFile(temporary, "wb"))
            if name.endswith(".csv"):
                prediction_files.write_csv(
                    file,
                    rows,
                    k=min(flags.predict_top_k, num_classes),
                    num_neighbors=len(rows[0].neighbors),
                    is_multi_label=rows[0].present is not None,
                    is_real=rows[0].value is not None,
                )
            else:
                prediction_files.write_jsonl(file, rows)
    return paths


def _describe_answers(flags, model, rows, paths):
    """Says what predicted, and shows the first few rows."""
    how = f"the classifier {model.path}"
    if model.linear_head is None:
        how = f"the vote of the {NUM_VOTERS} nearest training images (the run has no classifier)"
    is_real = rows[0].value is not None
    if is_real and model.linear_head is not None:
        how = f"the regression {model.path}"
    elif is_real:
        how = f"the mean of the {NUM_VOTERS} nearest training images (the run has no regression)"
    what = "numbers" if is_real else "classes"
    lines = [
        f"predict: {what} of {len(rows):,} images of {flags.predict_dir}, predicted by {how}",
        f"         written to {paths[0]} and {paths[1]}",
    ]
    for row in rows[:NUM_SHOWN]:
        top = zip(row.classes[:2], row.probabilities, strict=False)
        text = ", ".join(f"{printable(name)} {probability:.3f}" for name, probability in top)
        if is_real:
            text = f"{row.value:.4g}"
        near = f"; nearest {printable(row.neighbors[0])}" if row.neighbors else ""
        lines.append(f"         {printable(row.file)}: {text}{near}")
    if len(rows) > NUM_SHOWN:
        lines.append("         ...")
    return "\n".join(lines)
