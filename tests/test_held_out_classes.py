"""--holdout_classes: classes that are left out of training and evaluated apart."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from helpers import prepared_tfds
from helpers.command import run_inside
from helpers.tiny_images import write_images
from helpers.trained_folder import SIDE, write_trained

from supcon_tf.data import held_out_classes, pipeline, sources
from supcon_tf.evaluation import retrieval
from supcon_tf.stages import inputs


@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_a_source_is_divided_by_class(kind, tmp_path):
    if kind == "arrays":
        labels = np.array([2, 0, 1, 2, 0], np.int32)
        images = (
            np.zeros([5, 8, 8, 3], np.uint8) + np.arange(5, dtype=np.uint8)[:, None, None, None]
        )
        source = sources.ArraySource(images, labels, ("a", "b", "c"))
    else:
        write_images(tmp_path, classes=("a", "b", "c"), count=2, size=8)
        source = sources.load_source("folder", "train", str(tmp_path))
    kept = held_out_classes.without_classes(source, ["b"])
    held_out = held_out_classes.only_classes(source, ["b"])
    assert (kept.class_names, held_out.class_names) == (("a", "c"), ("b",))
    for part in (kept, held_out):
        assert part.labels.dtype == np.int32 and part.num_examples == len(part.labels)
        names = [part.class_names[label] for label in part.labels]
        assert names == [name for name in map(source.class_names.__getitem__, source.labels)
                         if name in part.class_names]  # fmt: skip
    if kind == "arrays":
        assert kept.images[:, 0, 0, 0].tolist() == [0, 1, 3, 4]
        assert held_out.images[:, 0, 0, 0].tolist() == [2]
    else:
        assert sorted([*kept.paths, *held_out.paths]) == sorted(source.paths)
        assert all("/b/" in path for path in held_out.paths)


@pytest.mark.parametrize(
    "names,message",
    [
        (["d"], "--holdout_classes names d.* classes are a, b, c"),
        (["a", "b"], "--holdout_classes=a,b leaves 1 of 3 classes"),
    ],
)
def test_classes_that_cannot_be_held_out_are_refused(names, message):
    source = sources.ArraySource(np.zeros([3, 8, 8, 3], np.uint8), np.arange(3), ("a", "b", "c"))
    with pytest.raises(ValueError, match=message):
        held_out_classes.without_classes(source, names)


@pytest.fixture(scope="module")
def four_greys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    prepared_tfds.write_four_greys(folder)
    return str(folder)


def seen(dataset):
    """(brightness / 60, label) of encoded examples."""
    return [(round(tf.io.decode_png(x)[0, 0, 0].numpy() / 60), int(y)) for x, y in dataset]


@pytest.mark.slow
def test_a_tfds_stream_is_divided_by_class(four_greys):
    """Hosts share the kept examples, and every epoch of a shuffled stream has each of them once."""
    source = sources.load_source("four_greys", "train", four_greys)
    kept = held_out_classes.without_classes(source, ["a", "c"])
    held_out = held_out_classes.only_classes(source, ["a", "c"])
    assert (kept.class_names, kept.num_examples) == (("b", "d"), 10)
    assert (held_out.class_names, held_out.num_examples) == (("a", "c"), 11)
    assert sorted(seen(kept.examples(seed=None))) == [(1, 0)] * 5 + [(3, 1)] * 5
    assert sorted(seen(held_out.examples(seed=None))) == [(0, 0)] * 6 + [(2, 1)] * 5
    for part in (kept, dataclasses.replace(kept, shuffle_buffer=4)):
        stream = part.examples(seed=1).take(20)
        epochs = [list(x) for x in (list(seen(stream))[:10], list(seen(stream))[10:])]
        assert epochs[0] != epochs[1]
        assert sorted(epochs[0]) == sorted(epochs[1]) == [(1, 0)] * 5 + [(3, 1)] * 5
        assert list(seen(part.examples(seed=1, start=13).take(7))) == epochs[1][3:]
    shares = [seen(kept.examples(seed=None, host=host, num_hosts=2)) for host in range(2)]
    assert [len(share) for share in shares] == [5, 5]
    assert sorted(shares[0] + shares[1]) == [(1, 0)] * 5 + [(3, 1)] * 5
    assert sources.example_names(kept) != sources.example_names(held_out)
    twice = held_out_classes.only_classes(kept, ["d"])
    assert seen(twice.examples(seed=None)) == [(3, 0)] * 5
    (batch,) = pipeline.create_eval_batches(kept, batch_size=10, image_size=8)
    assert sorted(batch["label"].numpy()) == [0] * 5 + [1] * 5
    with pytest.raises(ValueError, match=r"--train_split=train\[:10%\]"):
        sources.first_examples(kept, 3)


def test_a_tfds_stream_is_balanced_by_class(four_greys):
    source = sources.load_source("four_greys", "train", four_greys)
    few = sources.first_per_class(source, 2)
    in_order = seen(source.examples(seed=None))
    expected = [
        pair for n, pair in enumerate(in_order) if in_order[:n].count(pair) < 2
    ]  # fmt: skip
    assert few.num_examples == len(expected) == 8
    assert seen(few.examples(seed=None)) == expected
    epochs = seen(few.examples(seed=1).take(16))
    assert sorted(epochs[:8]) == sorted(epochs[8:]) == sorted(expected)
    shares = [seen(few.examples(seed=None, host=host, num_hosts=2)) for host in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(expected)
    kept = sources.first_per_class(held_out_classes.without_classes(source, ["a", "c"]), 3)
    assert sorted(seen(kept.examples(seed=None))) == [(1, 0)] * 3 + [(3, 1)] * 3
    with pytest.raises(ValueError, match="the class [abcd] has 5 training examples"):
        sources.first_per_class(source, 6)


def test_a_tfds_split_without_the_classes_is_refused(four_greys):
    one = sources.load_source("four_greys", "test[:1]", four_greys, for_training=False)
    names = list(one.class_names)
    label = int(next(iter(one.examples(seed=None)))[1])
    absent = [name for number, name in enumerate(names) if number != label][0]
    with pytest.raises(ValueError, match=f"no example of the classes {absent}"):
        held_out_classes.only_classes(one, [absent])


def test_several_labels_per_image_are_refused():
    source = sources.ArraySource(
        np.zeros([3, 8, 8, 3], np.uint8), np.eye(3, dtype=bool), ("a", "b", "c"), "multi_label"
    )
    with pytest.raises(ValueError, match="--holdout_classes=a needs one class per image"):
        held_out_classes.without_classes(source, ["a"])


def test_training_and_test_split_lose_the_classes():
    with flagsaver.flagsaver():
        flags.FLAGS(["supcon_tf", "--holdout_classes=8,3"])
        splits = inputs.splits_from_flags(flags.FLAGS)
        assert splits is inputs.splits_from_flags(flags.FLAGS)
        for split in ("train", "test"):
            source = getattr(splits, split)
            assert source.class_names == tuple("01245679")
            whole = sources.load_source("digits", split)
            assert source.num_examples == np.count_nonzero(~np.isin(whole.labels, [3, 8]))
        held_out = inputs.held_out_classes_from_flags(flags.FLAGS, "test")
        assert held_out.class_names == ("3", "8")
        assert held_out.num_examples + splits.test.num_examples == 360


def test_eval_reports_the_held_out_classes_apart(tmp_path, capsys):
    """Later commands take the classes from the run."""
    trained = write_trained(tmp_path)
    (tmp_path / "pretrain/stage.flags").write_text("--mode=pretrain\n--holdout_classes=8,9\n")
    run_inside("--mode=eval", f"--model_dir={tmp_path}", "--eval_train_examples=300")
    result = json.loads((tmp_path / "eval/eval.json").read_text())
    test = sources.load_source("digits", "test")
    held = np.isin(test.labels, [8, 9])
    assert result["num_examples"] == np.count_nonzero(~held)
    batches = pipeline.create_eval_batches(test, batch_size=360, image_size=SIDE)
    images = next(iter(batches))["image"].numpy().astype(np.float32)[held]
    expected = retrieval.retrieval_metrics(
        trained.encoder.predict(images, verbose=0), test.labels[held]
    )
    found = result["held_out_classes"]
    assert found["classes"] == ["8", "9"]
    assert found["num_similarity_examples"] == np.count_nonzero(held)
    for name, value in expected.items():
        assert found["retrieval"][name] == pytest.approx(value, abs=0.02), name
    (detected,) = result["out_of_distribution"].values()
    assert detected["num_examples"] == np.count_nonzero(held)
    output = capsys.readouterr().out
    assert "--holdout_classes=8,9" in output
    assert f"held-out classes precision@1 {found['retrieval']['precision_at_1']:.4f}" in output
    assert "images of held-out classes 8, 9: AUROC" in output


def test_a_run_trains_without_the_classes(tmp_path):
    run_inside(
        "--mode=pretrain,linear", f"--model_dir={tmp_path}", "--holdout_classes=1,7",
        "--pretrain_epochs=0", "--knn_interval_epochs=0", "--num_images=64",
    )  # fmt: skip
    names = json.loads((tmp_path / "linear/class_names.json").read_text())
    assert names == list("02345689")
    with pytest.raises(ValueError, match=r"class (added|removed)|other flags"):
        run_inside("--mode=linear", f"--model_dir={tmp_path}", "--holdout_classes=1")
