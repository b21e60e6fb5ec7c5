"""Files of encoders and of their weights: where they are, and what they tell without TensorFlow."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from typing import BinaryIO

from supcon_tf.storage.run_paths import PART_FILES, part_paths

RUN_ENCODERS = PART_FILES["encoder"]
WEIGHTS_ENDINGS = (".weights.h5", ".keras", ".h5")
IMAGENET = "imagenet"
SAVE_ADVICE = "Save the whole model with model.save('encoder.keras') in Keras 3."

_EXPECTED_WEIGHTS = (
    f"Expected {IMAGENET!r}, a .weights.h5 file of model.save_weights, a .keras file of "
    "model.save, or the model directory of a run that has finished pretraining."
)


def is_encoder_path(encoder: str) -> bool:
    """Returns whether an encoder is named by a file or folder, not by an architecture."""
    return encoder.endswith((".keras", ".h5", ".pth", ".pt")) or "/" in encoder or os.sep in encoder


def find_encoder_file(path: str, exists: Callable[[str], bool] = os.path.exists) -> str:
    """Returns the `.keras` file of an encoder.

    Args:
        path: The file, or the model directory of a run.
        exists: Returns whether a path exists.

    Raises:
        ValueError: If there is no such file, or if it is of another kind.
    """
    if path.endswith((".weights.h5", ".h5")):
        raise ValueError(
            f"{path} is not an encoder: expected a .keras file, which holds the layers too. "
            f"{SAVE_ADVICE} If the file has the weights of an encoder that exists here, name that "
            f"encoder and the file, as in --encoder=tiny --encoder_weights={path}."
        )
    if path.endswith((".pth", ".pt")):
        raise ValueError(
            f"{path} is not an encoder: expected a .keras file. Weights of a SupContrast or "
            "torchvision ResNet are loaded with --encoder=resnet_v1 --reference_ckpt="
            f"{path}."
        )
    candidates = [path]
    if not path.endswith(".keras"):
        candidates = part_paths(path, "encoder")
    for candidate in candidates:
        if exists(candidate):
            return candidate
    expected = "" if candidates == [path] else f": it has neither {' nor '.join(RUN_ENCODERS)}"
    what = "does not exist" if candidates == [path] else "is not the directory of a finished run"
    raise ValueError(
        f"The encoder {path} {what}{expected}. Expected a .keras file, or the model directory of "
        "a run that has finished pretraining."
    )


def find_weights_file(path: str, exists: Callable[[str], bool] = os.path.exists) -> str:
    """Returns the file that holds the weights of an encoder.

    Args:
        path: A `.weights.h5`, `.keras` or `.h5` file, or the model directory of a run.
        exists: Returns whether a path exists.

    Raises:
        ValueError: If there is no such file, or if it is of another kind.
    """
    if path.endswith((".pth", ".pt")):
        raise ValueError(
            f"The weights {path} are of PyTorch: load those of a SupContrast or torchvision "
            f"ResNet with --encoder=resnet_v1 --reference_ckpt={path}, in Python with "
            "supcon_tf.load_supcontrast."
        )
    if path.endswith(WEIGHTS_ENDINGS):
        if exists(path):
            return path
        raise ValueError(f"The weights {path} do not exist. {_EXPECTED_WEIGHTS}")
    for candidate in part_paths(path, "encoder"):
        if exists(candidate):
            return candidate
    raise ValueError(
        f"The weights {path} are neither a file of a known kind nor the directory of a finished "
        f"run. {_EXPECTED_WEIGHTS}"
    )


def input_shape(path: str, file: BinaryIO | None = None) -> tuple[int | None, ...] | None:
    """Reads the input shape (batch, height, width, channels) of the model in a `.keras` file.

    None if the file does not say it; loading the model tells more.

    Args:
        path: The file.
        file: The opened file, which may be remote. None opens the path.

    Raises:
        ValueError: If this is not a file of Keras 3.
    """
    try:
        with zipfile.ZipFile(file or path) as archive:
            config = json.loads(archive.read("config.json"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"The encoder {path} is not a model file of Keras 3 ({error}). {SAVE_ADVICE}"
        ) from error
    try:
        layers = config["config"]["layers"]
        shapes = [
            layer["config"]["batch_shape"]
            for layer in layers
            if layer["class_name"] == "InputLayer"
        ]
    except (KeyError, TypeError):
        return None
    return tuple(shapes[0]) if len(shapes) == 1 and shapes[0] else None


def image_side(
    path: str, image_size: int | None = None, *, file: BinaryIO | None = None
) -> int | None:
    """Returns the side in pixels that the encoder in a `.keras` file is made for.

    Args:
        path: The file.
        image_size: The side that was asked for, if any.
        file: The opened file, which may be remote. None opens the path.

    Returns:
        The side; None if the encoder takes images of any size, or if the file does not say it.

    Raises:
        ValueError: If the encoder does not take square color images of `image_size`.
    """
    shape = input_shape(path, file)
    return None if shape is None else check_side(path, shape, image_size)


def check_side(
    encoder: str, shape: tuple[int | None, ...], image_size: int | None = None
) -> int | None:
    """Returns the side of the images of an encoder's input shape (batch, height, width, channels).

    Args:
        encoder: What to call the encoder in a message.
        shape: Its input shape.
        image_size: The side that was asked for, if any.

    Raises:
        ValueError: If the encoder does not take square color images of `image_size`.
    """
    if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
        raise ValueError(
            f"The encoder {encoder} takes inputs of shape {list(shape)}: expected square color "
            "images [batch, side, side, 3], as keras.Input([224, 224, 3]) declares them."
        )
    side = shape[1]
    if side and image_size and side != image_size:
        raise ValueError(
            f"The encoder {encoder} takes images of {side} x {side} pixels, but "
            f"image_size={image_size}. Leave image_size out, or save an encoder for "
            f"{image_size} px (or for any size, with keras.Input([None, None, 3]))."
        )
    return side
