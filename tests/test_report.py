"""--mode=report: what it reads from a run, and the page that the whole command leaves."""

import csv
import json
import re
import shlex
import shutil

import keras
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from helpers import prepared_tfds
from helpers.command import SHORT, run_inside
from helpers.page_reader import read_page
from helpers.tiny_images import write_images

from supcon_tf.cli import implied_flags, path_checks
from supcon_tf.stages import report_files
from supcon_tf.stages.run_directory import RunDirectory

DIGITS = (*SHORT, "--num_images=256")
SECTIONS = ["run", "training", "result", "embedding", "input"]


def page_of(folder):
    return read_page((folder / "report/index.html").read_text(encoding="utf-8"))


def sections(top):
    return [section.attributes["id"] for section in top.all("section")]


def write_flags(folder, stage, *lines):
    (folder / stage).mkdir(parents=True, exist_ok=True)
    (folder / stage / "stage.flags").write_text("\n".join([f"--mode={stage}", *lines]) + "\n")
    return RunDirectory(str(folder))


# What the files of a run say.


def test_flags_are_compared_with_the_defaults(tmp_path):
    lines = ("--temperature=0.3", "--nouse_labels", "--batch_size=64", "--seed=0")
    run = write_flags(tmp_path, "pretrain", *lines)
    write_flags(tmp_path, "linear", "--seed=0", "--linear_epochs=7")
    changed = {
        name: (stages, value, default)
        for stages, name, value, default in report_files.changed_flags(run, None)
    }
    assert changed["temperature"] == ("pretrain", "0.3", "0.1")
    assert changed["use_labels"] == ("pretrain", "false", "true")
    assert changed["linear_epochs"][:2] == ("linear", "7.0")
    assert "seed" not in changed and "model_dir" not in changed


def test_flags_are_compared_with_the_recipe(tmp_path):
    run = write_flags(tmp_path, "pretrain", "--recipe=digits", "--temperature=0.1",
                      "--pretrain_epochs=3")  # fmt: skip
    changed = report_files.changed_flags(run, "digits")
    assert ("pretrain", "pretrain_epochs", "3.0", "30.0") in changed
    assert "temperature" not in [name for _, name, *_ in changed]


def test_the_command_repeats_the_flags(tmp_path):
    lines = (
        "--nouse_labels",
        "--horizontal_flip=true",
        "--dataset=folder",
        "--data_dir=a b",
        "--temperature=0.3",
    )
    facts = report_files.read_facts(write_flags(tmp_path, "pretrain", *lines), [])
    words = shlex.split(facts.command)
    assert {"--nouse_labels", "--horizontal_flip=true", "--data_dir=a b"} <= set(words)
    assert "--mode=pretrain,report" in words and words[-1] == f"--model_dir={tmp_path}-again"
    with flagsaver.flagsaver():
        flags.FLAGS(["supcon_tf", *words[words.index("supcon_tf.main") + 1 :]], known_only=True)
        assert (flags.FLAGS.use_labels, flags.FLAGS.temperature) == (False, 0.3)


def test_a_damaged_line_of_the_log_is_left_out(tmp_path, capsys):
    run = write_flags(tmp_path, "pretrain")
    good = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2)]
    log = tmp_path / "pretrain/metrics.jsonl"
    log.write_text("\n".join([*good, '{"step": 3, "lo']))  # A training that runs is writing it.
    assert [line["step"] for line in report_files.read_lines(run, "pretrain")] == [1, 2]
    assert "damaged" not in capsys.readouterr().out
    log.write_text("\n".join([good[0], "[]", good[1]]) + "\n")
    assert [line["step"] for line in report_files.read_lines(run, "pretrain")] == [1, 2]
    assert "left out 1 damaged" in capsys.readouterr().out


