"""Importing TensorFlow without its start-up lines."""

from __future__ import annotations

import os
import sys
import tempfile


def import_quietly():
    """Imports TensorFlow, keeps its lines about CPU features and missing GPUs off the screen.

    They come from C++ before its log level counts. Which device is used is printed by the run;
    --verbosity=1 shows everything.

    Returns:
        The module.
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
