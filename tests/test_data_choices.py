"""The command chooses its flags from the images: printed, recorded, and only what was not given."""

import contextlib
import dataclasses

import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from helpers.command import run_inside
from helpers.tiny_images import write_images
from PIL import Image

from supcon_tf.cli import implied_flags, rules
from supcon_tf.data import defaults, image_facts, sources
from supcon_tf.stages import choices, inputs
from supcon_tf.training import memory


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), count=8, size=20)


@contextlib.contextmanager
def chosen_for(*arguments, stage="pretrain"):
    """What is chosen, with the flags as they are afterwards."""
    with flagsaver.flagsaver():
        flags.FLAGS(implied_flags.complete(["supcon_tf", "--mode=pretrain", *arguments]))
        source = inputs.splits_from_flags(flags.FLAGS).train
        strategy = tf.distribute.get_strategy()
        yield choices.choose_from_data(flags.FLAGS, strategy, source, stage), flags.FLAGS


def test_the_choices_are_set_and_printed_as_flags(images, tmp_path, capsys):
    with chosen_for(f"--data_dir={images}", f"--model_dir={tmp_path}") as (chosen, values):
        facts = defaults.ImageFacts(num_examples=16, side_px=20, is_color=True, num_classes=2)
        assert chosen == defaults.choose(facts).texts()
        for name in chosen:
            assert rules.is_given(values, name)
        assert (values.image_size, values.batch_size) == (20, 16)
        assert values.cross_entropy_weight == 1 and values.horizontal_flip == "true"
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "Chosen" in line)
    assert line.startswith("Chosen for 16 images of about 20 px in 2 classes: --encoder=tiny ")
    assert "--crop_area_range=0.5,1.0" in line and "--normalize_embedding" in line
    # Copied, they choose nothing more and are all the same.
    copied = line.partition(": ")[2].split()
    with chosen_for(f"--data_dir={images}", f"--model_dir={tmp_path}", *copied) as (more, again):
        assert more == {}
        assert {name: again[name].value for name in chosen} == {
            name: again[name].parser.parse(text) for name, text in chosen.items()
        }


