"""Augmentation policies: which operations an image meets, as tables with their source.

A policy is a sequence of stages. For every stage the choices of all images are made at once
from uniform draws (`plan`); then each image goes through the stages on its own (`transform`),
in the compiled loop of views.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from supcon_tf.augment import color, compiled, geometry, levels

AUGMENTATION_TYPES = (
    "autoaugment",
    "autoaugment_cifar10",
    "autoaugment_svhn",
    "randaugment",
    "simclr",
    "stacked_randaugment",
    "identity",
)

# One sub-policy per line, chosen uniformly: (operation, probability, level 0..10) in order.

# "v0" of https://github.com/tensorflow/models/blob/v2.5.0/official/vision/image_classification/augment.py,
# what the SupCon recipes call AutoAugment. It is not the ImageNet table of Cubuk et al. 2019.
AUTOAUGMENT_V0 = (
    (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
    (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
    (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
    (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
    (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
    (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
    (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
    (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
    (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
    (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
    (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
    (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
    (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
    (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
    (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)

# Cubuk et al. 2019, https://arxiv.org/abs/1805.09501, appendix. Both tables agree in
# https://github.com/pytorch/vision/blob/main/torchvision/transforms/autoaugment.py and (CIFAR-10)
# https://github.com/tensorflow/models/blob/master/official/vision/ops/augment.py, (SVHN)
# https://github.com/google-research/sam/blob/main/autoaugment/policies.py.
AUTOAUGMENT_CIFAR10 = (
    (("Invert", 0.1, 7), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 8), ("Equalize", 0.9, 2)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 5), ("Equalize", 0.5, 1)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 7), ("AutoContrast", 0.4, 8)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 3)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 8), ("Equalize", 0.6, 4)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 6)),
    (("AutoContrast", 0.8, 4), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 3)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 2), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 8), ("Invert", 0.1, 3)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 1)),
)
AUTOAUGMENT_SVHN = (
    (("ShearX", 0.9, 4), ("Invert", 0.2, 3)),
    (("ShearY", 0.9, 8), ("Invert", 0.7, 5)),
    (("Equalize", 0.6, 5), ("Solarize", 0.6, 6)),
    (("Invert", 0.9, 3), ("Equalize", 0.6, 3)),
    (("Equalize", 0.6, 1), ("Rotate", 0.9, 3)),
    (("ShearX", 0.9, 4), ("AutoContrast", 0.8, 3)),
    (("ShearY", 0.9, 8), ("Invert", 0.4, 5)),
    (("ShearY", 0.9, 5), ("Solarize", 0.2, 6)),
    (("Invert", 0.9, 6), ("AutoContrast", 0.8, 1)),
    (("Equalize", 0.6, 3), ("Rotate", 0.9, 3)),
    (("ShearX", 0.9, 4), ("Solarize", 0.3, 3)),
    (("ShearY", 0.8, 8), ("Invert", 0.7, 4)),
    (("Equalize", 0.9, 5), ("TranslateY", 0.6, 6)),
    (("Invert", 0.9, 4), ("Equalize", 0.6, 7)),
    (("Contrast", 0.3, 3), ("Rotate", 0.8, 4)),
    (("Invert", 0.8, 5), ("TranslateY", 0.0, 2)),
    (("ShearY", 0.7, 6), ("Solarize", 0.4, 8)),
    (("Invert", 0.6, 4), ("Rotate", 0.8, 4)),
    (("ShearY", 0.3, 7), ("TranslateX", 0.9, 3)),
    (("ShearX", 0.1, 6), ("Invert", 0.6, 5)),
    (("Solarize", 0.7, 2), ("TranslateY", 0.6, 7)),
    (("ShearY", 0.8, 4), ("Invert", 0.8, 8)),
    (("ShearX", 0.7, 9), ("TranslateY", 0.8, 3)),
    (("ShearY", 0.8, 5), ("AutoContrast", 0.7, 3)),
    (("ShearX", 0.7, 2), ("Invert", 0.1, 5)),
)

# Cubuk et al. 2020, https://arxiv.org/abs/1909.13719, with the operations of the reference's
# library: cutout and solarize-add beside the paper's. One layer draws one of them uniformly.
RANDAUGMENT = (
    "Identity",
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Cutout",
    "SolarizeAdd",
)

# Chen et al. 2020, https://arxiv.org/abs/2002.05709, appendix A.
JITTER_PROBABILITY = 0.8
GRAYSCALE_PROBABILITY = 0.2


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a policy, as pure functions of uniform draws.

    Attributes:
        num_draws: how many uniform numbers one image needs.
        plan: (float32 [n, num_draws], size) -> what `transform` needs, tensors [n, ...].
        transform: (uint8 [1, S, S, 3], plan of this image, [1, ...]) -> uint8 [1, S, S, 3].
        describe: (float [num_draws], size) -> the operations that this draws, in order.
    """

    num_draws: int
    plan: Callable[[tf.Tensor, int], Any]
    transform: Callable[[tf.Tensor, Any], tf.Tensor]
    describe: Callable[[np.ndarray, int], list[str]]


