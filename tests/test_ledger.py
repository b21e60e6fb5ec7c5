"""The ledger of runs, and the tables made from it, on runs that are written by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from supcon_tf.evaluation import intervals, prediction_files
from supcon_tf.studies import ledger, record, table

ROOT = Path(__file__).parent.parent
COUNT, SETTINGS = 200, {"supcon": 0.9, "cross_entropy": 0.8}


def write_run(folder, accuracy, seed):
    """A finished run with a given accuracy, without a training."""
    data = folder.parent / "my images"
    data.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    labels = (np.arange(COUNT) % 4).astype(np.int32)
    is_wrong = random.permutation(COUNT) >= accuracy * COUNT
    probabilities = np.full([COUNT, 4], 0.1, np.float32)
    probabilities[np.arange(COUNT), (labels + is_wrong) % 4] = 0.7
    names = np.array([f"{data}/test/{n % 4}/{n}.png" for n in range(COUNT)])
    predictions = prediction_files.Predictions(labels, probabilities, names, tuple("abcd"))
    for stage in ("pretrain", "linear", "eval", "robustness"):
        (folder / stage).mkdir(parents=True)
        lines = [f"--mode={stage}", f"--model_dir={folder}", f"--data_dir={data}", f"--seed={seed}"]
        lines += ["--pretrain_epochs=3", "--nouse_labels"] if stage == "pretrain" else []
        (folder / stage / "stage.flags").write_text("\n".join(lines) + "\n")
    log = [
        {"step": n, "loss": 1 / 3, **({"knn_accuracy": 0.5} if n == 7 else {})}
        for n in range(1, 501)
    ]
    (folder / "pretrain/metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in log))
    (folder / "pretrain/result.json").write_text('{"seconds": 12.34, "steps": 500}')
    evaluation = {
        "top_1": float(np.mean(~is_wrong)),
        "expected_calibration_error": 0.1 + seed / 100,
        "classifier": f"{folder}/linear/classifier.keras",
        "data": f"{data}, test",
    }
    (folder / "eval/eval.json").write_text(json.dumps(evaluation))
    (folder / "eval/predictions.npz").write_bytes(prediction_files.to_npz(predictions))
    correct = np.stack([~is_wrong, ~is_wrong & (labels > 0), ~is_wrong & (labels > 1)])
    np.savez(
        folder / "robustness/correct.npz",
        correct=correct, severity=np.array([0, 1, 2]), corruption=np.array(["clean", "fog", "fog"]),
    )  # fmt: skip
    mean = {"mean_corruption_accuracy": float(correct[1:].mean())}
    (folder / "robustness/robustness.json").write_text(json.dumps(mean))
    return predictions


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A ledger of two settings with two seeds each, and a published value."""
    root = tmp_path_factory.mktemp("results")
    for setting, accuracy in SETTINGS.items():
        for seed in (0, 1):
            run = root / f"runs/{setting}_{seed}"
            write_run(run, accuracy, seed)
            ledger.write_entry(
                run, root / "results", experiment="claims/tiny", setting=setting, seed=seed,
                figures={"learning_rate": 0.3},
            )  # fmt: skip
    published = {"top_1": {"source": "A", "values": {"supcon": 0.9, "triplet": 0.5}}}
    (root / "results/claims/tiny/published.json").write_text(json.dumps(published))
    return root / "results"


def test_an_entry_holds_the_run_without_paths_of_the_machine(results):
    folder = results / "claims/tiny/supcon/0"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "entry.json", "stage.flags", "metrics.jsonl", "eval.json", "predictions.npz",
        "robustness.json", "corrupted.npz",
    }  # fmt: skip
    for path in folder.iterdir():
        assert str(results.parent).encode() not in path.read_bytes()
    assert (folder / "stage.flags").read_text().splitlines() == [
        "--mode=pretrain,linear,eval,robustness", "--data_dir=DATA_DIR", "--seed=0",
        "--pretrain_epochs=3", "--nouse_labels",
    ]  # fmt: skip
    evaluation = json.loads((folder / "eval.json").read_text())
    assert evaluation["classifier"] == "RUN/linear/classifier.keras"
    assert evaluation["data"] == "DATA_DIR, test"