def test_findings_are_read_by_kind_and_score(tmp_path):
    (tmp_path / "inspect").mkdir()
    columns = ["file", "split", "kind", "score", "other_file", "evidence", "confirmed"]
    rows = [[f"{i}.png", "train", "outlier", i / 10, "", "far away", ""] for i in range(12)]
    rows.append(["a,b.png", "test", "leak", 0.5, "c.png", 'label "x"', "yes"])
    with open(tmp_path / "inspect/issues.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    asked = []

    def find_image(name, split):
        asked.append((name, split))

    found = report_files.read_inspection(RunDirectory(str(tmp_path)), find_image)
    assert found.counts == {"outlier": 12, "leak": 1}
    outliers = [finding.file for finding in found.worst if finding.kind == "outlier"]
    assert outliers == [f"{i}.png" for i in range(11, 3, -1)]
    (leak,) = [finding for finding in found.worst if finding.kind == "leak"]
    assert (leak.file, leak.evidence, leak.confirmed) == ("a,b.png", 'label "x"', "yes")
    assert ("c.png", "test") in asked
    assert report_files.read_inspection(RunDirectory(str(tmp_path / "no")), find_image) is None


def test_a_run_to_compare_must_be_one(tmp_path):
    write_flags(tmp_path / "run", "pretrain")
    with flagsaver.flagsaver():
        arguments = ["--mode=report", f"--model_dir={tmp_path}/run", f"--compare={tmp_path}"]
        flags.FLAGS(implied_flags.complete(["supcon_tf", *arguments]))
        with pytest.raises(ValueError, match=f"--compare={tmp_path} contains no run"):
            path_checks.check_paths(flags.FLAGS)


# The whole command.


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A short run of all stages and a second one with another seed, without a report."""
    root = tmp_path_factory.mktemp("digits")
    for seed, last in ((0, ",report"), (1, "")):
        run_inside(
            f"--mode=pretrain,linear,eval{last}", *DIGITS, f"--seed={seed}",
            f"--model_dir={root}/{seed}",
        )  # fmt: skip
    return root


@pytest.mark.slow
def test_one_command_trains_and_reports(digits):
    top = page_of(digits / "0")
    assert sections(top) == SECTIONS
    evaluation = json.loads((digits / "0/eval/eval.json").read_text())
    result = top.find("result").text
    assert f"{100 * evaluation['top_1']:.1f}% [" in result
    assert f"{evaluation['expected_calibration_error']:.4f}" in result
    assert "--num_images" in top.find("run").text
    titles = [strong.text for strong in top.all("strong")]
    for title in ("Loss (pretraining)", "Map of the embeddings by t-SNE", "Reliability diagram",
                  "Confusion matrix", "Similarities of pairs", "Images per class"):  # fmt: skip
        assert title in titles
    assert "before training" in top.find("embedding").text
    assert (digits / "0/report/index.html").stat().st_size < 2_000_000


@pytest.mark.slow
def test_the_map_marks_what_the_classifier_gets_wrong(digits):
    data = json.loads(page_of(digits / "0").find("explorer-data").text)
    predictions = np.load(digits / "0/eval/predictions.npz")
    predicted = predictions["probabilities"].argmax(axis=1)
    assert data["labels"] == [str(label) for label in predictions["label"]]
    assert data["predicted"] == [str(label) for label in predicted]


@pytest.mark.slow
def test_two_runs_side_by_side(digits, capsys):
    shutil.copytree(digits / "0", digits / "copy")
    run_inside("--mode=report", f"--model_dir={digits}/copy", f"--compare={digits}/1")
    top = page_of(digits / "copy")
    text = top.find("comparison").text
    right = [np.load(digits / f"{name}/eval/predictions.npz") for name in ("copy", "1")]
    right = [x["probabilities"].argmax(axis=1) == x["label"] for x in right]
    difference = f"{100 * (right[1].mean() - right[0].mean()):+.1f} points"
    assert difference in text and "--seed=1" in text and "360" in text
    assert re.search("compared with .* on 360 images", capsys.readouterr().out)


@pytest.mark.slow
def test_before_training_is_the_encoder_of_the_same_seed(tmp_path, monkeypatch):
    """With --pretrain_epochs=0 the trained encoder is the untrained one."""
    from supcon_tf.stages import report

    seen = []
    monkeypatch.setattr(report, "create_report", lambda data: seen.append(data) or "")
    run_inside("--mode=pretrain,report", "--pretrain_epochs=0", "--seed=3",
               f"--model_dir={tmp_path}")  # fmt: skip
    found = seen[0].embedding
    np.testing.assert_allclose(found.before, found.embeddings[found.before_rows], atol=1e-5)


@pytest.mark.slow
def test_without_a_classifier_it_says_how_to_train_one(digits, tmp_path, capsys):
    shutil.copytree(digits / "0/pretrain", tmp_path / "run/pretrain")
    run_inside("--mode=pretrain,report", *DIGITS, f"--model_dir={tmp_path}/run")
    top = page_of(tmp_path / "run")
    assert sections(top) == SECTIONS
    command = f"--mode=linear,eval,report --model_dir={tmp_path}/run"
    assert command in top.find("result").text and command in capsys.readouterr().out
    assert "Map of the embeddings by PCA" in top.find("embedding").text


@pytest.mark.slow
def test_folders_with_names_that_are_no_plain_text(tmp_path):
    classes = ("<script>alert(1)<", 'a "b" & c', "猫")
    data = write_images(tmp_path / "data", classes=classes, count=8, size=16)
    run_inside("--mode=pretrain,linear,eval,report", *SHORT, f"--data_dir={data}",
               "--batch_size=8", f"--model_dir={tmp_path}/run")  # fmt: skip
    top = page_of(tmp_path / "run")
    assert {*classes} <= {bdi.text for bdi in top.all("bdi")}
    assert len(list(top.all("script"))) == 2
    names = json.loads(top.find("explorer-data").text)["names"]
    assert "猫/0.png" in names


@pytest.mark.slow
@pytest.mark.parametrize("label_type", ["multi_label", "real"])
def test_csv_files_with_other_labels(tmp_path, label_type):
    data = write_images(tmp_path / "data", classes=("a", "b"), count=8, size=16)
    labels = {"multi_label": ("a", "a|b"), "real": ("1.5", "2.5")}[label_type]
    lines = ["filename,label,split"] + [
        f"{split}/{name}/{i}.png,{labels[k]}{i if label_type == 'real' else ''},{split}"
        for split in ("train", "test") for k, name in enumerate(("a", "b")) for i in range(8)
    ]  # fmt: skip
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    loss = ("--nouse_labels",) if label_type == "real" else ()
    run_inside(
        "--mode=pretrain,linear,eval,report", *SHORT[:3], f"--data_csv={tmp_path}/labels.csv",
        f"--data_dir={data}", f"--label_type={label_type}", "--batch_size=8", *loss,
        f"--model_dir={tmp_path}/run",
    )  # fmt: skip
    top = page_of(tmp_path / "run")
    assert sections(top) == SECTIONS
    expected = {"multi_label": "Mean average precision", "real": "Mean absolute error"}
    assert expected[label_type] in top.find("result").text
    assert "Map of the embeddings by t-SNE" in top.find("embedding").text


@pytest.mark.slow
def test_a_dataset_of_tfds(tmp_path):
    prepared_tfds.write_two_greys(tmp_path / "tfds")
    run_inside(
        "--mode=pretrain,linear,eval,report", *SHORT, "--dataset=two_greys", "--image_size=16",
        f"--data_dir={tmp_path}/tfds", "--batch_size=8", f"--model_dir={tmp_path}/run",
    )  # fmt: skip
    top = page_of(tmp_path / "run")
    assert "6 images of two_greys" in top.find("result").text
    assert "8" in top.find("input").text and "bright" in top.find("input").text


@pytest.mark.slow
def test_a_training_that_was_stopped_has_its_curves(digits, tmp_path):
    shutil.copytree(digits / "0/pretrain", tmp_path / "run/pretrain")
    for name in ("result.json", "encoder.keras", "artifacts.json"):
        (tmp_path / "run/pretrain" / name).unlink()
    run_inside("--mode=report", f"--model_dir={tmp_path}/run")
    top = page_of(tmp_path / "run")
    assert "The stage is unfinished" in top.find("training").text
    assert "no trained encoder" in top.find("embedding").text


@pytest.mark.slow
def test_the_evaluation_of_an_older_classifier_is_marked(digits, tmp_path):
    shutil.copytree(digits / "0", tmp_path / "run")
    path = tmp_path / "run/linear/classifier.keras"
    model = keras.models.load_model(path)
    model.set_weights([weight + 1e-3 for weight in model.get_weights()])
    model.save(path)
    (tmp_path / "run/linear/artifacts.json").unlink()
    run_inside("--mode=report", f"--model_dir={tmp_path}/run")
    text = page_of(tmp_path / "run").find("result").text
    assert "trained again after this evaluation" in text and "--mode=eval,report" in text
