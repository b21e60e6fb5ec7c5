"""Fine-tuning: train the encoder and a linear classifier together, for transfer."""

from __future__ import annotations

import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf.stages import classify


def run(flags: FlagValues, strategy: tf.distribute.Strategy) -> dict:
    """Trains all layers, starting from the pretrained encoder; returns the stage's figures."""
    return classify.train_classifier(
        flags,
        strategy,
        "finetune",
        augmentation_type=flags.finetune_augmentation_type,
        crop_area_range=flags.finetune_crop_area_range,
        train_encoder=True,
    )