def test_an_entry_is_read_as_it_was_written(results, tmp_path):
    written = write_run(tmp_path / "run", SETTINGS["supcon"], seed=1)
    entries = ledger.read_entries(results)
    assert [(entry.setting, entry.seed) for entry in entries] == [
        ("cross_entropy", 0), ("cross_entropy", 1), ("supcon", 0), ("supcon", 1),
    ]  # fmt: skip
    entry = entries[-1]
    read = entry.predictions
    np.testing.assert_array_equal(read.labels, written.labels)
    np.testing.assert_array_equal(read.predicted(), written.predicted())
    np.testing.assert_allclose(read.probabilities, written.probabilities, atol=1e-3)
    assert read.labels.dtype == np.uint8 and read.probabilities.dtype == np.float16
    assert read.names[5] == "1/5.png"
    for name in ("top_1", "mean_corruption_accuracy"):
        assert entry.per_example(name).mean() == pytest.approx(entry.figure(name))
    assert entry.figure("learning_rate") == 0.3 and entry.figure("unknown") is None
    assert entry.facts["seconds"] == {"pretrain": 12.3}
    assert entry.facts["versions"]["tensorflow"] and entry.facts["machine"]["cpu_count"]


def test_rounding_does_not_change_the_prediction(tmp_path):
    write_run(tmp_path / "run", 1.0, seed=0)
    close = np.full([1, 4], 0.25, np.float32)
    close[0, 2] += 1e-6  # Lost in float16.
    predictions = prediction_files.Predictions(np.array([2]), close, np.array(["a"]), tuple("abcd"))
    path = tmp_path / "run/eval/predictions.npz"
    path.write_bytes(prediction_files.to_npz(predictions))
    folder = ledger.write_entry(
        tmp_path / "run", tmp_path / "results", experiment="a", setting="b", seed=0
    )
    assert ledger.read_entries(folder)[0].predictions.is_correct().all()


def test_a_log_is_thinned(results):
    lines = (results / "claims/tiny/supcon/0/metrics.jsonl").read_text().splitlines()
    read = [json.loads(line) for line in lines]
    assert len(read) == ledger.MAX_LOG_LINES + 1  # The line with the k-NN accuracy.
    assert [read[0]["step"], read[-1]["step"]] == [1, 500] and read[0]["loss"] == 0.333333
    assert [line["step"] for line in read if "knn_accuracy" in line] == [7]


def test_a_damaged_or_missing_entry_is_named(results, tmp_path):
    with pytest.raises(ValueError, match="--mode=eval"):
        ledger.write_entry(tmp_path, tmp_path, experiment="a", setting="b", seed=0)
    with pytest.raises(ValueError, match="no entry of the ledger"):
        table.create_tables([tmp_path], ["top_1"])
    shutil.copytree(results / "claims/tiny/supcon/0", tmp_path / "copy")
    (tmp_path / "copy/eval.json").write_text("{")
    with pytest.raises(ValueError, match="copy is not an entry"):
        ledger.read_entries(tmp_path)


def test_runs_are_recorded_by_a_command(tmp_path, capsys):
    for seed in (3, 4):
        write_run(tmp_path / f"run_{seed}", 0.9, seed)
    runs = [str(tmp_path / f"run_{seed}") for seed in (3, 4)]
    command = ["record", f"--results={tmp_path / 'results'}", "--experiment=mine"]
    record.record_runs([*command, *runs])
    entries = ledger.read_entries(tmp_path / "results")
    assert [(e.setting, e.seed) for e in entries] == [("run_3", 3), ("run_4", 4)]
    assert "run_4 is in" in capsys.readouterr().out
    record.record_runs([*command, "--setting=supcon", *runs])
    entries = ledger.read_entries(tmp_path / "results/mine/supcon")
    assert [entry.seed for entry in entries] == [3, 4]
    with pytest.raises(ValueError, match="the same seed: 3, 3"):
        record.record_runs([*command, "--setting=supcon", runs[0], runs[0]])
    with pytest.raises(ValueError, match="--experiment"):
        record.record_runs(["record", *runs])
    with pytest.raises(ValueError, match="no stage recorded a seed"):
        record.record_runs([*command, str(tmp_path / "results")])


