"""`python -m supcon_tf.main`: parses the command line and runs the stages in order."""

from __future__ import annotations

import importlib
import io
import sys
import time

from absl import app, flags, logging

from supcon_tf.cli import command_line, parse, path_checks, tensorflow_start
from supcon_tf.training import progress, signals

# --time_budget_minutes counts from here.
_STARTED_AT = time.monotonic()
STAGE_MODULES = {
    "pretrain": "pretrain",
    "linear": "linear",
    "finetune": "finetune",
    "eval": "evaluate",
    "predict": "predict",
    "embed": "embed",
    "export": "export",
    "report": "report",
    "preview": "preview",
    "inspect": "inspect",
    "robustness": "robustness",
}


def main(argv: list[str]) -> None:
    signals.listen()
    if isinstance(sys.stdout, io.TextIOWrapper):  # So that lines appear in a log file at once.
        sys.stdout.reconfigure(line_buffering=True)
    verbosity = tensorflow_start.verbosity(flags.FLAGS)
    logging.set_verbosity(verbosity)
    if not flags.FLAGS["verbosity"].present:
        tensorflow_start.hide_warnings()
    try:
        run_stages(flags.FLAGS, sys.argv[1:], started_at=_STARTED_AT)
    except signals.Stopped as stop:
        sys.stdout.flush()
        print(f"\n{stop.message}. Run the same command again to resume.", file=sys.stderr)
        sys.exit(stop.code)
    except Exception as error:
        if not _is_user_error(error) or verbosity > 0:
            raise
        sys.stdout.flush()
        print(f"\nERROR: {error}\n(Add --verbosity=1 to see the traceback.)", file=sys.stderr)
        sys.exit(1)


def _is_user_error(error):
    """Returns whether the user can fix an error. Other errors are bugs and show a traceback."""
    if "tensorflow" not in sys.modules:
        return isinstance(error, (ValueError, OSError))
    import tensorflow as tf

    return isinstance(error, (ValueError, OSError, tf.errors.OpError))


def run_stages(
    flag_values: flags.FlagValues, arguments: list[str], *, started_at: float | None = None
) -> None:
    """Runs the stages of --mode and prints the summary.

    Args:
        flag_values: The parsed flags.
        arguments: The command line, to suggest the next command.
        started_at: `time.monotonic()` at the start of the program; now by default.

    Raises:
        ValueError: If the user has to fix something.
    """
    started_at = time.monotonic() if started_at is None else started_at
    with progress.waiting("Checking the paths"):
        path_checks.check_paths(flag_values)
    verbosity = tensorflow_start.verbosity(flag_values)
    if verbosity < logging.INFO:
        tensorflow_start.import_quietly()
    from supcon_tf import strategies
    from supcon_tf.stages import computed_outputs, process, summary

    strategy = process.start(flag_values, started_at)
    with strategies.working_together(strategy):
        results, seconds = {}, {}
        try:
            for mode in flag_values.mode:
                stage = importlib.import_module(f"supcon_tf.stages.{STAGE_MODULES[mode]}")
                stage_started_at = time.monotonic()
                results[mode] = stage.run(flag_values, strategy)
                seconds[mode] = time.monotonic() - stage_started_at
        finally:
            computed_outputs.forget()
        if strategies.is_chief(strategy):
            print(summary.create(flag_values, results, arguments, seconds))


def run() -> None:
    """The entry point of the command: defines and parses the flags, and runs the stages."""
    command_line.define_flags()
    try:
        app.run(main, flags_parser=parse.parse_command_line)
    except SystemExit as end:  # A notebook would show the end of a successful run as an error.
        if end.code or not progress.is_notebook():
            raise


if __name__ == "__main__":
    run()
