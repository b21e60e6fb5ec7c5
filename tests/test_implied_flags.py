"""What a command line implies: a folder dataset, and the flags of the run in --model_dir."""

import json

import pytest
from absl import flags
from absl.testing import flagsaver
from helpers.command import run_inside
from helpers.tiny_images import write_images

from supcon_tf.cli import command_line, flag_rules, implied_flags
from supcon_tf.data import sources
from supcon_tf.stages import inputs

SHORT = ("--image_size=8", "--knn_interval_epochs=0", "--steps_per_loop=2", "--seed=3")


def parse(*arguments):
    """The value of every flag as the command would have it."""
    with flagsaver.flagsaver():
        flags.FLAGS(implied_flags.complete(["supcon_tf", *map(str, arguments)]))
        values = {name: flags.FLAGS[name].value for name in command_line.own_flags()}
        return {**values, "model_dir": command_line.model_dir(flags.FLAGS)}


def write_stage(model_dir, stage, *lines):
    (model_dir / stage).mkdir(parents=True)
    text = "\n".join([f"--mode={stage}", f"--model_dir={model_dir}", *lines])
    (model_dir / stage / "stage.flags").write_text(text + "\n")


def test_a_data_dir_that_looks_like_a_folder_dataset_implies_it(tmp_path, capsys):
    data = write_images(tmp_path / "mine")
    assert parse(f"--data_dir={data}")["dataset"] == "folder"
    (line,) = capsys.readouterr().out.splitlines()
    assert str(data) in line and "--dataset=folder" in line
    assert parse(f"--data_dir={data}", "--dataset=cifar10")["dataset"] == "cifar10"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["no such folder", "no train", "train without classes"])
def test_any_other_data_dir_without_a_dataset_is_refused(tmp_path, kind):
    if kind == "no train":
        write_images(tmp_path / "mine", splits=("test",))
    if kind == "train without classes":
        (tmp_path / "mine" / "train").mkdir(parents=True)
    with pytest.raises(flags.Error, match="add --dataset=folder"):
        parse(f"--data_dir={tmp_path / 'mine'}")


def test_later_stages_take_the_flags_of_the_run(tmp_path, capsys):
    write_stage(
        tmp_path, "pretrain", "--recipe=simclr_cifar10_resnet50", "--dataset=folder",
        "--data_dir=mine", "--seed=3", "--batch_size=8", "--nohorizontal", "--no_longer_a_flag=1",
        "--strategy=tpu", "--temperature=0.5", "--skip_broken_images",
    )  # fmt: skip
    values = parse("--mode=linear,eval", f"--model_dir={tmp_path}")
    assert (values["dataset"], values["data_dir"], values["seed"]) == ("folder", "mine", 3)
    assert values["batch_size"] == 8 and values["skip_broken_images"]
    assert values["linear_epochs"] == 90  # The recipe's, which pretraining does not read.
    assert values["strategy"] == "auto"  # Another machine may run it.
    (line,) = capsys.readouterr().out.splitlines()
    assert str(tmp_path) in line and "--dataset=folder --" in line and "--batch_size=8" in line
    assert parse("--mode=pretrain", f"--model_dir={tmp_path}")["dataset"] == "digits"


def test_later_stages_of_a_run_with_randaugment_know_its_level(tmp_path):
    """Also a level that equals the default of the flag, which would not count as given."""
    write_stage(
        tmp_path, "pretrain", "--augmentation_type=randaugment", "--augmentation_magnitude=0.5"
    )
    values = parse("--mode=preview", f"--model_dir={tmp_path}")
    assert (values["augmentation_type"], values["augmentation_magnitude"]) == ("randaugment", 0.5)


def test_a_finetune_stage_with_defaults_leaves_the_linear_stage_fitted(tmp_path):
    def is_fitted(*arguments):
        with flagsaver.flagsaver():
            flags.FLAGS(implied_flags.complete(["supcon_tf", *map(str, arguments)]))
            return flag_rules.is_linear_fitted(flags.FLAGS)

    command = ("--mode=linear", f"--model_dir={tmp_path}")
    write_stage(tmp_path, "pretrain", "--dataset=digits", "--seed=3")
    write_stage(tmp_path, "finetune", "--label_smoothing=0.0", "--nozero_initialize_classifier")
    assert is_fitted(*command)
    (tmp_path / "finetune/stage.flags").write_text("--label_smoothing=0.1\n")
    assert not is_fitted(*command)
    write_stage(tmp_path, "linear", "--linear_epochs=20.0", "--linear_optimizer=momentum")
    assert not is_fitted(*command)


