"""Encoders and weights from files: any Keras model of the contract, and weights for any encoder."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import zipfile
from collections.abc import Iterator

import h5py
import keras
import tensorflow as tf

from supcon_tf.models import batch_norm
from supcon_tf.storage import artifacts, encoder_files, files

# Parts of a weights file that do not belong to the layers of a model.
_NOT_LAYERS = ("optimizer/", "compile_metrics/", "metrics/")
_SHOWN = 4


def load_encoder(
    path: str,
    *,
    image_size: int | None = None,
    default_image_size: int | None = None,
    use_global_batch_norm: bool | None = None,
) -> keras.Model:
    """Loads an encoder: float32 [B, S, S, 3] in 0..255 -> float32 [B, F].

    If all of its layers were saved frozen, they are made trainable. Layers that were frozen one by
    one stay frozen.

    Args:
        path: A `.keras` file of any functional or Sequential model, or the model directory of a
            run, for the encoder that it fine-tuned or pretrained.
        image_size: S in pixels. None: the side for which the encoder was made.
        default_image_size: S for an encoder that takes images of any size, without `image_size`.
        use_global_batch_norm: Compute batch statistics over all replicas, not per replica. None
            keeps what the file says.

    Raises:
        ValueError: There is no such file, it cannot be loaded, or the model takes other images.
    """
    file = encoder_files.find_encoder_file(path, tf.io.gfile.exists)
    _check_file(file)
    try:
        encoder = keras.models.load_model(file, compile=False)
    except Exception as error:  # Readers of zip, JSON and HDF5 raise any type.
        raise ValueError(
            f"The encoder {file} cannot be loaded: {files.first_line(error)} Expected a model of "
            "Keras' own layers, saved with model.save('encoder.keras') in Keras 3. Layers of your "
            "own work in Python, after the import of the module that registers them."
        ) from error
    shape = getattr(encoder, "input_shape", None)
    if isinstance(shape, tuple):  # Else `check_encoder` says what is wrong.
        side = encoder_files.check_side(file, shape, image_size)
        if side is None:
            encoder = _with_fixed_side(encoder, file, image_size or default_image_size)
    unfreeze_whole(encoder)
    if use_global_batch_norm is not None:
        batch_norm.use_global_batch_norm(encoder, use_global_batch_norm)
    return encoder


def unfreeze_whole(encoder: keras.Model) -> None:
    """Makes an encoder trainable if all of its layers are frozen, as those of a classifier are."""
    if not encoder.trainable_variables:
        for layer in encoder._flatten_layers():  # A model that is trainable itself changes nothing.
            layer.trainable = True


def _check_file(path):
    """Checks a file against the record of the run that wrote it, if there is one."""
    remedy = "Train that run again, or copy the file again from where it was made."
    artifacts.Artifacts(os.path.dirname(path), remedy=remedy).check(os.path.basename(path))


def encoder_identity(path: str) -> str:
    """Returns a hash of the layers and weights of an encoder's file; see `load_encoder`.

    Raises:
        ValueError: There is no such file, or it cannot be read.
    """
    file = encoder_files.find_encoder_file(path, tf.io.gfile.exists)
    _check_file(file)
    try:
        return artifacts.model_identity(file)
    except Exception as error:  # As in load_encoder.
        raise ValueError(
            f"The encoder {file} is not a model file of Keras 3 ({files.first_line(error)}). "
            f"{encoder_files.SAVE_ADVICE}"
        ) from error


def weights_identity(path: str) -> str:
    """Returns a hash of the file that `load_weights_into` would read.

    Raises:
        ValueError: There is no such file.
    """
    return files.sha256(encoder_files.find_weights_file(path, tf.io.gfile.exists))


def _with_fixed_side(encoder, file, image_size):
    if image_size is None:
        raise ValueError(
            f"The encoder {file} takes images of any size: name the one to use, as image_size=224."
        )
    images = keras.Input([image_size, image_size, 3], dtype="float32", name="image")
    try:
        # Not a model around the encoder: the sizes of its outputs would stay unknown inside.
        fixed = keras.models.clone_model(encoder, input_tensors=images)
        fixed.set_weights(encoder.get_weights())
        return fixed
    except Exception as error:  # Keras and TensorFlow raise several types.
        raise ValueError(
            f"The encoder {file} cannot process images of image_size={image_size}: "
            f"{files.first_line(error)}"
        ) from error


def load_weights_into(encoder: keras.Model, path: str) -> str:
    """Loads the weights of a file into an encoder of the same architecture.

    The weights may be those of the whole encoder, or those of a network inside it, such as a
    network of keras.applications without its preprocessing.

    Args:
        encoder: A built model. It is changed in place.
        path: A `.weights.h5` file of `model.save_weights`, a `.keras` file of `model.save`, an
            `.h5` file of Keras 2 or keras.applications, or the model directory of a run.

    Returns:
        The file.

    Raises:
        ValueError: There is no such file, or it has other weights than the encoder.
    """
    file = encoder_files.find_weights_file(path, tf.io.gfile.exists)
    with _local_weights(file) as local, tempfile.TemporaryDirectory() as folder:
        is_old_format = not local.endswith(".weights.h5")
        if is_old_format:
            _load_old_format(encoder, file, local)
            return file
        found = _arrays(local, file)
        expected = []
        for model in _networks(encoder):
            own = os.path.join(folder, "expected.weights.h5")
            model.save_weights(own, overwrite=True)
            expected.append(_arrays(own, own))
            if found == expected[-1]:
                model.load_weights(local)
                return file
    raise ValueError(_describe_mismatch(encoder, file, found, expected))


def _networks(encoder):
    """The encoder and the models inside it, which may be what a file holds."""
    yield encoder
    for layer in encoder.layers:
        if isinstance(layer, keras.Model):
            yield from _networks(layer)


@contextlib.contextmanager
def _local_weights(path) -> Iterator[str]:
    """Yields a local file of weights; that in a `.keras` file is copied out of it."""
    if "://" not in path and not path.endswith(".keras"):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, "model.weights.h5")
        if path.endswith(".keras"):
            _check_file(path)
            with open(local, "wb") as copy:
                copy.write(_weights_inside(path))
        else:
            local = os.path.join(folder, os.path.basename(path))
            tf.io.gfile.copy(path, local)
        yield local


def _weights_inside(path):
    """Returns the bytes of the weights in a `.keras` file."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return zipfile.ZipFile(io.BytesIO(file.read())).read("model.weights.h5")
    except (KeyError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"The weights {path} are not a model file of Keras 3 ({files.first_line(error)}). "
            f"{encoder_files.SAVE_ADVICE}"
        ) from error


