"""Starts training from the weights of another run."""

from __future__ import annotations

import keras
import tensorflow as tf

from supcon_tf.interop import torch_weights


def copy_weights(path: str, target: keras.Model, *, ignore_missing: bool = False) -> list[str]:
    """Copies every weight of a saved model to the weight of the same name in the target.

    Args:
        path: A `.keras` file, or a `.pth` file of SupContrast.
        target: A built model.
        ignore_missing: Keep the target's initial value of weights that are missing in the file.

    Returns:
        The names of the target's weights that are missing in the file or have another shape there.

    Raises:
        ValueError: Weights are missing and `ignore_missing` is False, or no weight matches.
    """
    if path.endswith(".pth"):
        torch_weights.load_supcontrast(path, target)
        return []
    with tf.device("CPU:0"):  # The loaded variables are temporary: keep them off the strategy.
        saved = {
            variable.path: variable.numpy() for variable in keras.models.load_model(path).variables
        }
    missing = []
    for variable in target.variables:
        name = variable.path
        if name not in saved:
            missing.append(name)
        elif saved[name].shape != tuple(variable.shape):
            missing.append(
                f"{name} (shape {saved[name].shape} in the file, {tuple(variable.shape)} here)"
            )
        else:
            variable.assign(saved[name])
    if len(missing) == len(target.variables):
        raise ValueError(
            f"{path} contains none of the weights of {target.name}: it was saved from another "
            "architecture."
        )
    if missing and not ignore_missing:
        raise ValueError(
            f"{path} is missing {len(missing)} of the {len(target.variables)} weights of "
            f"{target.name}: {torch_weights.first_names(missing, 10)}. Build the model with the "
            "architecture of the file, or keep the initial values of these weights with "
            "--ignore_missing_checkpoint_vars."
        )
    return missing
