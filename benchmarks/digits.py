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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    seeds = parser.parse_args().seeds.split(",")
    print("| seed | linear top-1 | k-NN | seconds, all stages |\n|---:|---:|---:|---:|")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            results.append(run_seed(seed, pathlib.Path(folder) / seed))
            top_1, knn, seconds = results[-1]
            print(f"| {seed} | {top_1:.4f} | {knn:.4f} | {seconds:.0f} |", flush=True)
    top_1, knn, seconds = np.mean(results, axis=0)
    print(f"| mean | {top_1:.4f} | {knn:.4f} | {seconds:.0f} |\n")
    neighbors, regression = raw_pixel_accuracies()
    print(f"Raw pixels: 5 nearest neighbors {neighbors:.3f}, logistic regression {regression:.3f}.")


if __name__ == "__main__":
    main()
