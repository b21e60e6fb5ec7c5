"""A linear stage in steps without augmentation embeds the images once and trains the same head."""

import functools

import keras
import numpy as np
import pytest
from helpers.command import read_lines, run_inside
from helpers.tiny_images import write_images
from helpers.trained_folder import write_trained
from PIL import Image

from supcon_tf.augment import policies
from supcon_tf.data import crops, feature_batches, pipeline, sources
from supcon_tf.stages import frozen_features

PLAIN = (
    "--mode=linear",
    "--linear_optimizer=momentum",
    "--linear_crop_area_range=1,1",
    "--linear_epochs=3",
    "--linear_warmup_epochs=0",
    "--batch_size=128",
    "--summary_interval_steps=1",
)


def train(folder, *more):
    """Trains the linear stage; returns its weights, its log and whether it embedded once."""
    model_dir = write_trained(folder, with_classifier=False).model_dir
    run_inside(*PLAIN, f"--model_dir={model_dir}", *more)
    classifier = keras.models.load_model(model_dir / "linear/classifier.keras")
    return classifier.layers[-1].get_weights(), read_lines(model_dir / "linear/metrics.jsonl")


@pytest.fixture
def computed(monkeypatch):
    """Counts how often the images are embedded once."""
    create, calls = frozen_features.FrozenFeatures, []

    def counting(*arguments):
        calls.append(1)
        return create(*arguments)

    monkeypatch.setattr(frozen_features, "FrozenFeatures", counting)
    return calls


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(
            ["--label_noise_prob=0.3", "--num_images=700"], id="other_examples", marks=SLOW
        ),
        pytest.param([], id="plain", marks=SLOW),
        pytest.param(["--class_balanced"], id="balanced", marks=SLOW),
        pytest.param(["--precision=mixed_bfloat16"], id="bfloat16", marks=SLOW),
        pytest.param(["--strategy=mirrored", "--logical_cpus=4"], id="four_replicas", marks=SLOW),
    ],
)
def test_the_steps_are_those_on_images(tmp_path, monkeypatch, computed, more):
    weights, log = train(tmp_path / "once", *more)
    assert len(computed) == 1
    monkeypatch.setattr(frozen_features, "can_be_used", lambda *args, **options: False)
    expected_weights, expected_log = train(tmp_path / "every_epoch", *more)
    assert len(computed) == 1
    assert [line["step"] for line in log] == [line["step"] for line in expected_log]
    for line, expected in zip(log, expected_log, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], abs=1e-4)
        assert line["accuracy"] == pytest.approx(expected["accuracy"], abs=1 / 128)
    for found, expected in zip(weights, expected_weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["--linear_crop_area_range=0.8,1"], id="crops"),
        pytest.param(["--linear_epochs=0.5"], id="less_than_an_epoch", marks=SLOW),
        pytest.param(["--horizontal_flip=true"], id="flips", marks=SLOW),
        pytest.param(["--crop_compat=torchvision"], id="torchvision", marks=SLOW),
        pytest.param(
            ["--linear_augmentation_type=randaugment", "--augmentation_magnitude=9"],
            id="policy", marks=SLOW,
        ),
    ],
)  # fmt: skip
def test_random_views_and_short_stages_read_the_images(tmp_path, computed, more):
    train(tmp_path, *more)
    assert not computed


@SLOW
def test_large_embeddings_are_not_kept(tmp_path, monkeypatch, computed):
    monkeypatch.setattr(frozen_features.linear_fit, "MAX_BYTES", 1437 * (64 + 10) * 4 - 1)
    train(tmp_path)
    assert not computed


@pytest.mark.parametrize("class_balanced", [False, True])
def test_batches_have_the_order_of_the_images(class_balanced):
    source = sources.load_source("digits", "train")
    features = np.arange(source.num_examples, dtype=np.float32)[:, None]
    options = {"batch_size": 64, "seed": 3, "class_balanced": class_balanced}
    images = pipeline.create_train_batches(
        source, policy=policies.create_policy("identity"), image_size=8, num_views=1, **options
    )
    create = functools.partial(
        feature_batches.create_feature_batches, features, source.labels, **options
    )
    whole = list(create().take(30).as_numpy_iterator())  # More than an epoch of 22.5 steps.
    for batch, expected in zip(whole, images.take(30).as_numpy_iterator(), strict=True):
        assert batch["image"].shape == (64, 1, 1)
        np.testing.assert_array_equal(batch["label"], expected["label"])
        np.testing.assert_array_equal(
            source.labels[batch["image"][:, 0, 0].astype(int)], expected["label"]
        )
    later = next(iter(create(start_step=29).as_numpy_iterator()))
    np.testing.assert_array_equal(later["image"], whole[29]["image"])
    parts = [
        part["image"]
        for host in (0, 1)
        for part in create(num_replicas=4, host=host, num_hosts=2).take(2).as_numpy_iterator()
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole[0]["image"])


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (90, 30), (33, 33), (8, 8)])
def test_the_crop_is_that_of_training(tmp_path, size):
    write_images(tmp_path, splits=["train"], count=1)
    rng = np.random.default_rng(0)
    for path in tmp_path.rglob("*.png"):
        Image.fromarray(rng.integers(0, 256, [size[1], size[0], 3]).astype(np.uint8)).save(path)
    paths = tuple(sorted(map(str, tmp_path.rglob("*.png"))))
    source = sources.FileSource(paths, np.arange(2, dtype=np.int32), ("cat", "dog"))
    batches = pipeline.create_train_batches(
        source, policy=policies.create_policy("identity"), batch_size=2, image_size=8, seed=0,
        num_views=1, crop_area_range=(1.0, 1.0), horizontal_flip=False,
    )  # fmt: skip
    crop = functools.partial(crops.central_train_crop, size=8, compat="pillow")
    once = pipeline.create_eval_batches(source, batch_size=2, image_size=8, crop=crop)
    expected = next(once.as_numpy_iterator())
    for batch in batches.take(5).as_numpy_iterator():
        found = batch["image"][np.argsort(batch["label"]), 0]
        np.testing.assert_array_equal(found, expected["image"])
