"""The command, in this process or in a new one."""

import json
import subprocess
import sys
from pathlib import Path

from absl import flags
from absl.testing import flagsaver

from supcon_tf import main
from supcon_tf.cli import command_line, implied_flags

ROOT = Path(__file__).parent.parent.parent
SHORT = (
    "--pretrain_epochs=1",
    "--knn_interval_epochs=0.5",
    "--pretrain_warmup_epochs=0",
    "--linear_epochs=2",
    "--steps_per_loop=5",
    "--summary_interval_steps=1",
    "--save_interval_steps=10",
)

if "mode" not in flags.FLAGS:
    command_line.define_flags()


def run_inside(*arguments):
    """The command in this process, which has TensorFlow loaded already."""
    with flagsaver.flagsaver():
        flags.FLAGS(implied_flags.complete(["supcon_tf", *map(str, arguments)]))
        main.run_stages(flags.FLAGS, list(map(str, arguments)))


def run_command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "supcon_tf.main", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, **options,
    )  # fmt: skip


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
