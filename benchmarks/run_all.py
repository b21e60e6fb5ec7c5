"""Runs the benchmarks one after the other, and makes the tables of docs/benchmarks.md from them.

.venv/bin/python benchmarks/run_all.py --photographs=FOLDER --environments=FOLDER
.venv/bin/python benchmarks/run_all.py --list
.venv/bin/python benchmarks/run_all.py --write

Each benchmark writes every repeat to results/benchmarks/<name>.json. One whose file is there is not
run again, unless --again. Let nothing else run on the machine meanwhile. The environments of other
libraries are created in the folder --environments. Benchmarks whose folder is not given are left
out. --write only makes the tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import pathlib
import subprocess
import sys
from collections.abc import Callable

import records

HERE = pathlib.Path(__file__).parent
PAGE = records.REPOSITORY / "docs/benchmarks.md"
PHOTOGRAPHS, PYTORCH, PEERS = "{photographs}", "{environments}/torch", "{environments}/tf-models"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A script with its arguments.

    Attributes:
        script: name of the module in this folder.
        arguments: with places for the folders of the command line.
        minutes: about how long it takes on two cores.
        table: name of the function of the script that makes the table from the results.
    """

    script: str
    arguments: tuple[str, ...] = ()
    minutes: int = 5
    table: str = "create_table"

    def command(self, name: str, folders: dict[str, str | None]) -> list[str] | None:
        """The command line, or None if a folder that it needs is not given."""
        needed = [name for name in folders if f"{{{name}}}" in " ".join(self.arguments)]
        if any(folders[name] is None for name in needed):
            return None
        arguments = [argument.format_map(folders) for argument in self.arguments]
        results = f"--results={records.FOLDER / name}.json"
        return [sys.executable, str(HERE / f"{self.script}.py"), *arguments, results]

    def create_table(self, facts: dict) -> str:
        """The table of the results."""
        create: Callable[[dict], str] = getattr(importlib.import_module(self.script), self.table)
        return create(facts)


BENCHMARKS = {
    "digits": Benchmark("digits", minutes=3),
    "loss": Benchmark(
        "loss", ("--batches=128,512,2048,6144", "--cache_mb=400", f"--torch_env={PYTORCH}"), 8
    ),
    "loss_of_65536": Benchmark("loss", ("--batches=65536",), 3),
    "loss_family": Benchmark("loss", ("--family", "--batches=6144"), 2, "create_family_table"),
    "loss_per_replica": Benchmark(
        "loss", ("--replicas=1,2,4", "--batches=6144"), 2, "create_replica_table"
    ),
    "input_pipeline": Benchmark(
        "input_pipeline", (f"--peer_env={PEERS}", f"--torch_env={PYTORCH}"), 20
    ),
    "train_step": Benchmark("train_step", (f"--torch_env={PYTORCH}",), 16),
    "synchronized_batch_norm": Benchmark("synchronized_batch_norm", minutes=3),
    "overhead": Benchmark("train_step", ("--overhead", "--rounds=5"), 5, "create_overhead_table"),
    "time_to_accuracy": Benchmark(
        "time_to_accuracy", (f"--photographs={PHOTOGRAPHS}", f"--torch_env={PYTORCH}"), 40
    ),
}


def run_missing(names, folders, *, again):
    """Runs the benchmarks whose results are missing; returns those that failed."""
    failed = []
    for name in names:
        benchmark = BENCHMARKS[name]
        if (records.FOLDER / f"{name}.json").exists() and not again:
            print(f"{name}: its results are there (--again measures them again).")
            continue
        command = benchmark.command(name, folders)
        if command is None:
            print(f"{name}: left out, because it needs {' '.join(benchmark.arguments)}.")
            continue
        print(f"{name}: about {benchmark.minutes} minutes.", flush=True)
        (records.FOLDER / f"{name}.json").unlink(missing_ok=True)  # Some scripts continue it.
        if subprocess.run(command, cwd=records.REPOSITORY).returncode:
            failed.append(name)
    return failed


def write_page():
    """Makes the tables of the page again; returns whether it changed."""
    tables = {name: benchmark.create_table for name, benchmark in BENCHMARKS.items()}
    old = PAGE.read_text(encoding="utf-8")
    new = records.fill_page(old, tables)
    PAGE.write_text(new, encoding="utf-8")
    return new != old


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=pathlib.Path, help="train/<class>, test/<class>")
    parser.add_argument("--environments", type=pathlib.Path, help="folder for other libraries")
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--again", action="store_true", help="also those that have results")
    parser.add_argument("--list", action="store_true", help="only print names and minutes")
    parser.add_argument("--write", action="store_true", help="only make the tables of the page")
    arguments = parser.parse_args()
    names = list(BENCHMARKS) if arguments.only is None else arguments.only.split(",")
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"--only={','.join(unknown)}: choose from {', '.join(BENCHMARKS)}.")
    if arguments.list:
        for name in names:
            print(f"{name}: {BENCHMARKS[name].minutes} minutes")
        return
    failed = []
    if not arguments.write:
        folders = {
            "photographs": arguments.photographs and str(arguments.photographs.absolute()),
            "environments": arguments.environments and str(arguments.environments.absolute()),
        }
        failed = run_missing(names, folders, again=arguments.again)
    print(f"{PAGE.name}: {'changed' if write_page() else 'up to date'}.")
    if failed:
        raise SystemExit(f"These benchmarks failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
