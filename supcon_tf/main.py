"""`python -m supcon_tf.main`: parses the command line and runs the stages in order."""

from __future__ import annotations

import importlib
import io
import sys

from absl import app, flags, logging

from supcon_tf.cli import command_line, parse, path_checks, tensorflow_start
from supcon_tf.training import progress, signals

STAGE_MODULES = {
    "pretrain": "pretrain",
    "linear": "linear",
    "finetune": "finetune",
    "eval": "evaluate",
    "embed": "embed",
    "export": "export",
    "preview": "preview",
}


def main(argv: list[str]) -> None:
    signals.listen()
    if isinstance(sys.stdout, io.TextIOWrapper):  # In a log file, lines must appear in time.
        sys.stdout.reconfigure(line_buffering=True)
    try:
        if flags.FLAGS.verbosity <= 0:
            logging.set_verbosity(logging.WARNING)
        run_stages(flags.FLAGS, sys.argv[1:])
    except signals.Stopped as stop:
        sys.stdout.flush()
        print(f"\n{stop.message}. Run the same command again to resume.", file=sys.stderr)
        sys.exit(stop.code)
    except Exception as error:
        if not _is_of_the_user(error) or flags.FLAGS.verbosity > 0:
            raise
        sys.stdout.flush()
        print(f"\nERROR: {error}\n(--verbosity=1 shows where it happened.)", file=sys.stderr)
        sys.exit(1)


def _is_of_the_user(error):
    """Whether an error is about what the user gave; any other is ours and shows its traceback."""
    if "tensorflow" not in sys.modules:
        return isinstance(error, (ValueError, OSError))
    import tensorflow as tf

    return isinstance(error, (ValueError, OSError, tf.errors.OpError))


def run_stages(flag_values: flags.FlagValues, arguments: list[str]) -> None:
    """Runs the stages of --mode and prints the summary.

    Args:
        flag_values: parsed.
        arguments: the command line that they come from, for the command to type next.

    Raises:
        ValueError: what the user has to fix.
    """
    path_checks.check_paths(flag_values)
    if flag_values.verbosity <= 0:
        with progress.waiting("Starting TensorFlow"):
            tensorflow_start.import_quietly()
    from supcon_tf import strategies
    from supcon_tf.stages import process, summary

    strategy = process.start(flag_values)
    with strategies.working_together(strategy):
        results = {}
        for mode in flag_values.mode:
            stage = importlib.import_module(f"supcon_tf.stages.{STAGE_MODULES[mode]}")
            results[mode] = stage.run(flag_values, strategy)
        if strategies.is_chief(strategy):
            print(summary.create(flag_values, results, arguments))


def run() -> None:
    """The entry point: defines the flags, completes and parses the command line, runs it."""
    command_line.define_flags()
    app.run(main, flags_parser=parse.parse_command_line)


if __name__ == "__main__":
    run()
