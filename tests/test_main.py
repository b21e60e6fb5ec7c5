"""The real command on real, tiny data: what it prints, writes, refuses, and continues."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.command import ROOT, SHORT, read_lines, run_command, run_inside
from PIL import Image

from supcon_tf.cli.program import python_program

FEW_IMAGES = (
    "--num_images=64", "--batch_size=16", "--image_size=8", "--augmentation_type=identity",
)  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """One short run of the main job through the real command."""
    model_dir = tmp_path_factory.mktemp("digits")
    done = run_command(*SHORT, f"--model_dir={model_dir}")
    assert done.returncode == 0, done.stderr
    return model_dir, done


def test_the_main_job_leaves_what_it_says(digits):
    model_dir, done = digits
    for name in (
        "pretrain/encoder.keras", "pretrain/projection_head.keras", "pretrain/stage.flags",
        "pretrain/checkpoints", "pretrain/tensorboard", "linear/classifier.keras",
        "linear/class_names.json", "linear/metrics.jsonl",
    ):  # fmt: skip
        assert (model_dir / name).exists(), name
    evaluation = json.loads((model_dir / "eval/eval.json").read_text())
    assert evaluation["num_examples"] == 360
    assert 0.12 < evaluation["top_1"] <= evaluation["top_5"] <= 1.0
    assert f"top-1 {evaluation['top_1']:.4f}" in done.stdout
    assert str(model_dir) in done.stdout


def test_the_log_has_each_step_once_with_what_a_person_watches(digits):
    model_dir, _ = digits
    lines = read_lines(model_dir / "pretrain/metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 23))
    for line in lines:
        assert {"loss", "collapse_ratio", "learning_rate", "epoch"} <= {*line}
        assert {"probe_accuracy", "probe_loss", "positive_similarity"} <= {*line}
        # The first step compiles, so it does not tell the speed.
        assert ("images_per_second" in line) == (line["step"] > 1)
    assert [line["step"] for line in lines if "knn_accuracy" in line] == [11, 22]
    assert lines[-1]["knn_accuracy"] > 0.5
    assert lines[-1]["learning_rate"] < lines[0]["learning_rate"]


def test_the_screen_stays_clean_and_ends_with_the_next_command(digits):
    _, done = digits
    assert "CHANCE" not in done.stdout
    assert "Traceback" not in done.stderr and "cuda" not in done.stderr.lower()
    assert "InitializeLog" not in done.stderr and "oneDNN" not in done.stderr
    assert "Starting TensorFlow...\nRun: pretrain, linear, eval; " in done.stdout
    next_command = done.stdout.strip().splitlines()[-1]
    assert f"{python_program()} -m supcon_tf.main" in next_command


@pytest.mark.slow
def test_the_printed_snippet_runs_with_keras_alone(digits, tmp_path):
    _, done = digits
    block = done.stdout.split("Use the encoder:")[1].split("\nstage ")[0]
    code = "\n".join(line[4:] for line in block.strip("\n").splitlines())
    Image.fromarray(np.full([20, 30, 4], 128, np.uint8)).save(tmp_path / "your_image.png")
    code += "\nimport sys; print('SHAPE', embedding.shape, 'supcon_tf' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": ""}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "SHAPE (1, 64) False" in ran.stdout, ran.stderr


def test_a_finished_run_says_so_and_trains_nothing(digits, capsys):
    model_dir, _ = digits
    before = (model_dir / "pretrain/metrics.jsonl").read_text()
    run_inside(*SHORT, f"--model_dir={model_dir}")
    output = capsys.readouterr().out
    assert "pretrain is already finished" in output and "linear is already finished" in output
    assert "another --model_dir" in output
    assert (model_dir / "pretrain/metrics.jsonl").read_text() == before


def test_changed_flags_are_refused_with_old_and_new_value(digits):
    model_dir, _ = digits
    with pytest.raises(ValueError, match=r"temperature=0.1  ->  --temperature=0.5"):
        run_inside(*SHORT, f"--model_dir={model_dir}", "--temperature=0.5")
    with pytest.raises(ValueError, match=r"--online_probe  ->  --noonline_probe"):
        run_inside(*SHORT, f"--model_dir={model_dir}", "--noonline_probe")
    run_inside(*SHORT, "--mode=pretrain", f"--model_dir={model_dir}", "--steps_per_loop=7")


def test_stage_flags_run_the_stage_again(digits, tmp_path):
    model_dir, _ = digits
    text = (model_dir / "linear/stage.flags").read_text()
    again = tmp_path / "again"
    shutil.copytree(model_dir, again)
    shutil.rmtree(again / "linear")
    (tmp_path / "stage.flags").write_text(text.replace(str(model_dir), str(again)))
    run_inside(f"--flagfile={tmp_path / 'stage.flags'}")
    old, new = (read_lines(path / "linear/metrics.jsonl") for path in (model_dir, again))
    np.testing.assert_allclose(
        [line["loss"] for line in new], [line["loss"] for line in old], rtol=1e-3
    )


def test_a_new_encoder_asks_for_a_new_linear_stage(digits, tmp_path):
    model_dir, _ = digits
    copy = tmp_path / "copy"
    shutil.copytree(model_dir, copy)
    shutil.rmtree(copy / "pretrain")
    new = ("--seed=1", "--pretrain_epochs=0", "--pretrain_warmup_epochs=0")
    run_inside(*SHORT, "--mode=pretrain", f"--model_dir={copy}", *new)
    with pytest.raises(ValueError, match="made with .* encoder"):
        run_inside(*SHORT, "--mode=linear", f"--model_dir={copy}")


def test_a_second_run_in_the_same_folder_is_refused(digits):
    model_dir, _ = digits
    with open(model_dir / "pretrain/lock", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="Another run .*--model_dir"):
            run_inside(*SHORT, f"--model_dir={model_dir}")
    run_inside(*SHORT, f"--model_dir={model_dir}")  # A lock goes with its process.


def test_a_remote_folder_works_and_is_locked_while_its_owner_is_alive():
    """TensorFlow's in-memory file system takes the place of gs://."""
    from supcon_tf.storage import files

    run_inside(
        *SHORT, *FEW_IMAGES, "--model_dir=ram://run", "--knn_interval_epochs=0",
        "--eval_train_examples=0",
    )  # fmt: skip
    assert len(files.read_json("ram://run/pretrain/result.json")) > 1
    evaluation = files.read_json("ram://run/eval/eval.json")
    assert evaluation["num_examples"] == 360
    lock, owner = f"ram://run/eval/locks/000000001-{'0' * 32}", {"host": "other", "process": 7}
    files.write_json(lock, {**owner, "time": time.time()})
    with pytest.raises(ValueError, match="other, process 7"):
        run_inside(*SHORT, "--mode=eval", "--model_dir=ram://run")
    files.write_json(lock, {**owner, "time": time.time() - 601})  # Died long ago.
    run_inside(*SHORT, "--mode=eval", "--model_dir=ram://run")


