"""Robustness: the classifier on corrupted test images (Khosla et al. 2020, Fig. 3 and Table 6)."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf import strategies
from supcon_tf.evaluation import corruption_error, corruptions, intervals, metrics, predictions
from supcon_tf.stages import eval_data, inputs, process, trained
from supcon_tf.storage import files
from supcon_tf.training import progress

Condition = tuple[str, int]  # A corruption and its severity.
CLEAN: Condition = ("clean", 0)


def run(flags: FlagValues, strategy: tf.distribute.Strategy) -> dict:
    """Writes robustness.json, its table and its plot; runs again even if it is finished."""
    with strategy.scope(), progress.waiting("robustness: loading the classifier"):
        model = trained.load_trained(flags, needs_classifier=True)
    if model.label_type != "class":
        raise ValueError(
            f"--mode=robustness measures accuracy, but {model.path} has the label type "
            f"{model.label_type}. It needs a classifier of one class per image."
        )
    baseline = baseline_from_flags(flags)
    not_run = corruptions.reasons_not_to_run(model.image_size)
    with process.open_folder(flags, strategy, "robustness", always_restarts=True) as folder:
        inputs.check_eval_batches(flags, strategy)
        split = flags.eval_split or "test"
        data = eval_data.eval_data_from_flags(flags, split)
        if data.is_own:
            eval_data.check_own(flags, model.stage)
        class_names = model.class_names or ()
        numbers = eval_data.match_classes(class_names, data, model.path)
        names = [name for name in corruptions.CORRUPTIONS if name not in not_run]
        for name, reason in not_run.items():
            print(f"robustness: {name} is not run: {reason}.")
        count = min(data.source.num_examples, flags.robustness_examples or data.source.num_examples)
        correct, calibration = {}, {}
        for condition, logits, labels in _conditions(flags, strategy, model, data.source, names):
            if labels.ndim != 1:
                raise ValueError(
                    f"--mode=robustness measures accuracy, but the images of {data.name} have "
                    "several labels each. It needs one class per image."
                )
            labels = eval_data.as_of_classifier(labels, numbers, len(class_names))
            figures = metrics.classification_metrics(logits, labels)
            correct[condition] = np.argmax(logits, axis=1) == labels
            calibration[condition] = figures["expected_calibration_error"]
        result = {
            **summarize_conditions(names, correct, calibration),
            "not_run": not_run,
            "num_examples": count,
            "num_test_examples": data.source.num_examples,
            "image_size": model.image_size,
            "seed": flags.seed,
            "data": data.name,
            "classifier": model.path,
            "classifier_sha256": files.sha256(model.path),
            "baseline": None,
        }
        if baseline is not None:
            found = corruption_error.corruption_errors(
                result["errors"], result["clean_error"], baseline
            )
            result["baseline"] = {"name": baseline.name, "source": baseline.source, **found}
        folder.begin()
        if strategies.is_chief(strategy):
            _write_results(folder, result, correct)
            folder.seal()
            print(describe_robustness(result))
        return result


def baseline_from_flags(flags: FlagValues) -> corruption_error.Baseline | None:
    """Returns what --robustness_baseline names; AlexNet for ImageNet, otherwise None, by default.

    Raises:
        ValueError: If the file cannot be read.
    """
    name = flags.robustness_baseline
    if name is None:
        is_imagenet = (flags.eval_dataset or flags.dataset).startswith("imagenet2012")
        name = "alexnet" if is_imagenet else "none"
    if name == "none":
        return None
    if name == "alexnet":
        return corruption_error.ALEXNET
    if not tf.io.gfile.exists(name):
        raise ValueError(
            f"--robustness_baseline={name} does not exist. Expected alexnet, none, or a JSON file "
            "with error rates, such as the robustness.json of another run."
        )
    with tf.io.gfile.GFile(name, "rb") as file:
        return corruption_error.read_baseline(file.read().decode(errors="replace"), name)


def summarize_conditions(
    names: list[str], correct: dict[Condition, np.ndarray], calibration: dict[Condition, float]
) -> dict:
    """Computes the figures by corruption and by severity.

    Args:
        names: The corruptions that were run.
        correct: Whether each example is classified correctly, bool [N], by corruption and
            severity; `CLEAN` is the images as they are.
        calibration: The expected calibration error, by corruption and severity.
    """
    by_image = np.mean([correct[name, s] for name in names for s in corruptions.SEVERITIES], axis=0)
    interval = intervals.bootstrap_interval(by_image)

    def row(severity):
        keys = [(name, severity) for name in names] if severity else [CLEAN]
        return {
            "severity": severity,
            "top_1": float(np.mean([correct[key].mean() for key in keys])),
            "expected_calibration_error": float(np.mean([calibration[key] for key in keys])),
        }

    return {
        "clean_error": float(1 - correct[CLEAN].mean()),
        "mean_corruption_accuracy": float(by_image.mean()),
        "intervals_95": {"mean_corruption_accuracy": interval},
        "corruptions": names,
        "severities": [row(severity) for severity in (0, *corruptions.SEVERITIES)],
        "errors": {
            name: [float(1 - correct[name, s].mean()) for s in corruptions.SEVERITIES]
            for name in names
        },
        "expected_calibration_errors": {
            name: [calibration[name, s] for s in corruptions.SEVERITIES] for name in names
        },
    }


def _conditions(flags, strategy, model, source, names):
    """Yields (condition, logits, labels); the memory holds the outputs of one condition."""
    conditions = [CLEAN, *((name, s) for name in names for s in corruptions.SEVERITIES)]
    count = min(source.num_examples, flags.robustness_examples or source.num_examples)
    create = inputs.eval_batches_from_flags(
        flags, source, image_size=model.image_size, limit=flags.robustness_examples or None
    )
    predictor = predictions.create_predictor(strategy, lambda x: model.outputs(x)["logits"])
    is_chief = strategies.is_chief(strategy)
    bar = progress.ImageProgress("robustness", len(conditions) * count, is_shown=is_chief)
    with bar, inputs.naming_broken_images(source), _corrupting(flags) as corrupt:
        for condition in conditions:
            bar.note = " ".join(map(str, condition)) if condition[1] else "clean"
            batches = create
            if condition != CLEAN:
                batches = functools.partial(_corrupted, create, corrupt, condition, flags.seed)
            parts = []
            for part in predictor(batches):
                parts.append(part)
                bar.update(len(part[0]))
            yield condition, *predictions.in_order(parts)


def _corrupted(create, corrupt, condition, seed, **host):
    """The batches of one host, corrupted one batch at a time while the model computes."""
    name, severity = condition

    def corrupt_batch(images, indices):
        return corrupt(images, indices, name, severity, seed=seed)

    @tf.autograph.experimental.do_not_convert
    def change(batch):
        given = [batch["image"], batch["index"]]
        images = tf.numpy_function(corrupt_batch, given, tf.uint8)
        return {**batch, "image": tf.ensure_shape(images, batch["image"].shape)}

    # One call at a time, because the functions share NumPy's generator.
    return create(**host).map(change).prefetch(1)


@contextlib.contextmanager
def _corrupting(flags: FlagValues) -> Iterator[Callable]:
    """Yields `corruptions.corrupt_images`, or the same by --robustness_workers processes."""
    if flags.robustness_workers == 1:
        yield corruptions.corrupt_images
        return
    with corruptions.worker_processes(flags.robustness_workers) as executor:
        yield functools.partial(corruptions.corrupt_in_parallel, executor, flags.robustness_workers)


def _write_results(folder, result, correct):
    """Writes the figures, the table, what was correct, and the plot."""
    folder.artifacts.write_json("robustness.json", result)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["corruption", "severity", "top_1", "error", "expected_calibration_error"])
    clean = result["severities"][0]
    rows = [("clean", 0, result["clean_error"], clean["expected_calibration_error"])]
    for name in result["corruptions"]:
        pairs = zip(
            result["errors"][name], result["expected_calibration_errors"][name], strict=True
        )
        rows += [(name, s, *pair) for s, pair in zip(corruptions.SEVERITIES, pairs, strict=True)]
    for name, severity, error, calibration in rows:
        numbers = (f"{value:.6f}" for value in (1 - error, error, calibration))
        writer.writerow([name, severity, *numbers])
    folder.artifacts.write_text("robustness.csv", text.getvalue())
    content = io.BytesIO()
    np.savez_compressed(
        content,
        corruption=np.array([name for name, _ in correct]),
        severity=np.array([severity for _, severity in correct], np.int8),
        correct=np.stack(list(correct.values())),
    )
    _write_bytes(folder, "correct.npz", content.getvalue())
    for kind in ("png", "svg"):
        _write_bytes(folder, f"severity.{kind}", draw_severities(result, kind))


def _write_bytes(folder, name, content):
    path = folder.artifacts.path_to_write(name)
    with files.writing(path) as temporary, tf.io.gfile.GFile(temporary, "wb") as file:
        file.write(content)


def draw_severities(result: dict, kind: str) -> bytes:
    """Draws accuracy and calibration error by severity: the mean, and each corruption in grey.

    Args:
        result: The content of `robustness.json`.
        kind: "png" or "svg".
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=120)
    severities = [0, *corruptions.SEVERITIES]
    clean = result["severities"][0]
    panels = (
        ("top_1", "top-1 accuracy", {k: 1 - np.array(v) for k, v in result["errors"].items()}),
        (
            "expected_calibration_error", "expected calibration error",
            result["expected_calibration_errors"],
        ),
    )  # fmt: skip
    for axes, (name, label, lines) in zip(figure.subplots(1, 2), panels, strict=True):
        for values in lines.values():
            axes.plot(severities, [clean[name], *values], color="0.75", linewidth=0.8)
        mean = [row[name] for row in result["severities"]]
        text = f"mean of {len(lines)} corruptions"
        axes.plot(severities, mean, color="tab:blue", marker="o", label=text)
        axes.plot([], [], color="0.75", linewidth=0.8, label="each corruption")
        axes.set(xlabel="severity (0: images as they are)", ylabel=label, ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylim(0, 1.02)  # Room for the marker at 1.
    # Above the panels, where it hides no line.
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, format=kind)
    return content.getvalue()


