import csv
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.command import run_inside
from helpers.trained_folder import NUM_CLASSES, SIDE, write_trained
from PIL import Image

from supcon_tf.data import pipeline, sources
from supcon_tf.evaluation import (
    geometry,
    intervals,
    metrics,
    prediction_files,
    predictions,
    retrieval,
)  # fmt: skip
from supcon_tf.models import contrastive
from supcon_tf.stages import embedding_figures
from supcon_tf.stages.evaluate import _table, as_csv_text


def one_device():
    return tf.distribute.OneDeviceStrategy("CPU:0")


def numbered_images(count):
    images = np.zeros([count, SIDE, SIDE, 3], np.uint8)
    images[..., 0] = np.arange(count)[:, None, None]
    return images


@pytest.mark.parametrize("num_examples", [16, 21])
def test_predictions_are_of_every_example_in_order_on_one_and_four_replicas(num_examples, mirrored):
    images = numbered_images(num_examples)
    labels = np.arange(num_examples, dtype=np.int32)[::-1] % 7
    source = sources.ArraySource(images, labels, tuple("abcdefg"))
    batches = pipeline.create_eval_batches(source, batch_size=8, image_size=SIDE)
    for strategy in (one_device(), mirrored):
        outputs, result = predictions.predict(
            strategy,
            lambda x: tf.reduce_mean(x, axis=(1, 2)),
            batches.skip(1).concatenate(batches.take(1)),  # The index, not the arrival, orders.
        )
        assert outputs.shape == (num_examples, 3)
        np.testing.assert_array_equal(outputs[:, 0], np.arange(num_examples))
        np.testing.assert_array_equal(result, labels)


@pytest.mark.parametrize("form", ["examples", "ragged batches", "several labels"])
def test_any_dataset_of_images_and_labels_is_seen_once_and_in_order(form, two_replicas):
    images, labels = numbered_images(21), np.arange(21)
    if form == "several labels":
        labels = np.eye(4, dtype=np.float32)[labels % 4]
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    dataset = dataset.batch(6) if form == "ragged batches" else dataset
    for strategy in (tf.distribute.get_strategy(), one_device(), two_replicas):
        outputs, result = predictions.predict(
            strategy,
            lambda x: {"red": x[:, 0, 0, 0], "sum": tf.reduce_sum(x, axis=(1, 2, 3))},
            predictions.eval_batches(dataset, batch_size=8),
        )
        np.testing.assert_array_equal(outputs["red"], np.arange(21))
        np.testing.assert_array_equal(outputs["sum"], np.arange(21) * SIDE**2)
        np.testing.assert_array_equal(result, labels)


def test_datasets_of_another_form_are_refused():
    images = numbered_images(4)
    for wrong in (
        images,
        (images, images[:, 0, 0, 0], images),
        (images[:, 0], np.arange(4)),
        {"image": images, "label": np.arange(4)},
    ):
        dataset = tf.data.Dataset.from_tensor_slices(wrong)
        with pytest.raises(ValueError, match=r"Expected a dataset of \(image, label\)"):
            predictions.eval_batches(dataset, batch_size=2)
    empty = tf.data.Dataset.from_tensor_slices((images, np.arange(4))).take(0)
    with pytest.raises(ValueError, match="the dataset is empty"):
        predictions.predict(
            one_device(), lambda x: x[:, 0, 0], predictions.eval_batches(empty, batch_size=2)
        )