def test_a_checkpoint_of_another_architecture_is_refused(digits, tmp_path):
    model_dir, _ = digits
    copy = tmp_path / "copy"
    shutil.copytree(model_dir / "pretrain", copy / "pretrain")
    with pytest.raises(ValueError, match="written by another architecture"):
        run_inside(*SHORT, f"--model_dir={copy}", "--resnet_width=2", "--override_flags")


def test_a_rejected_run_does_not_block_the_corrected_one(tmp_path):
    data_dir, model_dir = write_folder(tmp_path / "data"), tmp_path / "run"
    data = ("--dataset=folder", f"--data_dir={data_dir}", f"--model_dir={model_dir}")
    with pytest.raises(ValueError, match="batch_size=64 is larger than the 16"):
        run_inside(*SHORT, *data, "--batch_size=64")
    run_inside(*SHORT, *data, "--mode=pretrain", "--batch_size=8", "--pretrain_epochs=0")
    other = write_folder(tmp_path / "other", count=9)
    with pytest.raises(ValueError, match="file added: cat/8.jpg"):
        run_inside(
            *SHORT, *data, "--mode=pretrain", "--batch_size=8", "--pretrain_epochs=0",
            f"--data_dir={other}",
        )  # fmt: skip


@pytest.mark.slow
def test_pieces_and_views_train_through_the_command(tmp_path, capsys):
    """Each step has all 64 images, uncropped, so that the losses of all steps compare."""
    run_inside(
        *SHORT, "--mode=pretrain", f"--model_dir={tmp_path}", "--microbatch_size=16",
        "--nouse_global_batch_norm", "--num_views=3", "--num_images=64", "--batch_size=64",
        "--augmentation_type=identity", "--crop_area_range=1,1", "--pretrain_epochs=10",
        "--knn_interval_epochs=0", "--image_size=8",
    )  # fmt: skip
    losses = [line["loss"] for line in read_lines(tmp_path / "pretrain/metrics.jsonl")]
    assert len(losses) == 10 and losses[-1] < losses[0] - 0.01
    following = capsys.readouterr().out.strip().splitlines()[-1]
    assert "--mode=linear,eval" in following and "--microbatch_size=16" in following


