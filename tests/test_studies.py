"""Studies: jobs that resume, and the settings of the claims."""

import json
import os
import shutil
import subprocess
import types
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver
from helpers.benchmark_scripts import load_benchmark
from helpers.command import run_inside  # noqa: F401  It defines the flags of the command.
from helpers.tiny_images import write_images
from helpers.trained_folder import write_trained

from supcon_tf.cli import implied_flags, study_flags
from supcon_tf.studies import jobs, ledger, stability, transfer

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
    return load_benchmark("claims")


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
        (job.folder / jobs.DONE).write_text(json.dumps(job._record()))

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

    # On another machine the ledger has the baseline but not its encoder: it is trained again, also
    # if that was interrupted.
    shutil.rmtree(tmp_path / "work/digits/runs/cross_entropy")
    claims.main()
    assert len(rates) == 2 * len(claims.RATES) + 3
    shutil.rmtree(tmp_path / "work/digits/runs/two_stage_cross_entropy")
    shutil.rmtree(tmp_path / "results/digits/two_stage_cross_entropy")
    (tmp_path / "work/digits/runs/cross_entropy/3/pretrain").mkdir(parents=True)
    claims.main()
    assert rates[2 * len(claims.RATES) + 3 :] == [("3", "0.036"), ("3", None)]

    # A partial run has the baseline early, for the tables.
    assert list(claims.SETTINGS)[1] == claims.ON_PHOTOGRAPHS[1] == claims.BASELINE
    monkeypatch.setattr("sys.argv", [*command, "--epochs=3"])
    with pytest.raises(SystemExit, match="grid.json is of trainings of 20 epochs, not of 3"):
        claims.main()
    (tmp_path / "results/digits/grid.json").unlink()
    with pytest.raises(SystemExit, match="entry.json is of trainings of 20 epochs, not of 3"):
        claims.main()


def test_other_trainings_look_for_the_reason(claims, tmp_path, monkeypatch):
    executed = []

    def execute(job):
        executed.append(job)
        (job.folder / "eval").mkdir(parents=True)
        (job.folder / "eval/eval.json").write_text(json.dumps({"top_1": 0.5}))
        (job.folder / "eval/stage.flags").write_text("--mode=eval\n")

    monkeypatch.setattr(jobs.Job, "execute", execute)
    write_images(tmp_path / "photographs")
    monkeypatch.setattr("sys.argv", [
        "claims.py", "--part=reasons", f"--photographs={tmp_path / 'photographs'}", "--seeds=1",
        f"--work={tmp_path / 'work'}", f"--results={tmp_path / 'results'}",
    ])  # fmt: skip
    claims.main()
    assert len(executed) == len(claims.OTHER_TRAININGS)
    for job, (name, (setting, epochs, own)) in zip(
        executed, claims.OTHER_TRAININGS.items(), strict=True
    ):
        line = [*job.flags, f"--mode={job.mode}", f"--model_dir={job.folder}"]
        with flagsaver.flagsaver():
            flags.FLAGS(implied_flags.complete(["supcon_tf", *line]))
            assert flags.FLAGS.pretrain_epochs == epochs
            assert flags.FLAGS.loss == setting
            if "rate" not in name:
                assert flags.FLAGS.pretrain_base_learning_rate == max(claims.RATES)
            for flag in own:
                key, value = flag.lstrip("-").split("=")
                assert str(flags.FLAGS[key].value) == value
        assert ("linear" in job.mode) == (setting != claims.BASELINE)
        assert (tmp_path / f"results/reasons/{name}/1/entry.json").exists()
    claims.main()  # Everything is finished.
    assert len(executed) == len(claims.OTHER_TRAININGS)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (["--settings=supcom"], "--settings=supcom: choose from supcon, "),
        (["--settings=two_stage_cross_entropy"], "starts from cross_entropy"),
        (["--part=photographs"], "needs --photographs"),
        (["--part=reasons", "--settings=supcon"], "choose from supcon_60_epochs, "),
        (["--part=reasons", "--photographs=some", "--epochs=3"], "Remove --full, --epochs"),
        (["--part=reasons", "--photographs=some", "--corrupted=0"], "uses no corrupted images"),
    ],
)
def test_a_wrong_command_of_the_claims_is_refused(
    claims, tmp_path, monkeypatch, capsys, wrong, says
):
    monkeypatch.setattr(
        "sys.argv", ["claims.py", f"--work={tmp_path}", f"--results={tmp_path}/r", *wrong]
    )
    with pytest.raises(SystemExit):
        claims.main()
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# Stability.


