"""CSV files: labels of four kinds, splits, and one clear message for every wrong row."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.image_folders import encode

from supcon_tf.augment import policies
from supcon_tf.data import csv_labels, data_identity, pipeline, sources

IDENTITY = policies.create_policy("identity")


def parse(text, **options):
    return csv_labels.parse_csv_labels(text.splitlines(keepends=True), "labels.csv", **options)


def write(root, text, count=12):
    (root / "images").mkdir(parents=True)
    for index in range(count):
        (root / f"images/{index}.jpg").write_bytes(encode(size=(20, 20), seed=index))
    (root / "labels.csv").write_text(text, encoding="utf-8-sig")
    return str(root / "labels.csv")


def rows(*labels, header="filename,label"):
    return "\n".join([header, *(f"images/{i}.jpg,{label}" for i, label in enumerate(labels))])


def test_numbers_are_classes_unless_somebody_says_otherwise():
    labels = parse("filename,label\na.jpg,10\nb.jpg,9\nc.jpg,10\n")
    assert labels.class_names == ("9", "10") and labels.labels.dtype == np.int32
    np.testing.assert_array_equal(labels.labels, [1, 0, 1])
    labels = parse("filename,label\na.jpg,1.5\nb.jpg,-2e1\n", label_type="real")
    assert labels.labels.dtype == np.float32 and labels.labels.tolist() == [1.5, -20.0]


def test_several_classes_come_from_one_cell_or_from_columns():
    cell = parse("filename,label\na.jpg,cat|dog\nb.jpg,dog\nc.jpg,\n", label_type="multi_label")
    columns = parse(
        "filename,dog,cat\na.jpg,1,1\nb.jpg,1,0\nc.jpg,0,0\n",
        label_type="multi_label", label_columns=("cat", "dog"),
    )  # fmt: skip
    for labels in (cell, columns):
        assert labels.class_names == ("cat", "dog") and labels.labels.dtype == bool
        np.testing.assert_array_equal(labels.labels, [[1, 1], [0, 1], [0, 0]])


def test_a_hierarchy_has_a_class_per_level():
    labels = parse(
        'filename,species,genus\na.jpg,lion,cat\nb.jpg,wolf,dog\n"c, d.jpg",tiger,cat\n',
        label_type="hierarchy", label_columns=("genus", "species"),
    )  # fmt: skip
    assert labels.level_names == (("cat", "dog"), ("lion", "tiger", "wolf"))
    assert labels.class_names == ("lion", "tiger", "wolf") and labels.filenames[2] == "c, d.jpg"
    np.testing.assert_array_equal(labels.labels, [[0, 0], [1, 2], [0, 1]])


@pytest.mark.parametrize(
    "text,options,message",
    [
        ("filename,label\na,cat\nb,\n", {}, "line 3: the cell label is empty"),
        ("filename,label\na,cat\n,dog\n", {}, "line 3: the cell filename is empty"),
        ("filename,label\na,cat\nb,dog\na,dog\n", {}, "line 4: a has another label than on line 2"),
        ("filename,label,split\na,cat,train\nb,dog,dev\n", {}, "line 3: unknown split 'dev'"),
        ("filename,label\na,cat,dog\n", {}, "line 2: 3 cells, but the header has 2"),
        ('filename,label\na,"cat\n', {}, "line 2: not CSV"),
        ("file,label\na,cat\n", {}, "no column 'filename'.*file, label"),
        ("filename;label\na;cat\n", {}, "Separate the columns by commas, not by ';'"),
        ("filename,label,label\na,b,c\n", {}, "column 'label' is there twice"),
        ("filename,class\na,cat\n", {}, "no column 'label' .*--label_columns"),
        ("filename,label\na,1\nb,x\n", {"label_type": "real"}, "line 3: 'x' is not a number"),
        ("filename,label\na,1\nb,nan\n", {"label_type": "real"}, "line 3: 'nan' is not a number"),
        ("filename,label\n", {}, "no row below its header"),
        ("", {}, "no column 'filename'"),
        ("filename,label\na,cat\nb,cat\n", {}, "1 class"),
        (
            "filename,a,b\nx,1,2\n",
            {"label_type": "multi_label", "label_columns": ("a", "b")},
            "line 2: b is '2'",
        ),
        (
            "filename,a,b\nx,1,2\ny,3,2\n",
            {"label_type": "hierarchy", "label_columns": ("a", "b")},
            "line 3: '2' in b belongs to '3', but on line 2 to '1'",
        ),
        ("filename,a\nx,1\n", {"label_columns": ("a", "b")}, "--label_type=multi_label or hierarc"),
        ("filename,a\nx,1\n", {"label_type": "hierarchy"}, "--label_columns=genus,species"),
        ("filename,label\nx,1\n", {"label_type": "regression"}, "class, multi_label, hierarchy"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(text, options, message):
    with pytest.raises(ValueError, match=message):
        parse(text, **options)


def test_files_that_are_missing_or_no_text_are_named(tmp_path):
    path = write(tmp_path, rows("cat", "dog", "cat", "dog"), count=3)
    with pytest.raises(ValueError, match="line 5: there is no file .*images/3.jpg"):
        sources.load_splits("csv", data_csv=path)
    with pytest.raises(ValueError, match="--data_csv=.*nowhere.csv cannot be read"):
        sources.load_splits("csv", data_csv=str(tmp_path / "nowhere.csv"))
    with pytest.raises(ValueError, match="needs --data_csv"):
        sources.load_splits("csv")
    (tmp_path / "labels.csv").write_bytes(b"filename,label\nimages/0.jpg,caf\xe9\n")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        sources.load_splits("csv", data_csv=path)


BATCHES = {
    "class": (rows(*"ab" * 6), {}, tf.int32, [4]),
    "multi_label": (rows(*["a|b", "b", "c"] * 4), {}, tf.bool, [4, 3]),
    "hierarchy": (
        rows(*["x,a", "x,b", "y,c"] * 4, header="filename,l0,l1"),
        {"label_columns": ("l0", "l1")}, tf.int32, [4, 2],
    ),
    "real": (rows(*map(str, range(12))), {}, tf.float32, [4]),
}  # fmt: skip


@pytest.mark.parametrize("label_type", BATCHES)
def test_batches_hold_labels_of_each_kind(tmp_path, label_type):
    text, options, dtype, shape = BATCHES[label_type]
    path = write(tmp_path, text)
    source = sources.load_source(
        "csv", "train", data_csv=path, label_type=label_type, validation_split=0.0, **options
    )
    train = pipeline.create_train_batches(
        source, policy=IDENTITY, batch_size=4, image_size=8, seed=0
    )
    label = next(iter(train))["label"]
    assert label.dtype == dtype and label.shape == shape
    seen = []
    for batch in pipeline.create_eval_batches(source, batch_size=8, image_size=8):
        assert batch["label"].dtype == dtype
        seen += batch["label"].numpy()[batch["index"].numpy() >= 0].tolist()
    np.testing.assert_array_equal(seen, source.labels)


def test_splits_come_from_the_column_or_from_the_rule(tmp_path):
    text = rows(*["a,train", "b,train", "a,valid", "b,test"] * 3, header="filename,label,split")
    splits = sources.load_splits("csv", data_csv=write(tmp_path / "one", text))
    assert [x.num_examples for x in (splits.train, splits.validation, splits.test)] == [6, 3, 3]
    path = write(tmp_path / "two", rows(*"ab" * 6))
    splits = sources.load_splits("csv", data_csv=path, validation_split=0.5)
    assert splits.test is None and 0 < splits.validation.num_examples < 12
    assert splits.train.num_examples + splits.validation.num_examples == 12
    whole = sources.load_source("csv", "test", data_csv=path, for_training=False)
    assert whole.num_examples == 12  # Data that is only evaluated.
    text = rows("a,train", "b,train", "c,test", header="filename,label,split")
    with pytest.raises(ValueError, match="no training row has the class c"):
        sources.load_splits("csv", data_csv=write(tmp_path / "three", text))


def test_file_names_are_relative_to_the_file_or_to_the_directory(tmp_path):
    write(tmp_path / "data", "")
    path = tmp_path / "labels.csv"
    path.write_text(rows(*"ab" * 6))
    options = {"data_csv": str(path), "validation_split": 0.0}
    splits = sources.load_splits("csv", str(tmp_path / "data"), **options)
    assert splits.train.paths[0] == str(tmp_path / "data/images/0.jpg")


def test_a_changed_label_is_other_data(tmp_path):
    identities = []
    for name, labels in (("one", "ab" * 6), ("two", "ab" * 6), ("three", "ba" * 6)):
        path = write(tmp_path / name, rows(*labels))
        source = sources.load_source("csv", "train", data_csv=path, validation_split=0.0)
        identities.append(data_identity.identity_of(source))
    assert identities[0].digest == identities[1].digest != identities[2].digest
    assert any("labels" in line for line in data_identity.differences(*identities[1:]))


def test_the_first_files_are_those_of_every_class_in_turn(tmp_path):
    path = write(tmp_path, rows(*"aaaabbcccccc"))
    source = sources.load_source("csv", "train", data_csv=path, validation_split=0.0)
    few = sources.first_examples(source, 5)
    assert np.bincount(few.labels).tolist() == [2, 2, 1]
    with pytest.raises(ValueError, match="label_noise_prob"):
        several = sources.load_source(
            "csv", "train", data_csv=path, validation_split=0.0, label_type="multi_label"
        )
        sources.with_label_noise(several, 0.5, seed=0)