# Tables.


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[2:]}


def test_a_table_shows_mean_range_interval_difference_and_verdict(results):
    rows = rows_of(table.create_tables([results], ["top_1"], "cross_entropy"))
    correct = {
        name: np.mean(
            [
                entry.predictions.is_correct()
                for entry in ledger.read_entries(results)
                if entry.setting == name
            ],
            axis=0,
        )
        for name in SETTINGS
    }
    row = rows["supcon"]
    assert (row["seeds"], row["top-1"], row["range"]) == ("0, 1", "0.9000", "0.9000 to 0.9000")
    low, high = intervals.bootstrap_interval(correct["supcon"])
    assert row["95% interval"] == f"{low:.4f} to {high:.4f}"
    change = intervals.paired_bootstrap(correct["cross_entropy"], correct["supcon"])
    assert row["minus cross_entropy"] == f"+0.1000 ({change.low:+.4f} to {change.high:+.4f})"
    assert (row["published"], row["published value"]) == ("0.9000", "inside the interval")
    assert rows["cross_entropy"]["minus cross_entropy"] == ""
    assert rows["triplet"]["top-1"] == rows["triplet"]["published value"] == "not run"


def test_one_seed_has_wilsons_interval_and_another_value_is_outside(results):
    group = ledger.read_entries(results / "claims/tiny/supcon/0")
    assert table.interval_of(group, "top_1") == intervals.wilson_interval(180, 200)
    assert table.verdict(0.5, group, "top_1") == "outside"
    assert table.verdict(0.91, group, "top_1") == "inside the interval"
    assert table.verdict(0.1, group, "expected_calibration_error") == "no interval"
    assert table.verdict(0.9, [], "top_1") == "not run"


def test_a_figure_without_examples_has_no_interval(results):
    rows = rows_of(table.create_tables([results], ["expected_calibration_error"], "cross_entropy"))
    expected = {
        "setting": "supcon", "seeds": "0, 1", "expected calibration error": "0.1050",
        "range": "0.1000 to 0.1100",
    }  # fmt: skip
    assert rows["supcon"] == expected


def test_runs_on_other_examples_are_not_compared(results, tmp_path):
    shutil.copytree(results / "claims", tmp_path / "claims")
    run = write_run(tmp_path / "run", 1.0, 0)
    fewer = prediction_files.Predictions(
        run.labels[::-1], run.probabilities[::-1], run.names, run.class_names
    )
    (tmp_path / "run/eval/predictions.npz").write_bytes(prediction_files.to_npz(fewer))
    ledger.write_entry(
        tmp_path / "run", tmp_path, experiment="claims/tiny", setting="other", seed=0
    )
    rows = rows_of(table.create_tables([tmp_path], ["top_1"], "cross_entropy"))
    assert rows["other"]["minus cross_entropy"] == "other examples"


def test_only_seeds_that_both_have_are_compared(results, tmp_path):
    shutil.copytree(results / "claims", tmp_path / "claims")
    for seed in (1, 2):  # Not seed 0, with which the corruptions of the baseline differ.
        run = tmp_path / f"run_{seed}"
        write_run(run, 0.95, seed)
        ledger.write_entry(run, tmp_path, experiment="claims/tiny", setting="other", seed=seed)
    entries = {(e.setting, e.seed): e for e in ledger.read_entries(tmp_path)}
    rows = rows_of(table.create_tables([tmp_path], ["top_1"], "cross_entropy"))
    first, second = (
        entries[setting, 1].per_example("top_1") for setting in ("cross_entropy", "other")
    )
    change = intervals.paired_bootstrap(first, second)
    expected = f"{change.difference:+.4f} ({change.low:+.4f} to {change.high:+.4f})"
    assert rows["other"]["minus cross_entropy"] == expected
    shutil.rmtree(tmp_path / "claims/tiny/other/1")
    rows = rows_of(table.create_tables([tmp_path], ["top_1"], "cross_entropy"))
    assert rows["other"]["minus cross_entropy"] == "other seeds"


