"""Branches of conditions that cost tf.data little where they are not taken."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


def in_one_call(branch: Callable) -> Callable:
    """Wraps the branch of a condition so that it is a single operation of the graph.

    tf.data visits every operation of the branch that is not taken, at about a microsecond each. A
    function that is not inlined counts as one operation. Outside a graph the branch is returned as
    it is.
    """
    if tf.executing_eagerly():
        return branch
    return tf.function(branch, autograph=False, experimental_attributes={"_noinline": True})
