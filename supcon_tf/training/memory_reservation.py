"""Reserves the memory of a training on CPUs in one piece, which needs less than many pieces.

With oneDNN, TensorFlow's allocator for CPUs takes memory in regions, each twice as large as the one
before. No tensor crosses the border of two regions, and what is left at the end of a region is lost
for large tensors. If the first step finds one region that is large enough for all tensors, nothing
is lost: a step of ResNet-50 with 256 images of 32 px needs 7.6 instead of 8.8 GB more than an idle
process (`python benchmarks/train_step.py`).

A reserved region is address space. The system provides memory for a page of it when a tensor first
uses the page. What the region costs is the allocator's table of it, 1/32 of its size.
"""

from __future__ import annotations

import os
import sys

import tensorflow as tf

# Over `memory.Estimate.missing`, which is a lower bound: the peaks of resnets were 1.1 to 1.6 times
# as high. TensorFlow rounds the size of a region up to a power of two. ResNet-50 with 256 images
# needs 7.6 GB with any factor from 1.2 to 1.75 (17 GB), and 9.1 GB with 1.1 (8.6 GB).
REGION_FACTOR = 1.5
# Regions together have at most this part of the machine's memory. TensorFlow gives up at all of it.
LARGEST_PART = 0.75
ROW_BYTES = 2**20

_reserved: list[int] = []  # The sizes of the regions of this process. It keeps them to its end.


def reserve(needed: int, available: int | None) -> int:
    """Makes TensorFlow's allocator for CPUs take one region for a training.

    A reservation that is not possible is left out, because the training runs without it too. That
    is so where GPUs or TPUs train, on other systems than Linux, and where a limit counts address
    space (`ulimit -v`, `ulimit -d`, or `vm.overcommit_memory=2`).

    Args:
        needed: Bytes that the training needs (`memory.Estimate.missing`).
        available: Bytes that this process can still use, or None if that is unknown.

    Returns:
        The bytes that were asked for, or 0 if there is no new region: it is not possible, or an
        earlier reservation of this process is large enough.
    """
    wanted = int(REGION_FACTOR * needed)
    if max(_reserved, default=0) >= wanted or not _can_reserve():
        return 0
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = int(LARGEST_PART * physical) - sum(_reserved)
    size = min(wanted, limit, limit if available is None else available)
    if size <= max(_reserved, default=0) or not _take_region(size):
        return 0
    _reserved.append(size)
    return size


def _can_reserve(root="/"):
    """Whether address space that nothing uses is free of charge here, and CPUs train."""
    if sys.platform != "linux":
        return False
    if any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU")):
        return False
    import resource  # Exists on Unix only.

    limits = (resource.getrlimit(name)[0] for name in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits):
        return False
    try:
        with open(os.path.join(root, "proc/sys/vm/overcommit_memory")) as file:
            return file.read().strip() != "2"
    except OSError:
        return False


def _take_region(size):
    """Allocates a tensor of this many bytes and releases it; returns whether there was room."""
    try:
        with tf.device("CPU:0"):
            # In rows, because the sizes of a shape are 32-bit numbers here.
            tf.raw_ops.Empty(shape=[size // ROW_BYTES, ROW_BYTES], dtype=tf.uint8, init=False)
    except tf.errors.ResourceExhaustedError:
        return False
    return True
