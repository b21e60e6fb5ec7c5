"""`python -m supcon_tf.main`: parses the command line and runs the stages in order."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile

from absl import app, flags, logging

from supcon_tf import command_line, stopping

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
    stopping.listen()
    try:
        if flags.FLAGS.verbosity <= 0:
            logging.set_verbosity(logging.WARNING)
            _import_tensorflow_quietly()
        run_stages(flags.FLAGS, sys.argv[1:])
    except stopping.Stopped as stop:
        sys.stdout.flush()
        print(f"\n{stop.message}. The same command goes on from there.", file=sys.stderr)
        sys.exit(stop.code)
    except Exception as error:
        import tensorflow as tf

        mendable = isinstance(error, (ValueError, OSError, tf.errors.OpError))
        if not mendable or flags.FLAGS.verbosity > 0:
            raise
        sys.stdout.flush()
        print(f"\nERROR: {error}\n(--verbosity=1 shows where it happened.)", file=sys.stderr)
        sys.exit(1)


def _import_tensorflow_quietly():
    """Keeps TensorFlow's start-up lines about CPU features and missing GPUs off the screen.

    They come from C++ before its log level counts. Which device is used is printed by the run;
    --verbosity=1 shows everything.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        except BaseException:
            hidden.seek(0)
            os.write(screen, hidden.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)


def run_stages(flag_values: flags.FlagValues, arguments: list[str]) -> None:
    """Runs the stages of --mode and prints the summary.

    Args:
        flag_values: parsed.
        arguments: the command line that they come from, for the command to type next.

    Raises:
        ValueError: what the user has to mend.
    """
    from supcon_tf import distribute
    from supcon_tf.stages import setup, summary

    strategy = setup.start(flag_values)
    with distribute.working_together(strategy):
        results = {}
        for mode in flag_values.mode:
            stage = importlib.import_module(f"supcon_tf.stages.{STAGE_MODULES[mode]}")
            results[mode] = stage.run(flag_values, strategy)
        if distribute.is_chief(strategy):
            print(summary.create(flag_values, results, arguments))


def run() -> None:
    """The entry point: defines the flags, expands the recipe, parses, runs."""
    command_line.define_flags()
    for module in command_line.FLAG_MODULES:
        flags.adopt_module_key_flags(module)
    app.run(main, flags_parser=_parse)


def _parse(argv):
    try:
        return flags.FLAGS(command_line.expand_recipe(argv))
    except flags.Error as error:
        print(f"ERROR: {error}\n(--help lists every flag.)", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
