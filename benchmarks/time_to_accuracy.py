"""Seconds from the start of the process to an accuracy: the command, PyTorch and Keras.

.venv/bin/python benchmarks/time_to_accuracy.py --photographs=FOLDER --torch_env=FOLDER
.venv/bin/python benchmarks/time_to_accuracy.py --table

FOLDER holds train/<class>/ and test/<class>/ with photographs of 32 px. Three programs train the
same tiny encoder with SupCon from two views of each image: the same loss, batch size, optimizer and
schedule, and after every epoch the k-NN accuracy of the test images, whose time counts too:

* the command of this package;
* supcon_in_pytorch.py, as SupContrast does it, in an environment that this script creates;
* supcon_in_keras.py, as the examples of keras.io do it.

Only one program runs at a time, in turns over the rounds, each round with another seed. A program
is stopped when it has reached the highest level. results/benchmarks/time_to_accuracy.json keeps the
curve of each; the same command resumes with the missing ones.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import records
from records import REPOSITORY
from train_step import install_torch

HERE = pathlib.Path(__file__).parent
RESULTS = records.FOLDER / "time_to_accuracy.json"
OURS, PYTORCH, KERAS = "supcon_tf", "PyTorch", "Keras fit"
SIDES = (OURS, PYTORCH, KERAS)
LEVELS = (0.30, 0.40, 0.45)
EPOCHS = 12
FLAGS = (
    "--mode=pretrain", "--encoder=tiny", "--image_size=32", "--batch_size=64", "--num_views=2",
    "--crop_area_range=0.5,1.0", "--horizontal_flip=true", "--augmentation_type=simclr",
    "--augmentation_magnitude=0.5", "--use_pytorch_color_jitter", "--blur_probability=0",
    "--projection_head_layers=128", "--temperature=0.1", "--cross_entropy_weight=0",
    "--pretrain_optimizer=adam", "--pretrain_base_learning_rate=0.012",
    "--pretrain_warmup_epochs=1", "--noonline_probe", "--knn_interval_epochs=1",
)  # fmt: skip
POLL_SECONDS = 0.05


def command_of(side, data, folder, epochs, seed, torch_python):
    """The command line of a program, and the log that it writes."""
    if side == OURS:
        own = [f"--data_dir={data}", f"--model_dir={folder}", f"--pretrain_epochs={epochs}"]
        command = [sys.executable, "-m", "supcon_tf.main", *FLAGS, *own, f"--seed={seed}"]
        return command, folder / "pretrain/metrics.jsonl"
    python, script = {
        PYTORCH: (torch_python, "supcon_in_pytorch.py"),
        KERAS: (sys.executable, "supcon_in_keras.py"),
    }[side]
    log = folder / "log.jsonl"
    own = [f"--data={data}", f"--log={log}", f"--epochs={epochs}", f"--seed={seed}"]
    return [python, str(HERE / script), *own], log


def measure(command, log, highest):
    """Runs a program until it reaches the highest level or ends.

    Returns:
        The curve: [seconds since the start, k-NN accuracy] for each evaluation.
    """
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        curve: list[list[float]] = []
        try:
            while True:
                has_ended = process.poll() is not None
                accuracies = read_accuracies(log)
                seconds = round(time.perf_counter() - started, 2)
                curve += [[seconds, accuracy] for accuracy in accuracies[len(curve) :]]
                if curve and curve[-1][1] >= highest:
                    return curve
                if has_ended:
                    break
                time.sleep(POLL_SECONDS)
        finally:
            stop(process)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)}\nstopped:\n{output.read()[-3000:]}")
    return curve


def stop(process):
    """Ends a program and its worker processes."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_accuracies(log):
    """The k-NN accuracies in the complete lines of a log."""
    text = log.read_text() if log.exists() else ""
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    return [line["knn_accuracy"] for line in lines if "knn_accuracy" in line]


def seconds_to(curve, level):
    """The seconds of the first evaluation at or above a level; None if there is none."""
    return next((seconds for seconds, accuracy in curve if accuracy >= level), None)


def median_seconds(curves, level):
    """The median over the rounds; None if a round did not reach the level."""
    found = [seconds_to(curve, level) for curve in curves]
    return None if None in found or not found else statistics.median(found)


def create_table(facts):
    """The median seconds to each level, with their range, and the ratio to the command."""
    curves = {}
    for row in facts["rows"]:
        curves.setdefault(row["side"], []).append(row["curve"])
    ours = {level: median_seconds(curves.get(OURS, []), level) for level in LEVELS}
    rows = []
    for side, found in curves.items():
        cells = [side, str(len(found))]
        for level in LEVELS:
            median = median_seconds(found, level)
            if median is None:
                cells.append("not reached")
                continue
            seconds = records.spread([seconds_to(curve, level) for curve in found], "{:.0f}")
            ratio = f", {median / ours[level]:.2f}x" if side != OURS and ours[level] else ""
            cells.append(f"{seconds}{ratio}")
        rows.append(cells)
    return records.table(["program", "rounds", *(f"{level:.0%}, s" for level in LEVELS)], rows)


def read_rows(results):
    """The finished runs: side, seed, epochs and curve of each."""
    return json.loads(results.read_text())["rows"] if results.exists() else []


def run_rounds(arguments):
    """Measures what is missing in the results, in turns; returns the rows of all."""
    torch_python = install_torch(arguments.torch_env)
    peer = {"peer_versions": records.versions(torch_python, ["torch", "torchvision", "numpy"])}
    rows = read_rows(arguments.results)
    known = {(row["side"], row["seed"], row["epochs"]) for row in rows}
    for seed in range(arguments.rounds):
        for side in SIDES:
            if (side, seed, arguments.epochs) in known:
                continue
            with tempfile.TemporaryDirectory() as folder:
                command, log = command_of(
                    side,
                    arguments.photographs.absolute(),
                    pathlib.Path(folder),
                    arguments.epochs,
                    seed,
                    torch_python,
                )
                curve = measure(command, log, max(LEVELS))
            rows.append({"side": side, "seed": seed, "epochs": arguments.epochs, "curve": curve})
            records.write(arguments.results, rows, **peer)
            seconds, accuracy = curve[-1]
            print(f"{side}, round {seed}: {accuracy:.3f} after {seconds:.0f} s", flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=pathlib.Path, help="train/<class>, test/<class>")
    parser.add_argument("--torch_env", help="environment for PyTorch; created if missing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the whole schedule")
    parser.add_argument("--table", action="store_true", help="only print what is finished")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    if not arguments.table:
        if not (arguments.photographs and arguments.torch_env):
            parser.error("set --photographs=FOLDER and --torch_env=FOLDER, or --table.")
        run_rounds(arguments)
    print(create_table({"rows": read_rows(arguments.results)}))


if __name__ == "__main__":
    main()
