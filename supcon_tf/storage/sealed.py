"""JSON objects that carry their own checksum; without TensorFlow, for parsing flags."""

from __future__ import annotations

import hashlib
import json


def seal(value: dict) -> dict:
    """The object with its checksum."""
    return {**value, "checksum": _checksum(value)}


def unseal(value) -> dict:
    """What `seal` took.

    Raises:
        ValueError: it is not what `seal` returned; says why, as the end of a sentence.
    """
    if not isinstance(value, dict) or "checksum" not in value:
        raise ValueError("it lacks its checksum.")
    value = dict(value)
    if value.pop("checksum") != _checksum(value):
        raise ValueError("its checksum differs.")
    return value


def _checksum(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
