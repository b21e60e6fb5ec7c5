"""--mode=inspect: the rows of each kind, the csv, and the whole command on drawn images."""

import csv
import json
import shutil

import numpy as np
import pytest
from helpers.command import run_inside
from helpers.tiny_images import write_images
from PIL import Image, ImageDraw

import supcon_tf
from supcon_tf.cli import command_line
from supcon_tf.data import data_identity
from supcon_tf.evaluation import data_issues, image_prints, outliers
from supcon_tf.evaluation.data_issues import InspectedImages, Issue
from supcon_tf.evaluation.duplicates import DuplicatePairs
from supcon_tf.stages import inputs


def inspected(labels, splits=None, features=None):
    count = len(labels)
    return InspectedImages(
        names=[f"{index}.jpg" for index in range(count)],
        splits=np.array(splits or ["train"] * count),
        labels=np.array(labels),
        class_names=("cat", "dog"),
        features=np.zeros([count, 2], np.float32) if features is None else features,
    )


def pairs_of(*pairs):
    first, second = np.array(pairs).T
    ones = np.ones(len(pairs))
    return DuplicatePairs(first, second, ones, ones > 0, ones == 0, ones)


def test_pairs_become_leaks_contradictions_and_duplicates():
    images = inspected([0, 0, 1, 0, 1], ["train", "train", "train", "test", "test"])
    pairs = pairs_of((0, 1), (0, 2), (0, 3), (1, 3))
    issues = data_issues.find_duplicate_issues(images, pairs)
    found = {(issue.kind, issue.file, issue.other_file) for issue in issues}
    assert found == {
        ("duplicate", "1.jpg", "0.jpg"),
        ("contradiction", "0.jpg", "2.jpg"),
        ("contradiction", "2.jpg", "0.jpg"),
        ("leak", "0.jpg", "3.jpg"),
        ("leak", "1.jpg", "3.jpg"),
    }
    assert all(issue.split == "train" for issue in issues)
    assert data_issues.leaked_places(images, pairs, "test").tolist() == [3]
    (first, *_) = [issue for issue in issues if issue.kind == "contradiction"]
    assert first.evidence == "same pixels; labeled cat and dog"


def test_distances_of_outliers_equal_loops_in_float64():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=[30, 5])
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    expected = []
    for index, row in enumerate(unit):
        distances = sorted(1 - row @ other for at, other in enumerate(unit) if at != index)
        expected.append(np.mean(distances[:10]))
    found = outliers.neighbor_distances(embeddings)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    values = np.array([1.0, 2, 3, 4, 100])  # Median 3, absolute deviations 2 1 0 1 97.
    deviations = outliers.robust_deviations(values)
    np.testing.assert_allclose(deviations, (values - 3) * 0.6745)
    assert outliers.robust_deviations(np.array([1.0, 1, 1, 9])).tolist() == [0, 0, 0, 0]


def test_an_outlier_of_its_class_is_listed_unless_it_is_mislabeled():
    rng = np.random.default_rng(0)
    features = np.repeat(np.eye(2, 8), 30, axis=0) + 0.05 * rng.normal(size=[60, 8])
    labels = [0] * 30 + [1] * 30
    labels[3] = 1
    images = inspected(labels, features=features.astype(np.float32))
    found = data_issues.find_outliers(images, np.zeros(60, bool))
    first = max(found, key=lambda issue: issue.score)
    assert (first.file, first.kind) == ("3.jpg", "outlier") and "images of dog" in first.evidence
    without = data_issues.find_outliers(images, np.arange(60) == 3)
    assert [issue for issue in found if issue.file != "3.jpg"] == without


