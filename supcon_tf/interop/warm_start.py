"""Starting from weights that another run left."""

from __future__ import annotations

import keras
import tensorflow as tf

from supcon_tf.interop import torch_weights


def copy_weights(path: str, target: keras.Model, *, ignore_missing: bool = False) -> list[str]:
    """Copies every weight of a saved model to the weight of the same name in the target.

    Args:
        path: a `.keras` file, or SupContrast's `.pth`.
        target: a built model; weights that the file lacks stay as they are.
        ignore_missing: accept that.

    Returns:
        The names of the target's weights that the file lacks, or has in another shape.

    Raises:
        ValueError: there are such weights and they are not ignored, or no weight fits at all.
    """
    if path.endswith(".pth"):
        torch_weights.load_supcontrast(path, target)
        return []
    with tf.device("CPU:0"):  # Not under a strategy: these variables live for a moment.
        saved = {
            variable.path: variable.numpy() for variable in keras.models.load_model(path).variables
        }
    missing = []
    for variable in target.variables:
        name = variable.path
        if name not in saved:
            missing.append(name)
        elif saved[name].shape != tuple(variable.shape):
            missing.append(f"{name} ({saved[name].shape} there, {tuple(variable.shape)} here)")
        else:
            variable.assign(saved[name])
    if len(missing) == len(target.variables):
        raise ValueError(
            f"{path} has none of the weights of {target.name}: it is another architecture."
        )
    if missing and not ignore_missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of the {len(target.variables)} weights of "
            f"{target.name}: {_shorten(missing)}. Use the architecture that it was made with, or "
            "start these weights afresh with --ignore_missing_checkpoint_vars."
        )
    return missing


def _shorten(names):
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
