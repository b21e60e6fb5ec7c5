"""Where a run keeps its files: `<model_dir>/<stage>/<file>`.

This module needs no TensorFlow, so that the checks of the command can use it before TensorFlow is
imported.
"""

from __future__ import annotations

import os

# Where each part of a finished run is, the later stage first.
PART_FILES = {
    "encoder": ("finetune/encoder.keras", "pretrain/encoder.keras"),
    "projection_head": ("pretrain/projection_head.keras",),
    "classifier": ("finetune/classifier.keras", "linear/classifier.keras"),
}
# Files in the folder of a stage.
IDENTITY, FLAG_FILE, RESULT, LOG = "identity.json", "stage.flags", "result.json", "metrics.jsonl"
DATA_FILES = "data_files.tsv"
# The folder of a stage's files for TensorBoard.
TENSORBOARD = "tensorboard"


def run_path(model_dir: str, *names: str) -> str:
    """Returns the path of a file or folder of the run in a local or remote directory.

    Args:
        model_dir: The directory of the run.
        *names: The stage, and for a file its name, such as ("pretrain", FLAG_FILE).
    """
    return os.path.join(model_dir, *names)


def part_paths(model_dir: str, part: str) -> list[str]:
    """Returns the paths at which a run may have a part, the later stage first.

    Args:
        model_dir: The directory of the run.
        part: "encoder", "projection_head" or "classifier".
    """
    return [run_path(model_dir, name) for name in PART_FILES[part]]
