"""Importing TensorFlow without its start-up messages."""

from __future__ import annotations

import os
import sys
import tempfile
from types import ModuleType


def import_quietly() -> ModuleType:
    """Imports TensorFlow and hides its messages about CPU features and missing GPUs.

    C++ code prints these messages before TensorFlow applies its log level. If the import fails,
    they are printed. --verbosity=1 always shows them; the run itself prints which device it uses.

    Returns:
        The module `tensorflow`.
    """
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"]
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
    return tf
