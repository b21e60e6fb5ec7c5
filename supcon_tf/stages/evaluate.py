"""Evaluation: all metrics of the classifier and of its embeddings on the test images."""

from __future__ import annotations

import csv
import io

import numpy as np
import tensorflow as tf
from absl.flags import FlagValues
from scipy.special import expit, softmax

from supcon_tf import strategies
from supcon_tf.data import sources
from supcon_tf.evaluation import intervals, metrics, multi_label, prediction_files, predictions
from supcon_tf.stages import (
    chance,
    computed_outputs,
    embedding_figures,
    eval_data,
    eval_tensorboard,
    inputs,
    level_figures,
    process,
    trained,
)
from supcon_tf.stages import figures as stage_figures
from supcon_tf.storage import files
from supcon_tf.training import progress


def run(flags: FlagValues, strategy: tf.distribute.Strategy) -> dict:
    """Computes the metrics, prints them and writes eval.json; runs again even if it is finished."""
    with strategy.scope(), progress.waiting("eval: loading the classifier"):
        model = trained.load_trained(flags, needs_classifier=True)
    with process.open_folder(flags, strategy, "eval", always_restarts=True) as folder:
        inputs.check_eval_batches(flags, strategy)
        split = flags.eval_split or "test"
        data = eval_data.eval_data_from_flags(flags, split)
        if data.is_own:
            eval_data.check_own(flags, model.stage)
        class_names = model.class_names or ()
        numbers = eval_data.match_classes(class_names, data, model.path, is_real=model.is_real)
        train_source = None
        if flags.eval_train_examples:
            train_source = eval_data.training_source(flags, model.stage, data)
        others = eval_data.out_of_distribution_data(flags, train_source)
        held_out = eval_data.held_out_classes(flags, data, split)

        classifier_sha256 = files.sha256(model.path)
        outputs, labels = _predict(flags, strategy, model, data.source, with_thumbnails=True)
        if "embed" in flags.mode and not flags.embed_dir:
            for_embed = {name: outputs[name] for name in ("unnormalized_embeddings", "logits")}
            computed_outputs.keep(
                flags, "eval", data.source, for_embed, labels,
                encoder=model.encoder_identity, classifier=classifier_sha256,
            )  # fmt: skip
        labels = eval_data.as_of_classifier(labels, numbers, len(class_names))
        figures = _classifier_figures(outputs["logits"], labels, class_names)
        if isinstance(data.source, sources.FileSource) and data.source.parents:
            probabilities = softmax(outputs["logits"].astype(np.float64), axis=1)
            figures["levels"] = level_figures.of_levels(
                probabilities, labels, numbers, data.source, flags.label_columns
            )
        confusion = figures.pop("confusion_matrix", None)
        train = None
        if train_source is not None:
            train = _train_outputs(flags, strategy, model, train_source)
            _add_probes(figures, train, outputs, labels)
        if not model.is_real:  # Numbers have no classes whose images belong together.
            figures |= embedding_figures.similarity(
                outputs["unnormalized_embeddings"], labels, limit=flags.eval_similarity_examples
            )
        for other in [*others, *([held_out] if held_out else [])]:
            other_outputs, other_labels = _predict(flags, strategy, model, other.source)
            if train is not None:
                found = embedding_figures.detection(train, outputs, other_outputs)
                figures.setdefault("out_of_distribution", {})[other.name] = found
            if other is held_out:
                figures["held_out_classes"] = {
                    "classes": list(other.source.class_names),
                    **embedding_figures.similarity(
                        other_outputs["unnormalized_embeddings"],
                        other_labels,
                        limit=flags.eval_similarity_examples,
                    ),
                }
        result = {
            **figures,
            "data": data.name,
            "dataset": flags.dataset if data.is_own else flags.eval_dataset or "folder",
            "data_dir": flags.data_dir if data.is_own else flags.eval_data_dir,
            "classifier": model.path,
            "classifier_sha256": classifier_sha256,
        }
        folder.begin()
        folder.artifacts.write_json("eval.json", result)
        if confusion is not None:
            folder.artifacts.write_text("confusion_matrix.csv", _table(confusion, class_names))
        _write_predictions(folder, outputs["logits"], labels, data.source, class_names)
        with progress.waiting("eval: writing the files for TensorBoard"):
            eval_tensorboard.write_tensorboard(
                folder, result, outputs, labels,
                source=data.source, class_names=class_names, confusion=confusion,
            )  # fmt: skip
        folder.seal()
        print(describe_evaluation(result))
        return result


