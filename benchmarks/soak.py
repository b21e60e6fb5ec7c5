"""Checks that memory, open files and threads do not grow in a long run of the real command.

    .venv/bin/python benchmarks/soak.py --minutes=30

The run pretrains a small model on the digits, with a checkpoint every 50 steps, a log line every 10
steps and a k-NN evaluation every 2 epochs. When the time is over, it is stopped with SIGTERM and
must exit with code 75. The median resident size of the last quarter must be within 3% of the second
quarter, and the numbers of open files and threads must not have grown. Exits with code 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
LIMIT = 0.03
FLAGS = (
    "--mode=pretrain", "--pretrain_epochs=1000000", "--batch_size=64", "--image_size=8",
    "--augmentation_type=identity", "--knn_interval_epochs=2", "--summary_interval_steps=10",
    "--save_interval_steps=50", "--max_checkpoints_to_keep=3",
)  # fmt: skip


def resident_megabytes(process):
    """The resident memory that belongs to the process alone, according to the kernel."""
    pages = int(pathlib.Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def count(process, what):
    return len(os.listdir(f"/proc/{process}/{what}"))


def sample(process, seconds, interval_seconds):
    """Samples (seconds at work, megabytes, open files, threads) until the time is over."""
    active, last, samples = 0.0, time.monotonic(), []
    while active < seconds:
        if process.poll() is not None:
            raise SystemExit(f"The run exited early with code {process.returncode}.")
        samples.append(
            (
                active,
                resident_megabytes(process.pid),
                count(process.pid, "fd"),
                count(process.pid, "task"),
            )
        )
        time.sleep(interval_seconds)
        # Do not count the time during which the machine or the processes were suspended.
        active += min(time.monotonic() - last, 2 * interval_seconds)
        last = time.monotonic()
    return samples


def quarters(samples, column):
    """The median of a column in each quarter of the samples."""
    size = len(samples) // 4
    parts = (samples[i * size : (i + 1) * size] for i in range(4))
    return [statistics.median(row[column] for row in part) for part in parts]


def done_so_far(folder):
    """Describes how often the run logged, evaluated and saved."""
    lines = (folder / "pretrain/metrics.jsonl").read_text().splitlines()
    checkpoints = sorted((folder / "pretrain/checkpoints").glob("step_*"))
    steps = int(checkpoints[-1].name.removeprefix("step_"))
    evaluations = sum("knn_accuracy" in line for line in lines)
    return f"{steps:,} steps, {len(lines):,} log lines, {evaluations:,} evaluations, " + (
        f"about {steps // 50:,} checkpoints"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--sample_seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        process = subprocess.Popen(
            [sys.executable, "-m", "supcon_tf.main", *FLAGS, f"--model_dir={folder}"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        try:
            samples = sample(process, arguments.minutes * 60, arguments.sample_seconds)
            process.send_signal(signal.SIGTERM)
            code = process.wait(120)
        finally:
            process.kill()
        work = done_so_far(folder)
    print(f"{work}; exited after SIGTERM with code {code}.\n")
    print("| median of quarter | 1 | 2 | 3 | 4 | last / second |\n|---|---:|---:|---:|---:|---:|")
    is_flat = code == 75
    for column, name in ((1, "resident size, MB"), (2, "open files"), (3, "threads")):
        values = quarters(samples, column)
        ratio = values[3] / values[1]
        is_flat &= abs(ratio - 1) <= LIMIT if column == 1 else ratio <= 1
        print(f"| {name} | {' | '.join(f'{v:.1f}' for v in values)} | {ratio:.4f} |")
    print(
        "\nOK: no growth."
        if is_flat
        else f"\nFAILED: growth above {LIMIT:.0%}, or a wrong exit code."
    )
    sys.exit(not is_flat)


if __name__ == "__main__":
    main()
