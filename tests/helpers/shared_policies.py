"""Policies that tests share: XLA compiles a policy once per object and shape."""

import functools

from supcon_tf.augment import policies


@functools.cache
def shared_policy(name, **options):
    """`create_policy` with the same object for the same arguments."""
    return policies.create_policy(name, **options)
