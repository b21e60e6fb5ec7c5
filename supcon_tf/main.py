"""`python -m supcon_tf.main`: parses the command line and runs the stages in order."""

from __future__ import annotations

import importlib
import io
import sys

from absl import app, flags, logging

from supcon_tf.cli import (
    command_line,
    flag_suggestions,
    implied_flags,
    path_checks,
    tensorflow_start,
)
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
    if len(argv) > 1:
        raise app.UsageError(
            f"Unexpected argument {argv[1]!r}: every flag starts with --, as in --batch_size=64."
        )
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
    path_checks.check(flag_values)
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
    for module in command_line.FLAG_MODULES:
        flags.adopt_module_key_flags(module)
    app.run(main, flags_parser=_parse_flags)


def _parse_flags(argv):
    try:
        return flags.FLAGS(implied_flags.complete(argv))
    except flags.UnrecognizedFlagError as error:
        close = flag_suggestions.suggest(error.flagname, command_line.own_flags())
        hint = f" Did you mean {' or '.join(f'--{name}' for name in close)}?" if close else ""
        _exit_with_flag_error(f"There is no flag --{error.flagname}.{hint}")
    except UnicodeDecodeError as error:
        _exit_with_flag_error(f"A flagfile is not text in UTF-8: {error}.")
    except (flags.Error, ValueError) as error:
        _exit_with_flag_error(str(error).removeprefix("ERROR:: "))
    except SystemExit:  # absl ends --help with 1.
        sys.exit(0)


def _exit_with_flag_error(message):
    print(f"ERROR: {message}\n(--help lists every flag.)", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    run()
