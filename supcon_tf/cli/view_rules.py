"""The rules between the flags of crops and augmentations."""

from __future__ import annotations

from absl import flags

from supcon_tf.cli.rules import is_given, register_rule

# Fraction of the image area below which --crop_compat=reference draws no crop.
SMALLEST_REFERENCE_CROP = 0.1


def define_view_rules() -> None:
    """Registers the rules in absl; `flag_rules.define_rules` calls it."""
    for name in ("crop_area_range", "linear_crop_area_range", "finetune_crop_area_range"):
        register_rule([name, "crop_compat"], _check_crop_area)
    for name in ("augmentation_type", "linear_augmentation_type", "finetune_augmentation_type"):
        register_rule([name, "augmentation_magnitude"], _check_randaugment)


def _check_crop_area(values):
    (name, (low, high)), compat = next(iter(values.items())), values["crop_compat"]
    if compat == "reference" and high <= SMALLEST_REFERENCE_CROP:
        raise flags.ValidationError(
            f"{name}={low:g},{high:g}: --crop_compat=reference cannot draw crops smaller than "
            f"{SMALLEST_REFERENCE_CROP} of the image area. Raise the upper end, or use "
            "--crop_compat=torchvision."
        )
    return True


def _check_randaugment(values):
    (name, policy), (_, magnitude) = values.items()
    if policy == "randaugment" and not is_given(flags.FLAGS, "augmentation_magnitude"):
        raise flags.ValidationError(
            f"{name}=randaugment needs a level up to 10, such as --augmentation_magnitude=9. The "
            f"default, {magnitude:g}, is meant for simclr and would hardly change an image."
        )
    return True