def _classifier_figures(logits, labels, class_names):
    """Returns all figures of the logits; of several labels or real targets theirs instead."""
    if labels.ndim == 2:
        return {
            **stage_figures.of_classifier(logits, labels, class_names),
            "intervals_95": intervals.multi_label_intervals(logits, labels),
        }
    if stage_figures.is_real(labels):
        return {
            **stage_figures.of_classifier(logits, labels, class_names),
            "intervals_95": intervals.regression_intervals(logits[:, 0], labels),
        }
    return {
        **metrics.classification_metrics(logits, labels),
        **chance.of_labels(labels),
        "intervals_95": intervals.classification_intervals(logits, labels),
    }


def _add_probes(figures, train, outputs, labels):
    """Adds k-NN and logistic regression, which are fitted to training embeddings."""
    train_outputs, train_labels = train
    figures["num_train_examples"] = len(train_labels)
    if stage_figures.is_real(labels):
        _add_knn_regression(figures, train, outputs, labels)
        return
    with progress.waiting(
        f"eval: fitting k-NN and logistic regression to {len(train_labels):,} embeddings"
    ):
        probes = metrics.embedding_metrics(
            train_outputs["unnormalized_embeddings"],
            train_labels,
            outputs["unnormalized_embeddings"],
            labels,
        )
    figures |= probes
    for name, value in probes.items() if labels.ndim == 1 else ():
        hits = round(value * len(labels))
        figures["intervals_95"][name] = intervals.wilson_interval(hits, len(labels))


def _add_knn_regression(figures, train, outputs, labels):
    """Adds the error of the weighted mean of the nearest training examples' targets."""
    train_outputs, train_labels = train
    with progress.waiting(f"eval: measuring k-NN on {len(train_labels):,} embeddings"):
        predicted = multi_label.knn_regression(
            train_outputs["unnormalized_embeddings"],
            train_labels,
            outputs["unnormalized_embeddings"],
        )
    found = multi_label.regression_metrics(predicted, labels)
    limits = intervals.regression_intervals(predicted, labels)
    for name, interval in limits.items():
        figures[f"knn_{name}"] = found[name]
        figures["intervals_95"][f"knn_{name}"] = interval


def _write_predictions(folder, logits, labels, source, class_names):
    """Writes predictions.npz: what every metric, interval and paired test can be computed from."""
    names = np.arange(len(labels))
    if not isinstance(source, sources.ArraySource):
        names = np.array(sources.example_names(source))
    if stage_figures.is_real(labels):
        content = prediction_files.targets_to_npz(labels, logits[:, 0], names)
    else:
        logits = logits.astype(np.float64)
        probabilities = expit(logits) if labels.ndim == 2 else softmax(logits, axis=1)
        probabilities = probabilities.astype(np.float32)
        content = prediction_files.to_npz(
            prediction_files.Predictions(labels, probabilities, names, class_names)
        )
    with (
        files.writing(folder.artifacts.path_to_write("predictions.npz")) as temporary,
        tf.io.gfile.GFile(temporary, "wb") as file,
    ):
        file.write(content)


def describe_evaluation(result: dict) -> str:
    """Summarizes eval.json in a few lines."""
    lines = _lines_of_type(result)
    return "\n".join([*lines, *embedding_figures.describe(result)])


def _lines_of_type(result):
    """Returns the lines of the figures that depend on the type of the labels."""
    title = (
        f"eval: {result['num_examples']:,} examples of {result['data']} "
        "(in brackets: 95% intervals; docs/evaluation.md explains the figures)"
    )
    if "mean_average_precision" in result:
        return [title, *_multi_label_lines(result)]
    if "r2" in result:
        return [title, *_regression_lines(result)]
    return [title, *_class_lines(result)]


