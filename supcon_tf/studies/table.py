"""Tables of the ledger: `python -m supcon_tf.studies.table results/claims/digits`.

For each figure one markdown table, one row per setting: mean and range over the seeds, the 95%
interval, the paired difference to --baseline, and beside a published value whether it is inside the
interval. An experiment may have `published.json`:

    {"top_1": {"source": "Khosla et al. 2020, Table 2", "values": {"supcon": 0.96}}}

Pages contain tables between two markers, which --write fills in:

    <!-- table: results/claims/digits --figures=top_1 --baseline=cross_entropy -->
    <!-- end of table -->
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from supcon_tf.cli import study_flags
from supcon_tf.evaluation import intervals
from supcon_tf.studies.ledger import PREDICTIONS, Entry, read_entries

MARKER = re.compile(r"^(<!-- table: ([^\n]*?) -->\n).*?^(<!-- end of table -->)", re.S | re.M)
TITLES = {
    "top_1": "top-1",
    "knn_top_1": "k-NN top-1",
    "expected_calibration_error": "expected calibration error",
    "mean_corruption_accuracy": "mean top-1 on corrupted images",
}


def create_tables(
    folders: Sequence[str | Path], figures: Sequence[str], baseline: str | None = None
) -> str:
    """Returns the markdown tables of every experiment below the folders.

    Args:
        folders: Folders of the ledger.
        figures: Names of figures, such as "top_1".
        baseline: The setting that the others are compared with on the same test examples.

    Raises:
        ValueError: If there is no entry, or if the baseline is none of the settings.
    """
    entries = read_entries(*folders)
    published = {}
    for folder in folders:
        for path in Path(folder).rglob("published.json"):
            published[path.parent] = json.loads(path.read_text())
    experiments: dict[Path, list[Entry]] = {folder: [] for folder in published}
    for entry in entries:
        experiments.setdefault(entry.path.parent.parent, []).append(entry)
    if not experiments:
        raise ValueError(f"There is no entry of the ledger below {', '.join(map(str, folders))}.")
    parts = []
    for folder, group in sorted(experiments.items()):
        for figure in figures:
            known = published.get(folder, {}).get(figure, {})
            if len(experiments) > 1 or len(figures) > 1:
                name = group[0].experiment if group else folder.name
                parts.append(f"**{name}: {_title_of_figure(figure)}**\n")
            parts.append("\n".join(_table_lines(group, figure, baseline, known)) + "\n")
    return "\n".join(parts)


def _title_of_figure(figure):
    return TITLES.get(figure, figure.replace("_", " "))


def _table_lines(entries, figure, baseline, published):
    settings: dict[str, list[Entry]] = {name: [] for name in published.get("values", {})}
    for entry in entries:
        if entry.figure(figure) is not None:
            settings.setdefault(entry.setting, []).append(entry)
    if not settings:
        return ["No run has this figure."]
    if baseline is not None and not settings.get(baseline):
        raise ValueError(
            f"--baseline={baseline} has no {_title_of_figure(figure)}: choose one of "
            f"{', '.join(name for name, group in settings.items() if group)}."
        )
    has_examples = any(entry.per_example(figure) is not None for entry in entries)
    head = ["setting", "seeds", _title_of_figure(figure), "range"]
    head += ["95% interval"] if has_examples else []
    head += [f"minus {baseline}"] if baseline and has_examples else []
    head += ["published", "published value"] if published else []
    rows = []
    for name, group in settings.items():
        row = [name, *_cells(group, figure)]
        interval = interval_of(group, figure)
        if has_examples:
            row.append(f"{interval.low:.4f} to {interval.high:.4f}" if interval else "")
        if baseline and has_examples:
            row.append(_difference_cell(settings[baseline], group, figure))
        if published:
            value = published["values"].get(name)
            row += ["", ""] if value is None else [f"{value:.4f}", verdict(value, group, figure)]
        rows.append(row)
    lines = [head, ["---"] * len(head), *rows]
    text = [f"| {' | '.join(line)} |" for line in lines]
    return [*text, "", f"Published: {published['source']}."] if published else text


def _cells(group, figure):
    if not group:
        return ["", "not run", ""]
    values = [entry.figure(figure) for entry in group]
    seeds = ", ".join(str(entry.seed) for entry in group)
    return [seeds, f"{np.mean(values):.4f}", f"{min(values):.4f} to {max(values):.4f}"]


def interval_of(group: Sequence[Entry], figure: str) -> intervals.Interval | None:
    """Returns the 95% interval of the mean over the seeds, for the choice of the test examples.

    Of one seed's top-1 it is Wilson's; otherwise it is a bootstrap over the test examples of their
    mean over the seeds. None if the ledger keeps no values per example.
    """
    values = examples_of(group, figure)
    if values is None:
        return None
    if len(group) == 1 and figure == "top_1":
        return intervals.wilson_interval(int(values.sum()), len(values))
    return intervals.bootstrap_interval(values)


def examples_of(group: Sequence[Entry], figure: str) -> np.ndarray | None:
    """Returns the mean over the seeds for each test example, float64 [N], or None.

    Raises:
        ValueError: If the seeds have different test examples.
    """
    rows = [entry.per_example(figure) for entry in group]
    kept = [row for row in rows if row is not None]
    if not kept or len(kept) < len(rows):
        return None
    if len({len(row) for row in kept}) > 1:
        raise ValueError(
            f"The seeds of {group[0].path.parent} have different numbers of test examples."
        )
    return np.mean(kept, axis=0)


def verdict(published: float, group: Sequence[Entry], figure: str) -> str:
    """Compares a published value with the runs: inside the interval, outside, or not run."""
    interval = interval_of(group, figure) if group else None
    if interval is None:
        return "not run" if not group else "no interval"
    return "inside the interval" if interval.low <= published <= interval.high else "outside"


def _difference_cell(base, group, figure):
    """The paired difference over the seeds that both have."""
    if not group or group is base:
        return ""
    common = {entry.seed for entry in base} & {entry.seed for entry in group}
    base, group = ([entry for entry in each if entry.seed in common] for each in (base, group))
    if not common:
        return "other seeds"
    first, second = examples_of(base, figure), examples_of(group, figure)
    if first is None or second is None or len(first) != len(second):
        return "other examples"
    if not all(map(_have_same_examples, base, group)):
        return "other examples"
    change = intervals.paired_bootstrap(first, second)
    return f"{change.difference:+.4f} ({change.low:+.4f} to {change.high:+.4f})"


def _have_same_examples(first, second):
    if not all((entry.path / PREDICTIONS).exists() for entry in (first, second)):
        return False
    a, b = first.predictions, second.predictions
    return np.array_equal(a.labels, b.labels) and np.array_equal(a.names, b.names)


def fill_tables(text: str, root: str | Path = ".") -> str:
    """Returns the text of a page with the tables between its markers made again.

    Args:
        text: The page.
        root: The folder that the paths in the markers are relative to. A table of no run says
            "Not run here."
    """

    def fill(match):
        values, folders = study_flags.parse_study("table", ["table", *shlex.split(match[2])])
        paths = [Path(root, folder) for folder in folders]
        tables = "Not run here.\n"
        if read_entries(*paths) or any(any(path.rglob("published.json")) for path in paths):
            tables = create_tables(paths, values.figures, values.baseline)
        return f"{match[1]}\n{tables}\n{match[3]}"

    return MARKER.sub(fill, text)


def write_tables(argv: Sequence[str]) -> None:
    """Prints tables, or with --write fills in those of pages."""
    values, places = study_flags.parse_study("table", argv)
    if not places:
        raise ValueError("Name folders of the ledger, such as results/claims, or pages to --write.")
    if not values.write:
        print(create_tables(places, values.figures, values.baseline))
        return
    for page in map(Path, places):
        old = page.read_text(encoding="utf-8")
        new = fill_tables(old)
        page.write_text(new, encoding="utf-8")
        print(f"{page}: {'changed' if new != old else 'up to date'}, "
              f"{len(MARKER.findall(old))} tables.")  # fmt: skip


if __name__ == "__main__":
    try:
        write_tables(sys.argv)
    except (ValueError, OSError, flags.Error) as error:
        sys.exit(f"ERROR: {error}")
