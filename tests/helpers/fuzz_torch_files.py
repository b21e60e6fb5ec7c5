"""Damaged PyTorch checkpoints by number, and a run over many of them.

    python tests/helpers/fuzz_torch_files.py --count=1500

prints how many were read, refused with a ValueError, and anything else; the slowest, and the one
that took most memory. tests/test_torch_file.py runs it.
"""

import argparse
import collections
import io
import json
import signal
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SECONDS_PER_FILE = 120
KINDS = ("archive", "pickle", "structure", "legacy")


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight bytes changed."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        changed[rng.integers(len(changed))] = rng.integers(256)
    return bytes(changed)


def rearrange(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, a part left out, a part repeated, or a part moved."""
    start, end = sorted(rng.integers(0, len(data), 2))
    place = rng.integers(0, len(data))
    part, rest = data[start:end], data[:start] + data[end:]
    return [data[:place], rest, data[:end] + part + data[end:], rest[:place] + part + rest[place:]][
        rng.integers(4)
    ]


def fuzzed_file(number: int, *, legacy: bool = False) -> bytes:
    """The committed checkpoint, damaged in the way that follows from the number."""
    rng = np.random.default_rng(number)
    kind = "legacy" if legacy else KINDS[number % 3]
    name = "torch_checkpoint_legacy.pth" if legacy else "torch_checkpoint.pth"
    data = (HERE / name).read_bytes()
    change = rearrange if rng.integers(3) == 0 else damage
    if kind in ("archive", "legacy"):
        return change(data, rng)
    if kind == "structure":
        return rearrange(data, rng)
    output = io.BytesIO()  # The pickle, in an archive with checksums that are right.
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(output, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            is_pickle = entry.filename.endswith("/data.pkl")
            new.writestr(entry.filename, change(content, rng) if is_pickle else content)
    return output.getvalue()


def peak_bytes() -> int:
    """The largest resident size since the last `reset_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc/self/status")


def reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def run(read, numbers, *, legacy=False):
    """Reads the fuzzed files; returns counts of outcomes, most CPU seconds and most bytes."""
    outcomes, slowest, most = collections.Counter(), 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.pth"
        for number in numbers:
            path.write_bytes(fuzzed_file(number, legacy=legacy))
            before, started = reset_peak(), time.process_time()
            signal.alarm(SECONDS_PER_FILE)  # Ends the process: a hang is a failure.
            try:
                read(str(path))
                outcome = "read"
            except Exception as error:
                outcome = type(error).__name__
            signal.alarm(0)
            outcomes[outcome] += 1
            slowest = max(slowest, time.process_time() - started)
            most = max(most, peak_bytes() - before)
    return {"outcomes": dict(outcomes), "slowest_seconds": slowest, "most_bytes": most}


if __name__ == "__main__":
    from supcon_tf.interop import torch_file

    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--legacy", action="store_true")
    arguments = parser.parse_args()
    torch_file.read_state_dict(str(HERE / "torch_checkpoint.pth"))  # Loads what is loaded once.
    result = run(torch_file.read_state_dict, range(arguments.count), legacy=arguments.legacy)
    json.dump(result, sys.stdout)