def test_many_images_are_chosen_for_by_a_row_of_their_own(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(defaults, "MANY_EXAMPLES", 16)
    place = (f"--data_dir={images}", f"--model_dir={tmp_path}")
    for loss in ((), ("--loss=cross_entropy", "--num_views=1")):
        with chosen_for(*place, *loss) as (chosen, values):
            assert chosen["pretrain_label_smoothing"] == "0.1" and not values.normalize_embedding
        (line,) = (line for line in capsys.readouterr().out.splitlines() if "Chosen" in line)
        assert "--pretrain_label_smoothing=0.1 --nonormalize_embedding" in line
        with chosen_for(*place, *loss, *line.partition(": ")[2].split()) as (more, again):
            assert more == {} and not again.normalize_embedding
            assert again.pretrain_label_smoothing == 0.1
    for given in (
        ["--num_views=2"],
        ["--cross_entropy_weight=0"],
        ["--nouse_labels"],
        ["--pretrain_optimizer=momentum"],
        ["--reference_ckpt=run"],
    ):
        with chosen_for(*place, *given) as (chosen, values):
            assert values.normalize_embedding and not values.pretrain_label_smoothing


def test_a_flag_of_the_classifier_needs_no_weight_where_the_data_choose_it(images, tmp_path):
    place = (f"--data_dir={images}", f"--model_dir={tmp_path}")
    for given in ("--pretrain_label_smoothing=0.05", "--stop_gradient_before_classifier"):
        with chosen_for(*place, given, "--cross_entropy_weight=1") as (_, values):
            assert values.cross_entropy_weight == 1
        with pytest.raises(flags.Error, match="has no effect without"):
            chosen_for(*place, given, "--cross_entropy_weight=0").__enter__()
    with chosen_for(*place, "--pretrain_label_smoothing=0.05") as (chosen, values):
        assert chosen["cross_entropy_weight"] == "1" and values.pretrain_label_smoothing == 0.05
    gray = tmp_path / "gray"
    for name in ("a", "b"):
        (gray / "train" / name).mkdir(parents=True)
        for index in range(4):
            Image.new("L", (20, 20), 60 * index).save(gray / "train" / name / f"{index}.png")
    place = (f"--data_dir={gray}", "--validation_split=0", f"--model_dir={tmp_path / 'other'}")
    with pytest.raises(flags.Error, match="pretrain_label_smoothing=0.05 has no effect without"):
        chosen_for(*place, "--pretrain_label_smoothing=0.05").__enter__()


def test_only_what_was_not_given_is_chosen(images, tmp_path):
    place = (f"--data_dir={images}", f"--model_dir={tmp_path}")
    given = ("--batch_size=4", "--nonormalize_embedding", "--cross_entropy_weight=0")
    with chosen_for(*place, *given) as (chosen, values):
        assert not {"batch_size", "normalize_embedding", "cross_entropy_weight"} & set(chosen)
        assert (values.batch_size, values.normalize_embedding) == (4, False)
        assert values.cross_entropy_weight == 0 and chosen["pretrain_epochs"] == "240"
    with chosen_for(*place, "--recipe=photos_small", "--dataset=folder") as (chosen, _):
        assert chosen == {}
    with chosen_for("--dataset=digits", f"--model_dir={tmp_path}") as (chosen, _):
        assert chosen == {}
    with chosen_for(*place, "--num_images=10") as (chosen, _):
        assert chosen["batch_size"] == "10"
    with chosen_for(*place, "--time_budget_minutes=5") as (chosen, _):
        assert "pretrain_epochs" not in chosen


@pytest.mark.parametrize(
    ("given", "left_out"),
    [
        (["--nouse_labels"], {"cross_entropy_weight", "num_views"}),
        (["--loss=triplet"], {"cross_entropy_weight", "num_views"}),
        (
            ["--cross_entropy_weight=1", "--stop_gradient_before_classifier"],
            {"cross_entropy_weight", "num_views"},
        ),
        (["--loss=cross_entropy", "--num_views=1"], {"cross_entropy_weight", "num_views"}),
        (["--reference_ckpt=run"], {"encoder", "resnet_width"}),
        (["--pretrain_optimizer=lars"], {"pretrain_base_learning_rate"}),
        (["--queue_size=32"], {"num_views"}),
    ],
)
def test_what_other_flags_decide_is_not_chosen(images, tmp_path, given, left_out):
    place = (f"--data_dir={images}", f"--model_dir={tmp_path}")
    with chosen_for(*place) as (everything, _):
        pass
    with chosen_for(*place, *given) as (chosen, _):
        assert set(everything) - set(chosen) == left_out


def test_large_images_need_a_machine_that_can_carry_the_network(tmp_path, capsys, monkeypatch):
    data = write_images(tmp_path / "large", count=4, size=80)
    place = (f"--data_dir={data}", f"--model_dir={tmp_path / 'run'}")
    with chosen_for(*place) as (chosen, _):
        assert (chosen["encoder"], chosen["resnet_depth"]) == ("resnet_v1", "18")
        assert chosen["image_size"] == "80"
    capsys.readouterr()
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**6)
    with chosen_for(*place) as (chosen, _):
        assert (chosen["encoder"], chosen["image_size"]) == ("tiny", "48")
    assert "--resnet_depth=18 --image_size=80 would need" in capsys.readouterr().out


