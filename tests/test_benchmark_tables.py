"""The results of benchmarks/ as files, and the tables of docs/benchmarks.md made from them."""

import json
import sys

import keras
import pytest
from helpers.benchmark_scripts import FOLDER, load_benchmark

ROOT = FOLDER.parent
PAGE = ROOT / "docs/benchmarks.md"


@pytest.fixture(autouse=True)
def import_as_the_scripts_do(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def records():
    return load_benchmark("records")


@pytest.fixture
def run_all(monkeypatch, tmp_path):
    module = load_benchmark("run_all")
    monkeypatch.setattr(module.records, "FOLDER", tmp_path / "results")
    return module


def test_the_page_shows_the_results():
    """After a change: python benchmarks/run_all.py --write."""
    module = load_benchmark("run_all")
    text = PAGE.read_text(encoding="utf-8")
    names = [match[1] for match in module.records.MARKER.findall(text)]
    assert names and sorted(names) == sorted(set(names)) and set(names) <= set(module.BENCHMARKS)
    tables = {name: benchmark.create_table for name, benchmark in module.BENCHMARKS.items()}
    assert module.records.fill_page(text, tables) == text
    measured = {path.stem for path in module.records.FOLDER.glob("*.json")}
    assert measured <= set(names), "A result is in no table of docs/benchmarks.md."


def test_every_repeat_and_the_machine_are_written(records, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/a/b/loss.py", "--torch_python=/home/me/python", "--rounds=3",
                                     f"--results={tmp_path}/loss.json"])  # fmt: skip
    records.write(tmp_path / "loss.json", [{"seconds": [1.0, 2.0]}], rates={"exp": 3})
    facts = json.loads((tmp_path / "loss.json").read_text())
    assert facts["command"] == "benchmarks/loss.py --torch_python=FOLDER --rounds=3"
    assert facts["rows"] == [{"seconds": [1.0, 2.0]}] and facts["rates"] == {"exp": 3}
    assert facts["versions"]["tensorflow"] and facts["machine"]["cpu_count"] >= 1
    assert list(tmp_path.iterdir()) == [tmp_path / "loss.json"]
    records.write(None, [])
    assert list(tmp_path.iterdir()) == [tmp_path / "loss.json"]


def test_medians_have_the_range_of_the_repeats(records):
    assert records.spread([3.0, 1.0, 2.0]) == "2 (1 to 3)"
    assert records.spread([0.5]) == "0.5"
    assert records.table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_a_page_is_filled_between_its_markers(records, tmp_path):
    marker, end = "<!-- benchmark: {} -->", "<!-- end of benchmark -->"
    page = "\n".join([marker.format("one"), "old", end, marker.format("two"), end, "End"])
    facts = {"rows": [], "command": "benchmarks/one.py", "commit": "abc"}
    facts |= {"versions": {"keras": "3"}, "machine": {"cpu_count": 2, "processor": "a chip"}}
    (tmp_path / "one.json").write_text(json.dumps(facts))
    tables = {"one": lambda facts: f"table of {len(facts['rows'])} rows"}
    filled = records.fill_page(page, tables, tmp_path)
    assert "old" not in filled and "table of 0 rows" in filled and "Not measured here." in filled
    assert "benchmarks/one.py`, 2 CPU cores (a chip), keras 3, commit abc." in filled
    assert records.fill_page(filled, tables, tmp_path) == filled
    facts["peer_versions"] = {"torch": "2.14", "numpy": "2"}
    assert "keras 3, torch 2.14, commit abc." in records.caption(facts)


def test_versions_of_another_environment(records):
    assert records.versions(sys.executable, ["keras"]) == {"keras": keras.__version__}


def test_benchmarks_with_results_or_without_their_folders_are_left_out(run_all, tmp_path, capsys):
    started = []

    def run(command, cwd):
        started.append(command)
        return type("Done", (), {"returncode": int("train_step" in command[1])})

    run_all.subprocess = type("", (), {"run": staticmethod(run)})
    (tmp_path / "results").mkdir()
    (tmp_path / "results/digits.json").write_text("{}")
    folders = {"photographs": None, "environments": str(tmp_path)}
    names = ["digits", "loss_family", "time_to_accuracy", "train_step"]
    assert run_all.run_missing(names, folders, again=False) == ["train_step"]
    assert [command[1].rpartition("/")[2] for command in started] == ["loss.py", "train_step.py"]
    results = f"--results={tmp_path}/results/loss_family.json"
    assert started[0] == [
        sys.executable,
        str(FOLDER / "loss.py"),
        "--family",
        "--batches=6144",
        results,
    ]
    assert f"--torch_env={tmp_path}/torch" in started[1]
    printed = capsys.readouterr().out
    assert "digits: its results are there" in printed and "time_to_accuracy: left out" in printed
    assert len(run_all.run_missing(["digits"], folders, again=True)) == 0 and len(started) == 3