def made_up_accuracy(job):
    """Higher with seeds, lower where the temperature is 0.5."""
    given = dict(flag.lstrip("-").partition("=")[::2] for flag in job.flags)
    return 0.8 + 0.01 * int(given["seed"]) - 0.3 * (given.get("temperature") == "0.5")


@pytest.fixture
def pretended(monkeypatch):
    """The jobs that are run; each leaves the evaluation of `made_up_accuracy`."""
    executed = []

    def execute(job):
        executed.append(job)
        (job.folder / "eval").mkdir(parents=True)
        top_1 = made_up_accuracy(job)
        (job.folder / "eval/eval.json").write_text(json.dumps({"top_1": top_1}))
        (job.folder / "eval/stage.flags").write_text("--mode=eval\n")
        (job.folder / jobs.DONE).write_text(json.dumps(job._record()))

    monkeypatch.setattr(jobs.Job, "execute", execute)
    return executed


def test_stability_varies_one_hyperparameter_at_a_time(tmp_path, pretended, capsys):
    command = [
        "stability", "--recipe=digits", f"--study_dir={tmp_path}", "--seeds=0,1",
        "--augmentations=identity,simclr", "--optimizers=momentum:0.1,adam:0.5",
        "--learning_rate_factors=0.5", "--temperatures=0.1,0.5", "--batch_size_factors=2",
        "--cross_entropy_flags=--pretrain_base_learning_rate=0.004",
    ]  # fmt: skip
    stability.study_stability([*command, "--task=1", "--", "--pretrain_epochs=3"])
    assert [job.folder.name for job in pretended] == ["1"]
    assert not (tmp_path / "stability.md").exists()
    stability.study_stability([*command, "--", "--pretrain_epochs=3"])
    by_setting = {job.folder.parent.name: job for job in pretended if job.folder.name == "0"}
    # simclr, adam and 0.1 are the recipe's: its own runs are their runs.
    assert list(by_setting) == [
        "supcon-recipe", "supcon-augmentation-identity", "supcon-optimizer-momentum",
        "supcon-learning_rate-0.006", "supcon-temperature-0.5", "supcon-batch_size-128",
        "cross_entropy-recipe", "cross_entropy-augmentation-identity",
        "cross_entropy-optimizer-momentum", "cross_entropy-learning_rate-0.002",
        "cross_entropy-batch_size-128",
    ]  # fmt: skip
    base = {
        "--recipe=digits", "--pretrain_epochs=3", "--seed=0", "--cross_entropy_weight=0",
        "--num_views=2",
    }  # fmt: skip
    assert set(by_setting["supcon-recipe"].flags) == base
    momentum = {"--pretrain_optimizer=momentum", "--pretrain_base_learning_rate=0.1"}
    assert set(by_setting["supcon-optimizer-momentum"].flags) == base | momentum
    assert by_setting["cross_entropy-recipe"].mode == "pretrain,eval"
    text = (tmp_path / "stability.md").read_text()
    assert "| supcon | temperature | 0.5 | 2 | 0.5050 | 0.5000 to 0.5100 |" in text
    assert "| supcon | temperature | 2 | 0.5050 | 0.8050 | 0.1500 |" in text
    assert "| supcon | all | 6 | 0.5050 | 0.8050 |" in text
    assert "| cross_entropy | batch size | 2 | 0.8050 | 0.8050 | 0.0000 |" in text
    assert (tmp_path / "stability.png").stat().st_size > 5_000
    count = len(pretended)
    stability.study_stability([*command, "--", "--pretrain_epochs=3"])
    assert len(pretended) == count == 22
    capsys.readouterr()
    stability.study_stability([*command, "--list"])
    assert len(capsys.readouterr().out.splitlines()) == 22


