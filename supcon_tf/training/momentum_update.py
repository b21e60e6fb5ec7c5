"""The update of momentum methods, in place."""

from __future__ import annotations

import keras
import tensorflow as tf


def apply_momentum(
    variable: keras.Variable | tf.Variable,
    velocity: keras.Variable,
    gradient: tf.Tensor,
    *,
    learning_rate: tf.Tensor,
    momentum: float,
    nesterov: bool = False,
) -> None:
    """velocity <- momentum velocity + gradient, then variable <- variable - learning_rate velocity.

    With Nesterov momentum: variable <- variable - learning_rate (gradient + momentum velocity).

    An assignment of the new velocity would give it new memory in every step, between the
    activations, and TensorFlow's allocator would then often find no room for large ones: a step of
    ResNet-18 with 256 images needed up to a third more memory.

    Args:
        variable: Of any shape; what a strategy passes for each device is a `tf.Variable`.
        velocity: Of the same shape and type, as the gradient.
        gradient: The gradient, with the weight decay.
        learning_rate: A scalar.
        momentum: Factor of the velocity.
        nesterov: Whether to look one step ahead.
    """
    dtype = variable.dtype
    tf.raw_ops.ResourceApplyMomentum(
        var=_handle_of(variable),
        accum=_handle_of(velocity),
        lr=tf.cast(learning_rate, dtype),
        grad=tf.cast(gradient, dtype),
        momentum=tf.constant(momentum, dtype),
        use_nesterov=nesterov,
    )


def _handle_of(variable):
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle
