"""The accuracy at the coarser levels of a hierarchy."""

import numpy as np
import pytest
from helpers.image_folders import PNG

from supcon_tf.data import csv_source, held_out_classes, sources
from supcon_tf.data.image_files import FileSource
from supcon_tf.stages import level_figures


def test_the_most_probable_family_is_that_of_the_largest_total_probability():
    """Classes a, b of x and c of y: b or c may be the most probable class of an image of x."""
    source = FileSource(
        ("1", "2", "3"), np.array([0, 0, 2]), ("a", "b", "c"),
        level_names=(("x", "y"), ("a", "b", "c")), parents=((0, 0, 1),),
    )  # fmt: skip
    probabilities = np.array([[0.3, 0.3, 0.4], [0.1, 0.8, 0.1], [0.5, 0.1, 0.4]])
    (found,) = level_figures.of_levels(
        probabilities, source.labels, np.arange(3), source, ["family", "kind"]
    )
    assert found["level"] == "family" and found["num_classes"] == 2
    assert found["accuracy"] == pytest.approx(2 / 3)  # Top-1 is 0.
    assert found["interval_95"].low < 2 / 3 < found["interval_95"].high
    assert "family 0.6667 [" in level_figures.describe_levels([found])
    # The classifier has its classes in another order, and one that the data does not have.
    order = [3, 2, 0]
    other = np.insert(probabilities, 1, 0.0, axis=1)[:, [3, 1, 2, 0]]
    numbers = np.array(order)
    (same,) = level_figures.of_levels(
        other, numbers[source.labels], numbers, source, ["family", "kind"]
    )
    assert same["accuracy"] == found["accuracy"]


def test_parents_come_from_the_table_and_follow_held_out_classes(tmp_path):
    kinds = ("b", "a", "c", "d") * 3
    families = {"a": "x", "b": "y", "c": "y", "d": "x"}
    lines = ["filename,family,kind"]
    for index, kind in enumerate(kinds):
        (tmp_path / f"{index}.png").write_bytes(PNG)
        lines.append(f"{index}.png,{families[kind]},{kind}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    loaded = csv_source.load_csv(
        str(tmp_path / "labels.csv"), label_type="hierarchy", label_columns=("family", "kind"),
        validation_split=0,
    )  # fmt: skip
    source = loaded["train"]
    assert source.parents == ((0, 1, 1, 0),)
    rest = held_out_classes.without_classes(sources.finest_level(source), ["b"])
    assert rest.class_names == ("a", "c", "d") and rest.parents == ((0, 1, 0),)
