"""The linear stage through the command: fitted to the optimum, or trained in steps if asked."""

import json
import shutil

import keras
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from helpers.command import run_inside
from helpers.trained_folder import write_trained
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from supcon_tf.data import sources
from supcon_tf.evaluation import linear_fit
from supcon_tf.stages import linear


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The encoder of a pretraining, with random weights."""
    return write_trained(tmp_path_factory.mktemp("runs") / "run", with_classifier=False)


@pytest.fixture
def model_dir(pretrained, tmp_path):
    shutil.copytree(pretrained.model_dir / "pretrain", tmp_path / "run/pretrain")
    return tmp_path / "run"


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def fitted(pretrained):
    run_inside(
        "--mode=linear,eval", f"--model_dir={pretrained.model_dir}", "--nonormalize_embedding"
    )
    return pretrained.model_dir


def test_by_default_the_classifier_is_the_logistic_regression_of_the_embeddings(fitted, pretrained):
    """Images in, logits out, with Keras alone; so eval prints the same accuracy twice."""
    train, test = (sources.load_source("digits", split) for split in ("train", "test"))
    embed = pretrained.encoder.predict
    scaler = StandardScaler()
    features = scaler.fit_transform(embed(train.images.astype(np.float32), verbose=0))
    regression = LogisticRegression(max_iter=1000).fit(features, train.labels)
    images = test.images.astype(np.float32)
    expected = regression.decision_function(scaler.transform(embed(images, verbose=0)))
    logits = keras.models.load_model(fitted / "linear/classifier.keras").predict(images, verbose=0)
    np.testing.assert_allclose(logits, expected, atol=0.02)
    evaluation = read(fitted / "eval/eval.json")
    assert evaluation["top_1"] == pytest.approx(evaluation["linear_probe_top_1"], abs=1 / 360)
    assert read(fitted / "linear/result.json")["top_1"] == evaluation["top_1"] > 0.5


def test_a_fitted_stage_writes_its_flags_and_one_line_of_metrics(fitted):
    written = (fitted / "linear/stage.flags").read_text().splitlines()
    assert "--linear_optimizer=lbfgs" in written and "--nonormalize_embedding" in written
    assert not [line for line in written if "linear_epochs" in line or "smoothing" in line]
    (line,) = map(json.loads, (fitted / "linear/metrics.jsonl").read_text().splitlines())
    result = read(fitted / "linear/result.json")
    assert line["step"] == result["steps"] > 1
    assert line["accuracy"] == result["train_accuracy"] > 0.5 and 0 < line["loss"] < 1


def test_a_finished_fit_is_kept_and_changed_flags_are_refused(fitted, capsys):
    common = ("--mode=linear", f"--model_dir={fitted}")
    run_inside(*common, "--nonormalize_embedding", "--batch_size=32", "--logical_cpus=1")
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"linear_optimizer=lbfgs  ->  --linear_optimizer=momen"):
        run_inside(*common, "--nonormalize_embedding", "--linear_epochs=20")
    with pytest.raises(ValueError, match=r"--nonormalize_embedding  ->  --normalize_embedding"):
        run_inside(*common, "--normalize_embedding")


def test_any_flag_of_training_trains_in_steps(model_dir):
    run_inside("--mode=linear", f"--model_dir={model_dir}", "--linear_epochs=0.2")
    written = (model_dir / "linear/stage.flags").read_text().splitlines()
    assert "--linear_optimizer=momentum" in written and "--linear_epochs=0.2" in written
    assert read(model_dir / "linear/result.json")["steps"] == 4
    with pytest.raises(ValueError, match=r"linear_optimizer=momentum  ->  --linear_optimizer=lb"):
        run_inside("--mode=linear", f"--model_dir={model_dir}", "--linear_optimizer=lbfgs")


def test_too_many_embeddings_are_trained_in_steps_or_refused(model_dir, monkeypatch, capsys):
    size = linear_fit.fit_bytes(1437, 64, 10)
    monkeypatch.setattr(linear_fit, "MAX_BYTES", size - 1)
    monkeypatch.setattr("supcon_tf.stages.classify.train_classifier", lambda *_, **__: {
        "steps": 0, "seconds": 0.0, "top_1": 0.0
    })  # fmt: skip
    common = ("--mode=linear", f"--model_dir={model_dir}")
    with pytest.raises(ValueError, match="--linear_optimizer=momentum, or on fewer images"):
        run_inside(*common, "--linear_optimizer=lbfgs")
    run_inside(*common)
    assert "is trained in steps: --linear_optimizer=momentum" in capsys.readouterr().out
    assert not (model_dir / "linear").exists()
    run_inside(*common, "--num_images=1400")
    assert (model_dir / "linear/classifier.keras").exists()


def test_an_interrupted_fit_starts_again(model_dir, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(linear_fit, "fit", stop)
        with pytest.raises(KeyboardInterrupt):
            run_inside("--mode=linear", f"--model_dir={model_dir}")
    assert not (model_dir / "linear/result.json").exists()
    run_inside("--mode=linear", f"--model_dir={model_dir}")
    assert read(model_dir / "linear/result.json")["top_1"] > 0.5


@pytest.mark.slow  # test_evaluate.py shows that the embeddings do not depend on the replicas.
def test_four_replicas_fit_the_classifier_of_one_device(model_dir, fitted, mirrored):
    with flagsaver.flagsaver():
        flags.FLAGS(["supcon_tf", f"--model_dir={model_dir}", "--nonormalize_embedding"])
        linear.run(flags.FLAGS, mirrored)
    one, four = (
        keras.models.load_model(folder / "linear/classifier.keras").layers[-1].get_weights()[0]
        for folder in (fitted, model_dir)
    )
    assert np.linalg.norm(four - one) < 1e-2 * np.linalg.norm(one)
