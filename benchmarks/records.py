"""What a benchmark measured, as JSON, and the tables of docs/benchmarks.md that follow from it.

A file of results/benchmarks/ holds the command, commit, versions and machine, and in "rows" every
single repeat, so that another median or spread can be computed later. The script that measured it
has a function that makes its table; a page contains it between two markers:

    <!-- benchmark: loss -->
    <!-- end of benchmark -->
"""

from __future__ import annotations

import json
import pathlib
import re
import statistics
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "results/benchmarks"
NAMED_PACKAGES = (
    *("tensorflow", "keras", "torch", "torchvision"),
    *("pytorch-metric-learning", "tf-models-official", "pillow"),
)
PATH = re.compile(r"(--\w+)=\S*/\S*")  # A flag whose value is a path of this machine.


def write(path, rows, **facts):
    """Writes the rows of a benchmark with what it ran on; does nothing without a path.

    Args:
        path: The file, or None.
        rows: A list of JSON objects, with all repeats.
        **facts: Further entries of the file.
    """
    if path is None:
        return
    if str(REPOSITORY) not in sys.path:
        sys.path.insert(0, str(REPOSITORY))
    from supcon_tf.studies import ledger

    path = pathlib.Path(path)
    command = " ".join(["benchmarks/" + pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
    command = re.sub(r" --results=\S+", "", command)
    facts = {"command": PATH.sub(r"\1=FOLDER", command), **ledger.environment_facts(), **facts}
    facts["commit"] = without_own_changes(facts["commit"])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    temporary.replace(path)


def without_own_changes(commit):
    """The commit without "-dirty", if only benchmark results are changed."""
    command = ["git", "diff", "--quiet", "HEAD", "--", ".", ":(exclude)results/benchmarks"]
    try:
        is_changed = subprocess.run(command, cwd=REPOSITORY).returncode
    except OSError:  # No git, and then no commit.
        return commit
    return commit if is_changed or commit is None else commit.removesuffix("-dirty")


def versions(python, packages):
    """The versions of packages in the environment of another Python."""
    code = f"import importlib.metadata as m; print(*map(m.version, {packages!r}))"
    found = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return dict(zip(packages, found.stdout.split(), strict=True))


def table(head, rows, text_columns=1):
    """A markdown table whose first columns are text and whose others are numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *rows))


def spread(values, form="{:.3g}"):
    """The median with the range of the repeats, such as "2 (1 to 4)"."""
    middle, low, high = (
        form.format(value) for value in (statistics.median(values), min(values), max(values))
    )
    return middle if low == middle == high else f"{middle} ({low} to {high})"


def caption(facts):
    """The command, machine and versions, as one sentence under a table."""
    found = {**facts["versions"], **facts.get("peer_versions", {})}
    names = [name for name in NAMED_PACKAGES if name in found]
    machine = facts["machine"]
    return (
        f"`.venv/bin/python {facts['command']}`, {machine['cpu_count']} CPU cores "
        f"({machine['processor']}), "
        + ", ".join(f"{name} {found[name]}" for name in names)
        + f", commit {facts['commit']}."
    )


def marker(kind):
    """Matches a marker of a kind, its name in group 2, and everything to its end."""
    start, end = rf"<!-- {kind}: (\w+) -->\n", rf"<!-- end of {kind} -->"
    return re.compile(rf"^({start}).*?^({end})", re.S | re.M)


MARKER = marker("benchmark")


def fill_markers(text, kind, create):
    """Returns a text with what stands between its markers of a kind made again.

    Args:
        text: Has lines such as "<!-- benchmark: loss -->" and "<!-- end of benchmark -->".
        kind: "benchmark" in this example.
        create: Name after the kind -> the new content.
    """

    def fill(match):
        return f"{match[1]}\n{create(match[2])}\n\n{match[3]}"

    return marker(kind).sub(fill, text)


def fill_page(text, tables, folder=FOLDER):
    """Returns the text of a page with the tables between its markers made again.

    Args:
        text: The page.
        tables: Name of a benchmark -> function of its facts that makes the table.
        folder: Where the results are. A benchmark without results says "Not measured here."
    """

    def create(name):
        path = folder / f"{name}.json"
        if not path.exists():
            return "Not measured here."
        facts = json.loads(path.read_text())
        return f"{tables[name](facts)}\n\n{caption(facts)}"

    return fill_markers(text, "benchmark", create)
