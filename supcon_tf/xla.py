"""Whether XLA compiles what is being traced."""

import tensorflow as tf

# TensorFlow has no public way to ask.
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext


def is_compiling() -> bool:
    """Whether XLA will compile the operations that are created now; False without a graph."""
    return GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
