"""Augmentation policies: random image operations as pure functions of uniform draws.

A `Policy` is a sequence of steps (`PolicyStep`). One view goes through it in one direction:

    Policy.apply(images, draws)             a batch; compiled by XLA once per shape
      step.plan(draws, size)                random choices of all images at once (small tensors)
      loops.each_image                      then, in a loop, for each image and each step:
        step.transform(image, plan row)
          levels.apply_call                 AutoAugment and RandAugment: the drawn operation
            color.*, geometry.*
          jitter.apply_jitter               SimCLR: color jitter,
          color.grayscale                   grayscale,
          geometry.warp_by_spline           warp

The draws come from the input pipeline, which makes them from (seed, step, row, view). The tables
of operations are in `tables.py`. The Gaussian blur at the end of some policies is not a step: it
works on floats and runs on the training device, see `blur.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from supcon_tf.augment import color, geometry, jitter, levels, loops, tables
from supcon_tf.augment.rounding import to_uint8

AUGMENTATION_TYPES = (
    "autoaugment",
    "autoaugment_cifar10",
    "autoaugment_svhn",
    "randaugment",
    "simclr",
    "stacked_randaugment",
    "identity",
)


@dataclasses.dataclass(frozen=True)
class PolicyStep:
    """A step of a policy, as pure functions of uniform draws.

    Attributes:
        num_draws: how many uniform numbers one image needs.
        plan: (float32 [n, num_draws], size) -> random choices as tensors [n, ...].
        transform: (uint8 [1, S, S, 3], choices of this image, [1, ...]) -> uint8 [1, S, S, 3].
        describe: (float [num_draws], size) -> captions of the drawn operations, in order.
    """

    num_draws: int
    plan: Callable[[tf.Tensor, int], Any]
    transform: Callable[[tf.Tensor, Any], tf.Tensor]
    describe: Callable[[np.ndarray, int], list[str]]


class Policy:
    """A random augmentation as a pure function of uniform draws.

    Attributes:
        name: one of AUGMENTATION_TYPES.
        steps: applied in order.
        num_draws: how many uniform numbers one image needs.
        compat: "pillow" or "reference". It also decides how crops before the policy are rounded.
    """

    def __init__(self, name: str, steps: tuple[PolicyStep, ...] = (), *, compat: str = "pillow"):
        self.name = name
        self.steps = steps
        self.compat = compat
        self.num_draws = sum(step.num_draws for step in steps)

    @property
    def ends_with_blur(self) -> bool:
        """Whether the published policy blurs some of the views at the end."""
        return self.name in ("simclr", "stacked_randaugment")

    def apply(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Augments a batch of images.

        The function is compiled by XLA for every new shape, which takes a few seconds.

        Args:
            images: uint8 [n, S, S, 3].
            draws: float32 [n, num_draws] in [0, 1).

        Returns:
            uint8 [n, S, S, 3].
        """
        return self._apply(images, draws) if self.steps else images

    @tf.function(jit_compile=True, autograph=False)
    def _apply(self, images, draws):
        size = images.shape[1]
        plans = self.plan(draws, size)

        def view(index):
            return self.transform(tf.gather(images, index)[None], loops.row_of(plans, index))

        return loops.each_image(view, tf.shape(images)[0], size)

    def plan(self, draws: tf.Tensor, size: int) -> list:
        """The random choices of every step, as tensors [n, ...], from draws [n, num_draws]."""
        parts = self._split(draws)
        return [step.plan(part, size) for step, part in zip(self.steps, parts, strict=True)]

    def transform(self, image: tf.Tensor, plan: list) -> tf.Tensor:
        """Applies the steps to one image, uint8 [1, S, S, 3], with its row of the plan."""
        for step, step_plan in zip(self.steps, plan, strict=True):
            image = step.transform(image, step_plan)
        return image

    def describe(self, draws: np.ndarray, size: int) -> list[str]:
        """Captions of the operations that the draws of one image, [num_draws], choose.

        Args:
            draws: float [num_draws].
            size: the side of the image in pixels, which arguments depend on.
        """
        parts = self._split(np.asarray(draws)[None])
        texts = [step.describe(part[0], size) for step, part in zip(self.steps, parts, strict=True)]
        return [text for step_texts in texts for text in step_texts]

    def _split(self, draws):
        ends = np.cumsum([step.num_draws for step in self.steps])
        return [
            draws[:, end - step.num_draws : end] for end, step in zip(ends, self.steps, strict=True)
        ]