def test_a_value_that_is_no_number_is_refused(tmp_path):
    for wrong in ("--temperatures=low", "--optimizers=lars", "--augmentations=randaugment:high"):
        with pytest.raises(ValueError, match="--optimizers=lars:0.4"):
            stability.study_stability(["stability", f"--study_dir={tmp_path}", wrong])


def test_randaugment_without_a_level_is_refused(tmp_path):
    command = ["stability", f"--study_dir={tmp_path}", "--augmentations=identity,randaugment"]
    with pytest.raises(ValueError, match="needs a level .*--augmentations=randaugment:9"):
        stability.study_stability(command)


def test_a_run_that_fails_does_not_hide_the_others(tmp_path, pretended, monkeypatch, capsys):
    succeed = jobs.Job.execute

    def execute(job):
        if "--temperature=0.5" in job.flags:
            raise RuntimeError("the loss is not finite")
        succeed(job)

    monkeypatch.setattr(jobs.Job, "execute", execute)
    command = ["stability", "--recipe=digits", f"--study_dir={tmp_path}", "--seeds=0"]
    command += ["--augmentations=", "--optimizers=", "--temperatures=0.2,0.5"]
    with pytest.raises(RuntimeError, match="1 runs failed(?s:.*)not finite"):
        stability.study_stability(command)
    text = (tmp_path / "stability.md").read_text()
    assert "| supcon | temperature | 0.2 | 1 |" in text
    assert "temperature | 0.5" not in text
    assert "| supcon | temperature | 0.2 |" in capsys.readouterr().out


def test_a_value_that_is_given_twice_is_refused(tmp_path):
    for wrong in ("--optimizers=lars:0.1,lars:0.4", "--batch_size_factors=2,2.0"):
        with pytest.raises(ValueError, match="is given twice"):
            stability.study_stability(["stability", f"--study_dir={tmp_path}", wrong, "--list"])


@pytest.mark.parametrize("recipe", ["--recipe=photos_small", ""])
def test_the_flags_of_a_stability_study_are_valid(tmp_path, recipe):
    """Of a recipe with joint training and without a recipe: SupCon is trained alone."""
    write_images(tmp_path / "mine", splits=("train", "test"), count=4, size=8)
    line = [
        "stability",
        recipe,
        "--learning_rate_factors=1,2",
        "--seeds=0",
        "--batch_size_factors=1",
    ]
    values, rest = study_flags.parse_study(
        "stability", [*filter(None, line), "--", f"--data_dir={tmp_path / 'mine'}"]
    )
    variations = stability.variations_from_flags(values, rest)
    given = {}
    for job, (variation, _) in stability.create_jobs(values, variations).items():
        with flagsaver.flagsaver():
            line = ["supcon_tf", f"--mode={job.mode}", *job.flags, f"--model_dir={tmp_path}/x"]
            assert len(flags.FLAGS(implied_flags.complete(line))) == 1
            assert flags.FLAGS.cross_entropy_weight == 0
            assert flags.FLAGS["cross_entropy_weight"].present
            given[variation.method, variation.factor, variation.value] = (
                flags.FLAGS.augmentation_type, flags.FLAGS.augmentation_magnitude
            )  # fmt: skip
    assert given["supcon", "augmentation", "randaugment"] == ("randaugment", 5)
    assert given["supcon", "augmentation", "stacked_randaugment"][1] < 2
    rates = [value for _, factor, value in given if factor == "learning rate"]
    assert rates == ["0.024"] * 2 and not any(factor == "batch size" for _, factor, _ in given)


