"""What to try next for a result: whether the curves were still rising, and what was not done."""

from __future__ import annotations

import json
import shlex

import tensorflow as tf

from supcon_tf.stages import chance
from supcon_tf.stages.run_directory import RunDirectory

# From this accuracy on there is too little left to gain.
GOOD_ACCURACY = 0.95
# What counts as still improving over the last quarter of pretraining.
KNN_RISE, PROBE_RISE, LOSS_FALL = 0.01, 0.02, 0.02
# How far a classifier trained in steps may be below logistic regression on the same embeddings.
LINEAR_GAP = 0.01


def advise(flags, results: dict[str, dict], program: list[str]) -> list[str]:
    """Closing lines after an evaluation: reasons, each with a command that is ready to copy.

    Args:
        results: what each stage of this command returned.
        program: how to start the command, such as ["python", "-m", "supcon_tf.main"].
    """
    evaluation = results.get("eval", {})
    if "top_1" not in evaluation or evaluation["top_1"] >= GOOD_ACCURACY:
        return []
    if chance.chance_warning(results):
        return []
    run = RunDirectory.of(flags)
    used = {stage: _read_flags(run, stage) for stage in ("pretrain", "linear", "finetune")}
    suggestions = suggest_changes(evaluation, _read_log(run), used, run.path)
    if not suggestions:
        return []
    lines = ["", "What to try next for this result:"]
    for reason, arguments in suggestions:
        lines += ["", f"  {reason}:", f"    {shlex.join([*program, *arguments])}"]
    return lines


def suggest_changes(
    evaluation: dict, log: list[dict], used: dict[str, dict[str, str]], model_dir: str
) -> list[tuple[str, list[str]]]:
    """Reasons and arguments of the command, only for what was not done already.

    Args:
        evaluation: the result of eval.
        log: the lines of pretrain/metrics.jsonl.
        used: stage to its stage.flags, name to value; empty for a stage that was not run.
        model_dir: of the run.
    """
    pretrain, found = used["pretrain"], []

    def again(name, *changes):
        stage_flags = f"--flagfile={model_dir}/pretrain/stage.flags"
        return [
            stage_flags, "--mode=pretrain,linear,eval", *changes, f"--model_dir={model_dir}-{name}",
        ]  # fmt: skip

    improvement = still_improving(log)
    if pretrain and improvement:
        epochs = f"{2 * float(pretrain['pretrain_epochs']):g}"
        reason = f"the curves were still improving when pretraining ended ({improvement})"
        found.append((reason, again(f"{epochs}epochs", f"--pretrain_epochs={epochs}")))
    is_plain_supcon = pretrain.get("loss") == "supcon" and "use_labels" in pretrain
    if is_plain_supcon and float(pretrain.get("cross_entropy_weight", 0)) == 0:
        reason = "train with the cross-entropy of a classifier beside the contrastive loss"
        found.append((reason, again("joint", "--cross_entropy_weight=1")))
    gap = evaluation.get("linear_probe_top_1", 0) - evaluation["top_1"]
    if gap > LINEAR_GAP and _is_linear_of_steps(evaluation, used):
        reason = f"fit the linear classifier, which is {gap:.1%} below logistic regression"
        changes = ["--linear_optimizer=lbfgs", "--override_flags"]
        found.append((reason, ["--mode=linear,eval", *changes, f"--model_dir={model_dir}"]))
    if not used["finetune"]:
        reason = (
            "fine-tune all layers, and compare: it is not always better than the linear classifier"
        )
        found.append((reason, ["--mode=finetune,eval", f"--model_dir={model_dir}"]))
    return found


def still_improving(log: list[dict]) -> str | None:
    """What rose over the last quarter of a training, in words; None if nothing did.

    It improves if the last k-NN accuracy is KNN_RISE above the last one of the first three
    quarters, or if the mean probe accuracy (without a probe, the classifier's own) of the last
    quarter is PROBE_RISE above the mean of the third; without either, if the mean loss fell by
    the share LOSS_FALL between these quarters. From a k-NN accuracy of GOOD_ACCURACY on it does
    not.

    Args:
        log: lines of metrics.jsonl, in order.
    """
    last = log[-1]["step"] if log else 0
    knn = [(line["step"], line["knn_accuracy"]) for line in log if "knn_accuracy" in line]
    if knn and knn[-1][1] >= GOOD_ACCURACY:
        return None
    earlier = [value for step, value in knn if step <= 0.75 * last]
    if earlier and knn[-1][1] - earlier[-1] >= KNN_RISE:
        return f"k-NN accuracy {earlier[-1]:.3f} -> {knn[-1][1]:.3f} over the last quarter"
    for name in ("probe_accuracy", "accuracy"):
        third, fourth = (_mean(log, name, 0.5, 0.75), _mean(log, name, 0.75, 1))
        if third is not None and fourth is not None:
            what = name.replace("_", " ")
            text = f"mean {what} {third:.3f} -> {fourth:.3f} from the third quarter to the last"
            return text if fourth - third >= PROBE_RISE else None
    third, fourth = _mean(log, "loss", 0.5, 0.75), _mean(log, "loss", 0.75, 1)
    if earlier or third is None or fourth is None or third - fourth < LOSS_FALL * abs(third):
        return None
    return f"mean loss {third:.3g} -> {fourth:.3g} from the third quarter to the last"


def _mean(log, name, start, end):
    """The mean of a metric over a part of the training, or None where it was not logged."""
    last = log[-1]["step"] if log else 0
    part = [line for line in log if start * last < line["step"] <= end * last]
    values = [line[name] for line in part if name in line]
    return sum(values) / len(values) if values else None


def _is_linear_of_steps(evaluation, used):
    """Whether the classifier is one that the linear stage trained in steps, without a recipe."""
    linear = used["linear"]
    is_linear = str(evaluation.get("classifier")).endswith("linear/classifier.keras")
    is_trained = linear and linear.get("linear_optimizer") != "lbfgs"
    return is_linear and is_trained and "recipe" not in linear and "recipe" not in used["pretrain"]


def _read_flags(run, stage):
    """Name to value of a stage.flags file; a boolean that is on has an empty value."""
    path = run.file(stage, "stage.flags")
    if not tf.io.gfile.exists(path):
        return {}
    with tf.io.gfile.GFile(path) as file:
        pairs = (line.strip().lstrip("-").partition("=") for line in file)
        return {name: value for name, _, value in pairs}


def _read_log(run):
    path = run.file("pretrain", "metrics.jsonl")
    if not tf.io.gfile.exists(path):
        return []
    with tf.io.gfile.GFile(path) as file:
        return [json.loads(line) for line in file]