@pytest.fixture(scope="module")
def data():
    """21 images of 3 classes that differ in color, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(21) % 3
    images = rng.integers(0, 120, [21, SIDE, SIDE, 3]) + 130 * np.eye(3)[labels][:, None, None]
    return images.astype(np.uint8), labels


def build_classifier():
    keras.utils.set_random_seed(0)
    encoder = contrastive.create_encoder("tiny", image_size=SIDE)
    return encoder, contrastive.create_classifier(encoder, contrastive.create_linear_head(64, 3))


def test_figures_of_a_keras_model_do_not_depend_on_the_replicas(data, two_replicas):
    images, labels = data
    dataset = tf.data.Dataset.from_tensor_slices(data)
    encoder, classifier = build_classifier()
    one = predictions.evaluate_classifier(classifier, dataset, batch_size=8)
    logits = classifier.predict(images.astype(np.float32), verbose=0)
    expected = metrics.classification_metrics(logits, labels)
    one_embedded = predictions.evaluate_embeddings(encoder, dataset, dataset, batch_size=8)
    with two_replicas.scope():
        encoder, classifier = build_classifier()
    two = predictions.evaluate_classifier(classifier, dataset, batch_size=8, strategy=two_replicas)
    assert one["num_examples"] == two["num_examples"] == 21
    for name, value in expected.items():
        np.testing.assert_allclose(one[name], value, rtol=1e-5)
        np.testing.assert_allclose(two[name], value, rtol=1e-5)
    options = {"batch_size": 8, "strategy": two_replicas}
    two_embedded = predictions.evaluate_embeddings(encoder, dataset, dataset, **options)
    assert one_embedded == pytest.approx(two_embedded)
    assert one_embedded["linear_probe_top_1"] > 0.9


def test_several_labels_are_measured_by_average_precision(data):
    images, labels = data
    several = np.eye(3, dtype=np.float32)[labels] + np.eye(3, dtype=np.float32)[(labels + 1) % 3]
    dataset = tf.data.Dataset.from_tensor_slices((images, several))
    encoder, classifier = build_classifier()
    logits = classifier.predict(images.astype(np.float32), verbose=0)
    assert predictions.evaluate_classifier(classifier, dataset, batch_size=8) == {
        "mean_average_precision": pytest.approx(metrics.mean_average_precision(logits, several)),
        "num_examples": 21,
    }
    embedded = predictions.evaluate_embeddings(encoder, dataset, dataset, batch_size=8)
    assert embedded["linear_probe_mean_average_precision"] > 0.9


# The stage.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_trained(tmp_path_factory.mktemp("trained"))


def test_eval_writes_every_figure_of_the_classifier(trained, capsys):
    run_inside("--mode=eval", f"--model_dir={trained.model_dir}", "--eval_batch_size=64")
    result = json.loads((trained.model_dir / "eval/eval.json").read_text())
    test = sources.load_source("digits", "test")
    images = sources_at_side(test)
    logits = trained.classifier.predict(images, verbose=0)
    expected = metrics.classification_metrics(logits, test.labels)
    confusion = expected.pop("confusion_matrix")
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-4), name
    with open(trained.model_dir / "eval/confusion_matrix.csv") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == [row[0] for row in rows] == list(test.class_names)
    np.testing.assert_array_equal(np.array(rows)[:, 1:].astype(int), confusion)
    assert result["num_train_examples"] == 1_437
    train = sources.load_source("digits", "train")
    sets = [trained.encoder.predict(images, verbose=0), test.labels]
    sets = [trained.encoder.predict(sources_at_side(train), verbose=0), train.labels, *sets]
    assert result["knn_top_1"] == pytest.approx(metrics.knn_accuracy(*sets), abs=0.01)
    assert result["linear_probe_top_1"] == pytest.approx(
        metrics.linear_probe_accuracy(*sets), abs=0.01
    )
    low_1, high_1 = result["intervals_95"]["top_1"]
    hits = round(result["top_1"] * 360)
    assert (low_1, high_1) == intervals.wilson_interval(hits, 360)
    for name, (low, high) in result["intervals_95"].items():
        assert low < result[name] < high, name
    embeddings = sets[2]
    for name, value in retrieval.retrieval_metrics(embeddings, test.labels).items():
        assert result["retrieval"][name] == pytest.approx(value, abs=0.01), name
    for name, value in geometry.geometry_metrics(embeddings, test.labels).items():
        assert result["geometry"][name] == pytest.approx(value, rel=1e-2), name
    assert result["num_similarity_examples"] == 360
    found = prediction_files.read_predictions(str(trained.model_dir / "eval/predictions.npz"))
    np.testing.assert_array_equal(found.labels, test.labels)
    np.testing.assert_array_equal(found.names, np.arange(360))
    assert found.class_names == test.class_names
    assert np.mean(found.is_correct()) == pytest.approx(result["top_1"])
    refound = metrics.classification_metrics(found.log_probabilities(), found.labels)
    for name, value in expected.items():
        assert refound[name] == pytest.approx(value, rel=1e-4), name
    recorded = json.loads((trained.model_dir / "eval/artifacts.json").read_text())["files"]
    assert {"eval.json", "predictions.npz", "confusion_matrix.csv"} <= set(recorded)
    output = capsys.readouterr().out
    assert f"precision@1 {result['retrieval']['precision_at_1']:.4f} [" in output
    assert f"uniformity {result['geometry']['uniformity']:.4f}" in output
    assert f"top-1 {result['top_1']:.4f} [{low_1:.4f}, " in output
    assert f"logistic regression {result['linear_probe_top_1']:.4f}" in output
    assert f"top-1 {result['top_1']:.4f}" in output


def sources_at_side(source):
    """Test images as the stage prepares them."""
    batches = pipeline.create_eval_batches(source, batch_size=source.num_examples, image_size=SIDE)
    return next(iter(batches))["image"].numpy().astype(np.float32)


def test_eval_learns_from_as_many_training_examples_as_it_is_told(trained, capsys):
    arguments = ("--mode=eval", f"--model_dir={trained.model_dir}")
    run_inside(*arguments, "--eval_train_examples=50")
    result = json.loads((trained.model_dir / "eval/eval.json").read_text())
    assert result["num_train_examples"] == 50
    run_inside(*arguments, "--eval_train_examples=0", "--eval_similarity_examples=100")
    assert "AUROC" not in capsys.readouterr().out
    result = json.loads((trained.model_dir / "eval/eval.json").read_text())
    assert not {"knn_top_1", "linear_probe_top_1", "num_train_examples"} & set(result)
    assert result["num_examples"] == 360
    assert result["num_similarity_examples"] == result["retrieval"]["num_queries"] == 100


def test_other_images_are_noticed(trained, tmp_path, capsys):
    """Noise is unlike digits; the digits' own test images are not."""
    noise = np.random.default_rng(0).integers(0, 256, [9, SIDE, SIDE, 3]).astype(np.uint8)
    for index, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    arguments = ("--mode=eval", f"--model_dir={trained.model_dir}", "--eval_similarity_examples=0")
    run_inside(*arguments, f"--ood_data_dir={tmp_path}", "--eval_train_examples=400")
    result = json.loads((trained.model_dir / "eval/eval.json").read_text())
    assert not {"retrieval", "geometry"} & set(result)
    found = result["out_of_distribution"][str(tmp_path)]
    assert found["num_examples"] == 9
    assert set(found) == {"num_examples", "knn", "mahalanobis", "max_softmax"}
    assert found["knn"]["auroc"] > 0.9 and found["knn"]["fpr_at_95_tpr"] < 0.5
    assert f"k-NN distance {found['knn']['auroc']:.4f} (" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--ood_dataset and --ood_data_dir .* not available"):
        run_inside(*arguments, "--eval_split=train", "--ood_dataset=digits")