def test_the_array_script_starts_a_task_of_the_study(tmp_path):
    script = ROOT / "examples/slurm_array.sh"
    assert script.stat().st_mode & 0o111
    program = tmp_path / ".venv/bin/python"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        [script, "stability", "--recipe=digits"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "7"}, check=True,
    )  # fmt: skip
    expected = "-m supcon_tf.studies.stability --task=7 --recipe=digits"
    assert done.stdout.strip() == expected


# Transfer.


def test_transfer_chooses_on_validation_images_and_tests_once(tmp_path, monkeypatch, capsys):
    executed = []

    def execute(job):
        executed.append(job)
        given = dict(flag.lstrip("-").partition("=")[::2] for flag in job.flags)
        rate = float(
            given.get("linear_base_learning_rate", given.get("finetune_base_learning_rate", 0))
        )
        value = 1 - abs(rate - 5) / 10
        limits = [value - 0.1, value + 0.1]
        names = ("top_1", "mean_per_class_accuracy")
        if "voc/2007" in given.get("dataset", ""):
            names = ("mean_average_precision",)
        (job.folder / "eval").mkdir(parents=True)
        content = {**dict.fromkeys(names, value), "intervals_95": dict.fromkeys(names, limits)}
        (job.folder / "eval/eval.json").write_text(json.dumps(content))
        (job.folder / "eval/stage.flags").write_text("--mode=eval\n")
        (job.folder / jobs.DONE).write_text(json.dumps(job._record()))

    monkeypatch.setattr(jobs.Job, "execute", execute)
    write_images(tmp_path / "pets", splits=("train", "test"), count=4, size=8)
    command = [
        "transfer", "--encoder=runs/mine", f"--study_dir={tmp_path / 'study'}", "--tfds_dir=sets",
        f"--datasets=oxford_iiit_pet,voc2007,mine={tmp_path / 'pets'}", "--linear_rates=1,6",
        "--finetune_rates=4", "--finetune_decays=0,0.1",
    ]  # fmt: skip
    transfer.study_transfer([*command, "--task=0"])
    flags_of = {"/".join(job.folder.parts[-3:]): job.flags for job in executed}
    of_pets = [name for name in flags_of if name.startswith("oxford")]
    assert of_pets == [
        "oxford_iiit_pet-linear/grid/fitted", "oxford_iiit_pet-linear/grid/rate_1_decay_0",
        "oxford_iiit_pet-linear/grid/rate_6_decay_0",
    ]  # fmt: skip
    tested = executed[-1]
    assert tested.folder.parts[-2:] == ("oxford_iiit_pet-linear", "test")
    assert tested.mode == "linear,eval"
    assert {"--train_split=train", "--test_split=test", "--linear_base_learning_rate=6",
            "--data_dir=sets", "--reference_ckpt=runs/mine"} <= set(tested.flags)  # fmt: skip
    grid = flags_of[of_pets[0]]
    assert {"--train_split=train[:90%]", "--test_split=train[90%:]"} <= set(grid)
    transfer.study_transfer(command)
    by_folder = {"/".join(job.folder.parts[-2:]): set(job.flags) for job in executed}
    assert {"--train_split=train+validation", "--dataset=voc/2007"} <= by_folder[
        "voc2007-linear/test"
    ]
    assert f"--data_dir={tmp_path / 'pets'}" in by_folder["mine-finetune/test"]
    assert "--validation_split=0.2" not in by_folder["mine-finetune/test"]
    text = (tmp_path / "study/transfer.md").read_text()
    assert (
        "| oxford_iiit_pet | linear | mean per class | 0.9000 | 0.8000 to 1.0000 | "
        "rate 6 decay 0 |  |" in text
    )
    assert "| voc2007 | finetune | mAP | 0.9000 |" in text and "| 85.17% |" in text
    assert "| mean of 3 | finetune | | 0.9000 |" in text
    # Every run of the grid and the six tests, each once.
    assert len(executed) == len({job.folder for job in executed}) == 3 * 3 + 3 * 2 + 6


