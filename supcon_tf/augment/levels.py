"""The named operations of AutoAugment and RandAugment, and what a level 0..10 means for each.

A policy draws from a finite list of calls (operation, level, sign). The arguments of all calls are
a constant table, and each image only carries the row that it drew.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from supcon_tf.augment import color, geometry, loops

MAX_LEVEL = 10
SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
_BLENDS = ("Color", "Contrast", "Brightness", "Sharpness")


@dataclasses.dataclass(frozen=True)
class Call:
    """One operation of a policy with its level.

    Attributes:
        name: an operation of Cubuk et al. 2019, "SolarizeAdd" or "Identity".
        level: 0..10, from the table of the policy.
        sign: 1 or -1, the direction of the operations in SIGNED.
    """

    name: str
    level: float = 0
    sign: int = 1


@dataclasses.dataclass(frozen=True)
class Constants:
    """The largest translation and cutout of a policy, at level 10.

    With `compat="pillow"` they are shares of the side of the image. With "reference" they are
    absolute numbers of pixels: at 32 pixels, AutoAugment can then move the image out entirely.
    """

    translate_share: float = 150 / 331  # Cubuk et al. 2019: 150 pixels of 331
    cutout_share: float = 40 / 224
    translate_px: float = 250
    cutout_px: float = 100


AUTOAUGMENT_CONSTANTS = Constants()
RANDAUGMENT_CONSTANTS = Constants(translate_px=100, cutout_px=40)


def argument(call: Call, *, size: int, constants: Constants, compat: str) -> float:
    """The argument of the operation: degrees, pixels, a factor, bits, or a threshold.

    It is 0 for operations without an argument.
    """
    share = call.level / MAX_LEVEL
    absolute = compat == "reference"
    if call.name == "Rotate":
        return call.sign * share * 30.0
    if call.name in ("ShearX", "ShearY"):
        return call.sign * share * 0.3
    if call.name in ("TranslateX", "TranslateY"):
        pixels = share * constants.translate_px
        return call.sign * (pixels if absolute else int(share * constants.translate_share * size))
    if call.name in _BLENDS:
        return share * 1.8 + 0.1
    if call.name == "Posterize":
        # The paper keeps 4 to 8 bits. The reference's library keeps 0 to 4. For 0 bits it shifts
        # by eight, which on a CPU is a shift by seven and keeps 1 bit.
        return max(int(share * 4), 1) if absolute else 4 + int(share * 4)
    if call.name == "Solarize":
        return int(share * 256)
    if call.name == "SolarizeAdd":
        return int(share * 110)
    if call.name == "Cutout":
        return int(share * (constants.cutout_px if absolute else constants.cutout_share * size))
    return 0.0


def describe_call(call: Call, *, size: int, constants: Constants, compat: str) -> str:
    """A caption with the call and its argument, such as "Rotate -12" or "Equalize"."""
    value = argument(call, size=size, constants=constants, compat=compat)
    takes_none = call.name in ("Identity", "AutoContrast", "Equalize", "Invert")
    return call.name if takes_none else f"{call.name} {value:.3g}"


def apply_call(
    image: tf.Tensor,
    row: tf.Tensor,
    center: tf.Tensor,
    *,
    calls: tuple[Call, ...],
    constants: Constants,
    compat: str,
) -> tf.Tensor:
    """Applies one of the calls to one image.

    Args:
        image: uint8 [1, S, S, 3].
        row: int32 [1], the position in `calls`.
        center: float32 [1, 2] in [0, 1), row and column of a cutout as shares of the side.
        calls: all calls of the policy.
        constants, compat: see `Constants`.

    Returns:
        uint8 [1, S, S, 3].
    """
    size = image.shape[1]
    arguments = np.array(
        [argument(call, size=size, constants=constants, compat=compat) for call in calls]
    )
    value = tf.gather(tf.constant(arguments, tf.float64), row)
    number, whole = tf.cast(value, tf.float32), tf.cast(value, tf.int32)
    branches = {
        "Identity": lambda: image,
        "AutoContrast": lambda: color.autocontrast(image, compat=compat),
        "Equalize": lambda: color.equalize(image),
        "Invert": lambda: color.invert(image),
        "Posterize": lambda: color.posterize(image, whole),
        "Solarize": lambda: color.solarize(image, whole),
        "SolarizeAdd": lambda: color.solarize_add(image, whole),
        "Color": lambda: color.color(image, number, compat=compat),
        "Contrast": lambda: color.contrast(image, number, compat=compat),
        "Brightness": lambda: color.brightness(image, number),
        "Sharpness": lambda: color.sharpness(image, number, compat=compat),
        "Cutout": lambda: geometry.cutout(image, whole, tf.cast(center * size, tf.int32)),
        "Affine": lambda: geometry.sample(image, _grid(calls, arguments, row, size, compat)),
    }
    kinds = ["Affine" if call.name in SIGNED else call.name for call in calls]
    used = sorted(set(kinds))
    kind = tf.gather(tf.constant([used.index(kind) for kind in kinds]), row)
    return loops.select(kind, [branches[name] for name in used])


def _grid(calls, arguments, row, size, compat):
    """The grid of an affine call. The matrices of all calls are constants."""
    names = np.array([call.name for call in calls])

    def only(name):
        return np.where(names == name, arguments, 0.0)

    matrices = tf.where(
        (names == "Rotate")[:, None, None],
        geometry.rotation(only("Rotate"), size, compat),
        tf.where(
            np.isin(names, ("ShearX", "ShearY"))[:, None, None],
            geometry.shearing(only("ShearX"), only("ShearY"), compat),
            geometry.translation(only("TranslateX"), only("TranslateY"), compat),
        ),
    )
    return geometry.affine_grid(tf.gather(matrices, row), size)