def test_figures_of_similarity_need_two_images_of_a_class():
    embeddings = np.random.default_rng(0).normal(size=[3, 4])
    assert embedding_figures.similarity(embeddings, np.arange(3), limit=10) == {}
    assert embedding_figures.similarity(embeddings, np.zeros(3, int), limit=0) == {}
    found = embedding_figures.similarity(embeddings, np.zeros(3, int), limit=3)
    assert found["geometry"]["between_class_cosine"] is None
    assert "between undefined" in "".join(embedding_figures.describe(found))


def test_a_classifier_of_other_classes_or_another_encoder_is_refused(tmp_path):
    folder = write_trained(tmp_path)
    assert len(json.loads((tmp_path / "linear/class_names.json").read_text())) == NUM_CLASSES
    (tmp_path / "linear/class_names.json").write_text('["cat", "dog"]')
    with pytest.raises(ValueError, match="knows the classes cat, dog"):
        run_inside("--mode=eval", f"--model_dir={tmp_path}")
    contrastive.create_encoder("tiny", image_size=SIDE).save(
        folder.model_dir / "pretrain/encoder.keras"
    )
    for mode in ("eval", "embed", "export"):
        with pytest.raises(ValueError, match="trained on another encoder"):
            run_inside(f"--mode={mode}", f"--model_dir={tmp_path}")


@pytest.mark.parametrize("name", ["=cmd|'/C calc'!A0", "+1", "-1", "@SUM(1)"])
def test_a_class_name_cannot_open_a_formula_in_a_spreadsheet(name):
    assert as_csv_text(name) == f"'{name}"
    table = _table(np.eye(2, dtype=int), [name, "cat"])
    assert list(csv.reader(table.splitlines()))[0][1:] == [f"'{name}", "cat"]
