"""A model directory as training leaves it, with random features: nothing has to be trained."""

import dataclasses
import functools
import json
import shutil
import tempfile
from pathlib import Path

import keras

from supcon_tf.data import sources
from supcon_tf.models import contrastive
from supcon_tf.storage import artifacts, files

SIDE, NUM_CLASSES = 20, 10


@dataclasses.dataclass
class TrainedFolder:
    """The directory, and its models as they were written; every folder loads its own."""

    model_dir: Path

    @functools.cached_property
    def encoder(self) -> keras.Model:
        return keras.models.load_model(_written_once() / "pretrain/encoder.keras")

    @functools.cached_property
    def projector(self) -> keras.Model:
        return keras.models.load_model(_written_once() / "pretrain/projection_head.keras")

    @functools.cached_property
    def classifier(self) -> keras.Model:
        return keras.models.load_model(_written_once() / "linear/classifier.keras")


def write_trained(model_dir, *, with_classifier=True) -> TrainedFolder:
    stages = ("pretrain", "linear") if with_classifier else ("pretrain",)
    for stage in stages:
        shutil.copytree(_written_once() / stage, model_dir / stage)
    keras.utils.set_random_seed(1)  # What a test creates next has other weights.
    return TrainedFolder(model_dir)


_temporary = tempfile.TemporaryDirectory(prefix="trained_folder")


@functools.cache
def _written_once() -> Path:
    """Builds the models and writes the directory that all tests of a process copy."""
    model_dir = Path(_temporary.name)
    keras.utils.set_random_seed(0)
    encoder = contrastive.create_encoder("tiny", image_size=SIDE)
    projector = contrastive.create_projector(contrastive.ContrastiveModel(encoder))
    head = contrastive.create_linear_head(64, NUM_CLASSES)
    classifier = contrastive.create_classifier(encoder, head)
    # Centered and spread out, so that the classes that it predicts differ from image to image.
    images = sources.load_source("digits", "test").images.astype("float32")
    kernel, _ = head.get_weights()
    head.set_weights([30 * kernel, -30 * classifier.predict(images, verbose=0).mean(axis=0)])
    (model_dir / "pretrain").mkdir(parents=True)
    encoder.save(model_dir / "pretrain/encoder.keras")
    projector.save(model_dir / "pretrain/projection_head.keras")
    (model_dir / "linear").mkdir()
    classifier.save(model_dir / "linear/classifier.keras")
    inputs = {"encoder": artifacts.model_identity(str(model_dir / "pretrain/encoder.keras"))}
    record = {"format_version": 1, "flags": [], "inputs": inputs, "data": None}
    files.write_sealed(str(model_dir / "linear/identity.json"), record)
    names = [str(digit) for digit in range(NUM_CLASSES)]
    (model_dir / "linear/class_names.json").write_text(json.dumps(names))
    return model_dir