def _with_interval(result, name, digits=".4f"):
    """A figure with its interval, if it has one."""
    low, high = result.get("intervals_95", {}).get(name, (None, None))
    limits = f" [{low:{digits}}, {high:{digits}}]" if low is not None else ""
    return f"{result[name]:{digits}}{limits}"


def _class_lines(result):
    def show(name):
        return _with_interval(result, name)

    top_5 = f", top-5 {show('top_5')}" if "top_5" in result else ""
    lines = [
        f"  classifier       top-1 {show('top_1')}{top_5}, mean per class "
        f"{show('mean_per_class_accuracy')}",
        f"  calibration      error {result['expected_calibration_error']:.4f}, negative log "
        f"likelihood {show('negative_log_likelihood')}",
    ]
    if "levels" in result:
        lines.append(level_figures.describe_levels(result["levels"]))
    if "knn_top_1" in result:
        lines.append(
            f"  embeddings       k-NN {show('knn_top_1')}, logistic regression "
            f"{show('linear_probe_top_1')}, from {result['num_train_examples']:,} training examples"
        )
    return lines


def _regression_lines(result):
    def show(prefix):
        error = _with_interval(result, f"{prefix}mean_absolute_error", ".4g")
        return f"mean absolute error {error}, R2 {_with_interval(result, f'{prefix}r2')}"

    lines = [f"  regression       {show('')}"]
    if "knn_r2" in result:
        count = result["num_train_examples"]
        lines.append(f"  embeddings       k-NN {show('knn_')}, from {count:,} training examples")
    return lines


def _multi_label_lines(result):
    worst = sorted(result["average_precision"].items(), key=lambda item: item[1])[:5]
    shown = ", ".join(f"{name} {value:.4f}" for name, value in worst)
    lines = [
        f"  classifier       mAP {_with_interval(result, 'mean_average_precision')}, F1 "
        f"{_with_interval(result, 'micro_f1')} micro, {_with_interval(result, 'macro_f1')} macro",
        f"  lowest AP        {shown}",
    ]
    if "linear_probe_mean_average_precision" in result:
        lines.append(
            "  embeddings       logistic regressions with mAP "
            f"{result['linear_probe_mean_average_precision']:.4f}, from "
            f"{result['num_train_examples']:,} training examples"
        )
    return lines


def _train_outputs(flags, strategy, model, source):
    """The embeddings and labels of training examples, from the linear stage if they are there."""
    limit, names = flags.eval_train_examples, ["unnormalized_embeddings"]
    found = computed_outputs.recall(
        flags, source, names, encoder=model.encoder_identity, limit=limit
    )
    return found or _predict(flags, strategy, model, source, limit)


def _predict(flags, strategy, model, source, limit=None, *, with_thumbnails=False):
    def function(images):
        outputs = model.outputs(images)
        if with_thumbnails:
            outputs = eval_tensorboard.with_thumbnails(images, outputs)
        return outputs

    batches = inputs.eval_batches_from_flags(
        flags, source, image_size=model.image_size, limit=limit
    )
    count = min(source.num_examples, limit or source.num_examples)
    waiting = progress.waiting(f"eval: computing the outputs for {count:,} images")
    bar = progress.ImageProgress("eval", count, is_shown=strategies.is_chief(strategy))
    with inputs.naming_broken_images(source), waiting, bar:
        return predictions.predict(strategy, function, batches, count=bar.update)


def _table(confusion, class_names):
    """Returns the confusion matrix as CSV: one row per true class, one column per predicted."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [as_csv_text(name) for name in class_names]
    writer.writerow(["true \\ predicted", *names])
    for name, row in zip(names, confusion.tolist(), strict=True):
        writer.writerow([name, *row])
    return text.getvalue()


def as_csv_text(name: str) -> str:
    """Puts a quote before a name that a spreadsheet would read as a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name
