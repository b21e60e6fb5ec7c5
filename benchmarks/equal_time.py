"""Contrastive training against cross-entropy at equal training time, on a folder of photographs.

.venv/bin/python benchmarks/equal_time.py --photographs=FOLDER
.venv/bin/python benchmarks/equal_time.py --photographs=FOLDER --table

FOLDER holds train/<class>/ and test/<class>/. Without it the embedded digits are used. The work is
done in five parts, and each finished part is read back from results/equal_time when the command is
started again:

1. calibration: a short run of every setting, in turns, measures the time to start and the speed.
   From them follow the epochs that each setting trains in a given time, so that the later runs
   train the same number of steps whatever else the machine does.
2. trials: a setting of each side with the same two learning rates, trained for a short time on 90%
   of the training images and compared on the other 10%. They choose the learning rate of the side.
3. settings: as many settings of each side, trained on all training images for the longest time with
   seed 0. The one with the highest mean of the three figures is chosen; the tables show the means
   on each half of the test images too.
4. runs: what was chosen, for each time and seed, and SupCon alone.
5. the tables: means over the seeds, and paired bootstrap intervals of the differences over the test
   images (of the mean correctness of the seeds). --write puts them in docs/when_supcon.md, and
   --figure=FILE draws the accuracy over the time.

--all also makes the trials and settings that were tried first and left out, which the tables show.

The calibration uses all cores. It decides how long each setting trains, so the trials and runs can
share the machine. --jobs=2 runs two of them at a time, each on one core, which takes less time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import records

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "results/equal_time"
PAGE = ROOT / "docs/when_supcon.md"
CONTRASTIVE, CROSS_ENTROPY, ALONE = "contrastive", "cross_entropy", "supcon_alone"
CROP_AND_FLIP = ("--augmentation_type=identity",)
COLOR_JITTER = ("--augmentation_type=simclr", "--augmentation_magnitude=0.5")
NOT_SMOOTHED = ("--pretrain_label_smoothing=0",)
JOINT = (*NOT_SMOOTHED, "--cross_entropy_weight=1", "--num_views=1", "--normalize_embedding")
NOT_NORMALIZED = (*JOINT, "--nonormalize_embedding")
BASELINE = (*NOT_SMOOTHED, "--loss=cross_entropy", "--num_views=1", "--nonormalize_embedding")
SUPCON = ("--cross_entropy_weight=0", "--num_views=2", "--normalize_embedding")
RATES = (0.012, 0.024)
SMOOTHED = ("--pretrain_label_smoothing=0.1",)
# Side -> name -> flags.
SETTINGS = {
    CONTRASTIVE: {
        "joint": (*JOINT, *COLOR_JITTER),  # The default for few small photographs.
        "joint_crop_and_flip": (*JOINT, *CROP_AND_FLIP),
        "joint_not_normalized": (*NOT_NORMALIZED, *CROP_AND_FLIP),
        "joint_smoothed": (*NOT_NORMALIZED, *CROP_AND_FLIP, *SMOOTHED),
        "joint_smoothed_jitter": (*NOT_NORMALIZED, *COLOR_JITTER, *SMOOTHED),
        "joint_weighted_jitter": (  # The default for many small photographs.
            *NOT_NORMALIZED,
            *COLOR_JITTER,
            *SMOOTHED,
            "--cross_entropy_weight=0.3",
        ),
    },
    CROSS_ENTROPY: {
        "cross_entropy": (*BASELINE, *COLOR_JITTER),
        "cross_entropy_crop_and_flip": (*BASELINE, *CROP_AND_FLIP),
        "cross_entropy_smoothed": (*BASELINE, *CROP_AND_FLIP, *SMOOTHED),
        "cross_entropy_smoothed_jitter": (*BASELINE, *COLOR_JITTER, *SMOOTHED),
        "cross_entropy_smoothed_more": (
            *BASELINE,
            *CROP_AND_FLIP,
            "--pretrain_label_smoothing=0.2",
        ),
        "cross_entropy_smoothed_more_jitter": (
            *BASELINE,
            *COLOR_JITTER,
            "--pretrain_label_smoothing=0.2",
        ),
    },
}
# What is compared without --all: the settings of each side, of which the first decides the learning
# rate.
COMPARED = {
    CONTRASTIVE: ("joint_smoothed", "joint_weighted_jitter"),
    CROSS_ENTROPY: ("cross_entropy_smoothed", "cross_entropy_smoothed_jitter"),
}
# Settings whose cost differs from that of another one by less than a measurement can tell. They
# are given its speed, so that they train as many epochs.
SAME_COST = {
    "joint_not_normalized": "joint_crop_and_flip",
    "joint_smoothed": "joint_crop_and_flip",
    "joint_smoothed_jitter": "joint",
    "joint_weighted_jitter": "joint",
    "cross_entropy_smoothed": "cross_entropy_crop_and_flip",
    "cross_entropy_smoothed_jitter": "cross_entropy",
    "cross_entropy_smoothed_more": "cross_entropy_crop_and_flip",
    "cross_entropy_smoothed_more_jitter": "cross_entropy",
}
# Trained once, to show it in the same figure.
SHOWN = {ALONE: {"supcon": (*SUPCON, *COLOR_JITTER)}}
COMMON = (
    "--encoder=tiny",
    "--image_size=32",
    "--batch_size=64",
    "--pretrain_optimizer=adam",
    "--knn_interval_epochs=0",
    "--save_interval_steps=1000000",
)
BATCH_SIZE = 64
CALIBRATION_STEPS, CALIBRATION_ROUNDS = 600, 2
FIGURES = ("classifier", "knn", "logistic_regression")


def trial_names(has_all=True):
    """The names of the trials, "<setting>@<learning rate>", by side."""
    names = SETTINGS if has_all else {side: names[:1] for side, names in COMPARED.items()}
    return {side: [f"{name}@{rate}" for name in names[side] for rate in RATES] for side in SETTINGS}


def flags_of(trial):
    """The flags of a trial."""
    name, rate = trial.split("@")
    sides = {**SETTINGS, **SHOWN}.values()
    flags = next(settings[name] for settings in sides if name in settings)
    return [*COMMON, *flags, f"--pretrain_base_learning_rate={rate}"]


def data_flags(photographs):
    """The flags that name the data."""
    return [f"--data_dir={photographs}"] if photographs else ["--dataset=digits"]


# The core of the job that a thread runs; nothing while one job has all cores.
OWN = threading.local()


def run_command(folder, mode, flags):
    """Runs the command; returns its seconds."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "supcon_tf.main", f"--mode={mode}", f"--model_dir={folder}"]
    if hasattr(OWN, "core"):
        command = ["taskset", "-c", str(OWN.core), *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join([*command, *flags])}\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - started


