"""The study at equal training time: its settings are flags, its table follows from its files."""

import itertools
import json
import os
import threading

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from helpers.benchmark_scripts import load_benchmark
from helpers.command import run_inside  # noqa: F401  It defines the flags of the command.
from helpers.tiny_images import write_images

from supcon_tf.cli import implied_flags

RATES = (0.012, 0.024)


@pytest.fixture
def study(monkeypatch, tmp_path):
    study = load_benchmark("equal_time")
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
    return study


def run_study(study, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["equal_time.py", *map(str, arguments)])
    study.main()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_results(study, correct):
    """Trials, of which those with the second rate are best, and a minute of runs."""
    for names in study.trial_names().values():
        for rank, name in enumerate(names):
            cell = {"classifier": 0.1 * rank, "knn": 0.5, "logistic_regression": 0.5, "epochs": 3.0}
            write(study.RESULTS / f"trials/{name}.json", cell)
    speed = {"start_seconds": 10.0, "images_per_second": 640.0}
    settings = [name for side in {**study.SETTINGS, **study.SHOWN}.values() for name in side]
    write(study.RESULTS / "calibration.json", {"settings": dict.fromkeys(settings, speed)})
    for trial, seeds in correct.items():
        for seed, values in seeds.items():
            folder = study.RESULTS / f"cells/{trial}/1min/{seed}"
            write(folder / "cell.json", {name: float(values.mean()) for name in study.FIGURES})
            np.savez(folder / "correct.npz", **dict.fromkeys(study.FIGURES, values))
            lines = [{"step": 100 * k, "knn_accuracy": 0.1 * k} for k in (1, 2, 3)]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / "metrics.jsonl").write_text(text)


def test_the_settings_are_valid_flags_and_both_sides_have_as_many(study, tmp_path):
    data = write_images(tmp_path / "data")
    names = study.trial_names()
    assert len({len(trials) for trials in names.values()}) == 1
    for trial in [
        *sum(names.values(), []),
        *(f"{name}@0.012" for name in study.SHOWN[study.ALONE]),
    ]:
        line = ["supcon_tf", "--mode=pretrain,eval", *study.flags_of(trial), f"--data_dir={data}"]
        with flagsaver.flagsaver():
            assert len(flags.FLAGS(implied_flags.complete(line))) == 1
            assert flags.FLAGS.pretrain_base_learning_rate in RATES
            assert flags.FLAGS.batch_size == study.BATCH_SIZE


def test_the_epochs_follow_from_the_time(study):
    speed = {"start_seconds": 20.0, "images_per_second": 1_000.0}
    assert study.epochs_within(speed, 5, 10_000) == 28.0


def test_the_table_compares_the_best_of_each_side(study, monkeypatch, tmp_path, capsys):
    random = np.random.default_rng(0)
    joint, plain = "joint_smoothed@0.024", "cross_entropy_smoothed_jitter@0.024"
    correct = {
        "joint_weighted_jitter@0.024": {0: random.random(200) < 0.6},
        "joint@0.012": {0: random.random(200) < 0.9},  # Not with the rate that was chosen.
        "cross_entropy_smoothed@0.024": {0: random.random(200) < 0.3},
        joint: {seed: random.random(200) < 0.8 for seed in (0, 1)},
        plain: {seed: random.random(200) < 0.5 for seed in (0, 1, 2)},
        "supcon@0.024": {0: random.random(200) < 0.4},
    }
    write_results(study, correct)
    figure = tmp_path / "curves.svg"
    run_study(study, monkeypatch, "--minutes=1", f"--figure={figure}")
    text = capsys.readouterr().out
    assert f"Compared: {joint}, {plain}." in text
    new, old = (np.mean([correct[name][seed] for seed in (0, 1)]) for name in (joint, plain))
    for name in study.FIGURES:
        row = f"| 1 | {study.FIGURE_NAMES[name]} | {new:.4f} | {old:.4f} | {new - old:+.4f} ("
        assert row in text  # Of the two seeds that both have.
    alone = correct["supcon@0.024"][0].mean()
    row = "| SupCon alone, two views | normalized, color jitter | 0.024 | 1 | 0 |"
    assert f"{row} {alone:.4f} |" in text
    mean = np.mean([correct[plain][seed] for seed in (0, 1, 2)])
    assert f"| 0.024 | 1 | 0, 1, 2 | {mean:.4f} |" in text
    first = correct["cross_entropy_smoothed@0.024"][0]
    halves = f"| {first[::2].mean():.4f} | {first[1::2].mean():.4f} |"
    assert halves in text.partition("crop and flip, labels smoothed by 0.1 | 0.024 | 0.")[2]
    assert figure.read_text().count("<use ") > 3 * 3  # Three curves with three markers each.


def test_jobs_run_at_the_same_time_each_on_its_core(study):
    together, cores = threading.Barrier(2, timeout=60), []

    def task():
        together.wait()
        cores.append(study.OWN.core)
        return len(cores)

    assert sorted(study.run_jobs([task, task], 2)) == [1, 2]
    own = itertools.cycle(sorted(os.sched_getaffinity(0)))
    assert sorted(cores) == sorted([next(own), next(own)])
    assert study.run_jobs([lambda: hasattr(study.OWN, "core")], 1) == [False]


def test_the_tables_are_written_to_the_page_again_and_again(study, monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    monkeypatch.setattr(study, "PAGE", page)
    marked = [f"<!-- equal time: {name} -->\nold\n<!-- end of equal time -->" for name in "ab"]
    page.write_text("\n\ntext\n\n".join(marked))
    for _ in range(2):
        study.write_page({"a": "| 1 |", "b": "| 2 |"})
        lines = [line for line in page.read_text().split("\n") if line and "<!--" not in line]
        assert lines == ["| 1 |", "text", "| 2 |"]
    with pytest.raises(SystemExit, match="expected one of each"):
        study.write_page({"a": "| 1 |"})


def test_settings_of_the_same_cost_train_as_many_epochs(study):
    names = [name for side in study.SETTINGS.values() for name in side]
    assert set(study.SAME_COST) < set(names) and not set(study.SAME_COST.values()) - set(names)
    speeds = {"joint_crop_and_flip": {"start_seconds": 1.0, "images_per_second": 2.0}}
    assert study.speed_of("joint_smoothed@0.012", speeds) == speeds["joint_crop_and_flip"]
    assert set(study.DIFFERENCES) == {*names, *study.SHOWN[study.ALONE]}
    for side, compared in study.COMPARED.items():
        assert set(compared) <= set(study.SETTINGS[side])
    assert len({len(compared) for compared in study.COMPARED.values()}) == 1


def test_the_page_shows_the_results(monkeypatch, tmp_path):
    study = load_benchmark("equal_time")
    text, copy = study.PAGE.read_text(), tmp_path / "page.md"
    copy.write_text(text)
    monkeypatch.setattr(study, "PAGE", copy)
    run_study(study, monkeypatch, "--write")
    assert copy.read_text() == text
