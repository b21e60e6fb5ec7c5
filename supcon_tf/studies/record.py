"""Records runs in the ledger: `python -m supcon_tf.studies.record runs/a --experiment=mine`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from supcon_tf.cli import study_flags
from supcon_tf.storage.run_paths import FLAG_FILE
from supcon_tf.studies import ledger


def record_runs(argv: Sequence[str]) -> None:
    """Writes the entry of each run that the arguments name.

    Raises:
        ValueError: If --experiment is missing, or if a run was not evaluated.
    """
    values, runs = study_flags.parse_study("record", argv)
    if not runs or not values.experiment:
        raise ValueError(
            "Name the model directories of the runs and --experiment, a folder of --results."
        )
    if values.setting and len(runs) > 1:
        seeds = [_seed_of(Path(run)) for run in runs]
        if len(set(seeds)) < len(runs):
            raise ValueError(
                f"--setting={values.setting} names one setting, but two of its runs have the same "
                f"seed: {', '.join(map(str, seeds))}."
            )
    for run in map(Path, runs):
        folder = ledger.write_entry(
            run, values.results, experiment=values.experiment,
            setting=values.setting or run.name, seed=_seed_of(run),
        )  # fmt: skip
        print(f"{run} is in {folder}")


def _seed_of(run):
    """The seed of the first stage that recorded one."""
    for stage in ledger.STAGES:
        path = run / stage / FLAG_FILE
        if path.exists():
            for line in path.read_text().splitlines():
                if line.startswith("--seed="):
                    return int(line.partition("=")[2])
    raise ValueError(f"{run} is not a run of the command: no stage recorded a seed.")


if __name__ == "__main__":
    try:
        record_runs(sys.argv)
    except (ValueError, OSError, flags.Error) as error:
        sys.exit(f"ERROR: {error}")