def test_odd_sizes_and_blank_images_are_named():
    rng = np.random.default_rng(0)
    shapes = [(20, 20)] * 5 + [(4, 4), (20, 100), (20, 20)]
    drawn = [rng.integers(0, 256, [*shape, 3]).astype(np.uint8) for shape in shapes]
    drawn[-1][:] = 7
    issues = data_issues.find_odd_images(
        inspected([0] * len(drawn)), image_prints.print_images(drawn)
    )
    assert [(issue.file, issue.evidence.split(":")[0]) for issue in issues] == [
        ("5.jpg", "small"), ("6.jpg", "unusual shape"), ("7.jpg", "blank"),
    ]  # fmt: skip


def test_rare_classes_are_named():
    images = inspected([0] * 50 + [1] * 5)
    (issue,) = data_issues.find_imbalance(images)
    assert issue.file == "" and "class dog: 5 training images" in issue.evidence


def test_marks_of_a_person_survive_a_second_inspection():
    old = [Issue("a", "train", "leak", 1.0, confirmed="yes"), Issue("b", "train", "leak", 1.0)]
    gone = Issue("c", "train", "mislabeled", 0.25, "d", "text", "no")
    text = data_issues.to_csv([*old, gone])
    read = list(csv.DictReader(text.splitlines()))
    assert tuple(read[0]) == data_issues.COLUMNS
    new = [Issue("a", "train", "leak", 0.9), Issue("b", "train", "leak", 0.9)]
    kept = data_issues.keep_confirmed(new, read)
    assert [issue.confirmed for issue in kept] == ["yes", "", "no"]
    assert kept[0].score == 0.9 and kept[2] == gone


