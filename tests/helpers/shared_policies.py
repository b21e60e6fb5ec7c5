"""Policies that tests share: XLA compiles a policy once per object and shape."""

import functools

import tensorflow as tf

from supcon_tf.augment import policies


@functools.cache
def shared_policy(name, **options):
    """`create_policy` with the same object for the same arguments."""
    return policies.create_policy(name, **options)


@functools.cache
def brightness_policy():
    """Adds a drawn number to each view: what draws an image gets shows, and it compiles at once."""

    def shift(image, drawn):
        return tf.cast(tf.cast(image, tf.int32) // 2 + tf.reshape(drawn, []), tf.uint8)

    step = policies.PolicyStep(
        num_draws=1,
        plan=lambda draws, size: tf.cast(draws[:, 0] * 128, tf.int32),
        transform=shift,
        describe=lambda draws, size: [f"brightness {draws[0]:.2f}"],
    )
    return policies.Policy("brightness", (step,))
