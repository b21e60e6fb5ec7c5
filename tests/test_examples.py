"""The example scripts run as they stand in examples/, with fewer steps."""

import contextlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from helpers.command import run_inside
from helpers.notebook import as_shown, run_notebook

ROOT = Path(__file__).parent.parent


def numbers(output):
    return [float(number) for number in re.findall(r"\d\.\d{4}", output)]


def output_of(name, *arguments):
    """What the script prints in a new process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        capture_output=True, text=True, env=environment, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def run_example(monkeypatch, capsys):
    """Runs a script in this process, which has TensorFlow loaded already, and so its commands."""

    def run(command, **_):
        assert command[:3] == [sys.executable, "-m", "supcon_tf.main"]
        with contextlib.redirect_stdout(io.StringIO()):  # The examples leave it out.
            run_inside(*command[3:])

    def numbers_of(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setattr(subprocess, "run", run)
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return numbers(capsys.readouterr().out)

    return numbers_of


def test_every_example_is_tested():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {
        "estimator.py", "own_encoder.py", "own_data.py", "pretrained.py", "imbalanced.py",
        "multi_label.py", "deploy.py",
    }  # fmt: skip


@pytest.mark.slow
def test_the_estimator_learns_the_digits(run_example):
    output = run_example("estimator.py", "--epochs=10", "--search_epochs=1", "--images=500")
    training, validation, top_1, *search, loaded = output
    assert training > validation == top_1 == loaded > 0.5
    assert len(search) == 2 and min(search) > 0.15  # Ten classes at random: 0.1.


@pytest.mark.slow
def test_an_own_encoder_and_a_network_of_keras_learn_the_digits(run_example):
    own, network = run_example("own_encoder.py", "--steps=40")
    assert own > 0.8 and network > 0.2  # Ten classes at random: 0.1.


@pytest.mark.slow
def test_a_pretrained_start_learns_faster(run_example):
    pretrained, scratch = run_example("pretrained.py", "--pretrain_epochs=5", "--epochs=20")
    assert pretrained > scratch > 0.2  # Five classes at random: 0.2.


@pytest.mark.slow
def test_own_data_with_several_labels_is_learned(run_example):
    classifier, probe = run_example("own_data.py", "--steps=40", "--pictures=500")
    assert classifier > 0.3 and probe > 0.3  # Two of ten classes at random: about 0.2.


@pytest.mark.slow
def test_balanced_classes_raise_the_mean_per_class_of_imbalanced_data(run_example):
    top_1, per_class, balanced_top_1, balanced_per_class = run_example("imbalanced.py")
    assert top_1 > per_class + 0.05  # The accuracy hides the rare classes.
    assert balanced_per_class > per_class + 0.05 and balanced_top_1 > 0.7


@pytest.mark.slow
def test_drawn_shapes_are_recognized_better_than_by_each_baseline(run_example):
    command, python, pixels, chance = run_example("multi_label.py", "--images=600", "--epochs=20")
    assert min(command, python) > pixels > chance > 0.3


@pytest.mark.slow
def test_the_exported_model_classifies_images_without_this_package():
    output = output_of("deploy.py", "--epochs=6")
    found = re.findall(r"a (\d): (\d) with probability (\d\.\d+)", output)
    assert len(found) == 10 and sum(true == predicted for true, predicted, _ in found) >= 8
    assert "supcon_tf was imported: False" in output


NOTEBOOK = ROOT / "examples/notebook.ipynb"


def texts_of(notebook):
    """What the cells print or return, as text."""
    outputs = [x for cell in notebook.cells for x in cell.get("outputs", ())]
    return "\n".join(x.get("text") or x.get("data", {}).get("text/plain", "") for x in outputs)


def pictures_of(notebook):
    outputs = [x for cell in notebook.cells for x in cell.get("outputs", ())]
    return [x for x in outputs if "image/png" in x.get("data", {})]


def test_the_notebook_keeps_small_outputs_without_paths_of_a_machine():
    assert NOTEBOOK.stat().st_size < 400_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = json.dumps([cell.outputs for cell in code])
    assert not re.search(r"/(home|root|tmp|work|Users|opt|usr)/|Traceback|stderr", outputs)
    assert len(pictures_of(notebook)) == 4
    assert float(re.search(r"accuracy (\d\.\d+)", texts_of(notebook))[1]) > 0.9


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom():
    fewer = {"(epochs=15)": "(epochs=10)", "--pretrain_epochs=10": "--pretrain_epochs=3"}
    notebook = run_notebook(NOTEBOOK, replaced=fewer)
    text = texts_of(notebook)
    assert float(re.search(r"accuracy (\d\.\d+)", text)[1]) > 0.9
    assert "same predictions: True" in text and "new_images/" in text
    assert len(pictures_of(notebook)) == 4


def test_a_bar_that_was_drawn_over_itself_is_kept_as_it_was_at_last():
    assert as_shown("a\rfit: 10%\rfit: 100%\nnext   \n") == "fit: 100%\nnext\n"
    assert as_shown("fit: 10%\r        \rdone") == "done"
