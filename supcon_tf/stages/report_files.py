"""What a report reads from the files of a run, without its images: flags, logs, results."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import shlex
import subprocess
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags as absl_flags

import supcon_tf
from supcon_tf.cli import command_line
from supcon_tf.cli.program import python_program
from supcon_tf.evaluation.prediction_files import Predictions, read_predictions
from supcon_tf.report.content import Finding, Inspection, OtherRun, RunFacts, StageLog, Targets
from supcon_tf.stages import advice
from supcon_tf.stages.run_directory import RunDirectory
from supcon_tf.storage.run_paths import FLAG_FILE, LOG, RESULT
from supcon_tf.training import checkpoint

TRAINED = ("pretrain", "linear", "finetune")
# The stages of a run, with the file that each one writes last.
STAGE_RESULTS = {
    "pretrain": RESULT, "linear": RESULT, "finetune": RESULT, "eval": "eval.json",
    "robustness": "robustness.json", "inspect": "inspect.json",
    "predict": "predictions.csv", "embed": "embeddings.npz",
}  # fmt: skip
# Flags that say where the run is and which stages to run.
PLACE_FLAGS = ("mode", "model_dir", "recipe", "override_flags")
NUM_WORST = 8
UNSET = "(not set)"


def read_facts(run: RunDirectory, data: Sequence[tuple[str, str]]) -> RunFacts:
    """Returns what ran.

    Args:
        run: The run.
        data: Name and value of what describes the data.
    """
    recipe = run.read_flags("pretrain").get("recipe") or None
    changed = changed_flags(run, recipe)
    return RunFacts(
        model_dir=run.path,
        recipe=recipe,
        changed_flags=changed,
        data=data,
        environment=_environment(run),
        stages=_finished_stages(run),
        command=_command(run, recipe, changed),
    )


def changed_flags(run: RunDirectory, recipe: str | None) -> list[tuple[str, str, str, str]]:
    """Returns (stages, name, value, value of the recipe or default) of flags that differ."""
    base = command_line.peek(command_line.expand_recipe(_recipe_line(["supcon_tf"], recipe)))
    found: dict[tuple[str, str, str], list[str]] = {}
    for stage in (*TRAINED, "eval"):
        recorded = recorded_flags(run, stage)
        if recorded is None:
            continue
        for name in command_line.stage_flag_names(recorded, stage):
            value, default = (_value_text(flags, name) for flags in (recorded, base))
            if value != default and name not in PLACE_FLAGS:
                found.setdefault((name, value, default), []).append(stage)
    return [(", ".join(stages), *flag) for flag, stages in found.items()]


def recorded_flags(run: RunDirectory, stage: str) -> absl_flags.FlagValues | None:
    """Returns the flags that a stage recorded, or None if it was not run."""
    path = run.file(stage, FLAG_FILE)
    if not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path, "rb") as file:
        lines = file.read().decode(errors="replace").splitlines()
    return command_line.peek(["supcon_tf", *lines, f"--model_dir={run.path}"])


def _recipe_line(arguments, recipe):
    return [*arguments, f"--recipe={recipe}"] if recipe else arguments


def _value_text(flags, name):
    """The value of a flag as text; what a boolean flag is called says its value."""
    if flags[name].value is None:
        return UNSET
    if isinstance(flags[name].value, bool):
        return str(flags[name].value).lower()
    return flags[name].serialize().partition("=")[2]


def _command(run, recipe, changed):
    """The command that repeats the stages of the run in another model directory."""
    stages = [stage for stage in (*TRAINED, "eval") if recorded_flags(run, stage) is not None]
    parts = [python_program(), "-m", "supcon_tf.main", f"--mode={','.join([*stages, 'report'])}"]
    parts = _recipe_line(parts, recipe)
    for _, name, value, _ in changed:
        if value == UNSET:
            continue
        is_switch = value in ("true", "false") and name != "horizontal_flip"
        parts.append(
            (f"--{name}" if value == "true" else f"--no{name}") if is_switch
            else f"--{name}={value}"
        )  # fmt: skip
    return shlex.join([*dict.fromkeys(parts), f"--model_dir={run.path}-again"])


def _environment(run):
    trained = checkpoint.newest_record(run.file("pretrain", "checkpoints")) or {}
    trained = trained.get("environment", {})
    rows = [("supcon_tf", f"{supcon_tf.__version__}{_commit()}")]
    if trained:
        rows.append((
            "Pretrained with",
            f"TensorFlow {trained.get('tensorflow')}, Keras {trained.get('keras')}, "
            f"{trained.get('cpu_threads')} CPU threads",
        ))  # fmt: skip
    devices = [device.device_type for device in tf.config.list_physical_devices()]
    counts = ", ".join(f"{devices.count(kind)} {kind}" for kind in dict.fromkeys(devices))
    return [
        *rows,
        (
            "Report made with",
            f"TensorFlow {tf.__version__}, Keras {keras.__version__}, NumPy {np.__version__}, "
            f"Python {platform.python_version()}",
        ),
        ("Machine of the report", f"{platform.platform()}, {os.cpu_count()} CPUs; {counts}"),
        ("Report written", datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")),
    ]


def _commit():
    """The commit of a checkout, or nothing for an installed package."""
    root = Path(supcon_tf.__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return f", commit {found.stdout.strip()}"


def _finished_stages(run):
    rows = []
    for stage, name in STAGE_RESULTS.items():
        if not tf.io.gfile.exists(run.file(stage, FLAG_FILE)):
            continue
        path, finished = run.file(stage, name), None
        if tf.io.gfile.exists(path):
            seconds = tf.io.gfile.stat(path).mtime_nsec / 1e9
            finished = datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        result = _read_json(path) if name == RESULT else {}
        rows.append((stage, result.get("steps"), result.get("seconds"), finished))
    return rows


def read_training(run: RunDirectory) -> list[StageLog]:
    """Returns the logs of the training stages that were started."""
    found = []
    for stage in TRAINED:
        if not tf.io.gfile.exists(run.file(stage, FLAG_FILE)):
            continue
        lines = read_lines(run, stage)
        improvement = advice.still_improving(lines) if lines else None
        result = _read_json(run.file(stage, RESULT))
        found.append(StageLog(stage, lines, result, improvement))
    return found


def read_lines(run: RunDirectory, stage: str) -> list[dict]:
    """Returns the intact lines of a log; a training that runs may be writing the last one."""
    path = run.file(stage, LOG)
    if not tf.io.gfile.exists(path):
        return []
    with tf.io.gfile.GFile(path, "rb") as file:
        texts = file.read().split(b"\n")
    lines, num_damaged = [], 0
    for text in filter(None, texts):
        try:
            line = json.loads(text)
            line["step"] + 0  # Every line has the number of its step.
            lines.append(line)
        except (ValueError, KeyError, TypeError):
            num_damaged += 1
    if num_damaged > 1 or (num_damaged and not texts[-1]):
        print(f"report: left out {num_damaged:,} damaged lines of {path}.")
    return lines


def _read_json(path) -> dict[str, Any]:
    """The object in a JSON file; {} if it is missing or damaged."""
    if not tf.io.gfile.exists(path):
        return {}
    with tf.io.gfile.GFile(path, "rb") as file:
        try:
            value = json.loads(file.read())
        except ValueError:
            print(f"report: {path} is damaged and is left out.")
            return {}
    return value if isinstance(value, dict) else {}


def read_evaluation(run: RunDirectory) -> tuple[dict, Predictions | Targets] | None:
    """Returns the content of eval.json and of predictions.npz; None unless both are there.

    Raises:
        ValueError: If predictions.npz is damaged.
    """
    path = run.file("eval", "predictions.npz")
    figures = _read_json(run.file("eval", "eval.json"))
    if not figures or not tf.io.gfile.exists(path):
        return None
    if "r2" not in figures:
        return figures, read_predictions(path)
    with tf.io.gfile.GFile(path, "rb") as file, np.load(io.BytesIO(file.read())) as arrays:
        names = arrays["name"] if "name" in arrays else arrays["index"]
        return figures, Targets(arrays["label"], arrays["prediction"], names)


def read_robustness(run: RunDirectory) -> dict | None:
    """Returns the content of robustness.json, or None if --mode=robustness was not run."""
    return _read_json(run.file("robustness", "robustness.json")) or None


def read_comparison(run: RunDirectory, others: Sequence[str]) -> list[OtherRun]:
    """Returns this run and the runs of --compare; [] without any.

    Raises:
        ValueError: If a directory contains no run, or if its predictions are damaged.
    """
    if not others:
        return []
    return [_other_run(run, run), *(_other_run(RunDirectory(path), run) for path in others)]


def _other_run(run, base):
    if not any(tf.io.gfile.exists(run.file(stage, FLAG_FILE)) for stage in TRAINED):
        raise ValueError(
            f"--compare={run.path} contains no run: expected the --model_dir of a run of the "
            "command."
        )
    figures, predictions = read_evaluation(run) or ({}, None)
    return OtherRun(
        name=run.path,
        changed_flags=_changed_from(run, base),
        figures=figures,
        predictions=None if isinstance(predictions, Targets) else predictions,
        lines=read_lines(run, "pretrain"),
        seconds=_read_json(run.file("pretrain", RESULT)).get("seconds"),
    )


def _changed_from(run, base):
    """`--name=value` of the flags that differ between the runs, with the stages in which."""
    found: dict[str, None] = {}
    for stage in (*TRAINED, "eval"):
        ours, theirs = recorded_flags(base, stage), recorded_flags(run, stage)
        if theirs is None or ours is None:
            if (theirs is None) != (ours is None):
                found[f"({'without' if theirs is None else 'with'} {stage})"] = None
            continue
        for name in command_line.STAGE_FLAGS[stage]:
            value = _value_text(theirs, name)
            if name not in PLACE_FLAGS and value != _value_text(ours, name):
                is_unset = value == UNSET
                found[f"(no --{name})" if is_unset else f"--{name}={value}"] = None
    return list(found)


def read_inspection(
    run: RunDirectory, find_image: Callable[[str, str], np.ndarray | None]
) -> Inspection | None:
    """Returns what --mode=inspect found, or None if it was not run.

    Args:
        run: The run.
        find_image: From the name of a file and its split to the image, or None.
    """
    path = run.file("inspect", "issues.csv")
    if not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path, "rb") as file:
        text = file.read().decode("utf-8", errors="replace")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    counts: dict[str, int] = {}
    worst = []
    for row in sorted(rows, key=lambda row: -_score(row)):
        values: dict[str, Any] = {
            name: row.get(name) or "" for name in Finding.__dataclass_fields__
        }
        counts[values["kind"]] = counts.get(values["kind"], 0) + 1
        if counts[values["kind"]] > NUM_WORST:
            continue
        values["image"] = find_image(values["file"], values["split"])
        other = values["other_file"]
        values["other_image"] = find_image(other, values["split"]) if other else None
        worst.append(Finding(**values))
    figures = _read_json(run.file("inspect", "inspect.json"))
    shown = {key: value for key, value in figures.items() if isinstance(value, (int, float, str))}
    return Inspection(counts, worst, shown, path)


def _score(row):
    try:
        score = float(row.get("score") or "nan")
    except ValueError:
        score = math.nan
    return -math.inf if math.isnan(score) else score
