"""A SavedModel that serves uint8 images and needs only TensorFlow to run."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf
from absl.flags import FlagValues

from supcon_tf import strategies
from supcon_tf.stages import trained
from supcon_tf.stages.stage_folder import StageFolder
from supcon_tf.storage import files
from supcon_tf.training import progress


def run(flags: FlagValues, strategy: tf.distribute.Strategy) -> dict:
    """Writes saved_model/ and class_names.json; runs again even if it is finished."""
    if not strategies.is_chief(strategy):
        return {}
    # Not under the strategy, because the exported model runs on one device.
    with progress.waiting("export: loading the encoder"):
        model = trained.load_trained(flags)
    with StageFolder(flags, "export", always_restarts=True) as folder:
        folder.begin()
        path = folder.artifacts.path_to_write("saved_model")
        with progress.waiting("export: writing the SavedModel"):
            write_saved_model(model, path)
        if model.class_names:
            folder.artifacts.write_json("class_names.json", list(model.class_names))
        folder.seal()
        outputs = tf.saved_model.load(path).signatures["serving_default"].structured_outputs
        shapes = {name: list(spec.shape) for name, spec in sorted(outputs.items())}
        size = model.image_size
        print(
            f"export: wrote {path}, a model of uint8 images [None, {size}, {size}, 3] with the "
            "outputs\n        " + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        )
        return {"path": path, "image_size": model.image_size, "outputs": shapes}


class ServedModel(tf.Module):
    """The exported model: `outputs = model(images)`, also after `tf.saved_model.load`.

    Maps uint8 images [B, S, S, 3] to the same outputs as the reference implementation's export:
    embeddings [B, F] of unit norm, unnormalized_embeddings [B, F], projection [B, D] of unit norm
    if there is a projection head, and logits [B, C] if there is a classifier.

    Args:
        model: The trained models.
    """

    def __init__(self, model: trained.Trained):
        super().__init__(name="supcon_tf")
        self._model = model
        self._normalize = keras.layers.UnitNormalization(dtype="float32")
        # Variables, not Keras layers, so that loading the model does not need Keras.
        candidates = (model.encoder, model.projector, model.linear_head)
        parts = [part for part in candidates if part is not None]
        self.saved_variables = [variable.value for part in parts for variable in part.variables]
        # The linear stage froze its encoder, and frozen batch norm ignores the batch statistics.
        for part in parts:
            part.trainable = True

    @tf.function(autograph=False)
    def __call__(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._outputs(images, training=False)

    @tf.function(autograph=False)
    def with_batch_statistics(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the outputs with batch norm in training mode, from the statistics of the images.

        Nothing is updated: the moving averages that training would write are discarded.
        """
        with keras.StatelessScope():
            return self._outputs(images, training=True)

    def _outputs(self, images, *, training):
        outputs = self._model.outputs(tf.cast(images, tf.float32), training=training)
        embeddings = outputs["unnormalized_embeddings"]
        outputs["embeddings"] = self._normalize(embeddings)
        if self._model.projector is not None:
            outputs["projection"] = self._model.projector(embeddings, training=training)
        return outputs

    def signatures(self) -> dict[str, Callable]:
        """Returns the functions that servers call, named as in the reference implementation."""
        side = self._model.image_size
        images = tf.TensorSpec([None, side, side, 3], tf.uint8, name="images")
        served = self.__call__.get_concrete_function(images)
        return {
            "serving_default": served,
            "contrastive_eval": served,
            "contrastive_train": self.with_batch_statistics.get_concrete_function(images),
        }


def write_saved_model(model: trained.Trained, path: str) -> None:
    """Writes a `ServedModel` as a SavedModel. A failure leaves no partial files."""
    served = ServedModel(model)
    with files.writing(path) as temporary:
        tf.saved_model.save(served, temporary, signatures=served.signatures())
