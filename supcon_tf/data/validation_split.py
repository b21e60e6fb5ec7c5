"""Which files of a dataset without a validation split are held out for validation.

The rule: a file is held out if a number in [0, 1) that is computed from the seed and its name is
below the fraction. The name is the path below the folder of the classes, or the name in the CSV
file. Other files play no part, so a file stays on its side when files are added or removed, and
each class gives about the same fraction. The one exception: if all files of a class would be held
out, the one with the largest number stays in training.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np

# What is held out if nobody says otherwise and the data has neither validation nor test images.
DEFAULT_FRACTION = 0.2


def held_out(
    names: Sequence[str], groups: Sequence[np.ndarray], *, fraction: float, seed: int
) -> np.ndarray:
    """Chooses the files that are held out: bool [M].

    Args:
        names: the name of each of the M files.
        groups: for each class, the positions of its files, of which one must stay in training.
        fraction: the share to hold out, in [0, 1).
        seed: another seed holds out other files.

    Raises:
        ValueError: if the fraction is out of range.

    >>> held_out(["cat/1.jpg", "cat/2.jpg"], [np.array([0, 1])], fraction=0.2, seed=0)
    array([False, False])
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"validation_split={fraction} is out of range: expected 0 <= value < 1.")
    numbers = np.array([number_of(name, seed) for name in names], np.float64)
    chosen = numbers < fraction
    for positions in groups:
        if len(positions) and chosen[positions].all():
            chosen[positions[np.argmax(numbers[positions])]] = False
    return chosen


def number_of(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on the seed and the name alone.

    It does not depend on the machine: names are compared in the composed form of Unicode, because
    some file systems store the accents of letters separately.
    """
    text = f"{seed}\n{unicodedata.normalize('NFC', name)}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big") / 256**7
