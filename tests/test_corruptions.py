"""Corruptions of TensorFlow Datasets: seeded per image; corruption errors; --mode=robustness."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import prepared_tfds
from helpers.command import run_inside
from helpers.trained_folder import write_trained

from supcon_tf.data import sources
from supcon_tf.evaluation import corruption_error, corruptions, metrics
from supcon_tf.evaluation.corruption_error import ALEXNET, corruption_errors, read_baseline
from supcon_tf.evaluation.corruptions import CORRUPTIONS, corrupt_images
from supcon_tf.stages import eval_data

ALWAYS = [name for name in CORRUPTIONS if name not in ("motion_blur", "snow", "frost")]


@pytest.fixture(scope="module")
def images():
    return sources.load_source("digits", "test").images[:3]


@pytest.mark.parametrize("name", ALWAYS)
def test_an_image_is_corrupted_alike_in_every_batch(name, images):
    together = corrupt_images(images, np.array([5, 6, 7]), name, 5)
    again = corrupt_images(images[::-1], np.array([7, 6, 5]), name, 5)[::-1]
    assert together.dtype == np.uint8 and together.shape == images.shape
    np.testing.assert_array_equal(together, again)
    assert (together != images).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "fog"])
def test_random_numbers_follow_seed_severity_and_index(name, images):
    def corrupt(index=5, severity=3, seed=0):
        return corrupt_images(images[:1], np.array([index]), name, severity, seed=seed)

    base = corrupt()
    for other in (corrupt(index=6), corrupt(severity=4), corrupt(seed=1)):
        assert (base != other).any()


def test_numpys_global_generator_is_restored(images):
    np.random.seed(3)
    expected = np.random.random(4)
    np.random.seed(3)
    corrupt_images(images, np.arange(3), "impulse_noise", 1)
    np.testing.assert_array_equal(np.random.random(4), expected)


def test_padding_stays_and_the_functions_are_those_of_tfds(images):
    from tensorflow_datasets.image_classification import corruptions as of_tfds

    found = corrupt_images(images, np.array([0, -1, 2]), "contrast", 2)
    np.testing.assert_array_equal(found[1], images[1])
    np.testing.assert_array_equal(found[2], of_tfds.contrast(images[2], 2))


def test_parts_of_a_batch_are_put_together_in_order(images):
    # One thread, because threads share NumPy's generator. The slow test starts processes.
    with ThreadPoolExecutor(1) as executor:
        found = corruptions.corrupt_in_parallel(executor, 2, images, np.arange(3), "shot_noise", 1)
    np.testing.assert_array_equal(found, corrupt_images(images, np.arange(3), "shot_noise", 1))


@pytest.mark.slow
def test_processes_give_the_same_images(images):
    with corruptions.worker_processes(2) as executor:
        found = corruptions.corrupt_in_parallel(
            executor, 2, images, np.arange(3), "impulse_noise", 1
        )
    np.testing.assert_array_equal(found, corrupt_images(images, np.arange(3), "impulse_noise", 1))


def test_unknown_corruptions_and_severities_are_refused(images):
    for name, severity in (("rain", 1), ("fog", 6)):
        with pytest.raises(ValueError, match="expected one of gaussian_noise"):
            corrupt_images(images, np.arange(3), name, severity)


def test_what_cannot_run_is_listed_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    at_32 = corruptions.reasons_not_to_run(32)
    assert list(at_32) == ["motion_blur", "snow", "frost"]
    assert "imagemagick" in at_32["motion_blur"] and "224 px, not 32 px" in at_32["frost"]
    (tmp_path / "imagemagick").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "imagemagick").chmod(0o755)
    assert "imagemagick" in corruptions.reasons_not_to_run(32)["motion_blur"]
    (tmp_path / "imagemagick").write_text('#!/bin/sh\n/bin/cp "$1" "$4"\n')
    assert list(corruptions.reasons_not_to_run(32)) == ["snow", "frost"]
    at_224 = corruptions.reasons_not_to_run(224)
    assert list(at_224) == ["frost"] and "pictures" in at_224["frost"]


# Corruption errors.


def test_alexnet_has_a_corruption_error_of_100():
    errors = {name: [error] * 5 for name, error in ALEXNET.errors.items()}
    assert list(errors) == list(CORRUPTIONS)
    found = corruption_errors(errors, ALEXNET.clean_error, ALEXNET)
    assert found["mce"] == pytest.approx(100) and found["relative_mce"] == pytest.approx(100)


def test_corruption_errors_equal_their_equations():
    base = read_baseline(
        json.dumps({"clean_error": 0.2, "errors": {"fog": [0.2, 0.4, 0.6, 0.8, 1], "snow": 0.5}}),
        "base.json",
    )
    errors = {"fog": [0.1, 0.2, 0.3, 0.4, 0.5], "contrast": [1.0] * 5}
    found = corruption_errors(errors, 0.1, base)
    assert found["corruptions"] == ["fog"]  # Those that both have.
    assert found["mce"] == pytest.approx(100 * 1.5 / 3)
    assert found["relative_mce"] == pytest.approx(100 * (1.5 - 0.5) / (3 - 1))


def test_undefined_corruption_errors_are_none():
    unknown = read_baseline('{"errors": {"fog": 0.5}}', "a.json")
    assert corruption_errors({"fog": [0.5] * 5}, 0.1, unknown)["relative_mce"] is None
    flat = read_baseline('{"clean_error": 0.5, "errors": {"fog": 0.5}}', "a.json")
    found = corruption_errors({"fog": [0.5] * 5}, 0.1, flat)
    assert (found["mce"], found["relative_mce"]) == (pytest.approx(100), None)
    assert corruption_errors({"snow": [0.5] * 5}, 0.1, flat)["mce"] is None


@pytest.mark.parametrize(
    "text,says",
    [
        ("{", "Expected"),
        ("[]", "Expected"),
        ('{"clean_error": 0.5}', "errors"),
        ('{"errors": {"rain": 0.5}}', "rain is not a corruption"),
        ('{"errors": {"fog": [0.5, 0.6]}}', "one or five"),
        ('{"errors": {"fog": 50}}', "between 0 and 1"),
    ],
)
def test_a_broken_baseline_is_named(text, says):
    with pytest.raises(ValueError, match=f"(?s)^b.json is not a baseline.*{says}"):
        read_baseline(text, "b.json")


# The stage.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_trained(tmp_path_factory.mktemp("trained"))


def test_the_stage_measures_every_corruption_and_severity(trained, tmp_path, monkeypatch, capsys):
    names = ("impulse_noise", "frost", "contrast")
    monkeypatch.setattr(corruptions, "CORRUPTIONS", names)
    monkeypatch.setattr(corruption_error, "CORRUPTIONS", names)
    (tmp_path / "base.json").write_text('{"errors": {"contrast": 0.5}}')
    run_inside(
        "--mode=robustness", f"--model_dir={trained.model_dir}", "--robustness_examples=20",
        "--eval_batch_size=16", f"--robustness_baseline={tmp_path / 'base.json'}", "--seed=4",
    )  # fmt: skip
    folder = trained.model_dir / "robustness"
    result = json.loads((folder / "robustness.json").read_text())
    test = sources.load_source("digits", "test")
    chosen = np.linspace(0, 359, 20).astype(int)
    images, labels = test.images[chosen], test.labels[chosen]
    for name in ("impulse_noise", "contrast"):
        corrupted = corrupt_images(images, np.arange(20), name, 3, seed=4)
        logits = trained.classifier.predict(corrupted.astype(np.float32), verbose=0)
        figures = metrics.classification_metrics(logits, labels)
        assert result["errors"][name][2] == pytest.approx(1 - figures["top_1"])
        assert result["expected_calibration_errors"][name][2] == pytest.approx(
            figures["expected_calibration_error"], abs=1e-5
        )
    mean = np.mean(list(result["errors"].values()))
    assert result["mean_corruption_accuracy"] == pytest.approx(1 - mean)
    low, high = result["intervals_95"]["mean_corruption_accuracy"]
    assert low <= 1 - mean <= high
    assert result["baseline"]["mce"] == pytest.approx(200 * np.mean(result["errors"]["contrast"]))
    assert list(result["not_run"]) == ["frost"]
    with np.load(folder / "correct.npz") as arrays:
        assert arrays["correct"].shape == (11, 20)
        assert 1 - arrays["correct"][0].mean() == pytest.approx(result["clean_error"])
    assert len((folder / "robustness.csv").read_text().splitlines()) == 12
    assert (folder / "severity.png").stat().st_size > 5_000
    assert "<svg" in (folder / "severity.svg").read_text()
    said = capsys.readouterr().out
    assert "frost is not run" in said and "2 of 3 corruptions" in said and "mCE" in said


def test_a_prepared_corrupted_set_without_class_names_is_matched_by_number(tmp_path, capsys):
    prepared_tfds.write_numbered_digits(tmp_path)
    source = sources.load_source("numbered_digits/fog_5", "test", str(tmp_path), for_training=False)
    assert source.class_names == tuple(map(str, range(10)))
    data = eval_data.EvalData(source, "corrupted", False)
    names = tuple(f"digit {number}" for number in range(10))
    assert eval_data.match_classes(names, data, "run").tolist() == list(range(10))
    assert "matching them by number" in capsys.readouterr().out
    reordered = tuple("9876543210")  # The classifier has these names itself.
    assert eval_data.match_classes(reordered, data, "run").tolist() == list(range(9, -1, -1))
    with pytest.raises(ValueError, match="knows the classes"):
        eval_data.match_classes(names[:9], data, "run")
