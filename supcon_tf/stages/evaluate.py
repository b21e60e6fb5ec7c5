"""Evaluation: all metrics of the classifier and of its embeddings on the test images."""

from __future__ import annotations

import csv
import io

import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf.evaluation import metrics, predictions
from supcon_tf.stages import chance, eval_data, inputs, process, trained
from supcon_tf.storage import files
from supcon_tf.training import progress


def run(flags: FlagValues, strategy: tf.distribute.Strategy) -> dict:
    """Computes the metrics, prints them and writes eval.json; runs again even if it is finished."""
    with strategy.scope(), progress.waiting("eval: loading the classifier"):
        model = trained.load_trained(flags, needs_classifier=True)
    with process.open_folder(flags, strategy, "eval", always_restarts=True) as folder:
        inputs.check_eval_batches(flags, strategy)
        data = eval_data.eval_data_from_flags(flags, flags.eval_split or "test")
        if data.is_own:
            eval_data.check_own(flags, model.stage)
        numbers = eval_data.match_classes(model.class_names or (), data, model.path)
        outputs, labels = _predict(flags, strategy, model, data.source)
        labels = numbers[labels]
        figures = metrics.classification_metrics(outputs["logits"], labels)
        confusion = figures.pop("confusion_matrix")
        limit = flags.eval_train_examples
        train_source = eval_data.training_source(flags, model.stage, data) if limit else None
        if train_source is not None:
            train_outputs, train_labels = _predict(flags, strategy, model, train_source, limit)
            with progress.waiting(
                f"eval: fitting k-NN and logistic regression to {len(train_labels):,} embeddings"
            ):
                figures |= metrics.embedding_metrics(
                    train_outputs["unnormalized_embeddings"],
                    train_labels,
                    outputs["unnormalized_embeddings"],
                    labels,
                )
            figures["num_train_examples"] = len(train_labels)
        result = {
            **figures,
            **chance.of_labels(labels),
            "data": data.name,
            "dataset": flags.dataset if data.is_own else flags.eval_dataset or "folder",
            "data_dir": flags.data_dir if data.is_own else flags.eval_data_dir,
            "classifier": model.path,
            "classifier_sha256": files.sha256(model.path),
        }
        folder.begin()
        folder.artifacts.write_json("eval.json", result)
        table = _table(confusion, model.class_names)
        folder.artifacts.write_text("confusion_matrix.csv", table)
        folder.seal()
        print(describe_evaluation(result))
        return result


def describe_evaluation(result: dict) -> str:
    """Summarizes eval.json in a few lines."""
    lines = [
        f"eval: {describe_top_k(result)}, mean per class "
        f"{result['mean_per_class_accuracy']:.4f} over all {result['num_examples']:,} "
        f"examples of {result['data']}",
        f"      calibration error {result['expected_calibration_error']:.4f}, negative log "
        f"likelihood {result['negative_log_likelihood']:.4f}",
    ]
    if "knn_top_1" in result:
        lines.append(
            f"      k-NN {result['knn_top_1']:.4f}, logistic regression "
            f"{result['linear_probe_top_1']:.4f} on the embeddings of "
            f"{result['num_train_examples']:,} training examples"
        )
    return "\n".join(lines)


def describe_top_k(result: dict) -> str:
    """Formats the top-1 accuracy and, with more than five classes, the top-5 accuracy."""
    top_5 = f", top-5 {result['top_5']:.4f}" if "top_5" in result else ""
    return f"top-1 {result['top_1']:.4f}{top_5}"


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
