"""Kills a run with SIGKILL 20 times and compares the result with an uninterrupted run.

    .venv/bin/python benchmarks/kill_and_continue.py

Both runs train on the digits with the real command, on one device. The times of the kills are drawn
from a seed: during start-up, during training steps, while a checkpoint is written, at the end of a
stage and between stages. After each kill, the same command is run again. The script checks that

* after each kill, every checkpoint is readable and the log contains each step once;
* at the end, the encoder, projection head and classifier, all logged values (except speeds) and the
  accuracy equal those of the uninterrupted run, bit for bit.

It prints one table and exits with code 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = (
    "--mode=pretrain,linear,eval", "--num_images=512", "--image_size=8", "--strategy=one_device",
    "--pretrain_epochs=25", "--linear_epochs=12", "--knn_interval_epochs=5", "--steps_per_loop=4",
    "--summary_interval_steps=1", "--save_interval_steps=5", "--max_checkpoints_to_keep=3",
)  # fmt: skip
# When to kill, in the order of the run. "steps" means after some more steps, "save" while the next
# checkpoint after them is written, and a file name when this file has appeared.
PRETRAIN = ("start-up", "start-up", "steps", "steps", "steps", "steps", "save", "save", "save",
            "save")  # fmt: skip
PRETRAIN_END = ("pretrain/projection_head.keras", "pretrain/encoder.keras", "pretrain/result.json")
LINEAR = ("start-up", "steps", "steps", "save", "save")
LINEAR_END = ("linear/classifier.keras", "linear/result.json")


def start(folder, output):
    """Starts the command in a new process."""
    return subprocess.Popen(
        [sys.executable, "-m", "supcon_tf.main", *FLAGS, f"--model_dir={folder}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def whole_lines(folder, stage):
    """Returns the complete lines of a log. A kill can leave a partial line at the end."""
    path = folder / stage / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def last_step(folder, stage):
    lines = whole_lines(folder, stage)
    return lines[-1]["step"] if lines else 0


def wait_for(target, stage, folder, process, rng):
    """Waits until it is time to kill the run.

    Raises:
        RuntimeError: If the run ended before.
    """
    until_step = None
    if target == "start-up":
        deadline = time.monotonic() + rng.uniform(0.0, 8.0)
        is_reached = lambda: time.monotonic() >= deadline  # noqa: E731
    elif target in ("steps", "save"):
        until_step = last_step(folder, stage) + rng.randint(3, 14)

        def is_reached():
            if last_step(folder, stage) < until_step:
                return False
            return target == "steps" or any((folder / stage / "checkpoints").glob("writing_*"))
    else:
        path = folder / target
        is_reached = path.exists
    while not is_reached():
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with {process.returncode} before {target}")
        time.sleep(0.001)
    # A random delay, because a step takes about 20 ms and a save about 30 ms.
    time.sleep(rng.uniform(0.0, 0.02 if target == "save" else 0.2))


def describe(folder, stage):
    """Describes when the run was killed, according to its files."""
    if (folder / "linear/result.json").exists():
        return "after linear"
    if (folder / "pretrain/result.json").exists() and stage == "pretrain":
        stage = "linear" if (folder / "linear").exists() else "pretrain, finished"
    unfinished = sorted(
        path.name for path in folder.rglob("*") if "writing" in path.name or "deleting" in path.name
    )
    text = f"{stage.split(',')[0]} step {last_step(folder, stage.split(',')[0])}"
    if stage.endswith("finished"):
        text = "between stages"
    return text + (f", {' '.join(unfinished)} partially written" if unfinished else "")


def unreadable_checkpoints(folder):
    """Reads all tensors of all checkpoints; returns unreadable checkpoints with reasons."""
    import tensorflow as tf

    problems = []
    for path in folder.glob("*/checkpoints/*"):
        if not path.name.startswith("step_"):
            if not path.name.startswith(("writing_", "deleting_")):
                problems.append(f"{path.name} is left over")
            continue
        try:
            step = json.loads((path / "complete.json").read_text())["step"]
            assert path.name == f"step_{step:08d}"
            reader = tf.train.load_checkpoint(str(path / "state"))
            for name in reader.get_variable_to_shape_map():
                reader.get_tensor(name)
        except Exception as error:
            problems.append(f"{path.name}: {str(error).splitlines()[0]}")
    return problems


def repeated_steps(folder):
    """Stages whose log does not contain each step, starting from 1, exactly once."""
    logs = {stage: [line["step"] for line in whole_lines(folder, stage)] for stage in
            ("pretrain", "linear")}  # fmt: skip
    return [stage for stage, steps in logs.items() if steps != list(range(1, len(steps) + 1))]


def differences(whole, killed):
    """Compares the final results of the two runs and returns the differences."""
    import keras
    import numpy as np

    sys.path.insert(0, str(ROOT))
    from supcon_tf.models import contrastive  # noqa: F401  Registers the projection head.

    found = []
    for name in (
        "pretrain/encoder.keras", "pretrain/projection_head.keras", "linear/classifier.keras",
    ):  # fmt: skip
        one, other = (keras.models.load_model(run / name).get_weights() for run in (whole, killed))
        equal = [np.array_equal(a, b) for a, b in zip(one, other, strict=True)]
        if not all(equal):
            found.append(f"{name}: {equal.count(False)} of {len(equal)} arrays")
    for stage in ("pretrain", "linear"):
        one, other = (
            [{**line, "images_per_second": 0} for line in whole_lines(run, stage)]
            for run in (whole, killed)
        )
        if one != other:
            found.append(f"{stage}/metrics.jsonl")
    one, other = (json.loads((run / "eval/eval.json").read_text()) for run in (whole, killed))
    if one["top_1"] != other["top_1"]:
        found.append("eval.json")
    return found


def plan(rng):
    """Draws [(stage, target)] in the order of the run."""
    pretrain, linear = list(PRETRAIN), list(LINEAR)
    rng.shuffle(pretrain)
    rng.shuffle(linear)
    return [
        *(("pretrain", target) for target in (*pretrain, *PRETRAIN_END)),
        *(("linear", target) for target in (*linear, *LINEAR_END)),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    rng, failed = random.Random(seed), False
    with tempfile.TemporaryDirectory() as root:
        whole, killed = pathlib.Path(root) / "whole", pathlib.Path(root) / "killed"
        log = open(pathlib.Path(root) / "output.txt", "w+")  # noqa: SIM115
        assert start(whole, log).wait() == 0, "the uninterrupted run failed"
        print(
            f"Seed {seed}.\n\n| kill | aimed at | hit | checkpoints | log |\n|---:|---|---|---|---|"
        )
        for number, (stage, target) in enumerate(plan(rng), start=1):
            process = start(killed, log)
            wait_for(target, stage, killed, process, rng)
            process.send_signal(signal.SIGKILL)
            process.wait()
            unreadable, repeated = unreadable_checkpoints(killed), repeated_steps(killed)
            failed |= bool(unreadable or repeated)
            print(
                f"| {number} | {target} | {describe(killed, stage)} "
                f"| {'; '.join(unreadable) or 'all readable'} "
                f"| {'not once: ' + ' '.join(repeated) if repeated else 'each step once'} |",
                flush=True,
            )
        code = start(killed, log).wait()
        different = differences(whole, killed) if code == 0 else [f"the last run failed: {code}"]
        lines = len(whole_lines(killed, "pretrain")) + len(whole_lines(killed, "linear"))
        log.seek(0)
        continued = log.read().count("resuming at step")
    print(
        f"\n{number} kills, {continued} times resumed from a checkpoint, {lines} steps logged. "
        + ("DIFFERENT: " + "; ".join(different) if different else
           "Weights, log and accuracy equal those of the uninterrupted run, bit for bit.")
    )  # fmt: skip
    sys.exit(bool(failed or different))


if __name__ == "__main__":
    main()
