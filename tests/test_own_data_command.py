"""One's own folders and CSV files through the command: splits, label types, other data."""

import csv
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from helpers import prepared_tfds
from helpers.command import run_inside
from helpers.image_folders import encode
from helpers.tiny_images import write_images
from helpers.trained_folder import write_trained

from supcon_tf import load_run
from supcon_tf.data import sources
from supcon_tf.evaluation.multi_label import multi_label_metrics
from supcon_tf.evaluation.prediction_files import read_predictions
from supcon_tf.training import steps

SMALL = ("--eval_batch_size=16", "--strategy=one_device")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_trained(tmp_path_factory.mktemp("trained"), with_classifier=False).model_dir


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A CSV file of images that are red, green, both or neither."""
    root = tmp_path_factory.mktemp("several")
    lines = ["filename,label"]
    for index in range(48):
        pixels = np.random.default_rng(index).integers(0, 90, [12, 12, 3]).astype(np.uint8)
        colors = [name for bit, name in enumerate(("red", "green")) if index >> bit & 1]
        for name in colors:
            pixels[..., ("red", "green").index(name)] += 150
        path = root / f"{index}.png"
        path.write_bytes(tf.io.encode_png(pixels).numpy())
        lines.append(f"{index}.png,{'|'.join(colors)}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root / "labels.csv"


def read(path):
    return json.loads(path.read_text())


def test_one_folder_per_class_is_all_it_takes(tmp_path, trained, capsys):
    """The split is listed, figures come from it, and a folder without splits can be evaluated."""
    write_images(tmp_path, splits=("mine",), classes=("cat", "dog"), count=20, size=20)
    (tmp_path / "mine/cat/Thumbs.db").write_text("")
    run = tmp_path / "run"
    run_inside(
        "--mode=linear,eval,embed", f"--data_dir={tmp_path / 'mine'}", f"--model_dir={run}",
        f"--reference_ckpt={trained}", *SMALL,
    )  # fmt: skip
    said = capsys.readouterr().out
    lines = (run / "linear/validation_split.csv").read_text().splitlines()
    held_out = [line.split(",")[0] for line in lines if line.endswith(",validation")]
    splits = sources.load_splits("folder", str(tmp_path / "mine"))
    assert lines[0] == "filename,split" and len(lines) == 41
    assert held_out == sorted(sources.file_names(splits.validation))
    assert "--validation_split=0.2 --seed=0" in said
    assert f"--mode=predict --predict_dir=NEW_IMAGES --model_dir={run}" in said
    assert "Ignored 2 hidden or system files" in said and "Thumbs.db" in said
    result = read(run / "eval/eval.json")
    assert result["num_examples"] == len(held_out) and result["data"] == "folder, validation"
    assert result["num_train_examples"] == 40 - len(held_out)
    run_inside("--mode=eval", f"--model_dir={run}", f"--eval_data_dir={tmp_path / 'mine'}", *SMALL)
    assert read(run / "eval/eval.json")["num_examples"] == 40


def predict_rows(run, images, folder, *arguments):
    """What predict says of two of the images."""
    folder.mkdir(exist_ok=True)
    for name in ("0.png", "1.png"):
        shutil.copy(images / name, folder)
    where = (f"--model_dir={run}", f"--predict_dir={folder}")
    run_inside("--mode=predict", *where, *arguments, *SMALL)
    with open(run / "predict/predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_several_labels_are_fitted_evaluated_and_embedded(tmp_path, trained, several):
    run = tmp_path / "run"
    run_inside(
        "--mode=linear,eval,embed", f"--data_csv={several}", "--label_type=multi_label",
        f"--model_dir={run}", f"--reference_ckpt={trained}", *SMALL,
    )  # fmt: skip
    assert read(run / "linear/label_type.json") == "multi_label"
    result = read(run / "eval/eval.json")
    assert result["mean_average_precision"] > 0.95 and set(result["average_precision"]) == {
        "red", "green",
    }  # fmt: skip
    assert result["micro_f1"] > 0.8 and result["linear_probe_mean_average_precision"] > 0.95
    assert not (run / "eval/confusion_matrix.csv").exists()
    arrays = np.load(run / "embed/embeddings.npz")
    assert arrays["labels"].dtype == arrays["predictions"].dtype == bool
    assert np.mean(arrays["labels"] == arrays["predictions"]) > 0.8
    loaded = load_run(run)
    image = str(several.parent / "3.png")
    assert set(loaded.predict([image])[0]) <= {"green", "red"}
    assert loaded.nearest([image], 4).labels[0].all(axis=1).sum() >= 2  # Of both classes.
    predictions = read_predictions(str(run / "eval/predictions.npz"))
    assert predictions.labels.dtype == bool and predictions.probabilities.max() <= 1
    found = multi_label_metrics(
        predictions.probabilities, predictions.labels, class_names=predictions.class_names
    )
    assert found["micro_f1"] == pytest.approx(result["micro_f1"])
    assert result["retrieval"]["precision_at_1"] > 0.8
    predicted = predict_rows(run, several.parent, tmp_path / "new")
    assert [row["classes"] for row in predicted] == [
        "|".join(row[f"class_{k}"] for k in (1, 2) if float(row[f"probability_{k}"]) >= 0.5)
        for row in predicted
    ]
    other = tmp_path / "other.csv"  # Matched by name; without the class green.
    other.write_text("filename,label\n0.png,blue|red\n1.png,red\n")
    with pytest.raises(ValueError, match="knows the classes green, red.*blue"):
        run_inside(
            "--mode=eval", f"--model_dir={run}", "--eval_dataset=csv", f"--eval_data_csv={other}",
            f"--eval_data_dir={several.parent}", *SMALL,
        )  # fmt: skip
    shutil.rmtree(run / "linear")  # The neighbors of each image vote for each class.
    shutil.copytree(trained / "pretrain", run / "pretrain")
    data = (f"--data_csv={several}", "--label_type=multi_label")
    votes = predict_rows(run, several.parent, tmp_path / "new", *data)
    assert [row["file"] for row in votes] == [row["file"] for row in predicted]
    assert votes[1]["classes"] == "red"  # 1.png


@pytest.mark.slow
def test_hierarchies_use_their_finest_level_and_numbers_are_stored(tmp_path, several, capsys):
    lines = ["filename,family,kind,size"]
    for index in range(48):
        kind = ("a", "b", "c")[index % 3]
        lines.append(f"{index}.png,{'x' if kind == 'a' else 'y'},{kind},{index / 2}")
    (several.parent / "levels.csv").write_text("\n".join(lines))
    run = write_trained(tmp_path / "run", with_classifier=False).model_dir
    csv = f"--data_csv={several.parent / 'levels.csv'}"
    run_inside(
        "--mode=linear,eval", csv, f"--model_dir={run}", "--label_type=hierarchy",
        "--label_columns=family,kind", *SMALL,
    )  # fmt: skip
    assert (
        "2 levels; training and the classifier use the finest, 3 classes" in capsys.readouterr().out
    )
    assert read(run / "linear/class_names.json") == ["a", "b", "c"]
    result = read(run / "eval/eval.json")
    (level,) = result["levels"]
    assert level["level"] == "family" and level["num_classes"] == 2
    assert level["accuracy"] >= result["top_1"]  # A right kind is nearly always a right family.
    run = write_trained(tmp_path / "other", with_classifier=False).model_dir
    run_inside(
        "--mode=embed", csv, f"--model_dir={run}", "--label_type=real", "--label_columns=size",
        "--validation_split=0", "--embed_split=train", *SMALL,
    )  # fmt: skip
    arrays = np.load(run / "embed/embeddings.npz")
    assert arrays["labels"].tolist() == [index / 2 for index in range(48)]


@pytest.mark.slow
@pytest.mark.parametrize("validation", ["0.25", "0"])
def test_several_labels_are_pretrained_on(tmp_path, several, capsys, validation):
    run = tmp_path / "run"
    run_inside(
        "--mode=pretrain", f"--data_csv={several}", "--label_type=multi_label",
        f"--model_dir={run}", f"--validation_split={validation}", "--pretrain_epochs=0.5",
        "--pretrain_warmup_epochs=0", "--batch_size=12", "--augmentation_type=identity",
        "--summary_interval_steps=1", *SMALL,
    )  # fmt: skip
    result = read(run / "pretrain/result.json")
    assert ("knn_mean_average_precision" in result) == (validation != "0")
    if validation == "0":
        assert "skipping the k-NN figure" in capsys.readouterr().out


def test_a_sigmoid_per_class_and_its_accuracy():
    """Binary cross-entropy, mean over classes: -[y ln p + (1 - y) ln(1 - p)]."""
    rng = np.random.default_rng(0)
    labels, logits = rng.random([5, 3]) < 0.5, rng.normal(size=[5, 3])
    probabilities = 1 / (1 + np.exp(-logits))
    for smoothing in (0.0, 0.2):
        targets = labels * (1 - smoothing) + smoothing / 2
        expected = -(targets * np.log(probabilities) + (1 - targets) * np.log(1 - probabilities))
        found = steps.sparse_cross_entropy(
            tf.constant(labels), tf.constant(logits, tf.float32), smoothing
        )
        np.testing.assert_allclose(found, expected.mean(axis=1), rtol=1e-5)
    found = steps.is_correct(tf.constant(labels), tf.constant(logits, tf.float32))
    np.testing.assert_allclose(found, np.mean((logits > 0) == labels, axis=1))


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--dataset=csv"], "needs --data_csv"),
        (["--data_csv=x.csv", "--dataset=folder"], "data_csv=x.csv has no effect"),
        (["--label_type=real"], "label_type=real has no effect with --dataset=digits"),
        (["--label_columns=a"], "label_columns=a has no effect with --dataset=digits"),
        (["--data_csv=x.csv", "--label_columns=a,b"], "--label_type=multi_label or hierarchy"),
        (["--data_csv=x.csv", "--label_type=real", "--mode=finetune"], "Use --mode=linear"),
        (["--data_csv=x.csv", "--label_type=real", "--mode=pretrain"], "--nouse_labels"),
        (["--validation_split=0.2"], "no effect with --dataset=digits"),
        (
            ["--dataset=cifar10", "--validation_split=0.2"],
            r"--train_split=train\[:80%\] and --test_split=train\[80%:\]",
        ),
        (["--dataset=folder", "--data_dir=x", "--train_split=a"], "see --validation_split"),
        (["--validation_split=1", "--dataset=folder"], "validation_split"),
        (["--eval_dataset=csv"], "--eval_data_csv"),
        (["--mode=pretrain", "--data_csv=nowhere.csv"], "nowhere.csv cannot be read"),
    ],
)
def test_flags_of_data_that_do_nothing_are_refused(arguments, message, tmp_path):
    with pytest.raises((ValueError, flags.Error), match=message):
        run_inside("--mode=pretrain", f"--model_dir={tmp_path}", *arguments)


def test_a_missing_image_is_named_before_tensorflow_starts(tmp_path):
    from supcon_tf.cli import path_checks

    (tmp_path / "labels.csv").write_text("filename,label\n0.jpg,cat\n1.jpg,dog\n")
    (tmp_path / "0.jpg").write_bytes(encode())
    with pytest.raises(ValueError, match="line 3: there is no file .*1.jpg"):
        run_inside("--mode=pretrain", f"--data_csv={tmp_path / 'labels.csv'}")
    assert "tensorflow" not in vars(path_checks)


def test_splits_of_tfds_are_named_in_its_own_syntax(tmp_path):
    prepared_tfds.write_two_greys(tmp_path)
    for names, sizes in (
        ({}, (16, 6)),
        ({"train_split": "train[:75%]", "test_split": "train[75%:]"}, (12, 4)),
        ({"train_split": "train+validation[:2]"}, (18, 6)),
    ):
        splits = sources.load_splits("two_greys", str(tmp_path), **names)
        assert (splits.train.num_examples, splits.test.num_examples) == sizes
        assert len(list(splits.train.examples(seed=None))) == sizes[0]
    few = sources.first_examples(splits.train, 17)
    assert few.split == "train[0:16]+validation[0:1]" and len(list(few.examples(seed=None))) == 17
    shares = [
        [name.numpy() for _, name in _named(splits.train, host)] for host in range(2)
    ]  # fmt: skip
    assert len(set(shares[0]) | set(shares[1])) == 18
    one = sources.load_source("two_greys", "validation[:2]", str(tmp_path), for_training=False)
    assert one.num_examples == 2
    with pytest.raises(ValueError, match=r"no split 'dev'; it has \['train', 'validation'\]"):
        sources.load_splits("two_greys", str(tmp_path), train_split="dev")


def _named(source, host):
    stored = source._stored(host=host, num_hosts=2)
    return [(example["label"], example["tfds_id"]) for example in stored]


@pytest.mark.parametrize("kind", ["labels", pytest.param("objects", marks=pytest.mark.slow)])
def test_several_labels_of_tfds_are_multi_hot(tmp_path, kind):
    prepared_tfds.write_several_labels(tmp_path, kind)
    name = f"several_{kind}"
    source = sources.load_source(name, "test", str(tmp_path), for_training=False)
    assert source.label_type == "multi_label" and source.class_names == ("cat", "dog", "owl")
    labels = np.array([label for _, label in source.examples(seed=None).as_numpy_iterator()])
    assert labels.dtype == bool
    assert sorted(map(tuple, labels.tolist())) == sorted(
        [(False, False, False), (True, False, False), (True, True, False), (True, True, True)]
    )
    with pytest.raises(ValueError, match=r"has the splits \['test'\], but train is required"):
        sources.load_splits(name, str(tmp_path))
