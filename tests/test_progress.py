"""What a person sees while a run works."""

import io
import re
import sys
import time
import types

import pytest
from helpers import command

from supcon_tf.training import progress


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


def test_every_stage_says_what_it_waits_for(monkeypatch, capsys, tmp_path):
    """With no patience every wait speaks; the first and the last step are shown in each stage."""
    monkeypatch.setattr(progress, "WAIT_SECONDS", 0.0)
    command.run_inside(
        "--mode=pretrain,linear,eval", f"--model_dir={tmp_path}", "--pretrain_epochs=0.2",
        "--linear_epochs=0.2", "--pretrain_warmup_epochs=0", "--image_size=8",
        "--eval_train_examples=200", "--augmentation_type=identity",
    )  # fmt: skip
    out, err = capsys.readouterr()
    for what in (
        "pretrain: compiling the training step", "embeddings for k-NN",
        "pretrain: measuring k-NN on 1,437 embeddings", "pretrain: saving the checkpoint of step 4",
        "pretrain: saving the encoder", "linear: loading the encoder",
        "linear: compiling the training step", "linear: evaluating on 360 held-out images",
        "linear: saving the classifier", "eval: loading the classifier",
        "eval: computing the outputs for 360 images", "eval: fitting k-NN and logistic regression",
    ):  # fmt: skip
        assert re.search(rf"{what}.*\.\.\.", out), what
    for stage in ("pretrain", "linear"):
        assert re.search(rf"{stage}: step 1 of 4, loss", err)
        assert re.search(rf"{stage}: step 4 of 4, loss .* images/s", err)
    assert re.search(r"positives -?\d\.\d\d, negatives -?\d\.\d\d, probe 0\.\d+, k-NN 0", err)
    assert "collapse" not in out + err
