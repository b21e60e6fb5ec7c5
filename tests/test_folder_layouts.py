"""The layouts of image folders, and the rule that holds validation images out."""

import numpy as np
import pytest
from helpers.image_folders import encode

from supcon_tf.data import data_identity, folder_layout, sources
from supcon_tf.data.validation_split import held_out, number_of

JPEG = encode()


def write(root, *folders, count=10, first=0):
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + count):
            (root / folder / f"{index}.jpg").write_bytes(JPEG)
    return str(root)


def sizes(splits):
    found = (splits.train, splits.validation, splits.test)
    return tuple(None if source is None else source.num_examples for source in found)


def names(source):
    return {path.rpartition("/data/")[2] for path in source.paths}


def test_training_and_test_folders(tmp_path):
    root = write(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog")
    splits = sources.load_splits("folder", root)
    assert sizes(splits) == (20, None, 20) and splits.held_out is splits.test


@pytest.mark.parametrize("name", ["valid", "validation", "val"])
def test_validation_gives_the_figures_of_training_and_test_the_final_ones(tmp_path, name):
    write(tmp_path, "train/cat", "train/dog")
    root = write(tmp_path, f"{name}/cat", f"{name}/dog", count=3)
    splits = sources.load_splits("folder", root)
    assert sizes(splits) == (20, 6, None) and splits.held_out is splits.validation
    assert sources.load_source("folder", "test", root).num_examples == 6  # There is no other.
    write(tmp_path, "test/cat", "test/dog", count=4)
    splits = sources.load_splits("folder", root)
    assert sizes(splits) == (20, 6, 8) and splits.held_out is splits.validation
    assert sources.load_source("folder", "test", root).num_examples == 8


def test_one_folder_per_class_is_split_by_name_and_seed(tmp_path):
    root = write(tmp_path / "data", "cat", "dog", count=100)
    splits = sources.load_splits("folder", root)
    train, validation, test = sizes(splits)
    assert train + validation == 200 and test is None and 20 <= validation <= 60
    assert not names(splits.train) & names(splits.validation)
    assert all(np.bincount(splits.validation.labels) >= 8)
    # Files keep their side when others are added, in a class or as a class.
    write(tmp_path / "data", "cat", "owl", count=50, first=100)
    more = sources.load_splits("folder", root)
    assert names(splits.train) <= names(more.train)
    assert names(splits.validation) <= names(more.validation)
    other = sources.load_splits("folder", root, seed=1)
    assert names(other.validation) != names(more.validation)
    rule = {path for path in names(more.train) | names(more.validation) if number_of(path, 0) < 0.2}
    assert rule == names(more.validation)


def test_train_alone_is_split_as_without_it_and_a_fraction_applies_beside_test(tmp_path):
    flat = write(tmp_path / "flat/data", "cat", "dog")
    alone = write(tmp_path / "alone/data", "train/cat", "train/dog")
    sides = [sources.load_splits("folder", root, validation_split=0.4) for root in (flat, alone)]
    assert names(sides[0].train) == {name[len("train/") :] for name in names(sides[1].train)}
    assert sizes(sources.load_splits("folder", alone, validation_split=0.0)) == (20, None, None)
    write(tmp_path / "alone/data", "test/cat", "test/dog")
    train, validation, test = sizes(sources.load_splits("folder", alone, validation_split=0.4))
    assert train + validation == 20 and validation and test == 20


def test_every_class_keeps_a_training_file():
    names = [f"cat/{index}.jpg" for index in range(3)] + ["dog/0.jpg"]
    groups = [np.arange(3), np.array([3])]
    for seed in range(20):
        chosen = held_out(names, groups, fraction=0.99, seed=seed)
        assert not chosen[:3].all() and not chosen[3]


def test_the_split_does_not_depend_on_how_a_file_system_stores_accents():
    assert number_of("caf\u00e9/1.jpg", 0) == number_of("cafe\u0301/1.jpg", 0)
    # The rule itself, so that no version gives the files of a run other sides.
    assert round(number_of("cat/1.jpg", 0), 6) == 0.724238


def test_a_class_may_be_named_train(tmp_path):
    root = write(tmp_path, "train", "plane", "car")
    assert folder_layout.find_layout(root).class_names == ("car", "plane", "train")


@pytest.mark.parametrize(
    "folders,message",
    [
        (["a/cat", "a/dog"], "holds a. Expected"),
        (["a/cat", "b/cat"], "/a contains folders but no images"),
        (["test/cat", "test/dog"], "/train is missing"),
        (["train/cat", "train/dog", "val/cat", "valid/cat"], "ambiguous: it holds valid and val"),
        (["train/cat", "train/dog", "cat"], "ambiguous: the class cat"),
        (["train/cat"], "1 class folder"),
        (["train", "test"], "0 class folder"),
        (["train/cat", "train/dog", "test/owl"], "lacks: owl"),
        (["cat"], "holds cat. Expected"),
    ],
)
def test_other_layouts_are_refused(tmp_path, folders, message):
    root = write(tmp_path, *folders, count=1)
    with pytest.raises(ValueError, match=message) as error:
        folder_layout.check_layout(root)
    assert str(tmp_path) in str(error.value)
    assert not folder_layout.looks_like_dataset(root)


def test_two_names_of_validation_data_are_refused(tmp_path):
    root = write(tmp_path, "train/cat", "train/dog", "val/cat", "val/dog")
    with pytest.raises(ValueError, match="--validation_split=0.2 and .*/val both"):
        sources.load_splits("folder", root, validation_split=0.2)


def test_a_directory_of_tfds_is_not_taken_for_images(tmp_path):
    for name in ("cifar10/3.0.2", "mnist/3.0.1", "downloads/extracted"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "dataset_info.json").write_text("{}")
    (tmp_path / "downloads/file.jpg").write_text("")
    assert not folder_layout.looks_like_dataset(str(tmp_path))
    assert folder_layout.looks_like_dataset(write(tmp_path / "own", "cat", "dog"))


def test_links_are_followed_once(tmp_path):
    root = write(tmp_path / "data", "cat", "dog")
    stored = write(tmp_path / "stored", "owl")
    (tmp_path / "data/owl").symlink_to(f"{stored}/owl")
    (tmp_path / "data/again").symlink_to(root)
    (tmp_path / "data/cat/twin.jpg").symlink_to("0.jpg")
    (tmp_path / "data/cat/other.jpg").symlink_to(f"{stored}/owl/0.jpg")
    splits = sources.load_splits("folder", root, validation_split=0.0)
    assert splits.train.class_names == ("cat", "dog", "owl")
    assert splits.train.num_examples == 31 and splits.train.ignored == ("again", "twin.jpg")
    (tmp_path / "data/kitten").symlink_to("cat")
    with pytest.raises(ValueError, match="kitten and .*cat are the same folder"):
        sources.load_splits("folder", root)


def test_data_that_is_only_evaluated_needs_no_training_images(tmp_path):
    options = {"for_training": False}
    root = write(tmp_path / "one", "test/cat", "test/owl")
    assert sources.load_source("folder", "test", root, **options).class_names == ("cat", "owl")
    root = write(tmp_path / "two", "cat", "owl")
    assert sources.load_source("folder", "test", root, **options).num_examples == 20
    with pytest.raises(ValueError, match="two has no train split"):
        sources.load_source("folder", "train", root, **options)


def test_the_rule_of_the_split_is_part_of_what_the_data_is(tmp_path):
    root = write(tmp_path, "cat", "dog")
    one, other = (
        data_identity.identity_of(
            sources.load_source("folder", "train", root, validation_split=fraction)
        )
        for fraction in (0.2, 0.5)
    )
    assert one.digest != other.digest
    assert any("validation split: {'fraction': 0.2" in x for x in data_identity.differences(
        one, other
    ))  # fmt: skip
