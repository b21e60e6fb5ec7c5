"""`SupConClassifier` from a pretrained start: paths, weights, frozen batch norm."""

import keras
import numpy as np
import pytest
from helpers import own_encoders, tiny_training
from sklearn.base import clone

from supcon_tf import SupConClassifier

SOURCE = tiny_training.create_source(48)
IMAGES, LABELS = SOURCE.images, SOURCE.labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An encoder and the weights of another one of the same architecture."""
    folder = tmp_path_factory.mktemp("encoders")
    own_encoders.small_convolution(8).save(folder / "encoder.keras")
    own_encoders.small_convolution(None).save(folder / "any.keras")
    other = own_encoders.small_convolution(8)
    other.save_weights(folder / "other.weights.h5")
    other.save(folder / "other.keras")
    return folder


def estimator(encoder, **options):
    """Without an epoch, what comes out is what training would start from."""
    options = {"epochs": 0, "batch_size": 16, **options}
    return SupConClassifier(encoder=str(encoder), augmentation="identity", verbose=0, **options)


def values(model):
    return [variable.numpy() for variable in model.variables]


def all_equal(first, second):
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def load(path):
    return keras.models.load_model(path)


def test_training_starts_from_the_encoder_at_a_path(folder):
    path = folder / "encoder.keras"
    fitted = estimator(path).fit(IMAGES, LABELS)
    assert all_equal(values(fitted.encoder_), values(load(path)))
    assert fitted.image_size_ == 8


def test_weights_of_a_file_replace_those_of_the_encoder(folder):
    weights = str(folder / "other.weights.h5")
    for encoder in (str(folder / "encoder.keras"), load(folder / "encoder.keras")):
        fitted = estimator("tiny", encoder_weights=weights).set_params(encoder=encoder)
        fitted.fit(IMAGES, LABELS)
        assert all_equal(values(fitted.encoder_), values(load(folder / "other.keras")))


def test_an_encoder_for_any_size_takes_that_of_the_images(folder):
    assert estimator(folder / "any.keras").fit(IMAGES, LABELS).image_size_ == 8
    fitted = estimator(folder / "any.keras", image_size=12).fit(IMAGES, LABELS)
    assert fitted.encoder_.input_shape == (None, 12, 12, 3)


def test_a_path_is_a_parameter_like_any_other(folder):
    original = estimator(
        folder / "encoder.keras", encoder_weights="w.weights.h5", freeze_batch_norm=True
    )
    copy = clone(original)
    assert copy.get_params() == original.get_params()
    assert copy.encoder == str(folder / "encoder.keras") and not hasattr(copy, "encoder_")


@pytest.mark.parametrize("is_frozen", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_frozen_batch_norm_does_not_move(folder, is_frozen):
    path = folder / "encoder.keras"
    fitted = estimator(path, epochs=2, freeze_batch_norm=is_frozen).fit(IMAGES, LABELS)
    before, after = load(path), fitted.encoder_
    kind = keras.layers.BatchNormalization
    for one, other in zip(before.layers, after.layers, strict=True):
        if isinstance(one, kind):
            assert all_equal(values(one), values(other)) == is_frozen
        elif one.weights:
            assert not all_equal(values(one), values(other))


@pytest.mark.slow
def test_the_frozen_encoder_of_another_estimator_is_trained(folder):
    first = estimator(folder / "encoder.keras").fit(IMAGES, LABELS)
    assert not first.encoder_.trainable_variables  # A classifier's encoder is frozen.
    second = estimator("tiny", epochs=2).set_params(encoder=first.encoder_).fit(IMAGES, LABELS)
    assert not all_equal(values(first.encoder_)[:1], values(second.encoder_)[:1])


@pytest.mark.slow
def test_a_changed_encoder_is_noticed_when_training_resumes(folder, tmp_path):
    path = tmp_path / "encoder.keras"
    load(folder / "encoder.keras").save(path)
    resumed = estimator(path, epochs=2, checkpoint_dir=tmp_path / "run")
    resumed.fit(IMAGES, LABELS)
    load(folder / "other.keras").save(path)
    with pytest.raises(ValueError, match="differs in\n  encoder: model .*->"):
        resumed.fit(IMAGES, LABELS)
    weights = {"encoder_weights": str(folder / "other.weights.h5")}
    load(folder / "encoder.keras").save(path)
    with pytest.raises(ValueError, match="differs in\n  encoder_weights: None  ->  file "):
        resumed.set_params(**weights).fit(IMAGES, LABELS)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"encoder": "none.keras"}, "none.keras does not exist"),
        ({"encoder_weights": "none.weights.h5"}, "none.weights.h5 do not exist"),
        ({"freeze_batch_norm": True}, "starts untrained: give encoder_weights"),
        ({"encoder_weights": "imagenet"}, "no ImageNet weights for the encoder 'tiny'"),
    ],
)
def test_what_cannot_be_the_start_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SupConClassifier(epochs=0, verbose=0, **options).fit(IMAGES, LABELS)


def test_weights_of_imagenet_need_a_name(folder):
    with pytest.raises(ValueError, match="needs the name of a network of Keras"):
        estimator(folder / "encoder.keras", encoder_weights="imagenet").fit(IMAGES, LABELS)
    with pytest.raises(ValueError, match="takes images of 8 x 8 pixels, but image_size=16"):
        estimator(folder / "encoder.keras", image_size=16).fit(IMAGES, LABELS)
