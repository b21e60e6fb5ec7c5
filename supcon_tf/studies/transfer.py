"""Transfer to other datasets: `python -m supcon_tf.studies.transfer --encoder=runs/mine`.

Khosla et al. 2020, Table 4, with the protocol of SimCLR: hyperparameters are chosen from a grid on
validation images, then one classifier is trained on all training images and tested once.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from supcon_tf.cli import study_flags
from supcon_tf.studies import jobs, ledger

TOP_1, PER_CLASS, MAP = "top_1", "mean_per_class_accuracy", "mean_average_precision"
METRIC_NAMES = {TOP_1: "top-1", PER_CLASS: "mean per class", MAP: "mAP"}


@dataclasses.dataclass(frozen=True)
class Target:
    """A dataset to transfer to.

    Attributes:
        name: In the table.
        metric: A figure of `eval.json`.
        choosing: The flags of the data when hyperparameters are chosen.
        testing: The flags of the data when the chosen ones are tested.
        published: SupCon, ResNet-50, fine-tuned (Table 4), in percent; None for other datasets.
    """

    name: str
    metric: str
    choosing: tuple[str, ...]
    testing: tuple[str, ...]
    published: float | None = None


def _of_tfds(name, metric=TOP_1, *, dataset=None, train="train", validation=None, test="test",
             published=None):  # fmt: skip
    """A dataset of TFDS; without a validation split, a tenth of the training split stands in."""
    chosen = (f"{train}[:90%]", f"{train}[90%:]") if validation is None else (train, validation)
    all_of_it = train if validation is None else f"{train}+{validation}"
    dataset = f"--dataset={dataset or name}"
    return Target(
        name,
        metric,
        (dataset, f"--train_split={chosen[0]}", f"--test_split={chosen[1]}"),
        (dataset, f"--train_split={all_of_it}", f"--test_split={test}"),
        published,
    )


# The paper's datasets that TensorFlow Datasets has; Birdsnap and FGVC Aircraft are not among them.
KNOWN = {
    target.name: target
    for target in (
        _of_tfds("food101", test="validation", published=87.23),
        _of_tfds("cifar10", published=97.42),
        _of_tfds("cifar100", published=84.27),
        _of_tfds("sun397", dataset="sun397/standard-part1-120k", published=58.04),
        _of_tfds("cars196", published=91.69),
        _of_tfds("voc2007", MAP, dataset="voc/2007", validation="validation", published=85.17),
        _of_tfds("dtd", validation="validation", published=74.60),
        _of_tfds("oxford_iiit_pet", PER_CLASS, published=93.47),
        _of_tfds("caltech101", PER_CLASS, published=91.04),
        _of_tfds("oxford_flowers102", PER_CLASS, validation="validation", published=96.0),
    )
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A dataset and a protocol, with the grid of its hyperparameters.

    Attributes:
        target: The dataset.
        protocol: "linear" or "finetune".
        grid: Name to flags of each point.
    """

    target: Target
    protocol: str
    grid: dict[str, tuple[str, ...]]

    @property
    def setting(self) -> str:
        """The name in the ledger."""
        return f"{self.target.name}-{self.protocol}"


def find_target(text: str) -> Target:
    """Returns the dataset that an item of --datasets names.

    Args:
        text: The name of a dataset, or name=folder or name=labels.csv.

    Raises:
        ValueError: If the folder or file does not exist.
    """
    name, _, path = text.partition("=")
    if not path:
        return KNOWN.get(name) or _of_tfds(name.replace("/", "_"), dataset=name)
    if not Path(path).exists():
        raise ValueError(f"--datasets={text}: {path} does not exist.")
    data = f"--data_csv={path}" if path.endswith(".csv") else f"--data_dir={path}"
    of_choice = ("--validation_split=0.2", "--eval_split=validation")
    return Target(name, TOP_1, (data, *of_choice), (data, "--eval_split=test"))


def create_pairs(values: flags.FlagValues, of_every_run: Sequence[str]) -> list[Pair]:
    """Returns every dataset with every protocol.

    Raises:
        ValueError: If a protocol is unknown or has no grid, or a folder does not exist.
    """
    pairs = []
    for text, protocol in itertools.product(values.datasets, values.protocols):
        if protocol not in ("linear", "finetune"):
            raise ValueError(f"--protocols={protocol}: choose from linear and finetune.")
        grid: dict[str, tuple[str, ...]] = {}
        trains_in_steps = any(flag.startswith("--linear_") for flag in of_every_run)
        if protocol == "linear" and not trains_in_steps:
            grid["fitted"] = ("--linear_optimizer=lbfgs",)
        rates: list[str] = values[f"{protocol}_rates"].value or []
        decays: list[str] = values[f"{protocol}_decays"].value or []
        for rate, decay in itertools.product(rates, decays):
            given: tuple[str, ...] = (
                f"--{protocol}_base_learning_rate={rate}", f"--{protocol}_weight_decay={decay}"
            )  # fmt: skip
            if protocol == "linear" and not trains_in_steps:
                given += ("--linear_optimizer=momentum",)
            grid[f"rate_{rate}_decay_{decay}"] = given
        if not grid:
            raise ValueError(f"--{protocol}_rates and --{protocol}_decays leave nothing to choose.")
        pairs.append(Pair(find_target(text), protocol, grid))
    return pairs


def _job(values, pair, point, data, of_every_run, *folders):
    common = (f"--reference_ckpt={values.encoder}", f"--seed={values.seed}", *of_every_run)
    if values.tfds_dir and data[0].startswith("--dataset="):
        common += (f"--data_dir={values.tfds_dir}",)
    folder = Path(values.study_dir, pair.setting, *folders)
    return jobs.Job(folder, f"{pair.protocol},eval", (*data, *common, *pair.grid[point]))


