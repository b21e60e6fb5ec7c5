"""The ledger: what is kept of a run, so that its figures can be recomputed.

    results/<experiment>/<setting>/<seed>/
        entry.json         experiment, setting, seed, commit, versions, machine, seconds, figures
        stage.flags        the flags of all stages of the run, to run it again with --flagfile
        metrics.jsonl      the log of training, thinned
        eval.json          what --mode=eval wrote
        predictions.npz    label, probabilities (float16) and name or index of each test example
        robustness.json, corrupted.npz   after --mode=robustness: figures, and the mean correctness
                           of each test image over all corruptions and severities

Folders of this machine are replaced by their role: RUN, or the name of the flag.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import supcon_tf
from supcon_tf.evaluation import prediction_files
from supcon_tf.evaluation.prediction_files import Predictions
from supcon_tf.storage.run_paths import FLAG_FILE, LOG, RESULT

VERSION = 1
ENTRY, PREDICTIONS = "entry.json", "predictions.npz"
STAGES = ("pretrain", "linear", "finetune", "eval", "robustness")
# Lines of metrics.jsonl that are kept, besides those with a k-NN accuracy.
MAX_LOG_LINES = 100
PACKAGES = ("tensorflow", "keras", "numpy", "scikit-learn", "tensorflow-datasets")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One run of the ledger.

    Attributes:
        path: Its folder.
        experiment, setting, seed: Where it belongs.
        facts: The content of `entry.json`.
        evaluation: The content of `eval.json`.
        robustness: The content of `robustness.json`; {} without it.
    """

    path: Path
    experiment: str
    setting: str
    seed: int
    facts: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    robustness: Mapping[str, Any]

    def figure(self, name: str) -> float | None:
        """Returns a figure of `eval.json`, `robustness.json` or `entry.json`; None if missing."""
        for place in (self.evaluation, self.robustness, self.facts["figures"]):
            value = place.get(name)
            if isinstance(value, (int, float)):
                return float(value)
        return None

    @functools.cached_property
    def predictions(self) -> Predictions:
        """The content of `predictions.npz`."""
        return prediction_files.from_npz((self.path / PREDICTIONS).read_bytes())

    def per_example(self, figure: str) -> np.ndarray | None:
        """Returns the values whose mean is the figure, float64 [N], or None if none are kept.

        They are kept for top_1 and mean_corruption_accuracy.
        """
        if figure == "top_1" and (self.path / PREDICTIONS).exists():
            return self.predictions.is_correct().astype(np.float64)
        path = self.path / "corrupted.npz"
        if figure == "mean_corruption_accuracy" and path.exists():
            with np.load(path) as arrays:
                return arrays["mean_correct"].astype(np.float64)
        return None


