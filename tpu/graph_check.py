"""Finds ops of a traced step that a TPU does not run, and where they were created.

XLA compiles one program of fixed shapes: no strings, no callbacks to the host, no image codecs,
and no result whose size depends on values. Some of these ops do compile on a CPU, so a step that
works there can fail, or be very slow, on a TPU.
"""

from __future__ import annotations

import re

import tensorflow as tf

from tpu.problems import Problem

# Regular expressions of op types (the whole name), by the reason why they are refused.
FORBIDDEN = {
    "its result has a size that depends on values": (
        r"Where|Unique\w*|DynamicPartition|ListDiff|NonMaxSuppression\w*|Sparse(?!SoftmaxCross)\w*"
        r"|Ragged\w*|BooleanMask|SetSize|DenseTo\w+SetOperation"
    ),
    "it calls back to the host": (
        r"PyFunc\w*|EagerPyFunc|Print\w*|NumpyFunction|XlaHostCompute|OutfeedEnqueue\w*|\w*Summary\w*"
    ),
    "it works on encoded images or files": (
        r"Decode(Jpeg|Png|Gif|Bmp|Image|AndCropJpeg|Raw|Csv|Compressed)\w*|Encode(Jpeg|Png)\w*"
        r"|ReadFile|WriteFile|MatchingFiles"
    ),
    "it is an image op without a TPU kernel": (
        r"ImageProjectiveTransform\w*|CropAndResize\w*|SampleDistortedBoundingBox\w*"
        r"|ExtractGlimpse\w*|DrawBoundingBoxes\w*|ScaleAndTranslate\w*|ResizeBicubic\w*"
        r"|ResizeArea\w*"
    ),
    "it belongs to the input pipeline": r"\w*Dataset(?!Size)\w*|Iterator\w*|\w*Iterator",
}
_NOT_USER_CODE = ("/tensorflow/", "/keras/", "/site-packages/", "<frozen", "/tpu/replica.py")


def find_problems(function) -> list[Problem]:
    """Finds the forbidden ops of a traced function and of all functions that it calls.

    Args:
        function: A concrete `tf.function`.
    """
    problems = []
    for op in function.graph.get_operations():
        reason = _reason(op.type, [tensor.dtype for tensor in (*op.inputs, *op.outputs)])
        if reason:
            problems.append(Problem(op.type, op.name, reason, _place(op)))
    for inner in function.graph.as_graph_def().library.function:
        for node in inner.node_def:
            types = [
                value.type for value in node.attr.values() if value.WhichOneof("value") == "type"
            ]
            reason = _reason(node.op, [tf.dtypes.as_dtype(number) for number in types])
            if reason:
                place = f"in the function {inner.signature.name}"
                problems.append(Problem(node.op, node.name, reason, place))
    return problems


def _reason(op_type, dtypes):
    for reason, pattern in FORBIDDEN.items():
        if re.fullmatch(pattern, op_type):
            return reason
    return "it handles strings" if tf.string in dtypes else None


def _place(op):
    frames = [f for f in (op.traceback or ()) if not any(p in f.filename for p in _NOT_USER_CODE)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "in the library"
