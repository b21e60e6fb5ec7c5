"""The report: one HTML file on what ran, how it trained, and what the result looks like."""

from __future__ import annotations

import os
from pathlib import Path

import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf import strategies
from supcon_tf.report.comparison_section import describe_differences
from supcon_tf.report.content import ReportData
from supcon_tf.report.page import create_report
from supcon_tf.stages import report_files, report_images
from supcon_tf.stages.run_directory import RunDirectory
from supcon_tf.stages.stage_folder import StageFolder
from supcon_tf.training import progress


def run(flags: FlagValues, strategy: tf.distribute.Strategy) -> dict:
    """Writes index.html from what the other stages left; runs again even if it is finished."""
    if not strategies.is_chief(strategy):
        return {}
    model_run = RunDirectory.of(flags)
    with StageFolder(flags, "report", always_restarts=True) as folder:
        images = report_images.read_images(flags, model_run)
        comparison = report_files.read_comparison(model_run, flags.compare or ())
        data = ReportData(
            facts=report_files.read_facts(model_run, images.facts),
            training=report_files.read_training(model_run),
            result=images.result,
            embedding=images.embedding,
            input=images.input,
            inspection=report_files.read_inspection(model_run, images.find_image),
            robustness=report_files.read_robustness(model_run),
            comparison=comparison,
            missing=images.missing,
        )
        folder.begin()
        with progress.waiting("report: drawing the figures and maps"):
            page = create_report(data)
        folder.artifacts.write_text("index.html", page)
        folder.seal()
        path = folder.file("index.html")
        _say_written(path, len(page.encode()), data)
        return {"path": path, "num_bytes": len(page.encode())}


def _say_written(path, num_bytes, data):
    print(f"report: wrote {path} ({num_bytes / 1e6:.1f} MB). {how_to_open(path)}")
    for part, (reason, command) in data.missing.items():
        print(f"        without the {part}: {reason}")
        if command:
            print(f"          {command}")
    for line in describe_differences(list(data.comparison)):
        print(f"        {line}")


def how_to_open(path: str) -> str:
    """Says how to open a local or remote HTML file in a browser."""
    if "://" in path:
        return "Copy the file to this machine and open it in a browser."
    return f"Open it in a browser: {Path(os.path.abspath(path)).as_uri()}"
