"""What to try next after an evaluation, as commands that are ready to copy."""

from __future__ import annotations

import shlex

from absl.flags import FlagValues

from supcon_tf.stages import chance
from supcon_tf.stages.run_directory import RunDirectory
from supcon_tf.storage.run_paths import FLAG_FILE

# At this accuracy or above, nothing is suggested.
GOOD_ACCURACY = 0.95
# The smallest changes over the last quarter of pretraining that count as still improving.
KNN_RISE, PROBE_RISE, LOSS_FALL = 0.01, 0.02, 0.02
# Measured this often in a quarter, k-NN decides alone.
KNN_OFTEN = 3
# The largest acceptable gap between a classifier trained in steps and logistic regression.
LINEAR_GAP = 0.01


def advise(flags: FlagValues, results: dict[str, dict], program: list[str]) -> list[str]:
    """Returns closing lines after an evaluation: what to try, why, and the command for it.

    Args:
        flags: The parsed flags.
        results: What each stage of this command returned.
        program: How to start the command, such as ["python", "-m", "supcon_tf.main"].
    """
    evaluation = results.get("eval", {})
    if "top_1" not in evaluation or evaluation["top_1"] >= GOOD_ACCURACY:
        return []
    if chance.chance_warning(results):
        return []
    run = RunDirectory.of(flags)
    used = {stage: run.read_flags(stage) for stage in ("pretrain", "linear", "finetune")}
    suggestions = suggest_changes(evaluation, run.read_log("pretrain"), used, run.path)
    if not suggestions:
        return []
    lines = ["", "What to try next:"]
    for reason, arguments in suggestions:
        lines += ["", f"  {reason}:", f"    {shlex.join([*program, *arguments])}"]
    return lines


def suggest_changes(
    evaluation: dict, log: list[dict], used: dict[str, dict[str, str]], model_dir: str
) -> list[tuple[str, list[str]]]:
    """Returns (reason, arguments of the command) for everything that was not tried yet.

    Args:
        evaluation: The result of eval.
        log: The logged metrics of pretraining.
        used: The flags of each stage, name to value; {} for a stage that was not run.
        model_dir: The model directory of the run.
    """
    pretrain, found = used["pretrain"], []
    stage_flags = f"--flagfile={RunDirectory(model_dir).file('pretrain', FLAG_FILE)}"

    def again(name, *changes):
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
        reason = "add the cross-entropy of a classifier to the contrastive loss"
        found.append((reason, again("joint", "--cross_entropy_weight=1")))
    gap = evaluation.get("linear_probe_top_1", 0) - evaluation["top_1"]
    if gap > LINEAR_GAP and _is_linear_of_steps(evaluation, used):
        reason = f"fit the linear classifier by L-BFGS: it is {gap:.1%} below logistic regression"
        changes = ["--linear_optimizer=lbfgs", "--override_flags"]
        found.append((reason, ["--mode=linear,eval", *changes, f"--model_dir={model_dir}"]))
    if not used["finetune"]:
        reason = (
            "fine-tune all layers and compare: this is not always better than a linear classifier"
        )
        found.append((reason, ["--mode=finetune,eval", f"--model_dir={model_dir}"]))
    return found


def still_improving(log: list[dict]) -> str | None:
    """Describes what improved over the last quarter of a training; None if nothing did.

    If k-NN was measured at least KNN_OFTEN times in each of the last two quarters, the training is
    still improving if its mean rose by KNN_RISE between them, because the accuracy on training
    batches also rises while the network overfits. Else it is in one of these cases:

    * The last k-NN accuracy is at least KNN_RISE above the last one of the first three quarters.
    * The mean probe accuracy (without a probe, the classifier's accuracy) of the last quarter is
      at least PROBE_RISE above that of the third quarter.
    * There is no accuracy, and the mean loss fell by at least the fraction LOSS_FALL between these
      quarters.

    At a k-NN accuracy of GOOD_ACCURACY or above it is not.

    Args:
        log: The logged metrics, in order.
    """
    last = log[-1]["step"] if log else 0
    knn = [(line["step"], line["knn_accuracy"]) for line in log if "knn_accuracy" in line]
    if knn and knn[-1][1] >= GOOD_ACCURACY:
        return None
    quarters = [_values(log, "knn_accuracy", start, start + 0.25) for start in (0.5, 0.75)]
    if min(map(len, quarters)) >= KNN_OFTEN:
        before, after = (sum(values) / len(values) for values in quarters)
        text = f"mean k-NN accuracy {before:.3f} -> {after:.3f} from the third quarter to the last"
        return text if after - before >= KNN_RISE else None
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
    """Returns the mean of a metric over a part of the training, or None if it was not logged."""
    values = _values(log, name, start, end)
    return sum(values) / len(values) if values else None


def _values(log, name, start, end):
    """Returns what was logged of a metric over a part of the training."""
    last = log[-1]["step"] if log else 0
    part = [line for line in log if start * last < line["step"] <= end * last]
    return [line[name] for line in part if name in line]


def _is_linear_of_steps(evaluation, used):
    """Returns whether the linear stage trained the classifier in steps, without a recipe."""
    linear = used["linear"]
    is_linear = str(evaluation.get("classifier")).endswith("linear/classifier.keras")
    is_trained = linear and linear.get("linear_optimizer") != "lbfgs"
    return is_linear and is_trained and "recipe" not in linear and "recipe" not in used["pretrain"]
