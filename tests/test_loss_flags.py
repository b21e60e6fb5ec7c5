"""The flags of the family of losses: presets, impossible combinations, and whole runs."""

import json

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from helpers.command import SHORT, run_inside
from helpers.tiny_images import write_images

from supcon_tf.cli import command_line, implied_flags
from supcon_tf.losses.options import LOSS_VARIANTS


def parse(*arguments):
    """The value of every flag as the command would have it."""
    with flagsaver.flagsaver():
        flags.FLAGS(implied_flags.complete(["supcon_tf", *arguments]))
        return {name: flags.FLAGS[name].value for name in command_line.own_flags()}


@pytest.mark.parametrize("variant", LOSS_VARIANTS)
def test_a_variant_sets_and_prints_its_options(variant, capsys):
    values = parse(f"--loss_variant={variant}")
    printed = capsys.readouterr().out
    for name, value in LOSS_VARIANTS[variant].items():
        assert values[name] == value
        assert f"--{name}={value}" in printed or f"--no{name}" in printed


def test_a_flag_that_agrees_with_the_variant_is_accepted():
    assert parse("--loss_variant=sincere", "--denominator_mode=one_positive")["epsilon"] == 0


CSV = ("--data_csv=labels.csv",)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (
            ["--loss_variant=sincere", "--denominator_mode=all"],
            "means --denominator_mode=one_positive, but --denominator_mode=all is given",
        ),
        (["--loss_variant=simclr", "--use_labels"], "means --nouse_labels"),
        (
            ["--loss_variant=decoupled", "--epsilon=0.1"],
            "--epsilon=0.1 has no effect with denominator_mode='only_negatives'",
        ),
        (["--loss_variant=sincere", "--queue_size=64"], "cannot be combined with --queue_size"),
        (["--spread_weight=0.5", "--queue_size=64"], "cannot be combined with --queue_size"),
        (["--spread_weight=0.5", "--num_views=1"], "Use --num_views=2"),
        (["--spread_weight=0.5", "--nouse_labels"], "--nouse_labels does not use"),
        (["--spread_weight=0.5", "--loss=npairs"], "no effect with --loss=npairs"),
        (
            ["--denominator_weighting=class", "--positives_cap=4"],
            "leaves some of the anchor's class out",
        ),
        (["--pair_weights=jaccard"], "--dataset=csv with --label_type=multi_label"),
        ([*CSV, "--pair_weights=gaussian"], "--label_type=real"),
        (["--gaussian_bandwidth=2"], "--pair_weights=gaussian"),
        (
            [*CSV, "--label_type=real", "--pair_weights=gaussian", "--epsilon=0.2"],
            "every pair a positive",
        ),
    ],
)
def test_impossible_combinations_say_what_to_leave_out(arguments, message):
    with pytest.raises(flags.Error, match=message):
        parse("--mode=pretrain", *arguments)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """Images with labels of every kind in one CSV file."""
    root = tmp_path_factory.mktemp("labeled")
    write_images(root / "images", classes=("0", "1"), count=16)
    random, lines = np.random.default_rng(0), ["filename,number,tags,family,species,split"]
    for split in ("train", "test"):
        for species in (0, 1):
            for index in range(16):
                tags = "|".join(str(tag) for tag in range(4) if random.random() < 0.5)
                lines.append(
                    f"images/{split}/{species}/{index}.png,{random.normal():.3f},{tags},"
                    f"f{species},s{species}{index % 2},{split}"
                )
    (root / "labels.csv").write_text("\n".join(lines))
    return root / "labels.csv"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("--pair_weights=gaussian", "--label_type=real", "--label_columns=number"),
        ("--pair_weights=jaccard", "--label_type=multi_label", "--label_columns=tags"),
        ("--pair_weights=hierarchy", "--label_type=hierarchy", "--label_columns=family,species"),
    ],
    ids=["gaussian", "jaccard", "hierarchy"],
)
def test_a_run_with_pair_weights_from_csv_to_encoder(labeled, tmp_path, arguments, capsys):
    run_inside(
        "--mode=pretrain", f"--data_csv={labeled}", f"--model_dir={tmp_path}", "--image_size=8",
        "--batch_size=16", *SHORT, *arguments, "--pretrain_epochs=2",
    )  # fmt: skip
    result = json.loads((tmp_path / "pretrain/result.json").read_text())
    assert np.isfinite(result["loss"]) and (tmp_path / "pretrain/encoder.keras").exists()
    printed = capsys.readouterr().out
    assert ("--gaussian_bandwidth=" in printed) == (arguments[0] == "--pair_weights=gaussian")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["spread", "class_averaged", "epsilon_supinfonce"])
def test_a_run_of_a_variant(tmp_path, variant):
    run_inside(
        "--mode=pretrain", f"--model_dir={tmp_path}", "--num_images=64", "--batch_size=32",
        *SHORT, f"--loss_variant={variant}",
    )  # fmt: skip
    recorded = (tmp_path / "pretrain/stage.flags").read_text()
    for name, value in LOSS_VARIANTS[variant].items():
        assert f"--{name}={value}\n" in recorded
