"""The operations as Pillow does them, one image after the other: what ours are held to."""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

GRAY = (128, 128, 128)


def affine(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=GRAY)


def cutout(image, half, center):
    size, (row, column) = image.size[0], center
    top, left = max(row - half, 0), max(column - half, 0)
    bottom, right = min(row + half, size), min(column + half, size)
    if bottom > top and right > left:
        image.paste(GRAY, (left, top, right, bottom))
    return image


def solarize_add(image, addition):
    table = [min(level + addition, 255) if level < 128 else level for level in range(256)]
    return image.point(table * 3)


# name: (Pillow image, argument) -> Pillow image
OPS = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "Solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    "SolarizeAdd": lambda image, addition: solarize_add(image, int(addition)),
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "Rotate": lambda image, degrees: image.rotate(degrees, fillcolor=GRAY),
    "ShearX": lambda image, amount: affine(image, (1, amount, 0, 0, 1, 0)),
    "ShearY": lambda image, amount: affine(image, (1, 0, 0, amount, 1, 0)),
    "TranslateX": lambda image, pixels: affine(image, (1, 0, pixels, 0, 1, 0)),
    "TranslateY": lambda image, pixels: affine(image, (1, 0, 0, 0, 1, pixels)),
    "Identity": lambda image, _: image,
}


def each(op, images, *arguments):
    """Applies op(image, *argument of the image) to each, uint8 [B, S, S, 3]."""
    return np.stack(
        [
            np.asarray(op(Image.fromarray(image), *(values[k] for values in arguments)))
            for k, image in enumerate(images)
        ]
    )