def draw(seed, label):
    """A square (0) or a circle (1) on a colored background."""
    rng = np.random.default_rng(seed)
    # A pattern of its own for each image, so that no two are near-duplicates by chance.
    pattern = rng.integers(0, 120, [6, 6, 3]).astype(np.uint8)
    image = Image.fromarray(pattern).resize((24, 24))
    left, top = rng.integers(1, 10, 2).tolist()
    side = int(rng.integers(9, 13))
    pencil = ImageDraw.Draw(image)
    shape = (pencil.rectangle, pencil.ellipse)[label]
    color = [(255, 160, 0), (0, 160, 255)][label]
    noise = rng.integers(-30, 30, 3)
    shape([left, top, left + side, top + side],
          fill=tuple(np.clip(np.array(color) + noise, 0, 255).tolist()))  # fmt: skip
    return image


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A folder of drawn images with an error of each kind."""
    root = tmp_path_factory.mktemp("drawn")
    for split, count in (("train", 30), ("test", 12)):
        for label, name in enumerate(("square", "circle")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                seed = 1000 * label + 100 * (split == "test") + index
                draw(seed, label).save(root / split / name / f"{index}.png")
    train, test = root / "train", root / "test"
    shutil.move(train / "square/3.png", train / "circle/wrong.png")
    shutil.copy(train / "circle/4.png", train / "circle/zz_copy.png")
    Image.open(train / "square/6.png").transpose(0).save(test / "square/zz_leak.png")
    shutil.copy(train / "square/8.png", train / "circle/zz_other_label.png")
    Image.new("RGB", (24, 24), (50, 50, 50)).save(train / "square/blank.png")
    (train / "circle/broken.png").write_bytes((train / "circle/5.png").read_bytes()[:60])
    return root


@pytest.mark.slow
def test_planted_errors_are_found_confirmed_and_left_out(planted, tmp_path, capsys):
    run = tmp_path / "run"
    common = (f"--data_dir={planted}", "--strategy=one_device")
    run_inside(
        "--mode=pretrain,inspect", "--pretrain_epochs=0.5", "--batch_size=20",
        "--knn_interval_epochs=0",
        "--skip_broken_images", f"--model_dir={run}", *common,
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "compared by encoder" in printed and "--exclude=" in printed
    with open(run / "inspect/issues.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["kind"], row["file"].split("/", len(planted.parts))[-1]) for row in rows}
    assert found >= {
        ("duplicate", "train/circle/zz_copy.png"),
        ("leak", "train/square/6.png"),
        ("contradiction", "train/square/8.png"),
        ("contradiction", "train/circle/zz_other_label.png"),
        ("odd_image", "train/square/blank.png"),
        ("odd_image", "train/circle/broken.png"),
    }
    result = json.loads((run / "inspect/inspect.json").read_text())
    assert result["kinds"]["leak"]["splits"]["test"]["num_leaked"] == 1
    assert "accuracy_without_leaked" in result["kinds"]["leak"]["splits"]["test"]

    for row in rows:
        row["confirmed"] = "yes" if row["file"].endswith("zz_copy.png") else ""
    with open(run / "inspect/issues.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    issues = supcon_tf.inspect_run(run)
    assert [issue.confirmed for issue in issues if issue.file.endswith("zz_copy.png")][0] == "yes"
    capsys.readouterr()

    clean = tmp_path / "clean"
    chosen = (f"--exclude={run}/inspect/issues.csv", "--exclude_kinds=leak")
    run_inside(
        "--mode=pretrain", "--pretrain_epochs=0.5", "--batch_size=20", "--knn_interval_epochs=0",
        "--skip_broken_images", f"--model_dir={clean}", *chosen, *common,
    )  # fmt: skip
    assert "Left out by --exclude: 2 of 63 train images" in capsys.readouterr().out
    files = (clean / "pretrain/data_files.tsv").read_text()
    assert "circle/4.png" in files and "square/6.png" not in files and "zz_copy.png" not in files


def test_the_splits_are_without_the_excluded_files(tmp_path, capsys):
    write_images(tmp_path / "pets")
    rows = [
        f"{tmp_path}/pets/train/cat/{index}.png,train,{kind},1,,,{confirmed}"
        for index, kind, confirmed in ((0, "leak", ""), (1, "outlier", "yes"), (2, "leak", "no"))
    ]
    path = tmp_path / "run/inspect/issues.csv"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join([",".join(data_issues.COLUMNS), *rows]))

    def splits(*arguments):
        given = (f"--data_dir={tmp_path}/pets", "--dataset=folder", f"--model_dir={tmp_path}/run")
        return inputs.splits_from_flags(command_line.peek(["", *given, *arguments]))

    whole = splits().train
    confirmed = splits("--exclude=inspect/issues.csv").train  # Relative to --model_dir.
    kinds = splits(f"--exclude={path}", "--exclude_kinds=leak").train
    assert [source.num_examples for source in (whole, confirmed, kinds)] == [8, 7, 6]
    assert "2 of 8 train images (2 of cat)" in capsys.readouterr().out
    digests = {data_identity.identity_of(source).digest for source in (whole, confirmed, kinds)}
    assert len(digests) == 3  # Part of the identity of a run.
    path.write_text(",".join(data_issues.COLUMNS))
    with pytest.raises(ValueError, match="leaves out nothing.*--exclude_kinds"):
        splits("--exclude=inspect/issues.csv")


def test_without_an_encoder_pixels_are_compared(planted, tmp_path, capsys):
    issues = supcon_tf.inspect_run(tmp_path / "new", data_dir=str(planted))
    printed = capsys.readouterr().out
    assert "has no trained encoder" in printed and "--mode=pretrain" in printed
    assert {"duplicate", "leak", "contradiction", "odd_image"} <= {issue.kind for issue in issues}
    (wrong,) = [issue for issue in issues if issue.file.endswith("circle/wrong.png")]
    assert wrong.kind == "mislabeled" and "labeled circle, seems square" in wrong.evidence
    with pytest.raises(ValueError, match="no trained encoder"):
        supcon_tf.inspect_run(tmp_path / "new", data_dir=str(planted), inspect_features="encoder")
    with pytest.raises(ValueError, match="There is no run at"):
        supcon_tf.inspect_run(tmp_path / "new")
    with pytest.raises(ValueError, match="There is no flag data_folder"):
        supcon_tf.inspect_run(tmp_path / "new", data_dir=str(planted), data_folder="x")
