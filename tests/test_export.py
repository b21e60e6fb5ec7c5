import contextlib
import io
import json
import re
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.command import run_inside
from helpers.trained_folder import NUM_CLASSES, SIDE, write_trained


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    trained = write_trained(tmp_path_factory.mktemp("trained"))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run_inside("--mode=export", f"--model_dir={trained.model_dir}")
    (trained.model_dir / "printed.txt").write_text(printed.getvalue())
    return trained


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, [5, SIDE, SIDE, 3]).astype(np.uint8)


def expected_outputs(trained, images):
    """From the models of training, as Keras runs them."""
    images = images.astype(np.float32)
    embeddings = trained.encoder.predict(images, verbose=0)
    return {
        "unnormalized_embeddings": embeddings,
        "embeddings": embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True),
        "projection": trained.projector.predict(embeddings, verbose=0),
        "logits": trained.classifier.predict(images, verbose=0),
    }


def test_the_signature_takes_uint8_images_and_names_its_outputs(exported):
    model = tf.saved_model.load(str(exported.model_dir / "export/saved_model"))
    signature = model.signatures["serving_default"]
    (spec,) = signature.structured_input_signature[1].values()
    assert spec == tf.TensorSpec([None, SIDE, SIDE, 3], tf.uint8, name="images")
    shapes = {name: list(spec.shape) for name, spec in signature.structured_outputs.items()}
    assert shapes == {
        "embeddings": [None, 64],
        "unnormalized_embeddings": [None, 64],
        "projection": [None, 128],
        "logits": [None, NUM_CLASSES],
    }
    assert {spec.dtype for spec in signature.structured_outputs.values()} == {tf.float32}
    names = json.loads((exported.model_dir / "export/class_names.json").read_text())
    assert names == [str(digit) for digit in range(10)]


def test_the_loaded_model_gives_the_same_numbers_without_supcon_tf(exported, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, numpy as np, tensorflow as tf\n"
        "model = tf.saved_model.load(sys.argv[1])\n"
        "outputs = model(np.load('images.npy'))\n"
        "np.savez('outputs.npz', **{name: x.numpy() for name, x in outputs.items()})\n"
        "print('ALONE', not {'supcon_tf', 'keras'} & set(sys.modules))\n"
    )
    path = exported.model_dir / "export/saved_model"
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert "ALONE" in done.stdout, done.stderr
    outputs = dict(np.load(tmp_path / "outputs.npz"))
    expected = expected_outputs(exported, images)
    assert set(outputs) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    for name in ("embeddings", "projection"):
        np.testing.assert_allclose(np.linalg.norm(outputs[name], axis=1), 1.0, rtol=1e-5)
    assert np.ptp(outputs["unnormalized_embeddings"], axis=0).max() > 1e-3


@pytest.mark.parametrize("as_array", [tf.constant, np.asarray])
def test_the_loaded_model_can_be_called_like_a_function(exported, images, as_array):
    model = tf.saved_model.load(str(exported.model_dir / "export/saved_model"))
    called = model(as_array(images))
    served = model.signatures["serving_default"](images=tf.constant(images))
    assert set(called) == set(served) == set(expected_outputs(exported, images))
    for name, value in served.items():
        np.testing.assert_array_equal(called[name], value, err_msg=name)


def test_the_signatures_of_the_reference_are_there_and_train_uses_the_batch(exported, images):
    """`contrastive_train` normalizes by the statistics of its images, and changes nothing."""
    model = tf.saved_model.load(str(exported.model_dir / "export/saved_model"))
    assert set(model.signatures) == {"serving_default", "contrastive_eval", "contrastive_train"}
    by_name = {name: call(images=images) for name, call in model.signatures.items()}
    exported.encoder.trainable = True  # Frozen batch norm keeps to its moving averages.
    with keras.StatelessScope():
        embeddings = exported.encoder(images.astype(np.float32), training=True)
        projection = exported.projector(embeddings, training=True)
    train, served = by_name["contrastive_train"], by_name["serving_default"]
    assert set(train) == set(served)
    np.testing.assert_allclose(train["unnormalized_embeddings"], embeddings, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(train["projection"], projection, rtol=1e-3, atol=1e-4)
    assert np.abs(train["embeddings"].numpy() - served["embeddings"].numpy()).max() > 1e-3
    for name, value in model.signatures["contrastive_eval"](images=images).items():
        np.testing.assert_array_equal(value, served[name])


def test_the_closing_lines_show_code_that_runs(exported, images):
    printed = (exported.model_dir / "printed.txt").read_text()
    (call,) = re.findall(r"^ +model = tf.saved_model.load.*\n.*", printed, re.M)
    names = {"tf": tf, "images": images}
    exec(textwrap.dedent(call), names)
    np.testing.assert_allclose(
        names["outputs"]["logits"],
        expected_outputs(exported, images)["logits"],
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_export_serves_one_image_or_many(exported, images):
    path = str(exported.model_dir / "export/saved_model")
    serve = tf.saved_model.load(path).signatures["serving_default"]
    many = serve(images=tf.constant(images))["logits"]
    for index in range(len(images)):
        one = serve(images=tf.constant(images[index : index + 1]))["logits"]
        np.testing.assert_allclose(one[0], many[index], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_encoder_without_classifier_exports_no_logits_and_a_second_export_replaces(tmp_path):
    write_trained(tmp_path, with_classifier=False)
    (tmp_path / "export/saved_model").mkdir(parents=True)
    (tmp_path / "export/saved_model/old").write_text("of an earlier export")
    run_inside("--mode=export", f"--model_dir={tmp_path}")
    (tmp_path / "pretrain/projection_head.keras").unlink()
    path = str(tmp_path / "export/saved_model")
    signature = tf.saved_model.load(path).signatures["serving_default"]
    assert set(signature.structured_outputs) == {
        "embeddings", "unnormalized_embeddings", "projection",
    }  # fmt: skip
    run_inside("--mode=export", f"--model_dir={tmp_path}")
    signature = tf.saved_model.load(path).signatures["serving_default"]
    assert set(signature.structured_outputs) == {"embeddings", "unnormalized_embeddings"}
    names = {entry.name for entry in (tmp_path / "export").iterdir()}
    assert "old" not in {entry.name for entry in (tmp_path / "export/saved_model").iterdir()}
    assert {"saved_model", "stage.flags"} <= names and "saved_model.writing" not in names


def test_nothing_trained_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--mode=export .*--model_dir.*--mode=pretrain"):
        run_inside("--mode=export", f"--model_dir={tmp_path}")
    (tmp_path / "pretrain").mkdir()  # A run that did not come to its end.
    with pytest.raises(ValueError, match="no trained encoder"):
        run_inside("--mode=export", f"--model_dir={tmp_path}")
