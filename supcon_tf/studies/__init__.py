"""Experiments over the command, and the ledger of their results."""

from supcon_tf.cli import tensorflow_start

tensorflow_start.import_quietly()  # Before a module of this room imports it with its messages.
