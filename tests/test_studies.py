"""Studies: jobs that resume, and the settings of the claims."""

import importlib.util
import json
import subprocess
import types
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver
from helpers.command import run_inside  # noqa: F401  It defines the flags of the command.
from helpers.tiny_images import write_images

from supcon_tf.cli import implied_flags
from supcon_tf.studies import jobs

ROOT = Path(__file__).parent.parent


@pytest.fixture
def started(monkeypatch):
    """The commands that are started, which fail if a flag is --fail."""
    commands = []

    def start(command, *, stdout, **_):
        commands.append(command)
        stdout.write("the output\n")
        return types.SimpleNamespace(returncode=int("--fail" in command))

    monkeypatch.setattr(subprocess, "run", start)
    return commands


def test_finished_jobs_are_skipped_and_changed_ones_refused(tmp_path, started, capsys):
    study = [jobs.Job(tmp_path / name, "pretrain,eval", (f"--seed={name}",)) for name in "01"]
    seen = []
    jobs.execute_jobs(study, task=1, after_each=lambda job: seen.append(job.folder.name))
    assert [command[3:] for command in started] == [
        ["--mode=pretrain,eval", f"--model_dir={tmp_path / '1'}", "--seed=1"]
    ]
    jobs.execute_jobs(study, num_parallel=2, after_each=lambda job: seen.append(job.folder.name))
    assert len(started) == 2 and sorted(seen) == ["0", "1", "1"]
    assert "Runs: 2, finished before: 1." in capsys.readouterr().out
    changed = jobs.Job(tmp_path / "0", "pretrain,eval", ("--seed=5",))
    with pytest.raises(ValueError, match="other flags: --seed=0 instead of --seed=5"):
        jobs.execute_jobs([changed])
    with pytest.raises(ValueError, match="--task=2 is out of range: there are 2 runs"):
        jobs.execute_jobs(study, task=2)


def test_a_failed_job_shows_its_output_and_the_others_run(tmp_path, started):
    study = [jobs.Job(tmp_path / "a", "eval", ("--fail",)), jobs.Job(tmp_path / "b", "eval", ())]
    with pytest.raises(RuntimeError, match="1 runs failed(?s:.*)code 1:\nthe output"):
        jobs.execute_jobs(study)
    assert not study[0].is_finished() and study[1].is_finished()


@pytest.fixture(scope="module")
def claims():
    spec = importlib.util.spec_from_file_location("claims", ROOT / "benchmarks/claims.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_settings_of_the_claims_are_valid(claims, tmp_path):
    write_images(tmp_path, splits=("train", "test"), count=4, size=12)
    for data, of_data in claims.DATA_FLAGS.items():
        for setting, own in claims.SETTINGS.items():
            if setting == claims.TWO_STAGE:
                own = ("--nonormalize_embedding", "--reference_ckpt=runs/other")
            line = [*claims.COMMON, *of_data, *own, *claims.VALIDATION, f"--data_dir={tmp_path}"]
            line += [f"--mode={claims.modes_of(setting, 'eval', 'robustness')}"]
            line += ["--pretrain_base_learning_rate=0.012"] if "pretrain" in line[-1] else []
            with flagsaver.flagsaver():
                rest = flags.FLAGS(implied_flags.complete(["supcon_tf", *line]))
            assert len(rest) == 1, (data, setting)


def test_photographs_are_copied_by_class_and_listed(claims, tmp_path):
    write_images(tmp_path / "from", splits=("train", "test"), count=4, size=12)
    manifest = tmp_path / "results/manifest.csv"
    claims.copy_photographs(tmp_path / "from", tmp_path / "to", 2, manifest)
    lines = manifest.read_text().splitlines()
    copied = list((tmp_path / "to").rglob("*.png"))
    assert len(lines) == 1 + len(copied)
    per_class = [len(list(folder.iterdir())) for folder in (tmp_path / "to/train").iterdir()]
    assert set(per_class) == {2}
    assert len(lines[1].split(",")[-1]) == 64


def test_the_rate_with_the_best_validation_accuracy_is_trained(
    claims, tmp_path, monkeypatch, capsys
):
    """The whole command but the trainings, whose accuracy follows the learning rate."""
    rates = []

    def execute(job):
        given = dict(flag.lstrip("-").partition("=")[::2] for flag in job.flags)
        rate = given.get("pretrain_base_learning_rate")
        rates.append((job.folder.name, rate))
        (job.folder / "eval").mkdir(parents=True)
        (job.folder / "eval/eval.json").write_text(json.dumps({"top_1": float(rate or 0.5)}))
        (job.folder / "eval/stage.flags").write_text("--mode=eval\n")

    monkeypatch.setattr(jobs.Job, "execute", execute)
    command = [
        "claims.py", "--part=digits", "--settings=triplet,cross_entropy,two_stage_cross_entropy",
        "--seeds=3", f"--work={tmp_path / 'work'}", f"--results={tmp_path / 'results'}",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.setattr(claims, "write_digits", lambda folder: folder.mkdir(parents=True))
    claims.main()
    assert rates[-3:] == [("3", "0.036"), ("3", None), ("3", "0.036")]
    assert len(rates) == 2 * len(claims.RATES) + 3
    grid = json.loads((tmp_path / "results/digits/grid.json").read_text())
    assert grid["triplet"] == {"0.004": 0.004, "0.012": 0.012, "0.036": 0.036}
    claims.main()  # Everything is finished.
    assert len(rates) == 2 * len(claims.RATES) + 3
    assert "| triplet | 3 | 0.0360 |" in capsys.readouterr().out