def describe_robustness(result: dict) -> str:
    """Summarizes robustness.json in a few lines."""
    low, high = result["intervals_95"]["mean_corruption_accuracy"]
    all_of = len(corruptions.CORRUPTIONS)
    which = f"{len(result['corruptions'])} of {all_of} corruptions x 5 severities"
    lines = [
        f"robustness: {result['num_examples']:,} of {result['num_test_examples']:,} examples of "
        f"{result['data']}, {which}",
        f"  mean top-1   {result['mean_corruption_accuracy']:.4f} [{low:.4f}, {high:.4f}] "
        f"corrupted, {1 - result['clean_error']:.4f} clean",
        "  severity     " + "  ".join(f"{row['severity']:>6}" for row in result["severities"]),
        "  top-1        " + "  ".join(f"{row['top_1']:.4f}" for row in result["severities"]),
        "  calibration  "
        + "  ".join(f"{row['expected_calibration_error']:.4f}" for row in result["severities"]),
    ]
    baseline = result["baseline"]
    if baseline:
        found = [
            f"{title} {baseline[name]:.1f}" if baseline[name] is not None else f"no {title}"
            for name, title in (("mce", "mCE"), ("relative_mce", "relative mCE"))
        ]
        lines.append(
            f"  {', '.join(found)} over {len(baseline['corruptions'])} corruptions "
            f"({baseline['name']} = 100)"
        )
    return "\n".join(lines)