def grid_jobs(
    values: flags.FlagValues, pair: Pair, of_every_run: Sequence[str]
) -> dict[str, jobs.Job]:
    """Returns the runs that choose the hyperparameters of a pair, by the name of the point."""
    data = pair.target.choosing
    return {
        point: _job(values, pair, point, data, of_every_run, "grid", point) for point in pair.grid
    }


def tested_job(
    values: flags.FlagValues, pair: Pair, of_every_run: Sequence[str], validation: dict[str, float]
) -> jobs.Job:
    """Returns the run that is tested, with the point of the best validation figure."""
    best = max(validation, key=lambda point: validation[point])
    return _job(values, pair, best, pair.target.testing, of_every_run, "test")


def _figure(job, pair):
    result = json.loads((job.folder / "eval/eval.json").read_text())
    metric = MAP if MAP in result else pair.target.metric  # A csv file may have several labels.
    if metric not in result:
        raise ValueError(
            f"{job.folder} has no {METRIC_NAMES[metric]}: its labels are numbers, which the study "
            "does not compare."
        )
    return metric, float(result[metric])


def _choose_and_test(values, pairs, of_every_run):
    """Runs the grids of the pairs, then their tests; writes the ledger.

    A dataset whose runs fail does not keep the others from being tested.

    Returns:
        The error of the runs that failed, or None.
    """
    grids = {pair.setting: grid_jobs(values, pair, of_every_run) for pair in pairs}
    all_of_them = [job for grid in grids.values() for job in grid.values()]
    failures = [_failure_of(all_of_them, num_parallel=values.jobs)]
    tests, found = {}, {}
    for pair in pairs:
        grid = grids[pair.setting]
        if not all(job.is_finished() for job in grid.values()):
            continue
        validation = {point: _figure(job, pair)[1] for point, job in grid.items()}
        found[pair.setting] = validation
        tests[tested_job(values, pair, of_every_run, validation)] = pair

    def record(job):
        pair = tests[job]
        ledger.write_entry(
            job.folder, Path(values.study_dir, "results"), experiment="transfer",
            setting=pair.setting, seed=values.seed,
            figures={f"validation_{point}": value for point, value in found[pair.setting].items()},
        )  # fmt: skip

    failures.append(_failure_of(list(tests), num_parallel=values.jobs, after_each=record))
    return next((failure for failure in failures if failure is not None), None)


def _failure_of(of_study, **options):
    """Runs the jobs; returns the error of those that failed, or None."""
    try:
        jobs.execute_jobs(of_study, **options)
    except RuntimeError as error:
        return error
    return None


def transfer_table(values: flags.FlagValues, pairs: Sequence[Pair]) -> str:
    """Returns the markdown table of the pairs that were tested, and the mean of each protocol."""
    lines = [
        "| dataset | protocol | metric | test | 95% interval | chosen of the grid | "
        "paper: SupCon, ResNet-50, fine-tuned |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    means: dict[str, list[float]] = {}
    for pair in pairs:
        folder = Path(values.study_dir, "results/transfer", pair.setting, str(values.seed))
        published = pair.target.published
        paper = "" if published is None or pair.protocol != "finetune" else f"{published:.2f}%"
        if not (folder / ledger.ENTRY).exists():
            cells = [METRIC_NAMES[pair.target.metric], "not run", "", ""]
        else:
            (entry,) = ledger.read_entries(folder)
            metric = MAP if MAP in entry.evaluation else pair.target.metric
            value = float(entry.evaluation[metric])
            means.setdefault(pair.protocol, []).append(value)
            low, high = entry.evaluation["intervals_95"][metric]
            tried = {
                name.removeprefix("validation_"): number
                for name, number in entry.facts["figures"].items()
            }
            best = max(tried, key=lambda point: tried[point]).replace("_", " ")
            interval = f"{low:.4f} to {high:.4f}"
            cells = [METRIC_NAMES[metric], f"{value:.4f}", interval, best]
        lines.append(f"| {' | '.join([pair.target.name, pair.protocol, *cells, paper])} |")
    for protocol, numbers in means.items():
        mean = sum(numbers) / len(numbers)
        lines.append(f"| mean of {len(numbers)} | {protocol} | | {mean:.4f} | | | |")
    return "\n".join(lines) + "\n"


def study_transfer(argv: Sequence[str]) -> None:
    """Runs the study, or one dataset and protocol of it, and writes `transfer.md`.

    Raises:
        ValueError: If the command line is wrong.
        RuntimeError: If runs failed, after testing the other datasets and writing the table.
    """
    values, of_every_run = study_flags.parse_study("transfer", argv)
    if not values.encoder:
        raise ValueError("--encoder is missing: the model directory of a run, or an encoder.keras.")
    pairs = create_pairs(values, of_every_run)
    if values.list:
        for number, pair in enumerate(pairs):
            print(number, pair.setting, f"{len(pair.grid)} points,", *pair.target.testing)
        return
    if values.task is not None:
        if values.task >= len(pairs):
            raise ValueError(f"--task={values.task} is out of range: there are {len(pairs)}.")
        failure = _choose_and_test(values, [pairs[values.task]], of_every_run)
    else:
        failure = _choose_and_test(values, pairs, of_every_run)
        table = transfer_table(values, pairs)
        Path(values.study_dir, "transfer.md").write_text(table, encoding="utf-8")
        print(f"\n{table}")
    if failure is not None:
        raise failure


if __name__ == "__main__":
    try:
        study_transfer(sys.argv)
    except (ValueError, RuntimeError, OSError, flags.Error) as error:
        sys.exit(f"ERROR: {error}")
