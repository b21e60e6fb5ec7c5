"""What a run suggests next: from stored logs of real runs, shortened."""

import pytest
from absl import flags
from absl.testing import flagsaver
from helpers.command import run_inside
from helpers.trained_folder import write_trained

from supcon_tf.cli import command_line
from supcon_tf.stages import advice

SUPCON = {
    "loss": "supcon",
    "use_labels": "",
    "cross_entropy_weight": "0.0",
    "pretrain_epochs": "30",
}
NOTHING = {"pretrain": SUPCON, "linear": {"linear_optimizer": "lbfgs"}, "finetune": {}}
EVALUATION = {"top_1": 0.44, "linear_probe_top_1": 0.44, "classifier": "x/linear/classifier.keras"}


def log(knn=(), quarters=(), name="probe_accuracy", last_step=2000):
    """Lines as metrics.jsonl has them: k-NN by step, and the mean of each quarter."""
    lines = [
        {"step": last_step * (10 * quarter + part) // 40, name: value, "loss": 1.0}
        for quarter, value in enumerate(quarters)
        for part in (3, 6, 9)
    ]
    lines += [{"step": step, "knn_accuracy": value, "loss": 1.0} for step, value in knn]
    return sorted([*lines, {"step": last_step, "loss": 1.0}], key=lambda line: line["step"])


# 2,000 photographs and the digits; k-NN on the test images.
PHOTOS_30 = log([(312, 0.3415), (624, 0.395), (936, 0.406), (937, 0.403)],
                (0.1818, 0.2596, 0.3245, 0.3498), last_step=937)  # fmt: skip
PHOTOS_64 = log([(936, 0.416), (1248, 0.449), (1560, 0.479), (2000, 0.471)],
                (0.2434, 0.3223, 0.4117, 0.4195))  # fmt: skip
DIGITS = log([(224, 0.9694), (448, 0.9917), (672, 0.9917), (673, 0.9917)],
             (0.2344, 0.7257, 0.9328, 0.9766), last_step=673)  # fmt: skip
# One view of 2,000 photographs: the probe on training batches rises, k-NN on test images does not.
PHOTOS_240 = log(
    [(3744, 0.615), (4056, 0.624), (4368, 0.628), (4680, 0.631), (4992, 0.6415), (5304, 0.635),
     (5616, 0.634), (5928, 0.6315), (6240, 0.6315), (6552, 0.638), (6864, 0.633), (7176, 0.635),
     (7488, 0.6385), (7500, 0.6375)],
    (0.45, 0.7, 0.787, 0.821), last_step=7500,
)  # fmt: skip
FLAT = log([(1000, 0.41), (1500, 0.42), (2000, 0.425)], (0.3, 0.4, 0.41, 0.42))


def test_curves_of_real_runs_are_judged_as_a_person_would():
    assert "probe accuracy 0.325 -> 0.350" in advice.still_improving(PHOTOS_30)
    assert "k-NN accuracy 0.449 -> 0.471" in advice.still_improving(PHOTOS_64)
    assert advice.still_improving(DIGITS) is None  # The probe rises, but all is learned.
    assert advice.still_improving(FLAT) is None
    assert advice.still_improving(PHOTOS_240) is None
    rising = [{**line, "knn_accuracy": line["step"] / 15_000} for line in PHOTOS_240]
    assert "mean k-NN accuracy 0." in advice.still_improving(rising)
    assert advice.still_improving([]) is None


def test_without_knn_and_probe_the_classifier_or_the_loss_counts():
    cross_entropy = log(quarters=(0.25, 0.41, 0.51, 0.55), name="accuracy")
    assert "mean accuracy 0.510 -> 0.550" in advice.still_improving(cross_entropy)
    falling = [{"step": step, "loss": 2 - step / 1000} for step in range(100, 1001, 100)]
    assert "mean loss" in advice.still_improving(falling)
    assert advice.still_improving([{**line, "loss": 1.0} for line in falling]) is None


def names(suggestions):
    return [" ".join(arguments) for _, arguments in suggestions]


def test_each_suggestion_is_a_command_and_only_for_what_was_not_done():
    longer, joint, finetune = names(
        advice.suggest_changes(EVALUATION, PHOTOS_30, NOTHING, "runs/x")
    )
    assert "--flagfile=runs/x/pretrain/stage.flags" in longer and "--pretrain_epochs=60" in longer
    assert "--model_dir=runs/x-60epochs" in longer
    assert "--cross_entropy_weight=1" in joint and "--model_dir=runs/x-joint" in joint
    assert finetune == "--mode=finetune,eval --model_dir=runs/x"

    done = {**NOTHING, "finetune": {"finetune_epochs": "10"}}
    assert "finetune" not in " ".join(names(advice.suggest_changes(EVALUATION, FLAT, done, "x")))
    joined = {**done, "pretrain": {**SUPCON, "cross_entropy_weight": "1.0"}}
    assert advice.suggest_changes(EVALUATION, FLAT, joined, "x") == []
    simclr = {**done, "pretrain": {**SUPCON, "nouse_labels": ""}}
    del simclr["pretrain"]["use_labels"]
    assert advice.suggest_changes(EVALUATION, FLAT, simclr, "x") == []


def test_a_linear_classifier_of_steps_that_trails_is_to_be_fitted():
    done = {**NOTHING, "linear": {"linear_optimizer": "momentum"}}
    behind = {**EVALUATION, "linear_probe_top_1": 0.47}
    commands = names(advice.suggest_changes(behind, FLAT, done, "x"))
    assert any("--linear_optimizer=lbfgs --override_flags" in command for command in commands)
    for evaluation, used in ((EVALUATION, done), (behind, NOTHING)):
        assert "lbfgs" not in " ".join(names(advice.suggest_changes(evaluation, FLAT, used, "x")))


@pytest.mark.parametrize("top_1,expected", [(0.6, True), (0.97, False)])
def test_a_good_result_gets_no_advice(tmp_path, top_1, expected):
    with flagsaver.flagsaver():
        flags.FLAGS(["supcon_tf", f"--model_dir={tmp_path}"])
        lines = advice.advise(flags.FLAGS, {"eval": {"top_1": top_1}}, ["supcon-tf"])
    assert any("supcon-tf --mode=finetune,eval" in line for line in lines) == expected


def test_the_closing_lines_of_eval_hold_the_advice_and_its_commands_parse(tmp_path, capsys):
    write_trained(tmp_path / "run", with_classifier=False)
    run_inside("--mode=linear,eval", f"--model_dir={tmp_path / 'run'}")
    output = capsys.readouterr().out
    assert "What to try next:" in output
    command = next(line for line in output.splitlines() if "--mode=finetune,eval" in line)
    with flagsaver.flagsaver():
        flags.FLAGS(["supcon_tf", *command.split("supcon_tf.main ")[1].split()])
        assert command_line.model_dir(flags.FLAGS) == str(tmp_path / "run")
