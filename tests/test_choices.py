"""Defaults give way to small data and short stages; what a user gave is refused instead."""

import json

import pytest
from absl import flags
from absl.testing import flagsaver
from helpers.command import run_inside
from helpers.tiny_images import write_images

from supcon_tf.cli import command_line, implied_flags


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """Arguments of a run of one pass over eight images, with every other default."""
    root = tmp_path_factory.mktemp("short")
    data = write_images(root / "data")
    return [
        f"--data_dir={data}", f"--model_dir={root / 'run'}", "--pretrain_epochs=1",
        "--knn_interval_epochs=0", "--augmentation_type=identity",
    ]  # fmt: skip


def saved_flags(arguments, stage):
    model_dir = next(a for a in arguments if a.startswith("--model_dir")).partition("=")[2]
    with open(f"{model_dir}/{stage}/stage.flags") as file:
        return file.read().splitlines()


def test_default_batch_and_warmup_are_cut_and_said(short_run, capsys):
    run_inside(*short_run, "--mode=pretrain")
    output = capsys.readouterr().out
    (chosen,) = (line for line in output.splitlines() if line.startswith("Chosen for 8 images"))
    assert "--batch_size=8" in chosen and "--pretrain_epochs" not in chosen
    assert "set it with --pretrain_warmup_epochs" in output
    assert {"--batch_size=8", "--pretrain_warmup_epochs=1.0"} <= {
        *saved_flags(short_run, "pretrain")
    }
    run_inside(*short_run, "--mode=pretrain")  # The same choices, so the same run.
    assert "already finished" in capsys.readouterr().out
    # A half epoch of fine-tuning, whose default warm-up is one epoch.
    run_inside(*short_run, "--mode=finetune", "--finetune_epochs=0.5")
    assert "set it with --finetune_warmup_epochs" in capsys.readouterr().out
    path = next(a for a in short_run if a.startswith("--model_dir")).partition("=")[2]
    with open(f"{path}/finetune/result.json") as file:
        assert json.load(file)["steps"] == 0  # Half of the one step of an epoch.


@pytest.mark.slow  # test_main.py does the same with the linear stage.
def test_saved_flags_run_the_stage_again_elsewhere(short_run, tmp_path, capsys):
    run_inside(*short_run, "--mode=pretrain")
    path = next(a for a in short_run if a.startswith("--model_dir")).partition("=")[2]
    run_inside(f"--flagfile={path}/pretrain/stage.flags", f"--model_dir={tmp_path}")
    assert (tmp_path / "pretrain/encoder.keras").exists()


@pytest.mark.parametrize("mode", ["pretrain", "linear", "finetune"])
def test_a_given_batch_that_is_too_large_is_refused(short_run, mode, tmp_path):
    extra = []
    if mode != "pretrain":
        run_inside(*short_run, "--mode=pretrain")  # Quick, if another test has done it.
        extra = [
            next(a for a in short_run if "model_dir" in a).replace("model_dir", "reference_ckpt")
        ]
    with pytest.raises(ValueError, match="batch_size=64 is larger .* 8 .*--batch_size=8 or"):
        run_inside(
            *short_run, f"--mode={mode}", f"--model_dir={tmp_path / 'run'}", "--batch_size=64",
            "--linear_epochs=1", *extra,
        )  # fmt: skip
    assert not (tmp_path / "run" / mode / "metrics.jsonl").exists()


@pytest.mark.parametrize("batch", [[], ["--batch_size=64"]])
def test_a_preview_never_minds_the_batch(short_run, batch, tmp_path, capsys):
    run_inside(*short_run, *batch, "--mode=preview", f"--model_dir={tmp_path}")
    assert "8 images and 1 view of each" in capsys.readouterr().out


def parse(*arguments):
    with flagsaver.flagsaver():
        flags.FLAGS(implied_flags.complete(["supcon_tf", *arguments]))
        return {name: flags.FLAGS[name].value for name in command_line.own_flags()}


@pytest.mark.parametrize("stage", ["pretrain", "linear", "finetune"])
def test_a_given_warmup_that_is_too_long_is_refused_with_the_remedy(stage, tmp_path):
    length, warmup = f"--{stage}_epochs=4", f"--{stage}_warmup_epochs=5"
    assert parse(f"--{stage}_epochs=0.5")[f"{stage}_epochs"] == 0.5
    (tmp_path / "some.flags").write_text(warmup)
    for given in (warmup, f"--flagfile={tmp_path / 'some.flags'}"):
        with pytest.raises(flags.Error, match=f"--{stage}_warmup_epochs=0.4.* --{stage}_epochs=50"):
            parse(length, given)
    with pytest.raises(flags.Error, match="pretrain_warmup_epochs=10.* a recipe"):
        parse("--recipe=simclr_cifar10_resnet50", "--pretrain_epochs=1")
