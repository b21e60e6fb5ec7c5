"""`load_run`: the models of a run, and what they say about other images."""

import numpy as np
import pytest
from helpers.command import run_inside
from helpers.tiny_images import write_images
from helpers.trained_folder import write_trained
from PIL import Image

from supcon_tf import load_run
from supcon_tf.data import sources
from supcon_tf.stages.loaded_run import LoadedRun


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_trained(tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture(scope="module")
def run(folder):
    return load_run(folder.model_dir)


@pytest.fixture(scope="module")
def images():
    return sources.load_source("digits", "test").images[:12]


def test_its_models_are_those_of_the_directory(folder, run, images):
    floats = images.astype("float32")
    np.testing.assert_allclose(
        run.embed(images), folder.encoder.predict(floats, verbose=0), rtol=1e-4, atol=1e-5
    )
    logits = folder.classifier.predict(floats, verbose=0)
    np.testing.assert_allclose(
        run.classifier.predict(floats, verbose=0), logits, rtol=1e-4, atol=1e-4
    )
    assert run.predict(images).tolist() == [run.class_names[i] for i in logits.argmax(axis=1)]
    np.testing.assert_allclose(run.predict_proba(images).sum(axis=1), 1.0)
    assert run.stage == "linear" and run.image_size == 20
    assert str(folder.model_dir) in repr(run)


def test_the_nearest_training_images_are_those_of_the_largest_cosine(run, images):
    train = sources.load_source("digits", "train")
    unit = [
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in map(run.embed, (images, train.images))
    ]
    similarities = unit[0] @ unit[1].T
    names, labels, found = run.nearest(images, k=3)
    np.testing.assert_allclose(found, -np.sort(-similarities, axis=1)[:, :3], atol=1e-5)
    assert names.shape == labels.shape == found.shape == (12, 3)
    expected = train.labels[names.astype(int)]
    assert labels.tolist() == np.array(train.class_names)[expected].tolist()
    own = run.nearest(train.images[:4], k=1)
    assert own.names[:, 0].tolist() == ["0", "1", "2", "3"]


def test_images_may_be_files(run, images, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image).save(path)
    np.testing.assert_allclose(run.embed(paths), run.embed(images[:3]), rtol=1e-5, atol=1e-6)
    assert run.predict(str(paths[0])).shape == (1,)
    with pytest.raises(ValueError, match="missing.png"):
        run.embed([tmp_path / "missing.png"])


def test_without_a_classifier_the_nearest_training_images_vote(tmp_path, images):
    run = load_run(write_trained(tmp_path, with_classifier=False).model_dir)
    assert run.classifier is None and run.stage == "pretrain"
    probabilities = run.predict_proba(images)
    assert probabilities.shape == (12, 10)
    assert run.predict(images).tolist() == [str(i) for i in probabilities.argmax(axis=1)]


def test_several_labels_per_image(tmp_path, images):
    folder = write_trained(tmp_path)
    (tmp_path / "linear/label_type.json").write_text('"multi_label"')
    run = load_run(folder.model_dir)
    probabilities = run.predict_proba(images)
    logits = run.classifier.predict(images.astype("float32"), verbose=0)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), atol=1e-4)
    for names, row in zip(run.predict(images), probabilities, strict=True):
        assert names == [run.class_names[i] for i in np.flatnonzero(row >= 0.5)]


def test_what_is_no_finished_run(tmp_path):
    with pytest.raises(ValueError, match="nowhere.*--model_dir"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="--mode=pretrain"):
        load_run(tmp_path)


@pytest.mark.slow
def test_a_run_of_the_command_with_its_own_images(tmp_path, monkeypatch):
    root = write_images(tmp_path / "data")
    model_dir = tmp_path / "run"
    new = write_images(tmp_path / "new", splits=("x",)) / "x"
    run_inside(
        "--mode=pretrain,linear,predict", "--dataset=folder", f"--data_dir={root}",
        f"--model_dir={model_dir}", f"--predict_dir={new}", "--pretrain_epochs=2",
        "--image_size=16",
    )  # fmt: skip
    monkeypatch.setattr(LoadedRun, "_new_gallery", None)  # Those that predict saved are used.
    run = load_run(model_dir)
    assert run.class_names == ("cat", "dog")
    paths = sorted(map(str, new.rglob("*.png")))
    names = run.nearest(paths, k=1).names
    assert all(str(root / "train") in name for name in names.flat)
    rows = (model_dir / "predict/predictions.csv").read_text().splitlines()[1:]
    assert run.predict(paths).tolist() == [row.split(",")[1] for row in rows]
