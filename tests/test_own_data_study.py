"""The study of the defaults for photographs: what it runs, in which order, and its tables."""

import json

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from helpers.benchmark_scripts import load_benchmark
from helpers.command import run_inside  # noqa: F401  It defines the flags of the command.
from helpers.tiny_images import write_images

from supcon_tf.cli import implied_flags
from supcon_tf.evaluation import intervals, prediction_files
from supcon_tf.studies import jobs, ledger


@pytest.fixture(scope="module")
def study():
    return load_benchmark("own_data_defaults")


def run_study(study, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["own_data_defaults.py", *map(str, arguments)])
    study.main()


def write_evaluation(folder, is_correct):
    """What eval leaves: figures and predictions."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = (np.arange(len(is_correct)) % 3).astype(np.int32)
    probabilities = np.eye(3, dtype=np.float32)[(labels + ~is_correct) % 3]
    names = np.array([f"test/{n}.png" for n in range(len(labels))])
    predictions = prediction_files.Predictions(labels, probabilities, names, tuple("abc"))
    (folder / "predictions.npz").write_bytes(prediction_files.to_npz(predictions))
    top_1 = float(is_correct.mean())
    (folder / "eval.json").write_text(json.dumps({"top_1": top_1, "knn_top_1": top_1 / 2}))


def write_cell(results, setting, seed, is_correct):
    folder = results / "own_data_defaults" / setting / str(seed)
    write_evaluation(folder, is_correct)
    facts = {"version": ledger.VERSION, "experiment": "own_data_defaults", "setting": setting,
             "seed": seed, "figures": {"minutes": 3.0}}  # fmt: skip
    (folder / ledger.ENTRY).write_text(json.dumps(facts))


def test_the_settings_are_valid_flags(study, tmp_path):
    write_images(tmp_path)
    assert len(study.SETTINGS) == 9 and study.SETTINGS[study.DEFAULT][1] == ()
    for mode, own in study.SETTINGS.values():
        line = ["supcon_tf", f"--mode={mode}", f"--data_dir={tmp_path}", "--seed=1", *own]
        with flagsaver.flagsaver():
            assert len(flags.FLAGS(implied_flags.complete(line))) == 1


def test_the_defaults_run_first_with_all_seeds(study):
    cells = study.ordered_cells(["default", "a", "b"], [0, 1])
    assert cells == [("default", 0), ("default", 1), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_the_tables_of_made_up_cells(study, tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    correct = {seed: random.random(300) < 0.6 for seed in (0, 1)}
    worse = correct[0] & (np.arange(300) % 10 > 0)
    for seed in (0, 1):
        write_cell(tmp_path, "default", seed, correct[seed])
    write_cell(tmp_path, "joint_64_epochs", 0, worse)
    run_study(study, monkeypatch, "--table", f"--results={tmp_path}")
    text = capsys.readouterr().out
    means = [float(correct[seed].mean()) for seed in (0, 1)]
    low, high = min(means), max(means)
    assert f"| default | 0, 1 | {np.mean(means):.4f} | {low:.4f} to {high:.4f} |" in text
    assert "**own_data_defaults: k-NN top-1**" in text and "| default | 0, 1 | 3.0000 |" in text
    # The other setting has seed 0 alone, so it is compared with the default's seed 0.
    change = intervals.paired_bootstrap(worse, correct[0])
    assert change.low > 0
    assert (
        f"| joint_64_epochs | 0 | {means[0]:.4f} | {worse.mean():.4f} | "
        f"{change.difference:+.4f} | {change.low:+.4f} to {change.high:+.4f} |"
    ) in text
    assert f"The default reaches {np.mean(means):.4f} (at least 0.48 is wanted: yes)" in text
    assert "the others is joint_64_epochs" in text and "Not run: two_views, crops_and_flips" in text


def test_only_missing_cells_are_run_and_the_times_of_interrupted_ones_are_not_kept(
    study, tmp_path, monkeypatch, capsys
):
    executed = []

    def execute(job):
        executed.append("/".join(job.folder.parts[-2:]))
        if len(executed) == 2:
            raise KeyboardInterrupt
        (job.folder / "pretrain").mkdir(exist_ok=True)
        (job.folder / "eval").mkdir()
        (job.folder / "eval/stage.flags").write_text("--mode=eval\n")
        write_evaluation(job.folder / "eval", np.ones(30, bool))
        (job.folder / jobs.DONE).write_text(json.dumps(job._record()))

    monkeypatch.setattr(jobs.Job, "execute", execute)
    photographs = write_images(tmp_path / "photographs")
    command = [
        f"--photographs={photographs}", f"--work={tmp_path / 'work'}", "--seeds=0",
        f"--results={tmp_path / 'results'}", "--only=fine_tuned,default,supcon_60_epochs",
    ]  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        run_study(study, monkeypatch, *command)
    run_study(study, monkeypatch, *command)
    assert executed == ["default/0", "supcon_60_epochs/0", "supcon_60_epochs/0", "fine_tuned/0"]
    assert "Cells: 3, finished before: 1." in capsys.readouterr().out
    entries = ledger.read_entries(tmp_path / "results")
    has_time = {entry.setting: entry.figure("minutes") is not None for entry in entries}
    assert has_time == {"default": True, "supcon_60_epochs": False, "fine_tuned": True}
    lines = (tmp_path / "results/own_data_defaults/manifest.csv").read_text().splitlines()
    assert len(lines) == 1 + 16 and lines[1].startswith("train,cat,0.png,")


def test_other_photographs_than_those_of_the_manifest_are_refused(study, tmp_path, monkeypatch):
    photographs = write_images(tmp_path / "photographs")
    copy = load_benchmark("photographs").copy_photographs
    manifest = tmp_path / "results/own_data_defaults/manifest.csv"
    copy(photographs, tmp_path / "copy", 2, manifest)
    before = manifest.read_text()
    copy(photographs, tmp_path / "again", 2, manifest)
    with pytest.raises(SystemExit, match="not those of .*manifest.csv, for example train/cat"):
        run_study(study, monkeypatch, f"--photographs={photographs}", f"--work={tmp_path / 'work'}",
                  f"--results={tmp_path / 'results'}")  # fmt: skip
    assert manifest.read_text() == before
    with pytest.raises(SystemExit, match="train does not exist"):
        copy(photographs / "train", tmp_path / "wrong", 2)


def test_a_wrong_command_line_is_refused(study, monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        run_study(study, monkeypatch, "--only=default,big")
    assert "--only=big is unknown: choose from default, " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_study(study, monkeypatch)
    assert "--photographs is missing" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="No cell is finished"):
        run_study(study, monkeypatch, "--table", f"--results={tmp_path}")


@pytest.mark.slow
def test_two_settings_through_the_real_command(study, tmp_path, monkeypatch, capsys):
    """The fine-tuned setting takes over the pretraining of the default."""
    photographs = write_images(tmp_path / "photographs", count=8, size=16)
    command = [
        f"--photographs={photographs}", f"--work={tmp_path / 'work'}", "--seeds=3",
        f"--results={tmp_path / 'results'}", "--only=default,fine_tuned",
    ]  # fmt: skip
    run_study(study, monkeypatch, *command)
    assert "| fine_tuned | 3 |" in capsys.readouterr().out
    default, tuned = ledger.read_entries(tmp_path / "results")
    assert default.facts["stages"] == ["pretrain", "linear", "eval"]
    assert tuned.facts["stages"] == ["pretrain", "finetune", "eval"]
    for entry in (default, tuned):
        assert len(entry.predictions.labels) == 16
        assert entry.figure("cpu_minutes") > 0 and entry.figure("linear_probe_top_1") is not None
        assert "--seed=3" in (entry.path / "stage.flags").read_text()
    first, second = (
        (tmp_path / f"work/{name}/3/pretrain/encoder.keras").read_bytes()
        for name in ("default", "fine_tuned")
    )
    assert first == second
    run_study(study, monkeypatch, *command)
    assert "Cells: 2, finished before: 2." in capsys.readouterr().out