def _arrays(path, name):
    """Reads name and shape of each array of layers in a weights file, without their values."""
    shapes = {}

    def add(array, item):
        if isinstance(item, h5py.Dataset) and not array.startswith(_NOT_LAYERS):
            shapes[array] = tuple(item.shape)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(add)
    except OSError as error:
        raise ValueError(
            f"The weights {name} are not an HDF5 file ({files.first_line(error)}): expected what "
            "model.save_weights('encoder.weights.h5') of Keras 3 writes."
        ) from error
    return shapes


def _load_old_format(encoder, file, local):
    """Loads an `.h5` file, whose weights are found by the order of the layers."""
    problem = "it has no layers"
    for model in reversed(list(_networks(encoder))):  # Files of networks without preprocessing.
        try:
            model.load_weights(local)
            return
        except Exception as error:  # Keras and h5py raise several types.
            problem = files.first_line(error)
    raise ValueError(
        f"The weights {file} do not fit the encoder {encoder.name}: {problem} Build the encoder "
        "of the file, without its classifier: files of keras.applications end in notop.h5 or "
        "no_top.h5. Or load the file in Python, and save the whole encoder with "
        "model.save('encoder.keras') for --encoder."
    )


def _describe_mismatch(encoder, file, found, expected):
    """The message for a file of other weights, compared with the most similar network."""
    wanted = max(expected, key=lambda shapes: len(shapes.items() & found.items()))
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    other = [
        f"{name} (shape {list(found[name])} in the file, {list(shape)} expected)"
        for name, shape in sorted(wanted.items(), key=lambda item: -len(item[1]))  # Kernels first.
        if name in found and found[name] != shape
    ]
    parts = [
        ("of another shape", other),
        ("missing in the file", missing),
        ("only in the file", unknown),
    ]
    details = "; ".join(f"{len(names)} {what}: {_first(names)}" for what, names in parts if names)
    return (
        f"The weights {file} do not fit the encoder {encoder.name}: the file has {len(found)} "
        f"arrays with {_count(found):,} values, the encoder has {len(wanted)} with "
        f"{_count(wanted):,}. {details}. Build the encoder of the file: its --encoder, depth and "
        "width, and for keras.applications without the classifier (include_top=False). Or save "
        "the whole encoder with model.save('encoder.keras') and use --encoder=encoder.keras."
    )


def _first(names):
    printable = [ascii(name[:200])[1:-1] for name in names[:_SHOWN]]
    return ", ".join(printable) + (", ..." if len(names) > _SHOWN else "")


def _count(shapes):
    total = 0
    for shape in shapes.values():
        size = 1
        for side in shape:
            size *= side
        total += size
    return total
