"""Parses the output of the TPU compiler: programs and error messages."""

from __future__ import annotations

import math
import re

# An instruction of the compiled program: result type and opcode.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%\S+ = (?P<type>\(.*?\)|\S+) (?P<opcode>[a-z0-9-]+)\(")
_SHAPE = re.compile(r"(?P<type>[a-z]+\d+|pred)\[(?P<sizes>[\d,]*)\]")
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
# The compiler's out-of-memory messages, before and after it has scheduled the program.
_SHORT = (
    re.compile(r"Used (?P<used>[\d.]+[KMG]) of (?P<limit>[\d.]+[KMG]) hbm"),
    re.compile(r"\((?P<used>[\d.]+[KMG])\) exceeds available HBM \((?P<limit>[\d.]+[KMG])\)"),
)
_UNIT = {"K": 2**10, "M": 2**20, "G": 2**30}


def read_failure(message: str) -> dict:
    """Parses the message of a failed compile: out of memory, with the sizes, or another error."""
    for pattern in _SHORT:
        found = pattern.search(message)
        if found:
            used, limit = map(_bytes, found.group("used", "limit"))
            return {"error": "memory", "hbm_bytes": used, "hbm_limit": limit}
    return {"error": "compiler", "message": message[:2000]}


def _bytes(text):
    return float(text[:-1]) * _UNIT[text[-1]]


def read_program(text: str) -> tuple[list[str], int]:
    """Parses optimized HLO: the opcodes outside fusions, and the bytes exchanged by collectives."""
    opcodes, exchanged_bytes, is_fused = [], 0, False
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            is_fused = "fused" in line.split("(")[0]
        found = _INSTRUCTION.match(line)
        if found is None or is_fused:
            continue
        opcodes.append(found["opcode"])
        if found["opcode"].removesuffix("-start") in COLLECTIVES:
            exchanged_bytes += sum(map(_num_bytes, _SHAPE.finditer(found["type"])))
    return opcodes, exchanged_bytes


def _num_bytes(shape):
    bits = 8 if shape["type"] == "pred" else int(re.sub(r"\D", "", shape["type"]))
    return math.prod(int(size) for size in shape["sizes"].split(",") if size) * bits // 8
