"""Stability to hyperparameters: `python -m supcon_tf.studies.stability --recipe=digits`.

Khosla et al. 2020, Section 4.4 and Fig. 4a: around a recipe, the augmentation, the optimizer, the
learning rate, the temperature and the batch size are varied one at a time, for SupCon and for
cross-entropy. The study prints one table and draws a box plot of top-1.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from supcon_tf.cli import command_line, study_flags
from supcon_tf.studies import jobs, ledger

# Without joint training, which some recipes and the defaults for photographs choose.
METHODS = {
    "supcon": (("--cross_entropy_weight=0", "--num_views=2"), "pretrain,linear,eval"),
    "cross_entropy": (
        (
            "--cross_entropy_weight=0", "--loss=cross_entropy", "--num_views=1",
            "--nonormalize_embedding", "--pretrain_label_smoothing=0",
        ),
        "pretrain,eval",
    ),
}  # fmt: skip
BASE = "recipe"  # The hyperparameter of the runs that vary none.


@dataclasses.dataclass(frozen=True)
class Variation:
    """One value of one hyperparameter.

    Attributes:
        method: "supcon" or "cross_entropy".
        factor: The hyperparameter, or `BASE`.
        value: Its value, as text.
        flags: What sets it.
    """

    method: str
    factor: str
    value: str
    flags: tuple[str, ...] = ()

    @property
    def setting(self) -> str:
        """The name in the ledger."""
        parts = (self.method, self.factor, self.value)
        return "-".join(filter(None, parts)).replace(" ", "_")


def variations_from_flags(
    values: flags.FlagValues, of_every_run: Sequence[str]
) -> dict[Variation, tuple[str, ...]]:
    """Returns each variation with all flags of its runs but the seed.

    A value that the recipe has anyway is not listed: the runs of the recipe are that value's.

    Raises:
        ValueError: If a value is not of the expected form.
    """
    recipe = [f"--recipe={values.recipe}"] if values.recipe else []
    found: dict[Variation, tuple[str, ...]] = {}
    for method, (own, _) in METHODS.items():
        given = shlex.split(values[f"{method}_flags"].value or "")
        common = (*recipe, *of_every_run, *own, *given)
        base = command_line.peek(command_line.expand_recipe(["study", *common]))
        for variation in _around(method, values, base):
            if variation.setting in {other.setting for other in found}:
                raise ValueError(
                    f"{variation.factor} {variation.value} is given twice: name each value once."
                )
            found[variation] = (*common, *variation.flags)
    return found


def _around(method, values, base):
    yield Variation(method, BASE, "")
    for text in values.augmentations:
        name, _, strength = text.partition(":")
        if name != base.augmentation_type:
            given: tuple[str, ...] = (f"--augmentation_type={name}",)
            if name == "randaugment" and not strength:
                raise ValueError(
                    "--augmentations=randaugment needs a level up to 10, such as "
                    "--augmentations=randaugment:9."
                )
            if strength:
                given += (f"--augmentation_magnitude={_as_number(strength):g}",)
            yield Variation(method, "augmentation", name, given)
    for text in values.optimizers:
        name, _, rate = text.partition(":")
        if name != base.pretrain_optimizer:
            given = (
                f"--pretrain_optimizer={name}", f"--pretrain_base_learning_rate={_as_number(rate)}",
            )  # fmt: skip
            yield Variation(method, "optimizer", name, given)
    for text in _factors(values.learning_rate_factors):
        rate = base.pretrain_base_learning_rate * _as_number(text)
        given = (f"--pretrain_base_learning_rate={rate:.6g}",)
        yield Variation(method, "learning rate", f"{rate:.6g}", given)
    if method == "supcon":
        for text in values.temperatures:
            if _as_number(text) != base.temperature:
                yield Variation(method, "temperature", text, (f"--temperature={text}",))
    for text in _factors(values.batch_size_factors):
        size = round(base.batch_size * _as_number(text))
        yield Variation(method, "batch size", str(size), (f"--batch_size={size}",))


def _factors(texts):
    """All but 1, which is the recipe."""
    return [text for text in texts if _as_number(text) != 1]


def _as_number(text):
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a number. Expected numbers such as --temperatures=0.05,0.2, and "
            "optimizers with their base learning rates, such as --optimizers=lars:0.4, and "
            "augmentations, if at all, with their strength, such as --augmentations=randaugment:5."
        ) from None


def create_jobs(
    values: flags.FlagValues, variations: dict[Variation, tuple[str, ...]]
) -> dict[jobs.Job, tuple[Variation, int]]:
    """Returns the runs of the study with the variation and the seed of each."""
    found = {}
    for variation, given in variations.items():
        for seed in values.seeds:
            folder = Path(values.study_dir, variation.setting, seed)
            mode = METHODS[variation.method][1]
            found[jobs.Job(folder, mode, (*given, f"--seed={seed}"))] = variation, int(seed)
    return found


def stability_table(
    top_1: dict[Variation, list[float]],
) -> str:
    """Returns the markdown table: every value, and the spread of every hyperparameter.

    Args:
        top_1: The accuracies of the seeds of each variation.
    """
    lines = ["| method | hyperparameter | value | seeds | top-1 | range |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for variation, seeds in top_1.items():
        lines.append(
            f"| {variation.method} | {variation.factor} | {variation.value} | {len(seeds)} | "
            f"{np.mean(seeds):.4f} | {min(seeds):.4f} to {max(seeds):.4f} |"
        )
    lines += ["", "| method | hyperparameter | values | lowest | highest | standard deviation |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for (method, factor), values in spreads(top_1).items():
        means = [np.mean(each) for each in values]
        lines.append(
            f"| {method} | {factor} | {len(means)} | {min(means):.4f} | {max(means):.4f} | "
            f"{np.std(means):.4f} |"
        )
    return "\n".join(lines) + "\n"


def spreads(
    top_1: dict[Variation, list[float]],
) -> dict[tuple[str, str], list[list[float]]]:
    """Returns the accuracies by method and hyperparameter, those of the recipe among each.

    The last hyperparameter of a method, "all", has every variation.
    """
    found: dict[tuple[str, str], list[list[float]]] = {}
    for method in dict.fromkeys(variation.method for variation in top_1):
        of_method = {v: values for v, values in top_1.items() if v.method == method}
        base = [values for v, values in of_method.items() if v.factor == BASE]
        for factor in dict.fromkeys(v.factor for v in of_method if v.factor != BASE):
            varied = [values for v, values in of_method.items() if v.factor == factor]
            found[method, factor] = [*base, *varied]
        found[method, "all"] = list(of_method.values())
    return found


def draw_box_plot(top_1: dict[Variation, list[float]], path: Path) -> None:
    """Draws top-1 by hyperparameter, one box per method over all values and seeds, as Fig. 4a."""
    from matplotlib.figure import Figure

    groups = spreads(top_1)
    factors = list(dict.fromkeys(factor for _, factor in groups if factor != "all")) + ["all"]
    methods = list(dict.fromkeys(method for method, _ in groups))
    figure = Figure(figsize=(1.7 * len(factors) + 1.5, 3.8), layout="constrained", dpi=120)
    axes = figure.subplots()
    for number, method in enumerate(methods):
        color = ("tab:blue", "tab:orange")[number % 2]
        places = [
            place for place, factor in enumerate(factors) if (method, factor) in groups
        ]  # fmt: skip
        values = [np.concatenate(groups[method, factors[place]]) for place in places]
        offset = 0.36 * (number - (len(methods) - 1) / 2)
        style: Any = {"color": color}
        boxes = axes.boxplot(
            values, positions=[place + offset for place in places], widths=0.3,
            whis=(0, 100), boxprops=style, whiskerprops=style, capprops=style,
            medianprops={"color": color, "linewidth": 2},
        )  # fmt: skip
        boxes["boxes"][0].set_label(method.replace("_", "-"))
        for place, points in zip(places, values, strict=True):
            axes.plot([place + offset] * len(points), points, ".", color=color, markersize=4)
    axes.set_xticks(range(len(factors)), factors)
    axes.set_ylabel("top-1")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def study_stability(argv: Sequence[str]) -> None:
    """Runs the study, or one task of it, and writes `stability.md`, `.png` and `.svg`.

    Raises:
        ValueError: If the command line is wrong.
        RuntimeError: If runs failed, after writing the table of the others.
    """
    values, of_every_run = study_flags.parse_study("stability", argv)
    created = create_jobs(values, variations_from_flags(values, of_every_run))
    if values.list:
        for number, job in enumerate(created):
            print(number, job.folder, *job.flags)
        return
    results = Path(values.study_dir, "results")

    def record(job):
        variation, seed = created[job]
        ledger.write_entry(
            job.folder, results, experiment="stability", setting=variation.setting, seed=seed
        )

    failure = None
    try:
        jobs.execute_jobs(
            list(created), num_parallel=values.jobs, task=values.task, after_each=record
        )
    except RuntimeError as error:  # A learning rate that diverges must not hide the others.
        failure = error
    if values.task is None:
        _summarize_study(values, created, results)
    if failure is not None:
        raise failure


def _summarize_study(values, created, results):
    """Writes the table and the plot of the runs that are finished."""
    top_1: dict[Variation, list[float]] = {}
    for variation, seed in created.values():
        folder = results / "stability" / variation.setting / str(seed)
        if not (folder / ledger.ENTRY).exists():
            continue
        (entry,) = ledger.read_entries(folder)
        figure = entry.figure("top_1")
        if figure is None:
            raise ValueError(f"{folder} has no top-1: the study needs images of one class each.")
        top_1.setdefault(variation, []).append(figure)
    if not top_1:
        return
    table = stability_table(top_1)
    Path(values.study_dir, "stability.md").write_text(table, encoding="utf-8")
    for kind in ("png", "svg"):
        draw_box_plot(top_1, Path(values.study_dir, f"stability.{kind}"))
    print(f"\n{table}\nThe box plot is in {values.study_dir}/stability.png")


if __name__ == "__main__":
    try:
        study_stability(sys.argv)
    except (ValueError, RuntimeError, OSError, flags.Error) as error:
        sys.exit(f"ERROR: {error}")