def create_policy(
    augmentation_type: str = "simclr",
    *,
    magnitude: float = 0.5,
    compat: str = "pillow",
    num_layers: int = 2,
    stacked_magnitude: float = levels.MAX_LEVEL,
    jitter_variant: str = "tensorflow",
    warp_probability: float = 0.0,
) -> Policy:
    """Creates an augmentation policy by name.

    With a magnitude of 0 or less, every policy is the identity.

    SimCLR and stacked RandAugment end with a Gaussian blur, which is not part of the policy: it
    works on floats and runs on the training device. Turn it on with
    `create_view_batches(blur_probability=0.5)` or `--blur_probability=0.5`.

    Args:
        augmentation_type: "autoaugment" (v0, as in the recipes), "autoaugment_cifar10" or
            "autoaugment_svhn": one of 25 pairs of operations. "randaugment": `num_layers`
            operations at level `magnitude`. "simclr": color jitter of strength `magnitude` with
            probability 0.8, then grayscale with probability 0.2, then warp.
            "stacked_randaugment" (Tian et al. 2020, https://arxiv.org/abs/2005.10243): color
            jitter of strength `magnitude`, then two layers of RandAugment at level
            `stacked_magnitude`, then grayscale and warp.
        magnitude: see above. The tables of AutoAugment contain their own levels.
        compat: "pillow" scales pixel constants with the side of the image. "reference" reproduces
            the library that the released recipes used, and drops the fraction when crops are
            resized, as the released code does.
        num_layers: number of operations of "randaugment".
        stacked_magnitude: level of the operations of "stacked_randaugment", above 0 and up to 10,
            the value of the released code.
        jitter_variant: one of `jitter.JITTER_VARIANTS`.
        warp_probability: probability of the spline warp at the end of "simclr" and
            "stacked_randaugment". The released recipes use 0.

    Raises:
        ValueError: if a name is unknown or a value is out of range.
    """
    _check_choice("augmentation_type", augmentation_type, AUGMENTATION_TYPES)
    _check_choice("compat", compat, color.COMPATS)
    _check_choice("jitter_variant", jitter_variant, jitter.JITTER_VARIANTS)
    if not 0 < stacked_magnitude <= levels.MAX_LEVEL:
        raise ValueError(
            f"stacked_magnitude must be above 0 and up to {levels.MAX_LEVEL}, got "
            f"{stacked_magnitude}."
        )
    if not 0 <= warp_probability <= 1:
        raise ValueError(f"warp_probability must be from 0 to 1, got {warp_probability}.")
    if augmentation_type == "identity" or magnitude <= 0:
        return Policy("identity", compat=compat)

    autoaugment = {
        "autoaugment": tables.AUTOAUGMENT_V0,
        "autoaugment_cifar10": tables.AUTOAUGMENT_CIFAR10,
        "autoaugment_svhn": tables.AUTOAUGMENT_SVHN,
    }
    if augmentation_type in autoaugment:
        steps = [_autoaugment(autoaugment[augmentation_type], compat)]
    elif augmentation_type == "randaugment":
        steps = [_randaugment(num_layers, magnitude, compat)]
    else:
        steps = [_jitter(magnitude, jitter_variant)]
        if augmentation_type == "stacked_randaugment":
            steps.append(_randaugment(2, stacked_magnitude, compat))
        steps.append(_grayscale(compat))
        if warp_probability > 0:
            steps.append(_warp(warp_probability))
    return Policy(augmentation_type, tuple(steps), compat=compat)


def _check_choice(what, value, choices):
    if value not in choices:
        raise ValueError(f"Unknown {what} {value!r}: choose one of {', '.join(choices)}.")


def _autoaugment(table: tuple[tables.SubPolicy, ...], compat: str) -> PolicyStep:
    """The draws choose a sub-policy, then for each of its operations whether it is applied, its
    sign, and the position of a cutout."""
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

    return _calls_step(calls, 1 + 4 * num_slots, choose, levels.AUTOAUGMENT_CONSTANTS, compat)