def write_entry(
    run: str | Path,
    results: str | Path,
    *,
    experiment: str,
    setting: str,
    seed: int,
    figures: Mapping[str, float] | None = None,
) -> Path:
    """Writes the entry of a finished run, whole or not at all, in place of an older one.

    Args:
        run: The model directory, after --mode=eval.
        results: The folder of the ledger.
        experiment, setting: Names of folders; an experiment may have several parts, "a/b".
        seed: The seed of the run.
        figures: Further figures, such as the learning rate that was chosen.

    Returns:
        The folder of the entry.

    Raises:
        ValueError: If the run was not evaluated.
    """
    run, target = Path(run), Path(results, experiment, setting, str(seed))
    if not (run / "eval/eval.json").exists():
        raise ValueError(f"{run} was not evaluated. Run --mode=eval with --model_dir={run} first.")
    stages = [stage for stage in STAGES if (run / stage / FLAG_FILE).exists()]
    lines = _flag_lines(run, stages)
    roles = _roles(run, lines)
    temporary = target.with_name(f".{target.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    flags = [f"--mode={','.join(stages)}", *lines.values()]
    _write_text(temporary / FLAG_FILE, "\n".join(flags) + "\n", roles)
    trained = next((stage for stage in STAGES[:3] if (run / stage / LOG).exists()), None)
    if trained is not None:
        log = thinned((run / trained / LOG).read_text().splitlines())
        _write_text(temporary / LOG, "".join(line + "\n" for line in log), roles)
    for name in ("eval/eval.json", "robustness/robustness.json"):
        if (run / name).exists():
            _write_text(temporary / Path(name).name, (run / name).read_text(), roles)
    if (run / "eval/predictions.npz").exists():
        small = _small((run / "eval/predictions.npz").read_bytes())
        (temporary / PREDICTIONS).write_bytes(small)
    if (run / "robustness/correct.npz").exists():
        with np.load(run / "robustness/correct.npz") as arrays:
            mean = arrays["correct"][arrays["severity"] > 0].mean(axis=0, dtype=np.float64)
        # float32, because the mean of float16 values would differ from robustness.json.
        np.savez_compressed(temporary / "corrupted.npz", mean_correct=mean.astype(np.float32))
    facts = {
        "version": VERSION,
        "experiment": experiment,
        "setting": setting,
        "seed": seed,
        "stages": stages,
        "seconds": _seconds(run, stages),
        "figures": dict(figures or {}),
        **environment_facts(),
    }
    _write_text(temporary / ENTRY, json.dumps(facts, indent=1) + "\n", roles)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    return target


def read_entries(*folders: str | Path) -> list[Entry]:
    """Reads every entry below the folders, sorted by experiment, setting and seed.

    Raises:
        ValueError: If an entry is damaged or was written by a later version.
    """
    found = []
    for folder in folders:
        for path in Path(folder).rglob(ENTRY):
            if not path.parent.name.startswith("."):
                found.append(_read_entry(path.parent))
    return sorted(found, key=lambda entry: (entry.experiment, entry.setting, entry.seed))


def _read_entry(folder):
    try:
        facts = json.loads((folder / ENTRY).read_text())
        evaluation = json.loads((folder / "eval.json").read_text())
        path = folder / "robustness.json"
        robustness = json.loads(path.read_text()) if path.exists() else {}
        names = facts["experiment"], facts["setting"], int(facts["seed"])
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{folder} is not an entry of the ledger: {error}") from error
    if facts["version"] != VERSION:
        raise ValueError(
            f"{folder} has version {facts['version']}, expected {VERSION}: read it with the "
            "version of supcon_tf that wrote it."
        )
    return Entry(folder, *names, facts, evaluation, robustness)


def thinned(lines: Iterable[str]) -> list[str]:
    """Returns evenly spaced lines of a log, and all lines with a k-NN accuracy.

    Numbers have six significant digits.
    """
    parsed = [json.loads(line) for line in lines if line.strip()]
    spaced = np.linspace(0, len(parsed) - 1, min(MAX_LOG_LINES, len(parsed))).astype(int)
    chosen = set(spaced.tolist())
    kept = [line for n, line in enumerate(parsed) if n in chosen or "knn_accuracy" in line]
    return [json.dumps({name: _rounded(value) for name, value in line.items()}) for line in kept]


def _rounded(value):
    return float(f"{value:.6g}") if isinstance(value, float) else value


def environment_facts() -> dict[str, Any]:
    """Returns commit, versions and machine, without names of the machine or its user."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "commit": _commit_of_checkout(),
        "versions": {"supcon_tf": supcon_tf.__version__, **versions},
        "machine": {
            "system": platform.system(),
            "processor": _processor(),
            "cpu_count": os.cpu_count(),
            "python": platform.python_version(),
        },
    }


def _commit_of_checkout():
    """The commit, or None for an installed package or without git."""
    root = Path(supcon_tf.__file__).parent.parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if (root / ".git").exists() else None


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.machine()


def _flag_lines(run, stages):
    """Name to line of every flag; where stages differ, the value of the first one."""
    lines: dict[str, str] = {}
    for stage in stages:
        for line in (run / stage / FLAG_FILE).read_text().splitlines():
            name = line.lstrip("-").partition("=")[0]
            name = name.removeprefix("no") if "=" not in line else name
            if name not in ("mode", "model_dir"):
                lines.setdefault(name, line)
    return lines


def _roles(run, lines):
    """Path to role, the longest path first, so that no path hides in another."""
    roles = {str(run): "RUN", os.path.realpath(run): "RUN"}
    for name, line in lines.items():
        for value in line.partition("=")[2].split(","):
            is_path = os.path.isabs(value) or (os.sep in value and os.path.exists(value))
            if is_path and "://" not in value:
                roles[value] = name.upper()
                roles[os.path.realpath(value)] = name.upper()
    roles[str(Path.home())] = "HOME"
    return {path: roles[path] for path in sorted(roles, key=len, reverse=True) if len(path) > 1}


def _write_text(path, text, roles):
    for folder, role in roles.items():
        text = text.replace(folder, role)
    path.write_text(text, encoding="utf-8")


def _small(content):
    """The predictions with small types: names are the last two parts of a path."""
    try:
        found = prediction_files.from_npz(content)
    except ValueError:  # Predicted numbers.
        return content
    names = found.names
    if names.dtype.kind == "U":
        names = np.array(["/".join(Path(name).parts[-2:]) for name in names.tolist()])
    else:
        names = names.astype(np.int32)
    labels = found.labels
    if labels.ndim == 1:
        labels = labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16)
    # Rounding to float16 must not change which class is the most probable one, nor which classes an
    # image with several labels is predicted to show.
    small = found.probabilities.astype(np.float16)
    same = np.argmax(small, axis=1) == found.predicted()
    is_present = [each >= prediction_files.PRESENT_FROM for each in (small, found.probabilities)]
    is_kept = same.all() and (labels.ndim == 1 or np.array_equal(*is_present))
    probabilities = small if is_kept else found.probabilities
    return prediction_files.to_npz(Predictions(labels, probabilities, names, found.class_names))


def _seconds(run, stages):
    found = {}
    for stage in stages:
        path = run / stage / RESULT
        if path.exists():
            seconds = json.loads(path.read_text()).get("seconds")
            if seconds is not None:
                found[stage] = round(seconds, 1)
    return found
