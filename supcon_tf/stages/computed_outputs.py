"""Outputs of a model that an earlier stage of the same command has computed.

The linear stage embeds all training images, and `eval` needs these embeddings too; `eval` and
`embed` both need the outputs for the test images. A stage keeps what it computed, and a later one
asks for it before it computes. Nothing outlives the command.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl.flags import FlagValues

from supcon_tf.data import pipeline, sources

# Together. What exceeds it is computed again, because it occupies memory while other stages run.
MAX_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class _Computed:
    """Outputs for all examples of a source, and what they depend on."""

    stage: str
    source: sources.Source
    crop: tuple[str, int]
    encoder: str
    classifier: str | None
    outputs: dict[str, np.ndarray]
    labels: np.ndarray

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in (*self.outputs.values(), self.labels))


_kept: list[_Computed] = []


def forget() -> None:
    """Forgets everything; every command ends with it."""
    _kept.clear()


def keep(
    flags: FlagValues,
    stage: str,
    source: sources.Source,
    outputs: dict[str, np.ndarray],
    labels: np.ndarray,
    *,
    encoder: str,
    classifier: str | None = None,
) -> None:
    """Keeps the outputs for all examples of a source, if they are small.

    Args:
        flags: The parsed flags.
        stage: The stage that computed them.
        source: The examples.
        outputs: [M, ...] by name, in order.
        labels: [M, ...].
        encoder: Hash of the encoder.
        classifier: Hash of the classifier, if "logits" is among the outputs.
    """
    new = _Computed(stage, source, _crop(flags), encoder, classifier, outputs, labels)
    if sum(computed.num_bytes for computed in (*_kept, new)) <= MAX_BYTES:
        _kept.append(new)


def recall(
    flags: FlagValues,
    source: sources.Source,
    names: Sequence[str],
    *,
    encoder: str,
    classifier: str | None = None,
    limit: int | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
    """Returns outputs that a stage has kept with their labels, and says so; or None.

    Args:
        flags: The parsed flags.
        source: The examples.
        names: The outputs that are needed.
        encoder, classifier: See `keep`.
        limit: See `pipeline.eval_examples`.
    """
    for found in reversed(_kept):
        if (
            found.source is source
            and found.crop == _crop(flags)
            and found.encoder == encoder
            and set(names) <= set(found.outputs)
            and ("logits" not in names or found.classifier == classifier)
        ):
            rows = pipeline.eval_examples(source, limit)
            print(f"The outputs for {len(rows):,} images come from the {found.stage} stage.")
            if len(rows) == len(found.labels):  # Without a copy.
                return {name: found.outputs[name] for name in names}, found.labels
            return {name: found.outputs[name][rows] for name in names}, found.labels[rows]
    return None


def _crop(flags):
    return flags.eval_crop_method, flags.crop_padding