RUN = {"seconds": 2.0, "megabytes": 50.0}
MADE_UP = {
    "digits": {
        "raw_pixels": [0.978, 0.972],
        "rows": [{"seed": n, "top_1": 0.99, "knn": 0.5 + n / 4, "seconds": 60} for n in (0, 1)],
    },
    "loss": {
        "rates": {"operations": 2e11, "exponentials": 1e9},
        "rows": [
            {"batch": 6144, "cases": {"blocked": [RUN], "blocked, no cache": [RUN | {"seconds": 3}],
                                      "dense": [RUN | {"seconds": s} for s in (7, 8, 9)]}},
            {"batch": 65536, "cases": {"blocked": [RUN]}},
        ],
    },
    "loss_family": {
        "rows": [{"batch": 512, "seconds": {"plain": [1.0, 3.0], "spread": [3.0, 3.0]},
                  "processor_seconds": {"plain": [2.0], "spread": [5.0]}}],
    },
    "loss_per_replica": {
        "rows": [{"batch": 512, "replicas": 1, "seconds": [4.0]},
                 {"batch": 512, "replicas": 2, "seconds": [4.0]}],
    },
    "input_pipeline": {
        "rows": [
            {"source": "memory 32 px", "policy": policy, "sides": {
                "reference": {"first_batch_seconds": 1.5, "rates": [[rate, rate], [rate, rate]]},
                "tf-models": {"first_batch_seconds": 9.0, "rates": [[100, 50]]},
                "torchvision": {"first_batch_seconds": 1.0, "rates": [[50, None]]},
                **fast,
            }} for policy, rate, fast in (
                ("identity", 1000, {"fast decode": {"first_batch_seconds": 2.0,
                                                    "rates": [[1500, 1500]]}}),
                ("simclr", 250, {}),
            )
        ],
    },
    "train_step": {
        "rows": [{"depth": 18, "images": 128, "precision": "float32",
                  "idle_gb": {"ours": 0.7, "PyTorch": 0.4},
                  "sides": {"ours": [[60.0, 1.9], [50.0, 1.9]], "PyTorch": [[50.0, 1.4]]}}],
    },
    "synchronized_batch_norm": {
        "rows": [{"replicas": 4, "depth": 18, "images": 128, "sides": {
            "one exchange": [[60.0, 2.0], [80.0, 2.5]], "Keras": [[35.0, 4.0]]}}],
    },
    "overhead": {"rows": [{"name": "bare", "rates": [100.0]}, {"name": "it", "rates": [98.0]}]},
    "time_to_accuracy": {"rows": [{"side": "supcon_tf", "curve": [[60.0, 0.46]]}]},
}  # fmt: skip
LAST_ROWS = {
    "digits": "| mean | 0.9900 | 0.6250 | 60 |",
    "loss": "| 65,536 |  |  | 3053% |",
    "loss_family": "| 512 | `spread_weight=0.5` | 3 | 1.50 | 5 | 2.50 |",
    "loss_per_replica": "| 512 | 2 | 2 | 2.00 |",
    "input_pipeline": "| memory 32 px | simclr | 250 (1.5 s) |  | 100 (9.0 s) | 50 (1.0 s) |",
    "train_step": "| ResNet-18 | 128 | float32 | 55.0, 1.20 | 50.0, 1.00 | 1.10 | 1.20 |",
    "synchronized_batch_norm": "| ResNet-18 | 128 | 4 | 70 (60 to 80), 2.5 | 35, 4.0 | 2.00 |",
    "overhead": "| overhead | 2.0% |",
    "time_to_accuracy": "| supcon_tf | 1 | 60 | 60 | 60 |",
}


def test_the_fast_decoder_is_compared_with_the_reference(run_all):
    table = run_all.BENCHMARKS["input_pipeline"].create_table(MADE_UP["input_pipeline"])
    rows = [line for line in table.split("\n") if line.startswith("| memory")]
    assert rows[0] == "| memory 32 px | identity | 10.0 (20.0) | 20.0 | 1.50 | 100% |"
    assert rows[1] == "| memory 32 px | simclr | 2.5 (5.0) | 5.0 |  | 25% |"


@pytest.mark.parametrize("name", MADE_UP)
def test_tables_of_made_up_results(name, run_all):
    lines = run_all.BENCHMARKS[name].create_table(MADE_UP[name]).split("\n")
    tables = [part.split("\n") for part in "\n".join(lines).split("\n\n") if part.startswith("|")]
    assert tables[-1][-1].startswith(LAST_ROWS[name])
    for table in tables:
        assert len({line.count("|") for line in table}) == 1


def test_every_table_is_tested(run_all):
    created = {(b.script, b.table) for b in run_all.BENCHMARKS.values()}
    tested = {(b.script, b.table) for name, b in run_all.BENCHMARKS.items() if name in MADE_UP}
    assert created == tested
