"""Which files --exclude and --exclude_kinds leave out."""

from __future__ import annotations

import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf.data import exclusion
from supcon_tf.stages.run_directory import RunDirectory


def excluded_from_flags(flags: FlagValues) -> tuple[tuple[str, str], ...]:
    """Returns the files to leave out, each with its kind; () without --exclude.

    A relative path is looked up in the current directory, then in --model_dir.

    Raises:
        ValueError: If the list cannot be read, or if it leaves out nothing.
    """
    if not flags.exclude:
        return ()
    path = flags.exclude
    inside = RunDirectory.of(flags).file(path)
    if not tf.io.gfile.exists(path) and tf.io.gfile.exists(inside):
        path = inside
    if not tf.io.gfile.exists(path):
        raise ValueError(
            f"--exclude={flags.exclude} does not exist, and neither does {inside}. Expected the "
            "issues.csv that --mode=inspect writes to the folder inspect/ of a run."
        )
    kinds = flags.exclude_kinds or ()
    files = exclusion.excluded_files(exclusion.read_rows(path), kinds)
    if not files:
        advice = f"and none is of the kinds {', '.join(kinds)}" if kinds else (
            "write yes in the column confirmed, or take all rows of some kinds with "
            "--exclude_kinds=mislabeled,leak"
        )  # fmt: skip
        raise ValueError(f"--exclude={path} leaves out nothing: no row is confirmed; {advice}.")
    return tuple(sorted(files.items()))
