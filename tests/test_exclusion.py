"""Leaving out the images that issues.csv names: which rows count, and how files are named."""

import numpy as np
import pytest

from supcon_tf.data import exclusion, sources
from supcon_tf.data.sources import ArraySource, Splits

HEADER = "file,split,kind,score,other_file,evidence,confirmed\n"


def rows(tmp_path, *lines):
    path = tmp_path / "issues.csv"
    path.write_text(HEADER + "\n".join(lines))
    return exclusion.read_rows(str(path))


def test_confirmed_rows_and_rows_of_the_kinds_are_taken(tmp_path):
    found = rows(
        tmp_path,
        "a.jpg,train,mislabeled,0.9,,,yes",
        "b.jpg,train,mislabeled,0.8,,,",
        "c.jpg,train,leak,1,,,",
        "d.jpg,train,leak,1,,,no",
        "e.jpg,train,outlier,7,,, Y ",
        ",train,imbalance,9,,,yes",
    )
    assert list(exclusion.excluded_files(found)) == ["a.jpg", "e.jpg"]
    assert list(exclusion.excluded_files(found, ["leak"])) == ["a.jpg", "c.jpg", "e.jpg"]


def test_another_csv_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_text("filename,label\na.jpg,cat\n")
    with pytest.raises(ValueError, match="no column file: expected the issues.csv"):
        exclusion.read_rows(str(tmp_path / "labels.csv"))
    with pytest.raises(ValueError, match="missing.csv cannot be read"):
        exclusion.read_rows(str(tmp_path / "missing.csv"))


def source_of(*labels):
    labels = np.array(labels, np.int32)
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return ArraySource(np.tile(images, [1, 2, 2, 3]), labels, ("cat", "dog"))


def test_arrays_are_named_by_split_and_position():
    splits = Splits(train=source_of(0, 1, 1, 0), test=source_of(0, 1))
    kept, lines = exclusion.without_files(
        splits, {"train/1": "mislabeled", "test/0": "leak", "train/9": "leak"}
    )
    assert kept.train.images[:, 0, 0, 0].tolist() == [0, 2, 3]
    assert kept.train.labels.tolist() == [0, 1, 0]
    assert kept.test.labels.tolist() == [1]
    assert "1 of 4 train images (1 of dog)" in lines[0]
    assert "1 of 2 test images (1 of cat)" in lines[1]
    assert "1 files of --exclude are not in the data: train/9" in lines[2]


def test_a_class_keeps_a_training_image():
    with pytest.raises(ValueError, match="leaves no training image of the class dog"):
        exclusion.without_files(Splits(train=source_of(0, 1)), {"train/1": "leak"})


def test_files_are_named_as_read_absolutely_or_within_the_folder(tmp_path, monkeypatch):
    from helpers.tiny_images import write_images

    write_images(tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    splits = sources.load_splits("folder", "pets")
    names = {
        "pets/train/cat/0.png": "leak",
        str(tmp_path / "pets/train/cat/1.png"): "leak",
        "train/dog/2.png": "leak",
        "elsewhere/train/dog/3.png": "leak",
    }
    kept, lines = exclusion.without_files(splits, names, "pets")
    assert [path.removeprefix("pets/train/") for path in kept.train.paths] == [
        "cat/2.png", "cat/3.png", "dog/0.png", "dog/1.png", "dog/3.png",
    ]  # fmt: skip
    assert kept.test.num_examples == splits.test.num_examples
    assert "elsewhere/train/dog/3.png" in lines[-1]
