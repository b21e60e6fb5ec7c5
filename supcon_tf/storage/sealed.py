"""JSON objects with a checksum. Needs no TensorFlow, so that parsing flags stays fast."""

from __future__ import annotations

import hashlib
import json


def seal(value: dict) -> dict:
    """Adds a checksum to a JSON object."""
    return {**value, "checksum": _checksum(value)}


def unseal(value: object) -> dict:
    """Checks and removes the checksum that `seal` added.

    Raises:
        ValueError: The checksum is missing or differs. The message is the end of a sentence.
    """
    if not isinstance(value, dict) or "checksum" not in value:
        raise ValueError("its checksum is missing.")
    value = dict(value)
    if value.pop("checksum") != _checksum(value):
        raise ValueError("its checksum differs.")
    return value


def _checksum(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
