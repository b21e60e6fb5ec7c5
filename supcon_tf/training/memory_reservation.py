"""Reserves one region of memory for training on CPUs, so that the training needs less memory.

With oneDNN, TensorFlow's allocator for CPUs takes memory in regions, each twice as large as the one
before. No tensor crosses the border of two regions, and what is left at the end of a region is lost
for large tensors. If the first step finds one region that is large enough for all tensors, nothing
is lost: `python benchmarks/train_step.py` measured 8.0 instead of 9.1 GB more than an idle process
for a step of ResNet-50 with 256 images of 32 px.

A reserved region is address space. The system provides memory for a page of it when a tensor first
uses the page. The region itself costs only the allocator's table for it, 1/32 of its size.
"""

from __future__ import annotations

import os
import sys

import tensorflow as tf

# Factor on `memory.Estimate.missing`, which is a lower bound: the measured peaks of resnets were
# 1.1 to 1.6 times the estimate. For ResNet-50 with 256 images, factors from 1.2 to 1.75 give a
# region of 17 GB, which is large enough. A factor of 1.1 gives 8.6 GB, and the step needed 9.1 GB.
REGION_FACTOR = 1.5
# All regions together take at most this fraction of the machine's memory. TensorFlow's own limit is
# all of it.
LARGEST_PART = 0.75
ROW_BYTES = 2**20

# Sizes of the regions that this process tried to take. Regions are kept until the process ends.
_tried: list[int] = []


def can_reserve(root: str = "/") -> bool:
    """Returns whether the training runs on CPUs and unused address space takes no memory.

    The latter holds on Linux, unless a limit counts address space (`ulimit -v`, `ulimit -d`, or
    `vm.overcommit_memory=2`).

    Args:
        root: Where to find /proc.
    """
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


def reserve(needed: int) -> int:
    """Makes TensorFlow's allocator for CPUs take one region for a training.

    Does nothing if `can_reserve` is false or the machine is too small for such a region. The
    training also runs without it.

    Args:
        needed: Bytes that the training needs (`memory.Estimate.missing`).

    Returns:
        The bytes of the new region, or 0 if there is none. No region is taken if an earlier one
        of this process is large enough.
    """
    size = _region_bytes(int(REGION_FACTOR * needed))
    if max(_tried, default=0) >= size or not can_reserve():
        return 0
    if sum(_tried) + size > LARGEST_PART * _allocator_limit():
        return 0
    # A refused size is recorded too, because TensorFlow waits ten seconds before it refuses.
    _tried.append(size)
    return size if _take_region(size) else 0


def _region_bytes(size):
    """The size of a region for this many bytes: TensorFlow rounds up to a power of two."""
    return 1 << (size - 1).bit_length() if size > ROW_BYTES else ROW_BYTES


def _allocator_limit():
    """Bytes that TensorFlow's allocator takes at most, as its mkl_cpu_allocator.h decides."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    given = os.environ.get("TF_MKL_ALLOC_MAX_BYTES", "")
    return min(physical, int(given)) if given.isdigit() else physical


def _take_region(size):
    """Allocates a tensor of this many bytes and releases it; returns whether there was room."""
    try:
        with tf.device("CPU:0"):
            # In rows, because the sizes of a shape are 32-bit numbers here.
            tf.raw_ops.Empty(shape=[size // ROW_BYTES, ROW_BYTES], dtype=tf.uint8, init=False)
    except tf.errors.ResourceExhaustedError:
        return False
    return True