def write_folder(root, *, splits=("train", "test"), classes=("cat", "dog"), count=8):
    """Noise around a color per class: JPEG, grayscale JPEG, PNG and PNG with alpha."""
    rng = np.random.default_rng(0)
    for split in splits:
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                noise = rng.integers(0, 60, [20, 24, 3]) + 150 * (np.arange(3) == label)
                image = Image.fromarray(noise.astype(np.uint8))
                mode, extension = (("RGB", "jpg"), ("L", "jpg"), ("RGB", "png"), ("RGBA", "png"))[
                    index % 4
                ]
                image.convert(mode).save(folder / f"{index}.{extension}")
    return root


def test_a_folder_runs_through_all_stages_with_its_class_names(tmp_path, capsys):
    data_dir = write_folder(tmp_path / "data", classes=("cat", "dog", "owl"))
    model_dir = tmp_path / "run"
    run_inside(
        *SHORT, "--dataset=folder", f"--data_dir={data_dir}", f"--model_dir={model_dir}",
        "--batch_size=8", "--eval_batch_size=16", "--image_size=8",
        "--augmentation_type=identity", "--pretrain_epochs=0", "--knn_interval_epochs=0",
    )  # fmt: skip
    output = capsys.readouterr().out
    assert "24 training and 24 test examples of 3 classes (cat, dog, owl)" in output
    assert json.loads((model_dir / "linear/class_names.json").read_text()) == ["cat", "dog", "owl"]
    evaluation = json.loads((model_dir / "eval/eval.json").read_text())
    assert evaluation["num_examples"] == 24
    assert "top_5" not in evaluation and "top-5" not in output  # Of three classes it is 1.


@pytest.mark.parametrize("name", ["cat/0.jpg", "dog/5.jpg", "dog/6.png"])
def test_a_damaged_image_stops_the_step_and_is_named(tmp_path, name):
    data_dir = write_folder(tmp_path / "data")
    broken = data_dir / "train" / name
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{re.escape(str(broken))}") as caught:
        run_inside(
            *SHORT, "--dataset=folder", f"--data_dir={data_dir}",
            f"--model_dir={tmp_path / 'run'}", "--batch_size=8", "--image_size=8",
            "--augmentation_type=identity",
        )  # fmt: skip
    assert "remove or replace" in str(caught.value).lower()
    assert not (tmp_path / "run/pretrain/encoder.keras").exists()


def bad_folder(tmp_path, kind):
    root = tmp_path / "data"
    if kind == "missing":
        return root
    if kind == "empty":
        root.mkdir()
        return root
    write_folder(root, classes=("cat",) if kind == "one class" else ("cat", "dog"))
    if kind == "empty file":
        (root / "train/cat/3.png").write_bytes(b"")
    if kind == "text file":
        (root / "test/dog/notes.jpg").write_text("not an image")
    return root