def test_the_command_line_wins_over_the_run(tmp_path):
    write_stage(tmp_path, "pretrain", "--dataset=folder", "--data_dir=mine", "--batch_size=8")
    told = parse(
        "--mode=eval", f"--model_dir={tmp_path}", "--dataset=cifar10", "--seed=0", "--image_size=8"
    )
    assert (told["dataset"], told["data_dir"]) == ("cifar10", None)
    moved = parse("--mode=eval", f"--model_dir={tmp_path}", "--data_dir=moved")
    assert (moved["dataset"], moved["data_dir"]) == ("folder", "moved")
    same = parse("--mode=eval", f"--model_dir={tmp_path}", "--dataset=folder")
    assert same["data_dir"] == "mine"
    recipe = parse("--mode=linear", f"--model_dir={tmp_path}", "--recipe=simclr_cifar10_resnet50")
    assert (recipe["dataset"], recipe["batch_size"]) == ("cifar10", 1024)


def test_the_newest_stage_names_the_flags_and_a_stage_resumes_with_its_own(tmp_path):
    write_stage(tmp_path, "pretrain", "--seed=1", "--batch_size=8", "--image_size=8")
    write_stage(tmp_path, "linear", "--seed=2", "--linear_epochs=7")
    write_stage(tmp_path, "finetune", "--seed=3")
    write_stage(tmp_path, "eval", "--seed=4")
    model_dir = f"--model_dir={tmp_path}"
    assert parse("--mode=eval", model_dir)["seed"] == 3
    linear = parse("--mode=linear,eval", model_dir)
    assert (linear["seed"], linear["linear_epochs"], linear["batch_size"]) == (2, 7, 8)


def test_a_default_of_the_run_does_not_count_as_given(tmp_path):
    """Flags that may not be given together, or that choose by being given, keep their freedom."""
    recipe = "--recipe=simclr_cifar10_resnet50"
    write_stage(tmp_path, "pretrain", recipe, "--batch_size=64", "--seed=0")
    with flagsaver.flagsaver():
        flags.FLAGS(
            implied_flags.complete(["supcon_tf", "--mode=linear", f"--model_dir={tmp_path}"])
        )
        assert not flags.FLAGS["seed"].present
        assert flags.FLAGS.batch_size == 64  # Not the recipe's 1024, which the run overrode.


def test_unlabeled_images_need_no_dataset_of_the_run(tmp_path):
    write_stage(tmp_path, "pretrain", "--dataset=folder", "--data_dir=gone", "--seed=8")
    arguments = ("--mode=embed,export", "--embed_dir=new", f"--model_dir={tmp_path}")
    values = parse(*arguments)
    assert (values["data_dir"], values["seed"]) == (None, 8)


def test_a_default_model_dir_stays_where_the_run_was_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_stage(tmp_path / "runs/digits", "pretrain", "--dataset=folder", "--data_dir=mine")
    assert parse("--mode=eval")["model_dir"] == "runs/digits"


def test_a_recipe_in_a_flagfile_counts(tmp_path):
    (tmp_path / "some.flags").write_text("--recipe=cifar10_cpu\n--batch_size=32\n")
    values = parse(f"--flagfile={tmp_path / 'some.flags'}")
    assert (values["dataset"], values["num_views"], values["batch_size"]) == ("cifar10", 1, 32)


@pytest.mark.parametrize(
    "stages", ["linear,eval", pytest.param("linear,eval,embed,export", marks=pytest.mark.slow)]
)
def test_stages_of_a_folder_run_need_only_its_model_dir(stages, tmp_path, capsys):
    """Every stage after pretraining reads the images, the classes and the seed of the run."""
    data, model_dir = write_images(tmp_path / "mine"), f"--model_dir={tmp_path / 'run'}"
    run_inside(
        "--mode=pretrain", f"--data_dir={data}", model_dir, "--batch_size=8", *SHORT,
        "--pretrain_epochs=2", "--pretrain_warmup_epochs=0", "--augmentation_type=identity",
    )  # fmt: skip
    capsys.readouterr()
    inputs._read_splits.cache_clear()
    run_inside(f"--mode={stages}", model_dir, "--linear_epochs=1")
    output = capsys.readouterr().out
    assert f"--data_dir={data}" in output.splitlines()[0]
    assert "Dataset folder: 8 training" in output and "Dataset digits" not in output
    assert "--seed=3" in (tmp_path / "run/linear/stage.flags").read_text()
    evaluation = json.loads((tmp_path / "run/eval/eval.json").read_text())
    assert (evaluation["dataset"], evaluation["num_examples"]) == ("folder", 8)
    assert (tmp_path / "run/embed/embeddings.npz").exists() == ("embed" in stages)


@pytest.mark.parametrize("name", ["test", "validation", "val"])
def test_the_test_split_of_a_folder_has_three_usual_names(tmp_path, name):
    data = write_images(tmp_path / "mine", splits=("train", name))
    source = sources.load_source("folder", "test", str(data))
    assert source.num_examples == 8 and f"/{name}/" in source.paths[0]
