"""Importing TensorFlow without its start-up messages."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from logging import ERROR, getLogger
from types import ModuleType

from absl import flags, logging

# Keras imports them, if they are installed, for `keras.visualization` and `keras.wrappers`.
_UNUSED_BY_THE_COMMAND = ("matplotlib", "sklearn")


def verbosity(flag_values: flags.FlagValues) -> int:
    """Returns absl's --verbosity, from -3 (fatal errors) to 1 (debugging).

    Without the flag it is -1, warnings. absl itself would raise that to 0 once it has parsed the
    command line.
    """
    flag = flag_values["verbosity"]
    return int(flag.value) if flag.present else logging.WARNING  # type: ignore[arg-type]


def hide_warnings() -> None:
    """Hides the warnings of TensorFlow's Python code, which are for its developers.

    For example, --mode=export has one for each custom gradient. Errors and the messages of other
    packages are not affected.
    """

    def is_shown(record):
        is_of_tensorflow = f"{os.sep}tensorflow{os.sep}python{os.sep}" in record.pathname
        return record.levelno >= ERROR or not is_of_tensorflow

    for logger in (logging.get_absl_logger(), getLogger("tensorflow")):
        logger.addFilter(is_shown)


def import_quietly() -> ModuleType:
    """Imports TensorFlow and hides its messages about CPU features and missing GPUs.

    C++ code prints these messages before TensorFlow applies its log level. If the import fails,
    they are printed. The command shows them with --verbosity=0 or above. The import takes seconds,
    so a line says first what is happening. It leaves out what Keras would import only for functions
    that the command does not call, a quarter of the time.

    Returns:
        The module `tensorflow`.
    """
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"]
    print("Starting TensorFlow...", flush=True)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            with _importing_without(*_UNUSED_BY_THE_COMMAND):
                import tensorflow as tf

            tf.config.list_physical_devices()
        except BaseException:
            hidden.seek(0)
            os.write(screen, hidden.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)
    return tf


@contextlib.contextmanager
def _importing_without(*packages: str) -> Iterator[None]:
    """Lets imports of packages fail that are not imported yet, as if they were not installed."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
