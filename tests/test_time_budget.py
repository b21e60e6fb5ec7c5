"""--time_budget_minutes: steps are timed without a trace, and the run ends trained."""

import json
import math

import keras
import numpy as np
import pytest
from helpers import tiny_training
from helpers.command import read_lines, run_inside
from helpers.tiny_images import write_images

from supcon_tf.training import checkpoint, loop, time_budget
from supcon_tf.training.time_budget import StepTime, plan_training

FAST = ("--strategy=one_device", "--knn_interval_epochs=0", "--augmentation_type=identity")


def test_the_plan_is_what_the_time_affords():
    """2 views of 64 images in 0.1 s; 10 minutes, of which 30 s have passed."""
    plan = plan_training(
        10, 30.0, StepTime(first=8.0, later=0.1), steps_per_epoch=31.25, images_per_step=128,
        evaluated_images=3_840, evaluation_interval_epochs=10, stages_afterwards=2,
        images_afterwards=7_680, more_seconds_afterwards=4.0,
    )  # fmt: skip
    per_image = 0.1 / 128 / 3  # A forward pass.
    afterwards = 3 * 8 + 7_680 * per_image + 4
    evaluation = 3_840 * per_image
    seconds = 0.95 * (600 - 30 - afterwards - evaluation)
    assert plan.seconds_afterwards == pytest.approx(afterwards)
    assert plan.steps == int(seconds / (0.1 + evaluation / 312.5))
    # As a flag it makes these steps, or a step in a thousand fewer.
    assert plan.steps - math.ceil(plan.steps / 1000) <= int(plan.epochs * 31.25) <= plan.steps
    assert float(f"{plan.epochs:.6g}") == plan.epochs
    assert plan.longest_warmup_epochs == pytest.approx(plan.epochs / 10, rel=1e-2)
    assert not plan.is_too_short


def test_a_time_that_is_too_short_names_one_that_is_enough():
    measured = StepTime(first=60.0, later=1.0)
    options = {"steps_per_epoch": 10, "images_per_step": 8, "stages_afterwards": 2}
    plan = plan_training(3, 30.0, measured, **options)
    assert plan.steps == 0 and plan.is_too_short
    enough = plan_training(plan.least_minutes, 30.0, measured, **options)
    assert not enough.is_too_short


def test_large_data_gets_a_part_of_an_epoch():
    plan = plan_training(
        5, 0.0, StepTime(1.0, 1.0), steps_per_epoch=20_000, images_per_step=64
    )  # fmt: skip
    assert plan.steps == int(0.95 * 295) and 0 < int(plan.epochs * 20_000) <= plan.steps


@pytest.mark.parametrize(
    "replicas", ["one_device", pytest.param("two_replicas", marks=pytest.mark.slow)]
)
def test_timed_steps_leave_no_trace(replicas, request, monkeypatch):
    """Weights, batch norm, optimizer slots and counters are those of before, bit for bit."""
    strategy = tiny_training.one_device()
    if replicas != "one_device":
        strategy = request.getfixturevalue(replicas)
    step = tiny_training.create_step(strategy, probe=True)
    before = tiny_training.state(step)
    seen = []
    create_loop = loop.create_loop

    def create_and_watch(*args, **options):
        run_steps = create_loop(*args, **options)

        def run(iterator, count):
            result = run_steps(iterator, count)
            seen.append((int(count), tiny_training.state(step)))
            return result

        return run

    monkeypatch.setattr(loop, "create_loop", create_and_watch)

    def create_batches(start_step, host, num_hosts):
        return tiny_training.pipeline_batches(start_step, strategy.num_replicas_in_sync)

    ticks = iter([0.0, 9.0, 10.0, 13.0, 20.0, 26.0])
    monkeypatch.setattr(time_budget, "MEASURE_SECONDS", 5.0)
    measured = time_budget.measure_step(strategy, step, create_batches, clock=lambda: next(ticks))
    # One step in 9 s, three in 3 s, then as many as fit in 5 s, in 6 s.
    assert [count for count, _ in seen] == [1, 3, 5]
    assert measured == StepTime(first=9.0, later=pytest.approx(1.2))
    after, trained = tiny_training.state(step), seen[-1][1]
    assert np.mean([not np.array_equal(before[name], trained[name]) for name in before]) > 0.5
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def pretending(monkeypatch, later):
    """The steps are timed and undone, but the time is the given one."""
    measure = time_budget.measure_step

    def measure_and_pretend(*args, **options):
        measure(*args, **options)
        return StepTime(first=1.0, later=later)

    monkeypatch.setattr(time_budget, "measure_step", measure_and_pretend)
    monkeypatch.setattr(time_budget, "MEASURE_SECONDS", 0.0)


def weights(run):
    return keras.models.load_model(run / "pretrain/encoder.keras").get_weights()


@pytest.mark.slow
def test_a_killed_run_keeps_its_schedule_on_a_slower_machine(tmp_path, monkeypatch, capsys):
    data = write_images(tmp_path / "data", count=8)
    arguments = (f"--data_dir={data}", "--mode=pretrain", "--save_interval_steps=4", *FAST)
    budget = (*arguments, "--time_budget_minutes=100", f"--model_dir={tmp_path / 'run'}")
    save = checkpoint.CheckpointFolder.save

    def save_and_stop(self, step):
        save(self, step)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        pretending(patch, later=300.0)
        patch.setattr(checkpoint.CheckpointFolder, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run_inside(*budget)
    said = capsys.readouterr().out
    chosen = next(line for line in said.splitlines() if "a step takes 300 s" in line)
    length = chosen[chosen.index("--pretrain_epochs") :].split()
    assert [flag.partition("=")[0] for flag in length] == [
        "--pretrain_epochs", "--pretrain_warmup_epochs",
    ]  # fmt: skip
    saved = dict(line.split("=") for line in saved_flags(tmp_path / "run") if "=" in line)
    for name, value in (flag.split("=") for flag in length):
        assert float(saved[name]) == float(value)
    with monkeypatch.context() as patch:
        pretending(patch, later=3_000.0)
        run_inside(*budget)
    said = capsys.readouterr().out
    assert f"Chosen when the run in {tmp_path / 'run'} was started" in said
    assert "a step takes" not in said
    log = read_lines(tmp_path / "run/pretrain/metrics.jsonl")
    assert log[-1]["learning_rate"] < 0.1 * 0.003  # The end of the schedule.
    run_inside(*budget)
    assert "already finished" in capsys.readouterr().out
    # The printed flags in place of the budget give the same weights, without timed steps.
    run_inside(*arguments, *length, f"--model_dir={tmp_path / 'explicit'}")
    for a, b in zip(weights(tmp_path / "run"), weights(tmp_path / "explicit"), strict=True):
        np.testing.assert_array_equal(a, b)
    result = json.loads((tmp_path / "run/pretrain/result.json").read_text())
    assert 10 <= result["steps"] <= 0.95 * 6000 / 300


def saved_flags(run):
    return (run / "pretrain/stage.flags").read_text().splitlines()


@pytest.mark.slow
def test_a_budget_that_is_too_short_is_refused(tmp_path, monkeypatch):
    pretending(monkeypatch, later=300.0)
    data = write_images(tmp_path / "data")
    with pytest.raises(ValueError, match=r"--time_budget_minutes=5 is too short.*minutes=11\d"):
        run_inside(
            f"--data_dir={data}", "--mode=pretrain,linear,eval", "--time_budget_minutes=5",
            f"--model_dir={tmp_path / 'run'}", *FAST,
        )  # fmt: skip
    assert not (tmp_path / "run/pretrain/identity.json").exists()