def test_corrupted_images_that_differ_or_are_unknown_are_not_compared(results, tmp_path):
    figure = "mean_corruption_accuracy"
    for change in ("number", "unknown"):
        folder = tmp_path / change
        shutil.copytree(results / "claims", folder / "claims")
        if change == "number":
            for seed in (0, 1):
                path = folder / f"claims/tiny/supcon/{seed}/corrupted.npz"
                np.savez_compressed(path, mean_correct=np.ones(COUNT // 2, np.float32))
        else:
            (folder / "claims/tiny/supcon/0/predictions.npz").unlink()
        rows = rows_of(table.create_tables([folder], [figure], "cross_entropy"))
        assert rows["supcon"]["minus cross_entropy"] == "other examples"


def test_rounding_does_not_change_the_labels_of_an_image(tmp_path):
    write_run(tmp_path / "run", 1.0, seed=0)
    labels = np.array([[False, True, False, False]])
    close = np.array([[0.49999, 0.9, 0.1, 0.1]], np.float32)  # float16 would round to 0.5.
    predictions = prediction_files.Predictions(labels, close, np.array(["a"]), tuple("abcd"))
    path = tmp_path / "run/eval/predictions.npz"
    path.write_bytes(prediction_files.to_npz(predictions))
    folder = ledger.write_entry(
        tmp_path / "run", tmp_path / "results", experiment="a", setting="b", seed=0
    )
    kept = ledger.read_entries(folder)[0].predictions.probabilities
    assert ((kept >= prediction_files.PRESENT_FROM) == labels).all()


def test_the_baseline_must_be_a_setting(results):
    with pytest.raises(ValueError, match="--baseline=simclr has no top-1: choose one of"):
        table.create_tables([results], ["top_1"], "simclr")


def test_pages_are_filled_between_their_markers(results, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    marker = "<!-- table: claims/tiny --figures=top_1 --baseline=cross_entropy -->"
    page.write_text(f"# Page\n\n{marker}\nold\n<!-- end of table -->\nText.\n")
    monkeypatch.chdir(results)
    table.write_tables(["table", "--write", str(page)])
    filled = page.read_text()
    assert "old" not in filled and "+0.1000" in filled and filled.endswith("-->\nText.\n")
    table.write_tables(["table", "--write", str(page)])
    assert page.read_text() == filled == table.fill_tables(filled, results)
    assert "changed, 1 tables" in capsys.readouterr().out
    table.write_tables(["table", "claims/tiny", "--figures=top_1,expected_calibration_error"])
    assert "**claims/tiny: expected calibration error**" in capsys.readouterr().out


def test_published_values_without_a_run_are_not_run(tmp_path):
    published = {"top_1": {"source": "A", "values": {"supcon": 0.5}}}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/published.json").write_text(json.dumps(published))
    text = "<!-- table: mine -->\n<!-- end of table -->"
    assert "| supcon |  | not run |  | 0.5000 | not run |" in table.fill_tables(text, tmp_path)
    other = text.replace("mine", "other")
    assert "Not run here." in table.fill_tables(other, tmp_path)


def test_a_wrong_command_line_is_refused(capsys):
    with pytest.raises(flags.Error, match="bazeline"):
        table.write_tables(["table", "--bazeline=a", "results"])
    with pytest.raises(ValueError, match="Name folders"):
        table.write_tables(["table"])
    with pytest.raises(SystemExit):
        table.write_tables(["table", "--help"])
    assert "--baseline (default: not set)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "page",
    [
        path
        for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
        if table.MARKER.search(path.read_text())
    ],
    ids=lambda path: path.name,
)
def test_pages_show_the_tables_of_the_ledger(page):
    """After a change: python -m supcon_tf.studies.table --write docs/claims.md."""
    text = page.read_text()
    assert table.fill_tables(text, ROOT) == text


def test_the_results_are_small():
    sizes = [path.stat().st_size for path in (ROOT / "results").rglob("*") if path.is_file()]
    assert sum(sizes) < 20e6
