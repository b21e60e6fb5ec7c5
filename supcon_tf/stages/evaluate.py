"""Evaluation: all metrics of the classifier and of its embeddings on the test images."""

from __future__ import annotations

import csv
import io

import numpy as np
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf.data import sources
from supcon_tf.evaluation import intervals, metrics, prediction_files, predictions
from supcon_tf.stages import chance, embedding_figures, eval_data, inputs, process, trained
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
        numbers = eval_data.match_classes(class_names, data, model.path)
        train_source = None
        if flags.eval_train_examples:
            train_source = eval_data.training_source(flags, model.stage, data)
        others = eval_data.out_of_distribution_data(flags, train_source)
        held_out = eval_data.held_out_classes(flags, data, split)

        outputs, labels = _predict(flags, strategy, model, data.source)
        labels = eval_data.as_of_classifier(labels, numbers, len(class_names))
        figures = _classifier_figures(outputs["logits"], labels, class_names)
        confusion = figures.pop("confusion_matrix", None)
        train = None
        if train_source is not None:
            train = _predict(flags, strategy, model, train_source, flags.eval_train_examples)
            _add_probes(figures, train, outputs, labels)
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
            "classifier_sha256": files.sha256(model.path),
        }
        folder.begin()
        folder.artifacts.write_json("eval.json", result)
        if confusion is not None:
            folder.artifacts.write_text("confusion_matrix.csv", _table(confusion, class_names))
        _write_predictions(folder, outputs["logits"], labels, data.source, class_names)
        folder.seal()
        print(describe_evaluation(result))
        return result


def _classifier_figures(logits, labels, class_names):
    """Returns all figures of the logits; with several labels per image, mAP and F1 instead."""
    if labels.ndim == 2:
        return stage_figures.of_classifier(logits, labels, class_names)
    return {
        **metrics.classification_metrics(logits, labels),
        **chance.of_labels(labels),
        "intervals_95": intervals.classification_intervals(logits, labels),
    }


def _add_probes(figures, train, outputs, labels):
    """Adds k-NN and logistic regression, which are fitted to training embeddings."""
    train_outputs, train_labels = train
    with progress.waiting(
        f"eval: fitting k-NN and logistic regression to {len(train_labels):,} embeddings"
    ):
        probes = metrics.embedding_metrics(
            train_outputs["unnormalized_embeddings"],
            train_labels,
            outputs["unnormalized_embeddings"],
            labels,
        )
    figures |= {**probes, "num_train_examples": len(train_labels)}
    for name, value in probes.items() if labels.ndim == 1 else ():
        hits = round(value * len(labels))
        figures["intervals_95"][name] = intervals.wilson_interval(hits, len(labels))


def _write_predictions(folder, logits, labels, source, class_names):
    """Writes predictions.npz: what every metric, interval and paired test can be computed from."""
    from scipy.special import expit, softmax

    names = np.arange(len(labels))
    if not isinstance(source, sources.ArraySource):
        names = np.array(sources.example_names(source))
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
    if "mean_average_precision" in result:
        return "\n".join([*_multi_label_lines(result), *embedding_figures.describe(result)])
    limits = result.get("intervals_95", {})

    def show(name):
        low, high = limits.get(name, (None, None))
        return f"{result[name]:.4f}" + (f" [{low:.4f}, {high:.4f}]" if low is not None else "")

    top_5 = f", top-5 {show('top_5')}" if "top_5" in result else ""
    lines = [
        f"eval: {result['num_examples']:,} examples of {result['data']} "
        "(in brackets: 95% intervals; docs/evaluation.md explains the figures)",
        f"  classifier       top-1 {show('top_1')}{top_5}, mean per class "
        f"{show('mean_per_class_accuracy')}",
        f"  calibration      error {result['expected_calibration_error']:.4f}, negative log "
        f"likelihood {show('negative_log_likelihood')}",
    ]
    if "knn_top_1" in result:
        lines.append(
            f"  embeddings       k-NN {show('knn_top_1')}, logistic regression "
            f"{show('linear_probe_top_1')}, from {result['num_train_examples']:,} training examples"
        )
    return "\n".join([*lines, *embedding_figures.describe(result)])


def _multi_label_lines(result):
    worst = sorted(result["average_precision"].items(), key=lambda item: item[1])[:5]
    shown = ", ".join(f"{name} {value:.4f}" for name, value in worst)
    lines = [
        f"eval: {result['num_examples']:,} examples of {result['data']} (docs/evaluation.md "
        "explains the figures)",
        f"  classifier       {stage_figures.describe_classifier(result)}",
        f"  lowest AP        {shown}",
    ]
    if "linear_probe_mean_average_precision" in result:
        lines.append(
            "  embeddings       logistic regressions with mAP "
            f"{result['linear_probe_mean_average_precision']:.4f}, from "
            f"{result['num_train_examples']:,} training examples"
        )
    return lines


def _predict(flags, strategy, model, source, limit=None):
    batches = inputs.eval_batches_from_flags(
        flags, source, image_size=model.image_size, limit=limit
    )
    count = min(source.num_examples, limit or source.num_examples)
    waiting = progress.waiting(f"eval: computing the outputs for {count:,} images")
    with inputs.naming_broken_images(source), waiting:
        return predictions.predict(strategy, model.outputs, batches)


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
