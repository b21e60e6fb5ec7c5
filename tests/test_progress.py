"""What a person sees while a run works and after it: the console and TensorBoard."""

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import types
import urllib.request
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from google.protobuf import text_format
from helpers import command
from tensorboard.plugins import projector

from supcon_tf.cli import tensorflow_start
from supcon_tf.data import pipeline, sources
from supcon_tf.report import eval_pictures
from supcon_tf.stages import eval_tensorboard, inputs, projector_files, trainer
from supcon_tf.training import checkpoint, loop, profiling, progress, reference_tags, view_images


def test_a_long_wait_says_once_what_it_waits_for(monkeypatch, capsys):
    monkeypatch.setattr(progress, "WAIT_SECONDS", 0.05)
    with progress.waiting("Saving"):
        said, deadline = "", time.monotonic() + 60
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
            said = capsys.readouterr().out
        assert said == "Saving...\n"
    assert capsys.readouterr().out == ""


def test_a_short_wait_says_nothing(capsys):
    with progress.waiting("Saving"):
        pass
    with pytest.raises(OSError), progress.waiting("Saving"):
        raise OSError
    assert capsys.readouterr().out == ""


def test_nobody_waits_two_seconds_without_a_word():
    assert progress.WAIT_SECONDS < 2


def test_a_log_file_gets_the_first_line_at_once_and_the_last_at_the_end(capsys):
    with progress.Progress("linear", 9) as bar:
        bar.update(1, {"loss": 0.5}, None)
        assert capsys.readouterr().err == "linear: step 1 of 9, loss 0.5000\n"
        bar.update(2, {"loss": 0.4}, 70)
        bar.update(3, {"loss": 0.3, "knn_accuracy": 0.9}, 60)
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err == "linear: step 3 of 9, 01:00 left, loss 0.3000, k-NN 0.900\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_from_the_first_step_on(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    with progress.Progress("linear", 9) as bar:
        bar.update(3, {"loss": 0.5}, None)
        assert re.search(r"linear: +33%.* 3/9, loss 0.5000", progress.sys.stderr.getvalue())
        bar.update(9, {"loss": 0.4}, 0)
        assert "9/9, loss 0.4000" in progress.sys.stderr.getvalue()


def test_a_notebook_gets_one_bar_on_standard_output(monkeypatch, capsys):
    """Jupyter shows standard error in red. Outside of a notebook IPython has no kernel."""
    shell = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert not progress.is_notebook()
    shell.kernel = object()
    assert progress.is_notebook()
    with progress.Progress("fit", 9) as bar:
        bar.update(3, {"loss": 0.5}, None)
        bar.update(9, {"loss": 0.4}, 0)
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.count("\n") == 1
    assert "9/9, loss 0.4000" in captured.out.split("\r")[-1]


def test_quiet_workers_show_nothing(capsys):
    with progress.Progress("linear", 9, is_shown=False) as bar:
        bar.update(1, {"loss": 0.5}, None)
    assert capsys.readouterr().err == ""


def test_the_speed_leaves_out_compiling_and_what_happens_between_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    speed = progress.Speed(images_per_step=64)

    def call(num_steps, seconds):
        now[0] += 1000.0  # An evaluation.
        speed.restart()
        now[0] += seconds
        speed.count(num_steps)

    call(1, 70.0)
    assert speed.seconds_left(10) is None and speed.images_per_second() == {}
    call(4, 2.0)
    call(4, 2.0)
    assert speed.seconds_left(10) == pytest.approx(5.0)
    assert speed.images_per_second() == {"images_per_second": pytest.approx(128.0)}


