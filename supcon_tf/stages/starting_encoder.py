"""The encoder that pretraining starts from: new, with given weights, or from a file."""

from __future__ import annotations

import io
from collections.abc import Sequence

import keras
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf.cli import flag_rules
from supcon_tf.models import batch_norm, contrastive, saved_encoder
from supcon_tf.storage import encoder_files


def encoder_from_flags(
    flags: FlagValues,
    image_size: int,
    whitening: tuple[Sequence[float] | None, Sequence[float] | None],
) -> keras.Model:
    """Creates or loads the encoder to train; call it under the scope of the strategy.

    Args:
        flags: The parsed flags.
        image_size: Side of the images in pixels.
        whitening: Mean and standard deviation of the channels, or (None, None).

    Raises:
        ValueError: If the encoder or its weights cannot be used.
    """
    options = {"image_size": image_size, "use_global_batch_norm": flags.use_global_batch_norm}
    if not flag_rules.has_own_layers(flags.encoder):
        mean, std = whitening
        options |= {
            "depth": flags.resnet_depth,
            "width": flags.resnet_width,
            "first_conv_kernel_size": flags.first_conv_kernel_size,
            "first_conv_stride": flags.first_conv_stride,
            "use_initial_max_pool": flags.use_initial_max_pool,
            "initial_max_pool_padding": flags.initial_max_pool_padding,
            "mean": mean,
            "std": std,
        }
    encoder = contrastive.create_encoder(flags.encoder, weights=flags.encoder_weights, **options)
    if flags.freeze_batch_norm:
        batch_norm.freeze_batch_norm(encoder)
    return encoder


def describe_start(flags: FlagValues, encoder: keras.Model) -> list[str]:
    """Returns lines about the weights that an encoder starts with, and what stays frozen.

    Args:
        flags: The parsed flags.
        encoder: What `encoder_from_flags` returned.
    """
    lines = []
    is_file = encoder_files.is_encoder_path(flags.encoder)
    if is_file or flags.encoder_weights:
        lines.append(f"The encoder starts from {flags.encoder_weights or flags.encoder}.")
    layers = [layer for layer in encoder._flatten_layers() if layer.weights and not layer._layers]
    frozen = [layer for layer in layers if not layer.trainable]
    if frozen:
        reason = "--freeze_batch_norm" if flags.freeze_batch_norm else "saved so"
        lines.append(
            f"{len(frozen)} of its {len(layers)} layers with weights are frozen ({reason})."
        )
    computes = {layer.compute_dtype for layer in layers}
    wanted = keras.config.dtype_policy().compute_dtype
    if is_file and wanted != "float32" and wanted not in computes:
        lines.append(
            f"It computes in {', '.join(sorted(computes))} as it was saved; "
            f"--precision={flags.precision} applies to the projection head alone."
        )
    return lines


def inputs_of_encoder(flags: FlagValues) -> dict[str, str]:
    """Returns a hash of each file that the encoder starts from, for the identity of the run.

    Raises:
        ValueError: If a file is missing or cannot be read.
    """
    found = {}
    if encoder_files.is_encoder_path(flags.encoder):
        found["encoder"] = saved_encoder.encoder_identity(flags.encoder)
    if flags.encoder_weights and flags.encoder_weights != encoder_files.IMAGENET:
        found["encoder_weights"] = saved_encoder.weights_identity(flags.encoder_weights)
    return found


def side_of_encoder(flags: FlagValues) -> int | None:
    """Returns the side in pixels for which an encoder from a file is made.

    None for an encoder that is not from a file, or that takes images of any size.

    Raises:
        ValueError: If the file is missing or does not take images of --image_size.
    """
    if not encoder_files.is_encoder_path(flags.encoder):
        return None
    path = encoder_files.find_encoder_file(flags.encoder, tf.io.gfile.exists)
    with tf.io.gfile.GFile(path, "rb") as file:
        content = io.BytesIO(file.read())
    return encoder_files.image_side(path, flags.image_size, file=content)
