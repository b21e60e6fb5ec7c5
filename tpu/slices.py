"""TPU slices by name: number of cores, memory and speed."""

from __future__ import annotations

import math

# GiB of high-bandwidth memory per TensorFlow device, which is a core for v2 and v3 and a chip (with
# both cores) for v4 and later. https://cloud.google.com/tpu/docs/system-architecture-tpu-vm
HBM_GIB = {"v2": 8, "v3": 16, "v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
# Peak bfloat16 operations per second and memory bytes per second of a device (same source).
RATES = {
    "v2": (22.5e12, 350e9),
    "v3": (61.5e12, 450e9),
    "v4": (275e12, 1_200e9),
    "v5e": (197e12, 819e9),
    "v5p": (459e12, 2_765e9),
    "v6e": (918e12, 1_640e9),
}
_CORES_PER_CHIP = {"v2": 2, "v3": 2}
_THREE_DIMENSIONAL = ("v4", "v5p")


def parse(topology: str, num_cores: int | None = None) -> tuple[str, int]:
    """Returns the full topology name and its number of cores.

    Args:
        topology: A full name such as "v5e:4x4", or only the generation together with num_cores.
        num_cores: Selects the shape if only the generation is given, otherwise must equal the
            number of cores of the topology.

    Raises:
        ValueError: If the generation is unknown, the shape is invalid, or num_cores contradicts
            the topology.
    """
    generation, _, shape = topology.partition(":")
    if generation not in HBM_GIB:
        raise ValueError(
            f"topology={topology!r}: the generation must be one of {', '.join(HBM_GIB)}, as in "
            "v5e:4x4."
        )
    if not shape:
        if num_cores is None:
            raise ValueError(
                f"topology={topology!r} has no shape: use {topology}:"
                f"{default_shape(generation, 16)} or set --num_cores."
            )
        shape = default_shape(generation, num_cores)
    sides = shape.split("x")
    is_valid = all(side.isdigit() and int(side) for side in sides)
    if not is_valid or len(sides) != (3 if generation in _THREE_DIMENSIONAL else 2):
        example = default_shape(generation, 16)
        raise ValueError(f"topology={topology!r}: expected a shape such as {generation}:{example}.")
    cores = math.prod(map(int, sides)) * _CORES_PER_CHIP.get(generation, 1)
    if num_cores not in (None, cores):
        raise ValueError(
            f"{generation}:{shape} has {cores} cores, not {num_cores}: omit --num_cores, or use "
            f"--topology={generation} --num_cores={num_cores}."
        )
    return f"{generation}:{shape}", cores


def default_shape(generation: str, num_cores: int) -> str:
    """The most cube-like shape whose sides are powers of two, as offered by Cloud TPU."""
    chips = num_cores // _CORES_PER_CHIP.get(generation, 1)
    sides = [1] * (3 if generation in _THREE_DIMENSIONAL else 2)
    while math.prod(sides) < chips:
        sides[sides.index(min(sides))] *= 2
    if math.prod(sides) != chips or chips < 4:
        raise ValueError(
            f"num_cores={num_cores}: the number of chips of a {generation} slice must be a power "
            "of two of at least 4. Set other shapes with --topology."
        )
    return "x".join(map(str, sorted(sides)))


def hbm_bytes(topology: str) -> int:
    """High-bandwidth memory of one device, in bytes."""
    return HBM_GIB[topology.split(":")[0]] * 2**30


def step_seconds(topology: str, result: dict) -> float | None:
    """The compiler's estimate of the step time in seconds, or None if it is ambiguous.

    For each op, the compiler takes the larger of the compute time and the memory time, and sums
    over the ops. Ops of unknown cost (which split and join 64-bit counters) count as -1 s, so the
    sum is too small by a whole number of seconds. The true value is between the larger and the sum
    of the total compute time and the total memory time, which determines this number.
    """
    operations, traffic = RATES[topology.split(":")[0]]
    times = result["flops"] / operations, result["bytes_accessed"] / traffic
    at_least = 0.9 * max(times)
    seconds = result["optimal_seconds"]
    seconds += math.ceil(at_least - seconds)
    return seconds if seconds < 2 * sum(times) else None