def run_jobs(tasks, num_jobs):
    """Calls functions, `num_jobs` at a time, each on one CPU core; returns their results."""
    if num_jobs == 1:
        return [task() for task in tasks]
    cores = itertools.cycle(sorted(os.sched_getaffinity(0)))

    def take_core():
        OWN.core = next(cores)

    with concurrent.futures.ThreadPoolExecutor(num_jobs, initializer=take_core) as pool:
        return list(pool.map(lambda task: task(), tasks))


def metrics_of(folder):
    """The lines of the run's metrics.jsonl."""
    lines = (pathlib.Path(folder) / "pretrain/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def calibrate(arguments, folder):
    """Measures the settings in turns; returns {setting: start in seconds, and images/s}."""
    path = RESULTS / "calibration.json"
    if path.exists():
        return json.loads(path.read_text())["settings"]
    count = arguments.num_examples
    epochs = max(CALIBRATION_STEPS * BATCH_SIZE / count, 0.01)
    names = [name for side in (*SETTINGS.values(), *SHOWN.values()) for name in side]
    found = {name: [] for name in names if name not in SAME_COST}
    for round_number in range(CALIBRATION_ROUNDS):
        for name, rows in found.items():
            run = folder / f"calibration/{name}/{round_number}"
            flags = [*flags_of(f"{name}@{RATES[0]}"), f"--pretrain_epochs={epochs}"]
            flags += ["--pretrain_warmup_epochs=0", *data_flags(arguments.photographs)]
            seconds = run_command(run, "pretrain", flags)
            speed = np.median([line["images_per_second"] for line in metrics_of(run)[2:]])
            start = seconds - epochs * count / speed
            rows.append((start, speed))
            print(f"calibration: {name}: start {start:.1f} s, {speed:.0f} images/s", flush=True)
    settings = {
        name: {
            "start_seconds": round(float(np.median([start for start, _ in rows])), 1),
            "images_per_second": round(float(np.median([speed for _, speed in rows])), 1),
        }
        for name, rows in found.items()
    }
    write_json(path, {"settings": settings, "rounds": CALIBRATION_ROUNDS, **environment_facts()})
    return settings


def speed_of(trial, speeds):
    """The measured speed that decides the epochs of a trial."""
    name = trial.split("@")[0]
    return speeds[SAME_COST.get(name, name)]


def epochs_within(speed, minutes, num_examples):
    """The epochs that a setting trains in this time, start included."""
    seconds = minutes * 60 - speed["start_seconds"]
    return round(seconds * speed["images_per_second"] / num_examples, 1)


def run_trial(trial, minutes, arguments, speeds, folder):
    """Trains one trial on 90% of the training images; returns its cell."""
    path = RESULTS / f"trials/{trial}.json"
    if path.exists():
        return json.loads(path.read_text())
    run = folder / f"trials/{trial}"
    count = round(arguments.num_examples * 0.9)
    epochs = epochs_within(speed_of(trial, speeds), minutes, count)
    flags = [*flags_of(trial), f"--pretrain_epochs={epochs}", *data_flags(arguments.photographs)]
    flags.append(f"--pretrain_warmup_epochs={min(1, epochs)}")
    if arguments.photographs:
        flags += ["--validation_split=0.1", "--eval_split=validation"]
    run_command(run, "pretrain,eval", flags)
    result = json.loads((run / "eval/eval.json").read_text())
    cell = {
        "classifier": result["top_1"],
        "knn": result["knn_top_1"],
        "logistic_regression": result["linear_probe_top_1"],
        "num_examples": result["num_examples"],
        "epochs": epochs,
        "minutes": minutes,
    }
    write_json(path, cell)
    shutil.rmtree(run)
    return cell


def run_cell(trial, minutes, seed, arguments, speeds, folder):
    """Trains a chosen setting on all training images; returns its cell."""
    target = RESULTS / f"cells/{trial}/{minutes}min/{seed}"
    if (target / "cell.json").exists():
        return json.loads((target / "cell.json").read_text())
    run = folder / f"runs/{trial}/{minutes}min/{seed}"
    epochs = epochs_within(speed_of(trial, speeds), minutes, arguments.num_examples)
    data = data_flags(arguments.photographs)
    flags = [*flags_of(trial), f"--pretrain_epochs={epochs}", f"--seed={seed}", *data]
    flags.append(f"--pretrain_warmup_epochs={min(1, epochs)}")
    if minutes == max(arguments.minutes):  # The curve over time.
        flags += [f"--knn_interval_epochs={max(epochs / 15, 1):.1f}"]
    # SupCon alone leaves no classifier.
    is_alone = trial.split("@")[0] in SHOWN[ALONE]
    seconds = run_command(run, "pretrain,linear,eval" if is_alone else "pretrain,eval", flags)
    correct = correctness_of(run)
    result = json.loads((run / "eval/eval.json").read_text())
    cell = {
        **{name: float(np.mean(correct[name])) for name in FIGURES},
        "expected_calibration_error": result["expected_calibration_error"],
        "epochs": epochs,
        "seconds_with_eval_and_curve": round(seconds, 1),
        "had_all_cores": not hasattr(OWN, "core"),
    }
    target.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target / "correct.npz", **correct)
    shutil.copy(run / "pretrain/stage.flags", target / "stage.flags")
    hide_paths(target / "stage.flags", run, arguments.photographs)
    keys = ("step", "epoch", "loss", "knn_accuracy", "probe_accuracy", "collapse_ratio")
    lines = [{k: line[k] for k in keys if k in line} for line in metrics_of(run)]
    kept = [line for n, line in enumerate(lines) if "knn_accuracy" in line or n % 20 == 0]
    (target / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    write_json(target / "cell.json", {**cell, **environment_facts()})
    shutil.rmtree(run)
    return cell


def correctness_of(run):
    """Whether each test example is classified correctly, bool [N], by each of `FIGURES`."""
    from supcon_tf.evaluation import metrics, prediction_files

    splits = {}
    for split in ("train", "test"):
        run_command(run, "embed", [f"--embed_split={split}"])
        with np.load(run / "embed/embeddings.npz") as file:
            splits[split] = file["embeddings"], file["labels"]
    (train, train_labels), (test, test_labels) = splits["train"], splits["test"]
    predictions = prediction_files.read_predictions(str(run / "eval/predictions.npz"))
    correct = {"classifier": predictions.is_correct()}
    vote, probe = metrics.create_knn_vote(), metrics.create_linear_probe()
    models = {"knn": vote, "logistic_regression": probe}
    for name, model in models.items():
        correct[name] = model.fit(train, train_labels).predict(test) == test_labels
    return correct


def hide_paths(path, run, photographs):
    """Replaces the folders of this machine in a file of flags by their role."""
    text = path.read_text().replace(str(run), "RUN")
    path.write_text(text.replace(str(photographs), "FOLDER") if photographs else text)


def write_json(path, content):
    """Writes a small JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def environment_facts():
    """Versions and machine, for the record."""
    import importlib.metadata as metadata

    names = ("tensorflow", "keras", "numpy", "scikit-learn")
    return {
        "versions": {name: metadata.version(name) for name in names},
        "python": platform.python_version(),
        "cpu_count": os.cpu_count(),
    }


def best_rate(side):
    """The learning rate with the best trial of the first compared setting of a side, or None."""
    paths = {rate: RESULTS / f"trials/{COMPARED[side][0]}@{rate}.json" for rate in RATES}
    if not all(path.exists() for path in paths.values()):
        return None
    cells = {rate: json.loads(path.read_text()) for rate, path in paths.items()}
    return max(cells, key=lambda rate: np.mean([cells[rate][figure] for figure in FIGURES]))


def scores_of_settings(side, minutes):
    """Trial -> float [N], the mean of the three figures of each test image in the run of seed 0."""
    scores = {}
    for name in SETTINGS[side]:
        trial = f"{name}@{best_rate(side)}"
        if finished_seeds(trial, minutes, [0]):
            correct = mean_correct(trial, minutes, [0])
            scores[trial] = np.mean([correct[figure] for figure in FIGURES], axis=0)
    return scores


def best_of(side, minutes):
    """The best setting of a side with its learning rate, or None if it is not known yet."""
    scores = scores_of_settings(side, minutes)
    trials = [f"{name}@{best_rate(side)}" for name in COMPARED[side]]
    if not set(trials) <= scores.keys():
        return None
    return max(trials, key=lambda trial: scores[trial].mean())


def shown_trial():
    """SupCon alone, with the learning rate of its side."""
    return f"supcon@{best_rate(CONTRASTIVE)}"


def draw_figure(arguments):
    """Draws the k-NN accuracy over the seconds that the calibration gives the steps."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    speeds = json.loads((RESULTS / "calibration.json").read_text())["settings"]
    figure, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    longest = max(arguments.minutes)
    if None in [best_of(side, longest) for side in SETTINGS]:
        raise SystemExit("--figure needs all trials and settings to be finished.")
    trials = {
        "SupCon and cross-entropy": best_of(CONTRASTIVE, longest),
        "cross-entropy": best_of(CROSS_ENTROPY, longest),
        "SupCon alone": shown_trial(),
    }
    for title, trial in trials.items():
        speed = speed_of(trial, speeds)
        folders = RESULTS / f"cells/{trial}/{longest}min"
        curves = []
        for seed in {0, *arguments.seeds}:
            path = folders / f"{seed}/metrics.jsonl"
            if path.exists():
                lines = map(json.loads, path.read_text().splitlines())
                curves.append({x["step"]: x["knn_accuracy"] for x in lines if "knn_accuracy" in x})
        if not curves:
            continue
        steps = sorted(set.intersection(*map(set, curves)))
        seconds = np.array(steps) * BATCH_SIZE / speed["images_per_second"]
        values = np.array([[curve[step] for step in steps] for curve in curves])
        (line,) = axes.plot(
            (seconds + speed["start_seconds"]) / 60, values.mean(axis=0), marker="o", label=title
        )
        axes.fill_between(
            (seconds + speed["start_seconds"]) / 60, values.min(axis=0), values.max(axis=0),
            alpha=0.2, color=line.get_color(),
        )  # fmt: skip
    axes.set(xlabel="minutes from the start of the command", ylabel="k-NN accuracy")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(arguments.figure)


def finished_seeds(trial, minutes, seeds):
    """Those of the seeds whose run is finished."""
    folder = RESULTS / f"cells/{trial}/{minutes}min"
    return [seed for seed in seeds if (folder / f"{seed}/cell.json").exists()]


def mean_correct(trial, minutes, seeds):
    """Figure -> float [N], the mean over finished seeds of whether an example is correct."""
    rows = []
    for seed in seeds:
        with np.load(RESULTS / f"cells/{trial}/{minutes}min/{seed}/correct.npz") as file:
            rows.append({name: file[name].astype(float) for name in FIGURES})
    return {name: np.mean([row[name] for row in rows], axis=0) for name in FIGURES}


NAMES = {CONTRASTIVE: "SupCon and cross-entropy", CROSS_ENTROPY: "cross-entropy"}
DIFFERENCES = {
    "joint": "normalized, color jitter",
    "joint_crop_and_flip": "normalized, crop and flip",
    "joint_not_normalized": "crop and flip",
    "joint_smoothed": "crop and flip, labels smoothed by 0.1",
    "joint_smoothed_jitter": "color jitter, labels smoothed by 0.1",
    "joint_weighted_jitter": "color jitter, labels smoothed by 0.1, cross-entropy weight 0.3",
    "cross_entropy": "color jitter",
    "cross_entropy_crop_and_flip": "crop and flip",
    "cross_entropy_smoothed": "crop and flip, labels smoothed by 0.1",
    "cross_entropy_smoothed_jitter": "color jitter, labels smoothed by 0.1",
    "cross_entropy_smoothed_more": "crop and flip, labels smoothed by 0.2",
    "cross_entropy_smoothed_more_jitter": "color jitter, labels smoothed by 0.2",
    "supcon": "normalized, color jitter",
}
FIGURE_NAMES = {
    "classifier": "classifier",
    "knn": "k-NN",
    "logistic_regression": "logistic regression",
}


def create_trial_table():
    """The accuracies of all trials on the validation images."""
    rows = []
    for side, names in trial_names().items():
        for trial in names:
            path = RESULTS / f"trials/{trial}.json"
            cell = json.loads(path.read_text()) if path.exists() else None
            shown = [f"{cell[f]:.4f}" for f in FIGURES] if cell else ["not run"] * 3
            name, rate = trial.split("@")
            epochs = f"{cell['epochs']:g}" if cell else ""
            rows.append([NAMES[side], DIFFERENCES[name], rate, epochs, *shown])
    head = ["method", "setting", "base learning rate", "epochs", *FIGURE_NAMES.values()]
    return records.table(head, rows, text_columns=2)


def create_setting_table(arguments):
    """The accuracies of the settings after the longest time, and their means on each half."""
    rows = []
    for side in SETTINGS:
        for trial, scores in scores_of_settings(side, max(arguments.minutes)).items():
            correct = mean_correct(trial, max(arguments.minutes), [0])
            name, rate = trial.split("@")
            values = [correct[figure] for figure in FIGURES]
            values += [scores, scores[::2], scores[1::2]]  # The images are sorted by class.
            shown = [f"{value.mean():.4f}" for value in values]
            rows.append([NAMES[side], DIFFERENCES[name], rate, *shown])
    head = ["method", "setting", "base learning rate", *FIGURE_NAMES.values(), "mean"]
    return records.table([*head, "even images", "odd images"], rows, text_columns=2)


def create_cell_table(arguments):
    """The mean accuracies of what was chosen and of SupCon alone, after each time."""
    trials = {NAMES[side]: best_of(side, max(arguments.minutes)) for side in SETTINGS}
    trials["SupCon alone, two views"] = shown_trial()
    rows = []
    for minutes in arguments.minutes:
        for method, trial in trials.items():
            seeds = finished_seeds(trial, minutes, arguments.seeds)
            if not seeds:
                continue
            name, rate = trial.split("@")
            correct = mean_correct(trial, minutes, seeds)
            shown = [f"{correct[figure].mean():.4f}" for figure in FIGURES]
            seeds = ", ".join(map(str, seeds))
            rows.append([method, DIFFERENCES[name], rate, str(minutes), seeds, *shown])
    head = ["method", "setting", "base learning rate", "minutes", "seeds", *FIGURE_NAMES.values()]
    return records.table(head, rows, text_columns=2) if rows else "Not measured yet."


def create_run_table(arguments):
    """The mean accuracies of both sides and their differences, with and without seed 0."""
    best = {side: best_of(side, max(arguments.minutes)) for side in SETTINGS}
    rows = []
    for minutes in arguments.minutes if None not in best.values() else ():
        shared = arguments.seeds
        for trial in best.values():
            shared = finished_seeds(trial, minutes, shared)
        groups = [shared, [seed for seed in shared if seed != 0]]  # Seed 0 chose the settings.
        for seeds in [group for n, group in enumerate(groups) if group and group not in groups[:n]]:
            means = {side: mean_correct(best[side], minutes, seeds) for side in SETTINGS}
            for name in FIGURES:
                new, old = means[CONTRASTIVE][name], means[CROSS_ENTROPY][name]
                values = [f"{new.mean():.4f}", f"{old.mean():.4f}", paired_difference(old, new)]
                text = ", ".join(map(str, seeds))
                rows.append([str(minutes), FIGURE_NAMES[name], *values, text])
    head = ["minutes", "figure", *NAMES.values(), "difference, 95% interval", "seeds"]
    return records.table(head, rows, text_columns=2) if rows else "Not measured yet."


def paired_difference(old, new):
    """The difference of two arrays of correctness with its paired interval, as text."""
    from supcon_tf.evaluation.intervals import paired_bootstrap

    change = paired_bootstrap(old, new)
    return f"{change.difference:+.4f} ({change.low:+.4f} to {change.high:+.4f})"


def create_tables(arguments):
    """The tables by the names of their markers on the page."""
    return {
        "trials": create_trial_table(),
        "settings": create_setting_table(arguments),
        "cells": create_cell_table(arguments),
        "runs": create_run_table(arguments),
    }


def write_page(tables):
    """Makes the tables of the page again."""
    text = PAGE.read_text()
    found = [name for _, name, _ in records.marker("equal time").findall(text)]
    if sorted(found) != sorted(tables):
        raise SystemExit(f"{PAGE} has the markers {found}; expected one of each of {[*tables]}.")
    PAGE.write_text(records.fill_markers(text, "equal time", tables.get))


def num_training_examples(photographs):
    """The number of training images."""
    if not photographs:
        return 1_437
    return sum(1 for path in (pathlib.Path(photographs) / "train").rglob("*") if path.is_file())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", help="folder with train/<class> and test/<class>")
    parser.add_argument("--minutes", default="5,15")
    parser.add_argument("--trial_minutes", type=float, default=3)
    parser.add_argument("--seeds", default="0,1,2")
    parts = ["calibration", "trials", "settings", "runs"]
    parser.add_argument("--part", choices=parts, help="stop after it")
    parser.add_argument("--all", action="store_true", help="also what was tried first")
    parser.add_argument("--jobs", type=int, default=1, help="how many trials and runs at a time")
    parser.add_argument("--table", action="store_true", help="only print what is finished")
    parser.add_argument("--write", action="store_true", help="only put it in docs/when_supcon.md")
    parser.add_argument("--figure", help="file for the curves of what is finished, such as x.svg")
    arguments = parser.parse_args()
    arguments.minutes = [int(text) for text in arguments.minutes.split(",")]
    arguments.seeds = [int(text) for text in arguments.seeds.split(",")]
    if not (arguments.table or arguments.write or arguments.figure):
        arguments.num_examples = num_training_examples(arguments.photographs)
        with tempfile.TemporaryDirectory() as folder:
            run_all(arguments, pathlib.Path(folder))
    tables = create_tables(arguments)
    print("\n\n".join(tables.values()))
    chosen = [str(best_of(side, max(arguments.minutes))) for side in SETTINGS]
    print(f"\nCompared: {', '.join(chosen)}.")
    if arguments.write:
        write_page(tables)
    if arguments.figure:
        draw_figure(arguments)


def run_all(arguments, folder):
    """Runs whatever is not finished."""
    speeds = calibrate(arguments, folder)
    if arguments.part == "calibration":
        return

    def trial_task(trial):
        def run():
            cell = run_trial(trial, arguments.trial_minutes, arguments, speeds, folder)
            print(f"{trial}: {cell}", flush=True)

        return run

    def cell_task(trial, minutes, seed):
        def run():
            cell = run_cell(trial, minutes, seed, arguments, speeds, folder)
            print(f"{trial}, {minutes} minutes, seed {seed}: {cell}", flush=True)

        return run

    longest = max(arguments.minutes)
    # The sides take turns, so that an unfinished study has both.
    pairs = zip(*trial_names(arguments.all).values(), strict=True)
    run_jobs([trial_task(trial) for pair in pairs for trial in pair], arguments.jobs)
    if arguments.part == "trials":
        return
    pairs = zip(*(SETTINGS if arguments.all else COMPARED).values(), strict=True)
    tasks = [
        cell_task(f"{name}@{best_rate(side)}", longest, 0)
        for pair in pairs
        for side, name in zip(SETTINGS, pair, strict=True)
    ]
    run_jobs(tasks, arguments.jobs)
    if arguments.part == "settings":
        return
    tasks = [
        cell_task(best_of(side, longest), minutes, seed)
        for minutes in sorted(arguments.minutes, reverse=True)  # The curves first.
        for seed in arguments.seeds
        for side in SETTINGS
    ]
    run_jobs([*tasks, cell_task(shown_trial(), longest, 0)], arguments.jobs)


if __name__ == "__main__":
    main()