def _randaugment(num_layers: int, level: float, compat: str) -> PolicyStep:
    """The draws choose, for every layer, an operation, its sign, and the position of a cutout."""
    if num_layers < 1 or level > levels.MAX_LEVEL:
        raise ValueError(
            f"RandAugment expects at least 1 layer and a magnitude up to {levels.MAX_LEVEL}, got "
            f"{num_layers} layers and magnitude {level}."
        )
    calls: list[levels.Call] = []
    rows = np.array([_rows_of(calls, name, level) for name in tables.RANDAUGMENT], np.int32)

    def choose(draws):
        layers = tf.reshape(draws, [-1, num_layers, 4])
        both_signs = tf.gather(tf.constant(rows), _pick(layers[:, :, 0], len(rows)))
        signed = tf.gather(both_signs, _pick(layers[:, :, 1], 2), batch_dims=2)
        return signed, layers[:, :, 2:]

    return _calls_step(calls, 4 * num_layers, choose, levels.RANDAUGMENT_CONSTANTS, compat)


def _rows_of(calls, name, level):
    """The positions in `calls` of an operation with sign 1 and -1; appends missing calls."""
    signs = (1, -1) if name in levels.SIGNED else (1, 1)
    wanted = [levels.Call(name, level, sign) for sign in signs]
    calls.extend(call for call in dict.fromkeys(wanted) if call not in calls)
    return [calls.index(call) for call in wanted]


def _pick(draw, count):
    """Converts uniform draws in [0, 1) to integers in [0, count)."""
    return tf.minimum(tf.cast(draw * count, tf.int32), count - 1)


def _calls_step(calls, num_draws, choose, constants, compat):
    """A step of several calls. choose: draws -> rows int32 [n, slots], positions [n, slots, 2]."""
    calls = tuple(calls)
    settings = {"constants": constants, "compat": compat}

    def transform(image, plan):
        rows, positions = plan

        def step(slot, image):
            row, position = tf.gather(rows, slot, axis=1), tf.gather(positions, slot, axis=1)
            return levels.apply_call(image, row, position, calls=calls, **settings)

        return loops.in_turn(step, image, rows.shape[1])

    def describe(draws, size):
        rows, _ = choose(tf.constant(draws[None], tf.float32))
        drawn = [calls[row] for row in rows.numpy()[0]]
        return [
            levels.describe_call(c, size=size, **settings) for c in drawn if c.name != "Identity"
        ]

    return PolicyStep(num_draws, lambda draws, size: choose(draws), transform, describe)


def _jitter(strength: float, variant: str) -> PolicyStep:
    jitter.check_jitter(strength, variant)

    def plan(draws, size):
        chosen = draws[:, 0] < tables.JITTER_PROBABILITY
        return chosen, *jitter.plan_jitter(draws[:, 1:], strength=strength, variant=variant)

    def transform(image, plan):
        chosen, amounts, order = plan
        return tf.cond(
            chosen[0],
            lambda: jitter.apply_jitter(image, amounts, order, variant=variant),
            lambda: image,
        )

    def describe(draws, size):
        chosen, amounts, order = plan(tf.constant(draws[None], tf.float32), size)
        names = ("brightness", "contrast", "saturation", "hue")
        texts = [f"{names[k]} {amounts.numpy()[0, k]:.2f}" for k in order.numpy()[0]]
        return texts if chosen.numpy()[0] else []

    return PolicyStep(1 + jitter.JITTER_DRAWS, plan, transform, describe)


def _grayscale(compat: str) -> PolicyStep:
    return PolicyStep(
        1,
        lambda draws, size: draws[:, 0] < tables.GRAYSCALE_PROBABILITY,
        lambda image, chosen: color.grayscale(image, chosen, compat=compat),
        lambda draws, size: ["grayscale"] if draws[0] < tables.GRAYSCALE_PROBABILITY else [],
    )


def _warp(probability: float) -> PolicyStep:
    def plan(draws, size):
        source, destination = geometry.random_warp_points(draws[:, 1:], size)
        coefficients = geometry.spline_coefficients(source, destination)
        return draws[:, 0] < probability, destination, coefficients

    def transform(image, plan):
        chosen, *spline = plan
        return tf.cond(
            chosen[0],
            lambda: to_uint8(geometry.warp_by_spline(image, *spline)),
            lambda: image,
        )

    def describe(draws, size):
        return ["warp"] if draws[0] < probability else []

    return PolicyStep(1 + geometry.WARP_DRAWS, plan, transform, describe)
