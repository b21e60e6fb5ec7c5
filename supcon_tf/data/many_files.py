"""Applies a function to many files, several at a time where the storage answers slowly."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

NUM_FILES = 32  # At a time: many, because remote storage answers slowly.
BLOCK = 64  # Files for a thread at a time: to hand over each file takes longer than to look at it.
SLOW_SECONDS = 0.0002 * BLOCK  # A local disk takes about 0.01 ms for a file.
Result = TypeVar("Result")


def for_each(function: Callable[[str], Result], paths: Sequence[str]) -> list[Result]:
    """Applies a function to every path; the results are in the order of the paths.

    One thread looks at local files until a block of them is slow. From then on, and for remote
    files from the start, 32 threads do. On a fast disk the threads would take four times as long,
    because they wait for each other.
    """
    blocks = [paths[first : first + BLOCK] for first in range(0, len(paths), BLOCK)]

    def look_at(block):
        return [function(path) for path in block]

    results: list[Result] = []
    is_remote = bool(paths) and "://" in paths[0]
    seconds = 0.0
    while blocks and not is_remote and seconds < SLOW_SECONDS:
        started = time.perf_counter()
        results += look_at(blocks.pop(0))
        seconds = time.perf_counter() - started
    with concurrent.futures.ThreadPoolExecutor(NUM_FILES) as pool:
        for found in pool.map(look_at, blocks):
            results += found
    return results
