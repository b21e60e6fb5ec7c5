"""Runs the default command on the embedded digits for several seeds, with raw-pixel baselines.

.venv/bin/python benchmarks/digits.py
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import records

ROOT = pathlib.Path(__file__).parents[1]
STAGES = "pretrain,linear,eval"


def run_seed(seed, folder):
    """Returns top-1 accuracy, k-NN accuracy and total seconds of one run of the command."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "supcon_tf.main", f"--mode={STAGES}"]
    started = time.perf_counter()
    subprocess.run(
        [*command, f"--seed={seed}", f"--model_dir={folder}"],
        env=environment,
        check=True,
        capture_output=True,
    )
    seconds = time.perf_counter() - started
    top_1 = json.loads((folder / "eval/eval.json").read_text())["top_1"]
    knn = json.loads((folder / "pretrain/result.json").read_text())["knn_accuracy"]
    return top_1, knn, seconds


def raw_pixel_accuracies():
    """Returns the accuracy of 5-NN and of logistic regression on the raw pixels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    sys.path.insert(0, str(ROOT))
    from supcon_tf.data import sources

    train, test = (sources.load_source("digits", split) for split in ("train", "test"))

    def pixels(source):
        return source.images[..., 0].reshape(source.num_examples, -1) / 255.0

    return [
        classifier.fit(pixels(train), train.labels).score(pixels(test), test.labels)
        for classifier in (KNeighborsClassifier(5), LogisticRegression(max_iter=5000))
    ]


def create_table(facts):
    """A row per seed, and their means."""
    columns = ("top_1", "knn", "seconds")
    rows = [[str(row["seed"]), *(row[name] for name in columns)] for row in facts["rows"]]
    rows.append(["mean", *(np.mean([row[name] for row in facts["rows"]]) for name in columns)])
    forms = ("{}", "{:.4f}", "{:.4f}", "{:.0f}")
    cells = [[form.format(cell) for form, cell in zip(forms, row, strict=True)] for row in rows]
    neighbors, regression = facts["raw_pixels"]
    return (
        records.table(["seed", "linear top-1", "k-NN", "seconds, all stages"], cells)
        + f"\n\nRaw pixels: 5 nearest neighbors {neighbors:.3f}, logistic regression "
        + f"{regression:.3f}."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--results", help="JSON file for every seed")
    arguments = parser.parse_args()
    rows, raw_pixels = [], raw_pixel_accuracies()
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds.split(","):
            top_1, knn, seconds = run_seed(seed, pathlib.Path(folder) / seed)
            rows.append({"seed": int(seed), "top_1": top_1, "knn": knn, "seconds": seconds})
            print(f"seed {seed}: {top_1:.4f} in {seconds:.0f} s", file=sys.stderr, flush=True)
    records.write(arguments.results, rows, raw_pixels=raw_pixels)
    print(create_table({"rows": rows, "raw_pixels": raw_pixels}))


if __name__ == "__main__":
    main()