def test_a_dataset_that_fails_does_not_keep_others_from_being_tested(tmp_path, monkeypatch, capsys):
    def execute(job):
        if "--dataset=food101" in job.flags:
            raise RuntimeError("food101 is not prepared")
        (job.folder / "eval").mkdir(parents=True)
        content = {"top_1": 0.9, "intervals_95": {"top_1": [0.8, 1.0]}}
        (job.folder / "eval/eval.json").write_text(json.dumps(content))
        (job.folder / "eval/stage.flags").write_text("--mode=eval\n")
        (job.folder / jobs.DONE).write_text(json.dumps(job._record()))

    monkeypatch.setattr(jobs.Job, "execute", execute)
    command = [
        "transfer", "--encoder=runs/mine", f"--study_dir={tmp_path}", "--protocols=linear",
        "--datasets=food101,cifar10",
    ]  # fmt: skip
    with pytest.raises(RuntimeError, match="food101 is not prepared"):
        transfer.study_transfer(command)
    text = (tmp_path / "transfer.md").read_text()
    assert "| cifar10 | linear | top-1 | 0.9000 |" in text
    assert "| food101 | linear | top-1 | not run |" in text


def test_a_wrong_transfer_is_refused(tmp_path):
    for wrong, says in (
        ([], "--encoder is missing"),
        (["--encoder=a", "--protocols=knn"], "choose from linear and finetune"),
        (["--encoder=a", f"--datasets=mine={tmp_path / 'no'}"], "does not exist"),
        (["--encoder=a", "--task=20"], "there are 20"),
        (["--encoder=a", "--finetune_rates="], "leave nothing to choose"),
    ):
        with pytest.raises(ValueError, match=says):
            transfer.study_transfer(["transfer", f"--study_dir={tmp_path}", *wrong])


def test_the_flags_of_a_transfer_are_valid(tmp_path):
    write_images(tmp_path / "pets", splits=("train", "test"), count=4, size=8)
    values, rest = study_flags.parse_study(
        "transfer",
        ["transfer", "--encoder=runs/other", f"--datasets=cifar10,mine={tmp_path / 'pets'}"],
    )
    for pair in transfer.create_pairs(values, rest):
        for job in transfer.grid_jobs(values, pair, rest).values():
            with flagsaver.flagsaver():
                line = ["supcon_tf", f"--mode={job.mode}", *job.flags, f"--model_dir={tmp_path}/x"]
                assert len(flags.FLAGS(implied_flags.complete(line))) == 1


@pytest.mark.slow
def test_a_transfer_runs_the_command(tmp_path):
    """The real command: a grid of one point, then the test."""
    write_trained(tmp_path / "source", with_classifier=False)
    write_images(tmp_path / "pets", splits=("train", "test"), count=20, size=20)
    command = [
        "transfer", f"--encoder={tmp_path / 'source'}", f"--study_dir={tmp_path / 'study'}",
        f"--datasets=pets={tmp_path / 'pets'}", "--protocols=linear", "--linear_rates=",
    ]  # fmt: skip
    transfer.study_transfer(command)
    (entry,) = ledger.read_entries(tmp_path / "study/results")
    assert entry.setting == "pets-linear" and len(entry.predictions.labels) == 40
    assert entry.figure("top_1") == entry.per_example("top_1").mean() > 0.9
    assert str(tmp_path) not in (entry.path / "stage.flags").read_text()
    output = tmp_path / "study/pets-linear/test/output.txt"
    before = output.stat().st_mtime_ns
    transfer.study_transfer(command)  # Nothing is run again.
    assert output.stat().st_mtime_ns == before