def test_several_labels_use_the_same_table(images, tmp_path, monkeypatch):
    lines = ["filename,label"]
    for split in ("train", "test"):
        lines += [f"{split}/cat/{i}.png,cat|small" for i in range(8)]
        lines += [f"{split}/dog/{i}.png,dog" for i in range(8)]
    (images / "labels.csv").write_text("\n".join(lines))
    csv = (f"--data_csv={images / 'labels.csv'}", "--label_type=multi_label")
    monkeypatch.setattr(defaults, "MANY_EXAMPLES", 16)  # A row that one class per image needs.
    with chosen_for(*csv, "--validation_split=0", f"--model_dir={tmp_path}") as (chosen, values):
        assert chosen["cross_entropy_weight"] == "1" and chosen["batch_size"] == "32"
        assert values.normalize_embedding and not values.pretrain_label_smoothing


def test_files_are_described_by_a_sample(tmp_path):
    root = write_images(tmp_path, splits=("train",), count=20, size=10)
    for index in range(20):
        Image.new("L", (30, 40), 10 * index).save(root / f"train/cat/{index}.png")
    source = sources.load_source("folder", "train", str(root), validation_split=0)
    facts = image_facts.facts_of(source)
    assert (facts.num_examples, facts.side_px, facts.is_color) == (40, 20, True)
    gray = sources.first_examples(dataclasses.replace(source, labels=0 * source.labels), 20)
    facts = image_facts.facts_of(gray, 12)
    assert (facts.num_examples, facts.side_px, facts.is_color) == (12, 30, False)
    (root / "train/cat/0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert image_facts.facts_of(gray).side_px == 30  # Training names the broken image.
    only_broken = dataclasses.replace(gray, paths=gray.paths[:1], labels=gray.labels[:1])
    with pytest.raises(ValueError, match=r"cat/0.png .*remove or replace"):
        image_facts.facts_of(only_broken)


@pytest.mark.slow
def test_a_run_keeps_what_was_chosen_for_it(images, tmp_path, capsys, monkeypatch):
    """Although another release has another table; later stages follow the run."""
    data, run = f"--data_dir={images}", tmp_path / "run"
    arguments = (
        data, f"--model_dir={run}", "--strategy=one_device", "--pretrain_epochs=2",
        "--pretrain_warmup_epochs=0", "--augmentation_type=identity",
    )  # fmt: skip
    run_inside("--mode=pretrain", *arguments)
    saved = (run / "pretrain/stage.flags").read_text().splitlines()
    assert {"--cross_entropy_weight=1.0", "--image_size=20", "--batch_size=16"} <= {*saved}
    assert (run / "pretrain/linear_head.keras").exists()
    other = dataclasses.replace(defaults.SMALL_PHOTOS, cross_entropy_weight=0.5)
    monkeypatch.setattr(defaults, "SMALL_PHOTOS", other)
    capsys.readouterr()
    run_inside("--mode=pretrain", *arguments)
    said = capsys.readouterr().out
    assert f"Chosen when the run in {run} was started: --encoder=tiny" in said
    assert "--cross_entropy_weight=1 " in said and "already finished" in said
    with chosen_for(*arguments, stage="preview") as (chosen, values):
        assert values.image_size == 20 and "pretrain_epochs" not in chosen
    for other in ("--cross_entropy_weight=0", "--nouse_labels"):  # One view would not do for them.
        with chosen_for(*arguments, "--override_flags", other) as (chosen, values):
            assert "num_views" not in chosen and values.num_views == 2
    with pytest.raises(ValueError, match="--cross_entropy_weight=1.0  ->  --cross_entropy_w.*=0.7"):
        run_inside("--mode=pretrain", *arguments, "--cross_entropy_weight=0.7")
    run_inside("--mode=linear", f"--model_dir={run}", "--strategy=one_device")
    lines = (run / "linear/stage.flags").read_text().splitlines()
    assert {"--eval_crop_method=auto", "--normalize_embedding", "--dataset=folder"} <= {*lines}
    # Other images are another dataset, for which nothing is kept.
    with chosen_for(data, f"--model_dir={run}", "--validation_split=0.5") as (chosen, _):
        assert chosen["cross_entropy_weight"] == "0.5"
