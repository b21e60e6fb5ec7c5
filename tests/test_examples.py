"""The example scripts run as they stand in examples/, with fewer steps."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def numbers(output):
    return [float(number) for number in re.findall(r"\d\.\d{4}", output)]


def run_example(name, *arguments):
    """The script in a new process; the numbers that it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        capture_output=True, text=True, env=environment, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return numbers(done.stdout)


def run_inside(name, *arguments, monkeypatch, capsys):
    """The script in this process, which has TensorFlow loaded already."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    return numbers(capsys.readouterr().out)


def test_every_example_is_tested():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {
        "estimator.py", "own_encoder.py", "own_data.py", "pretrained.py",
    }  # fmt: skip


@pytest.mark.slow
def test_the_estimator_learns_the_digits():
    output = run_example("estimator.py", "--epochs=10", "--search_epochs=1", "--images=500")
    training, validation, top_1, *search, loaded = output
    assert training > validation == top_1 == loaded > 0.5
    assert len(search) == 2 and min(search) > 0.15  # Ten classes at random: 0.1.


def test_own_encoder_learns_the_digits(monkeypatch, capsys):
    own, network = run_inside(
        "own_encoder.py", "--steps=40", "--network=tiny", monkeypatch=monkeypatch, capsys=capsys
    )
    assert own > 0.8 and network > 0.8


@pytest.mark.slow
def test_a_network_of_keras_trains_in_the_example():
    _, network = run_example("own_encoder.py", "--steps=10")
    assert network > 0.1


@pytest.mark.slow
def test_a_pretrained_start_learns_faster():
    pretrained, scratch = run_example("pretrained.py", "--pretrain_epochs=5", "--epochs=20")
    assert pretrained > scratch > 0.2  # Five classes at random: 0.2.


@pytest.mark.slow
def test_own_data_with_several_labels_is_learned(monkeypatch, capsys):
    classifier, probe = run_inside(
        "own_data.py", "--steps=40", "--pictures=500", monkeypatch=monkeypatch, capsys=capsys
    )
    assert classifier > 0.3 and probe > 0.3  # Two of ten classes at random: about 0.2.
