"""--mode=predict through the command, on the digits and a run with random features."""

import csv
import io
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from helpers.command import run_inside
from helpers.trained_folder import SIDE, write_trained
from PIL import Image

from supcon_tf.data import pipeline, sources
from supcon_tf.evaluation import predict_images, prediction_files, predictions, retrieval
from supcon_tf.stages import predict, training_embeddings
from supcon_tf.stages import trained as trained_models
from supcon_tf.storage import files


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of digits: test images 0..4, and the training image 7, which is its own nearest."""
    folder = tmp_path_factory.mktemp("new images")
    (folder / "more").mkdir()
    digits = [*sources.load_source("digits", "test").images[:5]]
    digits.append(sources.load_source("digits", "train").images[7])
    for index, pixels in enumerate(digits):
        place = folder / "more" if index > 2 else folder
        Image.fromarray(pixels).save(place / f"{index}, é.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_trained(tmp_path_factory.mktemp("trained"))


def copy_run(trained, folder, *without):
    """A copy of the run, without the results of predict and without other stages."""
    left_out = shutil.ignore_patterns("predict", *without)
    shutil.copytree(trained.model_dir, folder, dirs_exist_ok=True, ignore=left_out)


def run_predict(model_dir, images, *arguments):
    run_inside("--mode=predict", f"--model_dir={model_dir}", f"--predict_dir={images}", *arguments)
    with open(model_dir / "predict/predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = (model_dir / "predict/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [row["file"] for row in rows] == [record["file"] for record in records]
    return rows, records


def prepared(source):
    batches = pipeline.create_eval_batches(source, batch_size=source.num_examples, image_size=SIDE)
    return next(iter(batches))["image"].numpy().astype(np.float32)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_classifier_and_neighbors_of_each_file(trained, images, capsys):
    rows, records = run_predict(
        trained.model_dir, images, "--predict_top_k=3", "--predict_neighbors=2",
        "--eval_batch_size=4",
    )  # fmt: skip
    source = sources.load_unlabeled(str(images))
    assert [row["file"] for row in rows] == list(source.paths)
    pixels = prepared(source)
    probabilities = softmax(trained.classifier.predict(pixels, verbose=0))
    train = sources.load_source("digits", "train")
    gallery = trained.encoder.predict(prepared(train), verbose=0)
    embeddings = trained.encoder.predict(pixels, verbose=0)
    indices, similarities = retrieval.nearest(embeddings, gallery, 2)
    for n, (row, record) in enumerate(zip(rows, records, strict=True)):
        order = np.argsort(-probabilities[n])[:3]
        assert [row[f"class_{k}"] for k in (1, 2, 3)] == [str(c) for c in order]
        assert row["class"] == record["class"] == str(order[0])
        np.testing.assert_allclose(
            [entry["probability"] for entry in record["top"]], probabilities[n][order], rtol=1e-3
        )
        np.testing.assert_allclose(
            [entry["similarity"] for entry in record["nearest"]], similarities[n], atol=1e-5
        )
        assert [row["nearest_1"], row["nearest_2"]] == [str(i) for i in indices[n]]
    assert (rows[5]["nearest_1"], float(rows[5]["similarity_1"])) == ("7", pytest.approx(1))
    output = capsys.readouterr().out
    assert str(trained.model_dir / "linear/classifier.keras") in output
    assert f"{trained.model_dir / 'predict/predictions.csv'} and" in output


def test_training_embeddings_are_kept_until_what_made_them_changes(trained, images, capsys):
    folder = trained.model_dir / "predict"
    path, record_path = folder / "training_embeddings.npz", str(folder / "training_embeddings.json")
    first, _ = run_predict(trained.model_dir, images, "--predict_neighbors=3")
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    assert {"training_embeddings.npz", "training_embeddings.json", "predictions.csv"} <= set(
        json.loads((folder / "artifacts.json").read_text())["files"]
    )
    capsys.readouterr()
    assert run_predict(trained.model_dir, images, "--predict_neighbors=3")[0] == first
    assert path.stat().st_mtime_ns == written
    assert "using the embeddings of the training images" in capsys.readouterr().out
    path.write_bytes(content[:-1] + b"x")
    assert run_predict(trained.model_dir, images, "--predict_neighbors=3")[0] == first
    assert "training_embeddings.npz is damaged" in capsys.readouterr().out
    assert path.read_bytes() == content
    record = files.read_sealed(record_path)
    for name in ("encoder", "data", "eval_crop_method"):
        files.write_sealed(record_path, {**record, name: "another"})
        assert not training_embeddings.is_valid(str(folder), record)
        assert "belongs to another encoder or other data" in capsys.readouterr().out
    files.write_sealed(record_path, record)
    del record["sha256"]
    assert training_embeddings.is_valid(str(folder), record)


def test_without_a_classifier_the_neighbors_vote(trained, tmp_path, images, capsys):
    copy_run(trained, tmp_path, "linear")
    rows, _ = run_predict(tmp_path, images, "--predict_neighbors=0", "--predict_top_k=10")
    train = sources.load_source("digits", "train")
    gallery = trained.encoder.predict(prepared(train), verbose=0).astype(np.float64)
    embeddings = trained.encoder.predict(
        prepared(sources.load_unlabeled(str(images))), verbose=0
    ).astype(np.float64)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    for row, embedding in zip(rows, embeddings, strict=True):
        cosines = gallery @ embedding
        votes = np.zeros(10)
        for index in np.argsort(-cosines)[:20]:
            votes[train.labels[index]] += np.exp(cosines[index] / 0.07)
        votes /= votes.sum()
        found = {row[f"class_{k}"]: float(row[f"probability_{k}"]) for k in range(1, 11)}
        np.testing.assert_allclose([found[str(c)] for c in range(10)], votes, atol=2e-3)
        assert row["class"] == str(votes.argmax())
    assert "nearest_1" not in rows[0]
    assert "20 nearest training images (the run has no classifier)" in capsys.readouterr().out


def test_the_training_images_are_not_needed_without_neighbors(trained, tmp_path, images):
    """The training data of a folder run is gone."""
    copy_run(trained, tmp_path)
    arguments = ("--dataset=folder", f"--data_dir={tmp_path / 'gone'}")
    rows, _ = run_predict(tmp_path, images, "--predict_neighbors=0", *arguments)
    assert len(rows) == 6
    with pytest.raises(ValueError, match="gone"):
        run_predict(tmp_path, images, *arguments)
    shutil.rmtree(tmp_path / "linear")
    with flagsaver.flagsaver(), pytest.raises(ValueError, match=r"gone.*\n?.*--mode=linear"):
        flags.FLAGS(["supcon_tf", f"--model_dir={tmp_path}", f"--predict_dir={images}", *arguments])
        predict.run(flags.FLAGS, tf.distribute.get_strategy())


@pytest.mark.slow
def test_four_replicas_predict_what_one_predicts(trained, tmp_path, images, mirrored):
    copy_run(trained, tmp_path)
    one, _ = run_predict(tmp_path, images)
    shutil.rmtree(tmp_path / "predict")
    with flagsaver.flagsaver():
        flags.FLAGS(
            ["supcon_tf", f"--model_dir={tmp_path}", f"--predict_dir={images}",
             "--eval_batch_size=4"]
        )  # fmt: skip
        predict.run(flags.FLAGS, mirrored)
    with open(tmp_path / "predict/predictions.csv", encoding="utf-8", newline="") as file:
        four = list(csv.DictReader(file))
    for a, b in zip(one, four, strict=True):
        assert (a["file"], a["class"], a["nearest_1"]) == (b["file"], b["class"], b["nearest_1"])
        assert float(a["probability"]) == pytest.approx(float(b["probability"]), abs=1e-4)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ([], "--predict_dir=new_images"),
        (["--predict_dir={}/none"], "--predict_dir=.*none is not a folder"),
        (["--predict_dir={}"], "--predict_dir=.* contains no images"),
        (["--predict_dir={}", "--predict_top_k=0"], "predict_top_k"),
    ],
)
def test_what_cannot_be_predicted_is_refused(trained, tmp_path, arguments, message):
    arguments = [argument.format(tmp_path) for argument in arguments]
    with pytest.raises((ValueError, flags.Error), match=message):
        run_inside("--mode=predict", f"--model_dir={trained.model_dir}", *arguments)


def test_in_python_without_a_run():
    """The function of the stage with a Keras model and arrays."""
    keras.utils.set_random_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, [6, SIDE, SIDE, 3]).astype(np.uint8)
    encoder = keras.Sequential([keras.layers.Flatten()])

    def outputs(batch):
        return {"unnormalized_embeddings": encoder(batch)}

    gallery = predict_images.Gallery(
        pixels.reshape(6, -1).astype(np.float32), np.arange(6) % 2, list("012345"),
        ("even", "odd"),
    )  # fmt: skip
    dataset = tf.data.Dataset.from_tensor_slices((pixels, np.zeros(6, np.int32)))
    batches = predictions.eval_batches(dataset, batch_size=4)
    names = [f"{n}.png" for n in range(6)]
    options = {"class_names": ("even", "odd"), "num_neighbors": 2}
    rows = list(predict_images.predict_images(outputs, batches, names, gallery=gallery, **options))
    assert [row.file for row in rows] == names
    assert [row.neighbors[0] for row in rows] == list(gallery.names)
    multi_hot = np.stack([np.ones(6), np.arange(6) % 2], axis=1)
    several = predict_images.Gallery(gallery.embeddings, multi_hot, gallery.names, ("a", "b"))
    votes = several.vote(gallery.embeddings)
    np.testing.assert_allclose(votes[:, 0], 1)
    np.testing.assert_allclose(votes[:, 1], gallery.vote(gallery.embeddings)[:, 1])
    with pytest.raises(ValueError, match="need the training images"):
        list(predict_images.predict_images(outputs, batches, names, **options))
    with pytest.raises(ValueError, match="2 of 3 images are not finite"):
        logits = np.array([[0, 1], [np.nan, 0], [np.inf, 0]])
        predict_images.class_probabilities(np.zeros([3, 2]), logits, None)


def test_with_several_labels_every_class_from_one_half_on_is_listed():
    logits = np.array([[2.0, 0.0, -1.0], [-3.0, -2.0, -4.0]])
    probabilities = predict_images.class_probabilities(np.zeros([2, 4]), logits, None, True)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)))
    rows = list(
        prediction_files.predicted_files(
            ["a.png", "b.png"], probabilities, ("cat", "dog", "cow"), k=1, is_multi_label=True
        )
    )
    table, lines = io.BytesIO(), io.BytesIO()
    prediction_files.write_csv(table, rows, k=1, num_neighbors=0, is_multi_label=True)
    header, first, second = csv.reader(table.getvalue().decode().splitlines())
    assert header == ["file", "class", "probability", "classes", "class_1", "probability_1"]
    assert (first[3], second[3]) == ("cat|dog", "")
    prediction_files.write_jsonl(lines, rows)
    records = [json.loads(line) for line in lines.getvalue().decode().splitlines()]
    assert [record["classes"] for record in records] == [["cat", "dog"], []]


def test_the_linear_stage_shares_the_embeddings_of_its_encoder(trained, tmp_path):
    copy_run(trained, tmp_path)
    with flagsaver.flagsaver():
        flags.FLAGS(["supcon_tf", f"--model_dir={tmp_path}"])
        classifier = trained_models.load_trained(flags.FLAGS)
        shutil.rmtree(tmp_path / "linear")
        encoder = trained_models.load_trained(flags.FLAGS)
    assert classifier.linear_head is not None and encoder.linear_head is None
    assert classifier.encoder_identity == encoder.encoder_identity