def test_the_time_of_a_stage_is_estimated_once_after_some_seconds_of_steps(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress("linear", 1_000) as bar:
        for step in range(0, 1_000, 100):
            bar.update(step, {"loss": 0.5}, (1_000 - step) / 10)
            now[0] += progress.ESTIMATE_SECONDS / 2
    said = capsys.readouterr().out
    assert said == "linear: the remaining 800 steps will take about 80 s.\n"


@pytest.mark.parametrize(
    "seconds,text",
    [(0.2, "1 s"), (80, "80 s"), (600, "10 min"), (7_800, "2 h 10 min"), (200_000, "55 h")],
)
def test_durations_are_rounded_for_people(seconds, text):
    assert progress.describe_duration(seconds) == text


def test_a_pass_over_images_is_shown_only_if_it_takes_long(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def shown(seconds_per_batch):
        with progress.ImageProgress("eval", 256) as bar:
            for _ in range(8):
                bar.update(32)
                now[0] += seconds_per_batch
        return capsys.readouterr().err

    assert shown(0.1) == ""
    first, last = shown(4.0).splitlines()[0], shown(4.0).splitlines()[-1]
    assert first == "eval: image 64 of 256, 00:24 left, 8 images/s"
    assert last == "eval: image 256 of 256, 8 images/s"


# A whole run.


drawn = mock.Mock(wraps=view_images.draw_views)


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """A short run of the main job without patience, so that every wait speaks."""
    folder = tmp_path_factory.mktemp("short_run")
    out, err = io.StringIO(), io.StringIO()
    inputs._read_splits.cache_clear()  # So that it says what it reads, after any other test.
    with (
        mock.patch.object(view_images, "draw_views", drawn),
        mock.patch.object(progress, "WAIT_SECONDS", 0.0),
        mock.patch.object(loop, "LEAST_STEPS_WITH_VIEWS", 4),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        command.run_inside(
            "--mode=pretrain,linear,eval", f"--model_dir={folder}", "--pretrain_epochs=0.2",
            "--linear_epochs=0.2", "--pretrain_warmup_epochs=0", "--image_size=8",
            "--eval_train_examples=200", "--augmentation_type=identity", "--profile_steps=2,3",
        )  # fmt: skip
    return folder, out.getvalue(), err.getvalue()


def test_every_stage_says_what_it_waits_for(short_run):
    """With no patience every wait speaks; the first and the last step are shown in each stage."""
    _, out, err = short_run
    for what in (
        "Drawing views of the first batch", "pretrain: compiling the training step",
        "embeddings for k-NN", "pretrain: measuring k-NN on 1,437 embeddings",
        "pretrain: saving the checkpoint of step 4", "pretrain: saving the encoder",
        "linear: loading the encoder", "linear: compiling the training step",
        "linear: evaluating on 360 held-out images", "linear: saving the classifier",
        "eval: loading the classifier", "eval: computing the outputs for 360 images",
        "eval: fitting k-NN and logistic regression", "eval: writing the files for TensorBoard",
    ):  # fmt: skip
        assert re.search(rf"{what}.*\.\.\.", out), what
    for stage in ("pretrain", "linear"):
        assert re.search(rf"{stage}: step 1 of 4, loss", err)
        assert re.search(rf"{stage}: step 4 of 4, loss .* images/s", err)
    assert re.search(r"positives -?\d\.\d\d, negatives -?\d\.\d\d, probe 0\.\d+, k-NN 0", err)
    assert "collapse" not in out + err
    assert "\r" not in out + err  # Standard error is no terminal here, as in a log file.


def test_a_run_says_at_the_start_what_runs_on_what(short_run):
    folder, out, _ = short_run
    for line in (
        rf"Run: pretrain, linear, eval; the files go to {folder}\.",
        r"Hardware: .*(CPU with \d+ core|GPU|NVIDIA|TPU).* 64 examples per replica, float32",
        r"Dataset digits: 1,437 training and 360 test examples of 10 classes",
        r"pretrain: 4 steps of 64 images x 2 views of 8 px \(0\.2 epochs\); tiny encoder",
        r"linear: 10 classes on 64 features of .*, 4 steps",
    ):
        assert re.search(f"^{line}", out, re.M), line


def test_a_run_ends_with_a_table_and_the_next_command(short_run):
    folder, out, _ = short_run
    lines = out[out.index("\nstage ") :].strip().splitlines()
    assert lines[0].split() == ["stage", "result", "time", "files", "in", str(folder)]
    evaluation = json.loads((folder / "eval/eval.json").read_text())
    for stage, result, path in (
        ("pretrain", "4 steps, k-NN accuracy 0", "pretrain/encoder.keras"),
        ("linear", "4 steps, top-1 0", "linear/classifier.keras"),
        ("eval", f"top-1 {evaluation['top_1']:.4f}, top-5 ", "eval/eval.json"),
    ):
        (row,) = [line for line in lines if line.startswith(f"{stage} ")]
        assert re.search(rf"{result}.* \d\d:\d\d  {path}$", row)
    assert f"tensorboard.main --logdir={folder}" in lines[-2]
    assert lines[-1].startswith("Next: ") and "supcon_tf.main" in lines[-1]


# TensorBoard.


def read_events(folder):
    """The last value of each tag: a number, or an image as uint8 [H, W, 3]."""
    found = {}
    for path in sorted((folder / "tensorboard").glob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)):
            for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
                array = tf.make_ndarray(value.tensor)
                is_image = array.dtype == object  # Width, height, PNG.
                found[value.tag] = tf.io.decode_png(array[2]).numpy() if is_image else float(array)
    return found


def test_the_tags_of_the_released_code_stand_beside_ours(short_run):
    folder, _, _ = short_run
    for stage, same in (
        ("pretrain", {"loss/contrastive_loss": "loss", "stage_1_learning_rate": "learning_rate",
                      "current_epoch": "epoch"}),
        ("linear", {"loss/cross_entropy_loss": "loss", "top_1_accuracy": "accuracy",
                    "stage_2_learning_rate": "learning_rate", "current_epoch": "epoch"}),
        ("eval", {"top_1_accuracy": "top_1", "top_5_accuracy": "top_5"}),
    ):  # fmt: skip
        events = read_events(folder / stage)
        assert {tag: events[tag] for tag in same} == {tag: events[own] for tag, own in same.items()}
        assert set(events) & reference_tags.REFERENCE_TAGS == set(same)
    last = command.read_lines(folder / "pretrain/metrics.jsonl")[-1]
    assert read_events(folder / "pretrain")["loss"] == pytest.approx(last["loss"])
    evaluation = json.loads((folder / "eval/eval.json").read_text())
    assert read_events(folder / "eval")["top_1"] == pytest.approx(evaluation["top_1"])


def test_two_losses_and_cross_entropy_alone_have_their_own_tags():
    both = {"loss": 3.0, "contrastive_loss": 1.0, "cross_entropy": 2.0, "accuracy": 0.5}
    assert reference_tags.reference_scalars(both, "pretrain") == {
        "loss/contrastive_loss": 1.0, "loss/cross_entropy_loss": 2.0, "top_1_accuracy": 0.5,
    }  # fmt: skip
    alone = {"loss": 2.0, "accuracy": 0.5, "probe_accuracy": 0.7}
    assert reference_tags.reference_scalars(alone, "pretrain") == {
        "loss/cross_entropy_loss": 2.0, "top_1_accuracy": 0.5,
    }  # fmt: skip


def test_tensorboard_shows_the_views_of_the_first_batch(short_run):
    folder, _, _ = short_run
    (batch,), _ = drawn.call_args_list[0]
    views = batch["image"].numpy()
    assert views.shape == (64, 2, 8, 8, 3)
    picture = read_events(folder / "pretrain")["views"]
    tiles = picture[4:, 4:].reshape([view_images.NUM_EXAMPLES, 100, 2, 100, 3])
    np.testing.assert_array_equal(
        tiles[:, 6:96:12, :, 6:96:12].swapaxes(1, 2), views[: view_images.NUM_EXAMPLES]
    )


def test_tensorboard_shows_the_confusion_matrix_and_precision_by_recall(short_run):
    folder, _, _ = short_run
    events = read_events(folder / "eval")
    for name in ("confusion_matrix", "precision_recall"):
        height, width, _ = events[name].shape
        assert height > 300 and width > 300 and len(np.unique(events[name])) > 10


def test_the_pictures_show_what_is_right():
    """A right matrix is dark on its diagonal; perfect scores have precision 1 at every recall."""
    matrix = 7 * np.eye(3, dtype=int)
    right = eval_pictures.draw_confusion_matrix(matrix, ("a", "b", "a class of a long name"))
    wrong = eval_pictures.draw_confusion_matrix(np.roll(matrix, 1, axis=0), ("a", "b", "c"))
    assert right.dtype == np.uint8 and not np.array_equal(right, wrong)
    is_class = np.eye(12, dtype=bool)  # More classes than curves.
    names = [f"class {index}" for index in range(12)]
    perfect = eval_pictures.draw_precision_recall(is_class.astype(float), is_class, names)
    poor = eval_pictures.draw_precision_recall(1.0 - is_class, is_class, names)
    assert not np.array_equal(perfect, poor)


def test_the_projector_gets_vectors_names_and_images(short_run):
    folder, _, _ = short_run
    shown = folder / "eval/tensorboard"
    config = projector.ProjectorConfig()
    text_format.Parse((shown / "projector_config.pbtxt").read_text(), config)
    (embedding,) = config.embeddings
    vectors = np.loadtxt(shown / embedding.tensor_path)
    assert list(vectors.shape) == list(embedding.tensor_shape) == [360, 64]
    header, *rows = (shown / embedding.metadata_path).read_text().splitlines()
    assert header.split("\t") == ["name", "label", "prediction", "correct"]
    source = sources.load_source("digits", "test")
    assert [int(row.split("\t")[1]) for row in rows] == source.labels.tolist()
    right = [row.split("\t")[3] for row in rows].count("yes")
    evaluation = json.loads((folder / "eval/eval.json").read_text())
    assert right / 360 == pytest.approx(evaluation["top_1"])
    assert list(embedding.sprite.single_image_dim) == [8, 8]
    sprite = tf.io.decode_png((shown / embedding.sprite.image_path).read_bytes()).numpy()
    assert sprite.shape == (19 * 8, 19 * 8, 3)  # The next square number is 361.
    batches = pipeline.create_eval_batches(source, batch_size=360, image_size=8)
    images = next(iter(batches))["image"].numpy()
    tiles = sprite.reshape([19, 8, 19, 8, 3]).swapaxes(1, 2).reshape([-1, 8, 8, 3])
    np.testing.assert_array_equal(tiles[:360], images)


def test_the_projector_gets_no_more_than_a_browser_can_load():
    assert len(projector_files.choose_points(360, 64)) == 360
    assert len(projector_files.choose_points(50_000, 64)) == projector_files.MAX_POINTS
    chosen = projector_files.choose_points(50_000, 2_048)
    assert len(chosen) * 2_048 <= projector_files.MAX_NUMBERS
    assert chosen[0] == 0 and chosen[-1] == 49_999


def test_a_name_with_tabs_stays_in_its_cell_and_a_sprite_needs_images(tmp_path):
    columns = {"name": ["a\tb\nc", ""], "label": ["1", "2"]}
    projector_files.write_projector_files(str(tmp_path), np.eye(2), columns)
    assert (tmp_path / "metadata.tsv").read_text() == "name\tlabel\na b c\t1\n-\t2\n"
    assert "sprite" not in (tmp_path / "projector_config.pbtxt").read_text()
    assert not (tmp_path / "sprite.png").exists()


@pytest.mark.parametrize("side", [7, 32, 48])
def test_thumbnails_pass_between_replicas_and_come_back(side):
    images = np.random.default_rng(0).integers(0, 256, [5, side, side, 3]).astype(np.float32)
    packed = eval_tensorboard.with_thumbnails(tf.constant(images), {})["thumbnails"]
    assert packed.dtype == tf.int32
    found = eval_tensorboard.thumbnails_of(packed.numpy())
    assert found.shape[1] == {7: 6, 32: 32, 48: 32}[side]
    if side == 32:
        np.testing.assert_array_equal(found, images)


# The profile.


def test_the_profile_is_where_tensorboard_looks_for_it(short_run):
    folder, out, _ = short_run
    pattern = "tensorboard/plugins/profile/*/*.xplane.pb"
    assert len(list((folder / "pretrain").glob(pattern))) == 1
    assert not list((folder / "linear").glob(pattern))  # It is of the first stage.
    assert "The profile of steps 2 to 3 is in" in out


def test_each_profiled_step_is_a_call_and_an_error_ends_the_profile(tmp_path):
    with (
        mock.patch.object(tf.profiler.experimental, "start") as start,
        mock.patch.object(tf.profiler.experimental, "stop") as stop,
    ):
        profiler = profiling.Profiler(str(tmp_path), (5, 7))
        steps = [profiler.steps_to_next(at, 20) for at in (0, 4, 5, 6, 7)]
        assert steps == [5, 1, 1, 1, 20]
        with pytest.raises(OSError), profiler:
            with profiler.tracing(4):
                assert not start.called
            with profiler.tracing(5):
                start.assert_called_once_with(str(tmp_path))
                assert not stop.called
            raise OSError
        stop.assert_called_once_with()


def profile_steps(folder, *arguments, total_steps=4, reached=0):
    """What a stage with these flags and a checkpoint at `reached` profiles."""
    record = {"step": reached} if reached else None
    with flagsaver.flagsaver(), mock.patch.object(checkpoint, "newest_record", lambda _: record):
        flags.FLAGS(["supcon_tf", *arguments])
        return trainer.profile_steps_from_flags(
            flags.FLAGS,
            types.SimpleNamespace(stage="pretrain", checkpoints=str(folder)),
            types.SimpleNamespace(total_steps=total_steps),
        )


def test_only_steps_of_the_run_can_be_profiled(tmp_path):
    assert profile_steps(tmp_path) is None
    assert profile_steps(tmp_path, "--profile_steps=0,4") == (0, 4)
    assert profile_steps(tmp_path, "--profile_steps=1,4", reached=2) == (2, 4)
    with pytest.raises(ValueError, match="=2,5 is outside of pretrain, which has 4 steps"):
        profile_steps(tmp_path, "--profile_steps=2,5")
    with pytest.raises(ValueError, match="outside of what is left .* step 3 of 4"):
        profile_steps(tmp_path, "--profile_steps=1,3", reached=3)
    for steps in ("3,3", "4,3", "-1,3", "2", "1,2,3"):
        with pytest.raises(flags.IllegalFlagValueError, match="profile_steps.*each larger"):
            profile_steps(tmp_path, f"--profile_steps={steps}")
    with pytest.raises(flags.IllegalFlagValueError, match="trains in steps.*momentum"):
        profile_steps(tmp_path, "--mode=linear,eval", "--profile_steps=1,3")


# The log messages of TensorFlow.


@pytest.mark.parametrize(
    "arguments,level",
    [((), -1), (("--verbosity=-2",), -2), (("--verbosity=0",), 0), (("-v=1",), 1)],
)
def test_the_verbosity_is_that_of_absl_and_without_the_flag_that_of_warnings(arguments, level):
    values = flags.FlagValues()
    flags.DEFINE_integer("verbosity", -1, "as absl's", short_name="v", flag_values=values)
    values(["supcon_tf", *arguments])
    if not arguments:
        values.verbosity = 0  # As absl does once it has parsed the command line.
    assert tensorflow_start.verbosity(values) == level


NOISE = ("oneDNN", "InitializeLog", "cpu_feature_guard", "cudart")


@pytest.mark.slow
def test_the_first_words_come_within_five_seconds_and_without_noise(tmp_path):
    """TensorFlow's messages come back with --verbosity=0, where a wrong TPU ends the run early."""
    arguments = (f"--model_dir={tmp_path}", "--strategy=mirrored", "--batch_size=7")
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "supcon_tf.main", *arguments, "--logical_cpus=2"],
        cwd=command.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"},
    ) as process:  # fmt: skip
        first = process.stdout.readline()
        seconds = time.monotonic() - started
        _, err = process.communicate()
    assert first == "Starting TensorFlow...\n"
    assert seconds < 5
    assert "ERROR: " in err and not any(word in err for word in NOISE)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"}
    loud = command.run_command(*arguments, "--logical_cpus=2", "--verbosity=0", env=environment)
    assert any(word in loud.stderr for word in NOISE)


@pytest.mark.slow
def test_tensorboard_itself_finds_everything(short_run):
    folder, _, _ = short_run
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", f"--logdir={folder}", f"--port={port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def ask(page):
        with urllib.request.urlopen(f"http://localhost:{port}/data/{page}", timeout=60) as answer:
            return json.load(answer)

    try:
        runs, deadline = [], time.monotonic() + 120
        while len(runs) < 3 and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                runs = ask("runs")
            time.sleep(1)
        assert {"pretrain/tensorboard", "linear/tensorboard", "eval/tensorboard"} == set(runs)
        assert ask("plugin/projector/runs") == ["eval/tensorboard"]
        images = ask("plugin/images/tags")
        assert set(images["eval/tensorboard"]) == {"confusion_matrix", "precision_recall"}
        assert set(images["pretrain/tensorboard"]) == {"views"}
        assert "loss/contrastive_loss" in ask("plugin/scalars/tags")["pretrain/tensorboard"]
    finally:
        process.terminate()
        process.wait()
