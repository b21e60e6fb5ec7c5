"""Imports point one way, and only the command knows flags."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "supcon_tf"
# What each module may import; a name stands for itself and all its parts.
ALLOWED = {
    "implied_flags": {
        "command_line", "flag_rules", "folder_layout", "sealed", "tensorflow_start",
    },
    "path_checks": {"command_line", "folder_layout", "implied_flags"},
    "flag_suggestions": set(),
    "tensorflow_start": set(),
    "command_line": {"flag_rules", "input_flags", "output_flags", "training_flags"},
    "input_flags": {"flag_types"},
    "training_flags": {"defaults", "flag_rules", "flag_types"},
    "output_flags": {"flag_types"},
    "flag_types": set(),
    "flag_rules": set(),
    "main": {
        "command_line", "implied_flags", "path_checks", "flag_suggestions", "distribute",
        "progress", "stages", "stopping", "tensorflow_start",
    },
    "stages": {
        "command_line", "flag_rules", "stages", "train", "steps", "checkpoint", "metrics",
        "evaluation", "pipeline", "sources", "decode", "warm_start", "whitening", "policies",
        "models", "losses", "other_losses", "momentum_queue", "distribute", "optimizers",
        "files", "artifacts", "data_identity", "blur", "folder_layout", "memory", "program",
        "progress", "metrics_log", "linear_fit", "defaults",
    },
    "defaults": set(),
    "linear_fit": {"metrics"},
    "train": {"metrics_log", "checkpoint", "distribute", "progress", "similarity", "stopping"},
    "progress": set(),
    "memory": set(),
    "similarity": {"class_labels", "distribute", "logsumexp", "losses"},
    "stopping": set(),
    "files": {"sealed"},
    "sealed": set(),
    "program": set(),
    "artifacts": {"files"},
    "data_identity": {"sources"},
    "steps": {
        "blur", "fused_norm", "losses", "microbatch", "models", "momentum_queue", "distribute",
        "similarity",
    },
    "momentum_queue": {"class_labels", "distribute", "logsumexp", "losses", "models"},
    "microbatch": {"models"},
    "checkpoint": {"files"},
    "metrics": set(),
    "metrics_log": {"files"},
    "evaluation": {"metrics", "distribute", "pixel_values"},
    "pipeline": {"data_service",
        "sources", "decode", "order", "crops", "view_draws", "pixel_values", "policies",
        "views", "blur",
    },
    "view_draws": {"blur", "random_crops"},
    "random_crops": set(),
    "warm_start": {"torch_weights"},
    "fused_norm": set(),
    "whitening": set(),
    "sources": {"decode", "folder_layout", "pixel_values", "streams"},
    "streams": {"decode"},
    "folder_layout": set(),
    "decode": {"image_header"},
    "data_service": set(),
    "image_header": set(),
    "order": set(),
    "crops": set(),
    "policies": {"views", "operations", "warp", "augment"},
    "views": {"augment"},
    "operations": {"warp", "augment"},
    "warp": {"augment"},
    "blur": set(),
    "pixel_values": set(),
    "augment": set(),
    "models": {"applications", "pixel_values", "resnet"},
    "applications": set(),
    "torch_weights": {"resnet", "torch_file"},
    "torch_file": {"restricted_pickle"},
    "restricted_pickle": set(),
    "resnet": set(),
    "class_labels": {"logsumexp"},
    "losses": {"class_labels", "distribute", "logsumexp"},
    "other_losses": {"class_labels", "losses", "distribute", "logsumexp"},
    "logsumexp": set(),
    "distribute": set(),
    "optimizers": set(),
}  # fmt: skip
FLAG_ROOMS = (
    "main", "command_line", "implied_flags", "path_checks", "flag_rules", "flag_types",
    "input_flags",
    "output_flags", "training_flags", "stages", "studies",
)  # fmt: skip
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("supcon_tf"):
            parts = node.module.split(".")[1:]
            yield from [parts[0]] if parts else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert not alias.name.startswith("supcon_tf."), f"{path}: from supcon_tf import"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    assert set(imported_rooms(path)) <= ALLOWED[room(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_knows_flags(path):
    text = path.read_text()
    if room(path) not in FLAG_ROOMS:
        assert "absl" not in text and "FLAGS" not in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_stays_readable_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 450
