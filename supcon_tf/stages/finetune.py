"""Fine-tuning: train the encoder and a linear classifier together, for transfer."""

from __future__ import annotations

from supcon_tf.stages import classify


def run(flags, strategy) -> dict:
    """Trains all layers from the pretrained encoder on; returns the figures of the stage."""
    return classify.train_classifier(
        flags,
        strategy,
        "finetune",
        augmentation_type=flags.finetune_augmentation_type,
        crop_area_range=flags.finetune_crop_area_range,
        train_encoder=True,
    )
