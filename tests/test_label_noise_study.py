"""The study of how well each kind of embedding finds wrong labels."""

import json

import numpy as np
import pytest
from helpers.benchmark_scripts import load_benchmark
from helpers.command import ROOT
from helpers.tiny_images import write_images


@pytest.fixture
def study(monkeypatch, tmp_path):
    study = load_benchmark("label_noise")
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(study, "EPOCHS", {"digits": 1, "photographs": 1})
    monkeypatch.setitem(study.JOINT, "pretrain_epochs", 1.0)
    monkeypatch.setattr(study, "NUM_PHOTOGRAPHS", 50)
    monkeypatch.setattr(study, "NUM_FOLDS", 2)
    return study


@pytest.mark.slow
def test_every_embedding_is_measured_once_and_printed(study, monkeypatch, tmp_path, capsys):
    write_images(tmp_path / "data", count=25)
    arguments = ["label_noise.py", f"--photographs={tmp_path / 'data'}", "--seeds=0"]
    monkeypatch.setattr("sys.argv", [*arguments, "--noises=0.3"])
    study.main()
    output = capsys.readouterr().out
    cells = {
        path.name: json.loads(path.read_text())
        for path in (tmp_path / "results/photographs").iterdir()
    }
    assert sorted(cell["method"] for cell in cells.values()) == sorted(study.METHODS)
    wrong = {cell["num_errors"] for cell in cells.values()}
    assert len(wrong) == 1 and wrong.pop() > 0
    for cell in cells.values():
        assert set(cell["scores"]) == set(study.SCORES)
        assert f"| {study.TITLES[cell['method']]} | 30% | " in output
    study.main()  # Everything is finished.
    again = capsys.readouterr().out
    assert "average precision regression" not in again and "| 30% | " in again


def test_errors_among_two_plain_classes_are_found(study):
    labels = np.arange(40, dtype=np.int32) % 2
    images = np.eye(2)[labels] + np.random.default_rng(0).normal(0, 0.1, [40, 2])
    is_wrong = np.arange(40) < 4
    given = np.where(is_wrong, 1 - labels, labels).astype(np.int32)
    found = study.probabilities_of(images, given, 2, 0)
    for probabilities in found.values():
        figures = study.figures_of(probabilities, given, is_wrong)
        assert figures["average_precision"] == figures["precision_at_errors"] == 1.0


def test_the_page_shows_the_table_of_the_results(capsys):
    load_benchmark("label_noise").print_table()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    page = (ROOT / "docs/inspect.md").read_text()
    assert len(rows) > 10 and not [row for row in rows if row not in page]