@pytest.mark.parametrize(
    "kind,message",
    [
        ("missing", "is not a folder"),
        ("empty", "holds nothing"),
        ("one class", r"1 class folder\(s\).* at least two"),
        ("empty file", r"3.png: empty"),
        ("text file", r"notes.jpg: starts with b'not an i'"),
    ],
)
def test_a_bad_folder_is_refused_before_training(tmp_path, kind, message):
    data_dir = bad_folder(tmp_path, kind)
    with pytest.raises(ValueError, match=message):
        run_inside("--dataset=folder", f"--data_dir={data_dir}", f"--model_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run/pretrain/metrics.jsonl").exists()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--dataset=no_such_dataset"], "neither .*digits.*folder.*TensorFlow Datasets"),
        (["--dataset=cifar-10"], "Did you mean --dataset=cifar10 or"),
        (["--dataset=CIFAR10:3.*.*"], "Did you mean --dataset=cifar10 or"),
        (["--dataset=Folder"], "Did you mean --dataset=folder?"),
        (["--dataset=svhn"], "Did you mean --dataset=svhn_cropped?"),
        (["--dataset=folder"], "needs --data_dir"),
        (["--mode=linear"], "--mode=linear .*--mode=pretrain.*--reference_ckpt"),
        (["--mode=eval"], "--mode=eval .*--mode=pretrain"),
        (["--batch_size=1438"], "larger than the 1437 training examples"),
    ],
)
def test_bad_input_is_refused_before_training(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run_inside(*arguments, f"--model_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run/pretrain/metrics.jsonl").exists()


def test_later_stages_of_an_unfinished_run_say_what_is_missing(tmp_path):
    (tmp_path / "run/pretrain").mkdir(parents=True)
    expected = {
        "linear": "no pretrained encoder .* run --mode=pretrain",
        "eval": "no classifier .* run --mode=linear",
    }
    for mode, message in expected.items():
        with pytest.raises(ValueError, match=message):
            run_inside(f"--mode={mode}", f"--model_dir={tmp_path / 'run'}")


def test_an_error_is_one_message_and_a_failing_exit(tmp_path):
    done = run_command("--mode=linear", f"--model_dir={tmp_path}")
    assert done.returncode == 1
    assert "ERROR: --mode=linear needs a trained encoder" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_batch_that_replicas_cannot_share_is_refused(tmp_path):
    with pytest.raises(ValueError, match="=66 .* 4 replicas: .*64 or 68"):
        run_inside(*SHORT, "--strategy=mirrored", "--batch_size=66", f"--model_dir={tmp_path}")


@pytest.mark.slow  # test_damaged_runs.py makes single files again in the same way.
def test_a_run_killed_after_its_last_step_is_finished_by_the_next(digits, tmp_path):
    model_dir, _ = digits
    copy = tmp_path / "copy"
    shutil.copytree(model_dir, copy)
    for name in ("pretrain/result.json", "pretrain/encoder.keras", "linear/result.json"):
        (copy / name).unlink()
    shutil.rmtree(copy / "linear")
    run_inside(*SHORT, "--mode=pretrain,linear", f"--model_dir={copy}")
    (copy / "linear/result.json").unlink()
    run_inside(*SHORT, "--mode=linear,eval", f"--model_dir={copy}")
    old, new = (
        json.loads((path / "pretrain/result.json").read_text()) for path in (model_dir, copy)
    )
    assert new["loss"] == old["loss"] and new["knn_accuracy"] == old["knn_accuracy"]


def test_stages_of_no_epochs_leave_an_untrained_model(tmp_path):
    run_inside(
        "--pretrain_epochs=0", "--pretrain_warmup_epochs=0", "--linear_epochs=0",
        f"--model_dir={tmp_path}",
    )  # fmt: skip
    assert json.loads((tmp_path / "eval/eval.json").read_text())["top_1"] < 0.5


@pytest.mark.slow
def test_the_wheel_brings_its_recipes(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path]
    subprocess.run([*build, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    place = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", f"--target={place}", wheel],
        check=True,
    )
    code = "import supcon_tf.cli.command_line as c; print(c.recipe_path('digits'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(place)},
    )  # fmt: skip
    assert str(place / "supcon_tf" / "flags" / "digits.flags") in done.stdout, done.stderr
