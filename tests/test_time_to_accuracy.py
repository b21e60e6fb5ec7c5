"""The benchmark of the time to an accuracy: what it reads, its table, and its other programs."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from helpers.benchmark_scripts import FOLDER, load_benchmark
from helpers.command import run_inside  # noqa: F401  It defines the flags of the command.
from helpers.tiny_images import write_images

from supcon_tf.cli import implied_flags
from supcon_tf.evaluation import metrics
from supcon_tf.losses import supcon


@pytest.fixture(scope="module")
def benchmark():
    return load_benchmark("time_to_accuracy")


@pytest.fixture(scope="module")
def keras_script():
    return load_benchmark("supcon_in_keras")


def test_the_flags_of_the_command_are_valid(benchmark, tmp_path):
    write_images(tmp_path)
    command, log = benchmark.command_of("supcon_tf", tmp_path, tmp_path / "run", 2, 1, None)
    line = ["supcon_tf", *command[command.index("supcon_tf.main") + 1 :]]
    with flagsaver.flagsaver():
        assert len(flags.FLAGS(implied_flags.complete(line))) == 1
        assert flags.FLAGS.cross_entropy_weight == 0 and flags.FLAGS.pretrain_epochs == 2
    assert log == tmp_path / "run/pretrain/metrics.jsonl"


def test_only_complete_lines_with_an_accuracy_are_read(benchmark, tmp_path):
    log = tmp_path / "log.jsonl"
    assert benchmark.read_accuracies(log) == []
    log.write_text('{"step": 1}\n{"step": 2, "knn_accuracy": 0.25}\n{"step": 3, "knn_acc')
    assert benchmark.read_accuracies(log) == [0.25]


def test_a_program_is_stopped_at_the_highest_level(benchmark, tmp_path):
    log = tmp_path / "log"
    program = (
        "import json, time\n"
        "for accuracy in (0.2, 0.5, 0.6):\n"
        f"    with open({str(log)!r}, 'a') as file:\n"
        "        print(json.dumps({'knn_accuracy': accuracy}), file=file)\n"
        "time.sleep(60)\n"
    )
    curve = benchmark.measure([sys.executable, "-c", program], log, highest=0.55)
    assert [accuracy for _, accuracy in curve] == [0.2, 0.5, 0.6]
    assert curve[-1][0] < 30


def test_a_program_that_fails_shows_its_message(benchmark, tmp_path):
    failing = [sys.executable, "-c", "raise RuntimeError('no images')"]
    with pytest.raises(SystemExit, match="no images"):
        benchmark.measure(failing, tmp_path / "log", highest=1.0)


def test_the_table_shows_medians_and_ratios(benchmark):
    ours = ([[10, 0.31], [20, 0.46]], [[12, 0.31], [30, 0.46]], [[14, 0.41], [40, 0.45]])
    rows = [{"side": "supcon_tf", "curve": curve} for curve in ours]
    rows += [{"side": "PyTorch", "curve": [[24, 0.3], [90, 0.4]]}] * 3
    lines = benchmark.create_table({"rows": rows}).split("\n")
    assert lines[0] == "| program | rounds | 30%, s | 40%, s | 45%, s |"
    assert lines[2] == "| supcon_tf | 3 | 12 (10 to 14) | 20 (14 to 30) | 30 (20 to 40) |"
    assert lines[3] == "| PyTorch | 3 | 24, 2.00x | 90, 4.50x | not reached |"


def test_finished_rounds_are_not_measured_again(benchmark, tmp_path, monkeypatch):
    measured = []

    def measure(command, log, highest):
        measured.append(command[1])
        return [[5.0, highest]]

    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr(benchmark, "install_torch", lambda folder: sys.executable)
    monkeypatch.setattr(benchmark.records, "versions", lambda python, packages: {"torch": "2"})
    results = tmp_path / "results.json"
    monkeypatch.setattr(
        "sys.argv",
        ["time_to_accuracy.py", f"--photographs={tmp_path}", f"--torch_env={tmp_path}",
         f"--results={results}", "--rounds=2"],
    )  # fmt: skip
    benchmark.main()
    facts = json.loads(results.read_text())
    assert len(measured) == 6 and len(facts["rows"]) == 6
    assert facts["peer_versions"] == {"torch": "2"} and str(tmp_path) not in results.read_text()
    results.write_text(json.dumps({"rows": facts["rows"][:4]}))
    benchmark.main()
    assert len(measured) == 8 and measured[-2].endswith("supcon_in_pytorch.py")


def test_the_nearest_neighbors_are_those_of_the_command():
    peer_program = load_benchmark("peer_program")
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=[300, 8]), rng.normal(size=[80, 8])
    labels, expected = rng.integers(0, 4, 300), rng.integers(0, 4, 80)
    assert peer_program.knn_accuracy(train, labels, test, expected) == pytest.approx(
        metrics.knn_accuracy(train, labels, test, expected), abs=1e-12
    )


def test_the_loss_of_the_keras_script_is_ours(keras_script):
    rng = np.random.default_rng(0)
    rows = tf.math.l2_normalize(tf.constant(rng.normal(size=[12, 2, 16]), tf.float32), axis=-1)
    labels = tf.constant(rng.integers(0, 3, 12), tf.int32)
    ours = supcon.SupConLoss(temperature=keras_script.TEMPERATURE, scale_by_temperature=True)
    np.testing.assert_allclose(
        keras_script.supcon_loss(labels, rows), ours(labels, rows), rtol=1e-5
    )


@pytest.mark.slow
def test_the_keras_script_trains(tmp_path):
    write_images(tmp_path / "data", count=40)
    script = str(FOLDER / "supcon_in_keras.py")
    subprocess.run(
        [sys.executable, script, f"--data={tmp_path / 'data'}", f"--log={tmp_path / 'log'}",
         "--epochs=1", "--seed=0"],
        check=True,
    )  # fmt: skip
    (line,) = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert line["epoch"] == 1 and 0 <= line["knn_accuracy"] <= 1