class Policy:
    """A random augmentation as a pure function of uniform draws.

    Attributes:
        name: one of AUGMENTATION_TYPES.
        num_draws: how many uniform numbers one image needs.
        compat: "pillow" or "reference", which also decides how the crop before is rounded.
    """

    def __init__(self, name: str, stages: tuple[Stage, ...] = (), *, compat: str = "pillow"):
        self.name = name
        self.stages = stages
        self.compat = compat
        self.num_draws = sum(stage.num_draws for stage in stages)

    @property
    def ends_with_blur(self) -> bool:
        """Whether the published policy blurs some views at the end; see `blur.py`."""
        return self.name in ("simclr", "stacked_randaugment")

    def apply(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """uint8 [n, S, S, 3], float32 [n, num_draws] in [0, 1) -> uint8 [n, S, S, 3].

        Compiled by XLA at the first call for every shape, in some seconds.
        """
        return compiled.apply_policy(images, draws, policy=self) if self.stages else images

    def describe(self, draws: np.ndarray, size: int) -> list[str]:
        """The operations that one image's draws, [num_draws], choose at that side in pixels."""
        parts = self._split(np.asarray(draws)[None])
        texts = [
            stage.describe(part[0], size) for stage, part in zip(self.stages, parts, strict=True)
        ]
        return [text for stage_texts in texts for text in stage_texts]

    def plan(self, draws: tf.Tensor, size: int) -> list:
        """What `transform` needs: for every stage tensors [n, ...], from [n, num_draws]."""
        parts = self._split(draws)
        return [stage.plan(part, size) for stage, part in zip(self.stages, parts, strict=True)]

    def transform(self, image: tf.Tensor, plan: list) -> tf.Tensor:
        """The policy on one image, uint8 [1, S, S, 3], with its rows of the plan, [1, ...]."""
        for stage, stage_plan in zip(self.stages, plan, strict=True):
            image = stage.transform(image, stage_plan)
        return image

    def _split(self, draws):
        ends = np.cumsum([stage.num_draws for stage in self.stages])
        return [
            draws[:, end - stage.num_draws : end]
            for end, stage in zip(ends, self.stages, strict=True)
        ]


def create_policy(
    augmentation_type: str = "simclr",
    *,
    magnitude: float = 0.5,
    compat: str = "pillow",
    num_layers: int = 2,
    jitter_variant: str = "tensorflow",
    warp_probability: float = 0.0,
) -> Policy:
    """The policy of that name; a magnitude of 0 or less turns every policy into the identity.

    Gaussian blur, which SimCLR and stacked RandAugment end with, is not part of it: it works on
    floats, and training runs it on the device. `create_view_batches(blur_probability=0.5)` and
    `--blur_probability=0.5` turn it on.

    Args:
        augmentation_type: "autoaugment" (v0, as the recipes), "autoaugment_cifar10" or
            "autoaugment_svhn": one of 25 pairs of operations. "randaugment": `num_layers`
            operations at level `magnitude`. "simclr": colour jitter of strength `magnitude`
            with probability 0.8, grayscale with 0.2, warp. "stacked_randaugment" (Tian et al.
            2020, https://arxiv.org/abs/2005.10243): jitter, then two layers of RandAugment at
            level 10, as the released code has it, then grayscale and warp.
        magnitude: see above; AutoAugment's tables carry their own levels.
        compat: "pillow", where pixel constants scale with the image's side, or "reference",
            which reproduces the library that the released recipes used, and drops fractions
            when crops are resized, as they do.
        num_layers: of "randaugment".
        jitter_variant: one of augment.JITTER_VARIANTS.
        warp_probability: of the spline warp at the end of "simclr" and
            "stacked_randaugment"; the released recipes have 0.

    Raises:
        ValueError: unknown name, or a value out of range.
    """
    _check_choice("augmentation_type", augmentation_type, AUGMENTATION_TYPES)
    _check_choice("compat", compat, color.COMPATS)
    _check_choice("jitter_variant", jitter_variant, color.JITTER_VARIANTS)
    if not 0 <= warp_probability <= 1:
        raise ValueError(f"warp_probability is a share from 0 to 1, got {warp_probability}.")
    if augmentation_type == "identity" or magnitude <= 0:
        return Policy("identity", compat=compat)

    tables = {
        "autoaugment": AUTOAUGMENT_V0,
        "autoaugment_cifar10": AUTOAUGMENT_CIFAR10,
        "autoaugment_svhn": AUTOAUGMENT_SVHN,
    }
    if augmentation_type in tables:
        stages = [_autoaugment(tables[augmentation_type], compat)]
    elif augmentation_type == "randaugment":
        stages = [_randaugment(num_layers, magnitude, compat)]
    else:
        stages = [_jitter(magnitude, jitter_variant)]
        if augmentation_type == "stacked_randaugment":
            stages.append(_randaugment(2, levels.MAX_LEVEL, compat))
        stages.append(_grayscale(compat))
        if warp_probability > 0:
            stages.append(_warp(warp_probability))
    return Policy(augmentation_type, tuple(stages), compat=compat)


def _check_choice(what, value, choices):
    if value not in choices:
        raise ValueError(f"Unknown {what} {value!r}: choose one of {', '.join(choices)}.")


def _autoaugment(table, compat):
    """Draws: which sub-policy, then for each of its operations: whether, sign, position."""
    num_slots = len(table[0])
    calls, rows = [levels.Call("Identity")], np.zeros([len(table), num_slots, 2], np.int32)
    for choice, sub_policy in enumerate(table):
        for slot, (name, _, level) in enumerate(sub_policy):
            rows[choice, slot] = _rows_of(calls, name, level)
    probabilities = np.array([[p for _, p, _ in pair] for pair in table], np.float32)

    def choose(draws):
        choice = _pick(draws[:, 0], len(table))
        slots = tf.reshape(draws[:, 1:], [-1, num_slots, 4])
        both_signs = tf.gather(tf.constant(rows), choice)  # [n, slots, 2]
        signed = tf.gather(both_signs, _pick(slots[:, :, 1], 2), batch_dims=2)
        applied = slots[:, :, 0] < tf.gather(tf.constant(probabilities), choice)
        return tf.where(applied, signed, 0), slots[:, :, 2:]

    return _calls_stage(calls, 1 + 4 * num_slots, choose, levels.AUTOAUGMENT_CONSTANTS, compat)


def _randaugment(num_layers, level, compat):
    """Draws, for every layer: which operation, sign, position."""
    if num_layers < 1 or level > levels.MAX_LEVEL:
        raise ValueError(
            f"RandAugment takes at least 1 layer and a level up to {levels.MAX_LEVEL}, got "
            f"{num_layers} layers and magnitude {level}."
        )
    calls = []
    rows = np.array([_rows_of(calls, name, level) for name in RANDAUGMENT], np.int32)

    def choose(draws):
        layers = tf.reshape(draws, [-1, num_layers, 4])
        both_signs = tf.gather(tf.constant(rows), _pick(layers[:, :, 0], len(rows)))
        signed = tf.gather(both_signs, _pick(layers[:, :, 1], 2), batch_dims=2)
        return signed, layers[:, :, 2:]

    return _calls_stage(calls, 4 * num_layers, choose, levels.RANDAUGMENT_CONSTANTS, compat)


def _rows_of(calls, name, level):
    """The positions in `calls` of this operation with sign 1 and -1; appends what is missing."""
    signs = (1, -1) if name in levels.SIGNED else (1, 1)
    wanted = [levels.Call(name, level, sign) for sign in signs]
    calls.extend(call for call in dict.fromkeys(wanted) if call not in calls)
    return [calls.index(call) for call in wanted]


def _pick(draw, count):
    """Uniform draws in [0, 1) to whole numbers in [0, count)."""
    return tf.minimum(tf.cast(draw * count, tf.int32), count - 1)


def _calls_stage(calls, num_draws, choose, constants, compat):
    """Calls in slots. choose: draws -> rows int32 [n, slots], positions [n, slots, 2]."""
    calls = tuple(calls)
    settings = {"constants": constants, "compat": compat}

    def transform(image, plan):
        rows, positions = plan

        def step(slot, image):
            row, position = tf.gather(rows, slot, axis=1), tf.gather(positions, slot, axis=1)
            return levels.transform(image, row, position, calls=calls, **settings)

        return color.in_turn(step, image, rows.shape[1])

    def describe(draws, size):
        rows, _ = choose(tf.constant(draws[None], tf.float32))
        drawn = [calls[row] for row in rows.numpy()[0]]
        return [levels.describe(c, size=size, **settings) for c in drawn if c.name != "Identity"]

    return Stage(num_draws, lambda draws, size: choose(draws), transform, describe)


def _jitter(strength, variant):
    color.check_jitter(strength, variant)

    def plan(draws, size):
        chosen = draws[:, 0] < JITTER_PROBABILITY
        return chosen, *color.jitter_plan(draws[:, 1:], strength=strength, variant=variant)

    def transform(image, plan):
        chosen, amounts, order = plan
        return tf.cond(
            chosen[0],
            lambda: color.jitter(image, amounts, order, variant=variant),
            lambda: image,
        )

    def describe(draws, size):
        chosen, amounts, order = plan(tf.constant(draws[None], tf.float32), size)
        names = ("brightness", "contrast", "saturation", "hue")
        texts = [f"{names[k]} {amounts.numpy()[0, k]:.2f}" for k in order.numpy()[0]]
        return texts if chosen.numpy()[0] else []

    return Stage(1 + color.JITTER_DRAWS, plan, transform, describe)


def _grayscale(compat):
    return Stage(
        1,
        lambda draws, size: draws[:, 0] < GRAYSCALE_PROBABILITY,
        lambda image, chosen: color.grayscale(image, chosen, compat=compat),
        lambda draws, size: ["grayscale"] if draws[0] < GRAYSCALE_PROBABILITY else [],
    )


def _warp(probability):
    def plan(draws, size):
        source, destination = geometry.random_warp_points(draws[:, 1:], size)
        coefficients = geometry.spline_coefficients(source, destination)
        return draws[:, 0] < probability, destination, coefficients

    def transform(image, plan):
        chosen, *spline = plan
        return tf.cond(
            chosen[0],
            lambda: color.to_uint8(geometry.warp_by_spline(image, *spline)),
            lambda: image,
        )

    def describe(draws, size):
        return ["warp"] if draws[0] < probability else []

    return Stage(1 + geometry.WARP_DRAWS, plan, transform, describe)
