import csv
import io
import json
import os

import numpy as np
import pytest

from supcon_tf.evaluation import metrics, prediction_files
from supcon_tf.evaluation.prediction_files import PredictedFile, Predictions

NAMES = [
    "plain.jpg",
    "comma, quote \" and 'more'.jpg",
    "two\nlines\r\nand\rthree.jpg",
    "Größe/写真/фото/صورة/😀.jpg",
    " spaces and ; tabs\t.jpg",
    "=1+1.jpg",
    os.fsdecode(b"not utf-8 \xff\xfe.jpg"),
]


def some_predictions(dtype=np.float16, names=None, several=False):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(7, 3)), rng.integers(3, size=7)
    logits[np.arange(7), labels] += 1
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Predictions(
        np.eye(3, dtype=bool)[labels] if several else labels,
        probabilities.astype(dtype),
        np.array(NAMES) if names is None else names,
        ("cat", "dog, big", "Ж\n"),
    )


def assert_same(first, second):
    assert first.class_names == second.class_names
    for name in ("labels", "probabilities", "names"):
        one, other = getattr(first, name), getattr(second, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("names", [None, np.arange(7)])
@pytest.mark.parametrize("several", [False, True])
def test_npz_keeps_everything_and_needs_no_pickle(dtype, names, several):
    expected = some_predictions(dtype, names, several)
    content = prediction_files.to_npz(expected)
    assert_same(prediction_files.from_npz(content), expected)
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = set(archive)
    place = "name" if names is None else "index"
    assert arrays == {"version", "label", "probabilities", "class_names", place}
    assert prediction_files.to_npz(expected) == content


def test_figures_can_be_recomputed_from_the_file():
    read = prediction_files.from_npz(prediction_files.to_npz(some_predictions(np.float32)))
    logits = np.log(read.probabilities.astype(np.float64))
    expected = metrics.classification_metrics(logits, read.labels)
    found = metrics.classification_metrics(read.log_probabilities(), read.labels)
    for name in ("top_1", "negative_log_likelihood", "expected_calibration_error"):
        assert found[name] == pytest.approx(expected[name])
    assert read.is_correct().mean() == pytest.approx(expected["top_1"])
    several = some_predictions(several=True)
    np.testing.assert_array_equal(several.is_correct(), some_predictions().is_correct())


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_probability_that_was_rounded_to_zero_has_a_finite_logarithm(dtype):
    zero = Predictions(np.array([0]), np.array([[0, 1]], dtype), np.array(["a"]), ("x", "y"))
    assert np.isfinite(zero.log_probabilities()).all()
    assert zero.log_probabilities()[0, 0] < -16


def rows(k=2, num_neighbors=2):
    predictions = some_predictions(np.float32)
    near = np.array([[i, (i + 1) % 7] for i in range(7)])[:, :num_neighbors]
    return list(
        prediction_files.predicted_files(
            NAMES,
            predictions.probabilities,
            predictions.class_names,
            k=k,
            neighbor_names=NAMES,
            neighbor_indices=near,
            similarities=np.tile([[0.75, 0.5]], [7, 1])[:, :num_neighbors],
        )
    )


def read_csv(content):
    text = io.TextIOWrapper(io.BytesIO(content), "utf-8", "surrogateescape", newline="")
    return list(csv.reader(text))


def test_csv_says_what_the_arrays_say_and_keeps_every_name():
    file = io.BytesIO()
    prediction_files.write_csv(file, rows(), k=2, num_neighbors=2)
    header, *lines = read_csv(file.getvalue())
    assert header == [
        *("file", "class", "probability", "class_1", "probability_1", "class_2", "probability_2"),
        *("nearest_1", "similarity_1", "nearest_2", "similarity_2"),
    ]
    predictions = some_predictions(np.float32)
    order = np.argsort(-predictions.probabilities, axis=1)
    for i, line in enumerate(lines):
        record = dict(zip(header, line, strict=True))
        assert record["file"] == NAMES[i]
        assert record["class"] == record["class_1"] == predictions.class_names[order[i, 0]]
        assert record["class_2"] == predictions.class_names[order[i, 1]]
        probability = predictions.probabilities[i, order[i, 1]]
        assert float(record["probability_2"]) == pytest.approx(probability, rel=1e-5)
        assert (record["nearest_2"], record["similarity_2"]) == (NAMES[(i + 1) % 7], "0.5")
    assert len(lines) == 7
    assert file.getvalue().count(b"plain.jpg,") >= 1 and b"\xff\xfe" in file.getvalue()


def test_csv_is_read_by_other_tools():
    """A strict reader in UTF-8 that knows nothing of the byte that is not."""
    file = io.BytesIO()
    prediction_files.write_csv(file, rows()[:3], k=2, num_neighbors=2)
    lines = list(csv.reader(io.StringIO(file.getvalue().decode("utf-8"), newline=""), strict=True))
    assert [line[0] for line in lines[1:]] == NAMES[:3]


def test_jsonl_is_the_twin_of_the_csv():
    file = io.BytesIO()
    prediction_files.write_jsonl(file, rows())
    lines = file.getvalue().decode("utf-8").removesuffix("\n").split("\n")
    records = [json.loads(line) for line in lines]
    assert [record["file"] for record in records] == NAMES
    table = io.BytesIO()
    prediction_files.write_csv(table, rows(), k=2, num_neighbors=2)
    header, *cells = read_csv(table.getvalue())
    for record, line in zip(records, cells, strict=True):
        row = dict(zip(header, line, strict=True))
        assert record["class"] == record["top"][0]["class"] == row["class"]
        assert [x["class"] for x in record["top"]] == [row["class_1"], row["class_2"]]
        assert [x["file"] for x in record["nearest"]] == [row["nearest_1"], row["nearest_2"]]
        assert record["top"][1]["probability"] == pytest.approx(
            float(row["probability_2"]), rel=1e-5
        )
    assert "写真" in lines[3]


def test_more_classes_than_there_are_and_no_neighbors():
    few = rows(k=9, num_neighbors=0)
    assert all(len(row.classes) == 3 and not row.neighbors for row in few)
    file = io.BytesIO()
    prediction_files.write_csv(file, few, k=4, num_neighbors=1)
    header, *lines = read_csv(file.getvalue())
    assert all(len(line) == len(header) == 3 + 8 + 2 for line in lines)
    assert all(line[-4:] == [""] * 4 for line in lines)


def test_equally_probable_classes_keep_their_order():
    (row,) = prediction_files.predicted_files(["a"], np.full([1, 3], 1 / 3), ["x", "y", "z"], k=2)
    assert row == PredictedFile("a", ["x", "y"], [1 / 3] * 2, [], [])


def test_files_of_another_form_are_refused():
    for content in (b"", b"not a zip", npz(x=np.ones(2)), npz(version=np.array({}, object))):
        with pytest.raises(ValueError, match="not a predictions.npz"):
            prediction_files.from_npz(content)
    content = prediction_files.to_npz(some_predictions())
    with pytest.raises(ValueError, match="not a predictions.npz"):
        prediction_files.from_npz(content[: len(content) // 2])
    with np.load(io.BytesIO(content)) as archive:
        later = npz(**{**archive, "version": np.array(2)})
    with pytest.raises(ValueError, match="version 2, expected 1"):
        prediction_files.from_npz(later)


def test_a_file_is_read_from_its_path_and_named_when_it_is_damaged(tmp_path):
    path = tmp_path / "predictions.npz"
    path.write_bytes(prediction_files.to_npz(some_predictions()))
    assert_same(prediction_files.read_predictions(str(path)), some_predictions())
    path.write_bytes(b"half")
    with pytest.raises(ValueError, match="predictions.npz cannot be read"):
        prediction_files.read_predictions(str(path))


def npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"labels": np.zeros([7, 4], bool)}, "labels of shape"),
        ({"probabilities": np.zeros([6, 3])}, "probabilities of shape"),
        ({"names": np.arange(3)}, "names of shape"),
        ({"names": np.arange(7.0)}, "names of type float64"),
        ({"names": np.array(NAMES, object)}, "names of type object"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, message):
    fields = {**vars(some_predictions()), **changes}
    with pytest.raises(ValueError, match=message):
        Predictions(**fields)
