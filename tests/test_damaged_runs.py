"""A run whose files, data or flags changed: what is said, and that the remedy works."""

import contextlib
import json
import re
import resource
import shlex
import shutil
import signal

import numpy as np
import pytest
from helpers.command import run_inside
from PIL import Image

from supcon_tf.stages.run_directory import RunDirectory
from supcon_tf.storage import files
from supcon_tf.training.metrics_log import MetricsLog

CLASSES = ("cat", "dog")
SHORT = (
    "--dataset=folder", "--image_size=8", "--batch_size=4", "--eval_batch_size=8",
    "--pretrain_epochs=2", "--pretrain_warmup_epochs=0", "--linear_epochs=1",
    "--knn_interval_epochs=0", "--summary_interval_steps=1", "--save_interval_steps=2",
    "--eval_train_examples=0", "--projection_head_layers=8", "--cross_entropy_weight=1",
    "--augmentation_type=identity",
)  # fmt: skip
DAMAGES = ("deleted", "truncated", "bit flipped", "{}", "[]", "another run's")
# What the evaluation reads of a stage.
READ_BY_EVAL = {
    "pretrain": ("artifacts.json", "encoder.keras", "projection_head.keras"),
    "linear": (
        "artifacts.json", "identity.json", "classifier.keras", "class_names.json",
        "label_type.json",
    ),
}  # fmt: skip
# By far the most that a case takes; a hang would be longer.
LONGEST_SECONDS = 120


def write_images(root):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(6):
                noise = rng.integers(0, 60, [10, 10, 3]) + 150 * (np.arange(3) == label)
                Image.fromarray(noise.astype(np.uint8)).save(folder / f"{index}.png")
    return root


class FinishedRun:
    """A run in a directory that is put back to its finished state before every damage."""

    def __init__(self, root):
        data = write_images(root / "data")
        self.data = data
        self.path, self.whole = root / "run", root / "whole"
        self.flags = (*SHORT, f"--data_dir={data}", f"--model_dir={self.path}")
        run_inside("--mode=pretrain,linear,eval,embed,export", *self.flags)
        shutil.copytree(self.path, self.whole)
        self.state = self.describe()

    def other(self, stage):
        """The folder of a stage of another run, which is made when it is first asked for."""
        folder = self.path.parent / "other"
        for mode in ("pretrain", "linear")[: 1 + (stage == "linear")]:
            if not (folder / mode).exists():
                run_inside(f"--mode={mode}", *self.flags, f"--model_dir={folder}", "--seed=1")
        return folder / stage

    def restore(self):
        shutil.rmtree(self.path)
        shutil.copytree(self.whole, self.path)

    def unfinish(self, steps=6):
        """As killed in pretraining after some steps."""
        self.restore()
        shutil.rmtree(self.path / "linear")
        for name in ("encoder.keras", "result.json", "artifacts.json"):
            (self.path / "pretrain" / name).unlink()
        for path in self.checkpoints():
            if int(path.name[-8:]) > steps:
                shutil.rmtree(path)

    def checkpoints(self):
        return sorted((self.path / "pretrain/checkpoints").glob("step_*"))

    def encoder(self):
        return RunDirectory(str(self.path)).artifacts("pretrain").identity("encoder.keras")

    def describe(self):
        """What must be as before after every remedy."""
        run = RunDirectory(str(self.path))
        figures = json.loads((self.path / "eval/eval.json").read_text())
        del figures["classifier_sha256"]
        return {
            "encoder": run.artifacts("pretrain").identity("encoder.keras"),
            "projection_head": run.artifacts("pretrain").identity("projection_head.keras"),
            "classifier": run.artifacts("linear").identity("classifier.keras"),
            "problems": [run.artifacts(stage).problems() for stage in ("pretrain", "linear")],
            "class_names": json.loads((self.path / "linear/class_names.json").read_text()),
            "steps": [
                [json.loads(line)["step"] for line in (self.path / stage / "metrics.jsonl").open()]
                for stage in ("pretrain", "linear")
            ],
            "figures": figures,
        }

    def damage(self, name, how):
        path = self.path / name
        content = path.read_bytes()
        if how == "deleted":
            path.unlink()
        elif how == "truncated":
            path.write_bytes(content[: len(content) // 2])
        elif how == "bit flipped":
            changed = bytearray(content)
            changed[len(content) // 2] ^= 1
            path.write_bytes(changed)
        elif how == "another run's":
            stage, _, file = name.partition("/")
            shutil.copy(self.other(stage) / file, path)
        else:
            path.write_text(how)
        return not path.exists() or path.read_bytes() != content


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return FinishedRun(tmp_path_factory.mktemp("finished"))


def attempt(finished, mode, again=True):
    """Runs a stage; follows the command of a message, and returns the message.

    Without `again` the stage is not run after that command, which `describe` checks anyway.
    """
    try:
        run_inside(f"--mode={mode}", *finished.flags)
        return ""
    except (ValueError, OSError) as error:  # Anything else would be a traceback for the user.
        message = str(error)
    command = re.search(r"-m supcon_tf.main (.*)", message)
    assert command, f"no command to follow in: {message}"
    run_inside(*shlex.split(command[1]))
    if again:
        run_inside(f"--mode={mode}", *finished.flags)
    return message


def try_damage(finished, name, how, capsys):
    """Returns how it ended: "message" or "right result"."""
    finished.restore()
    if not finished.damage(name, how):
        return "no damage"
    capsys.readouterr()
    messages = ""
    with no_hang(f"{name} {how}"):
        for mode in modes_that_read(name):
            # An evaluation after the remedy is the same for all hows: two of them show it.
            again = mode != "eval" or how in ("deleted", "another run's")
            messages += attempt(finished, mode, again)
    messages += capsys.readouterr().out
    assert finished.describe() == finished.state, (name, how)
    is_named = str(finished.path / name) in re.sub(r"The files of this run are in.*", "", messages)
    return "message" if is_named else "right result"


@contextlib.contextmanager
def no_hang(what):
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"{what}: hangs"))
    signal.alarm(LONGEST_SECONDS)
    yield
    signal.alarm(0)


def modes_that_read(name):
    """The modes for which the file can matter; the other files are tried together below."""
    stage, _, file = name.partition("/")
    if stage in ("embed", "export"):
        return ("pretrain,linear", stage)
    if stage == "eval" or file in READ_BY_EVAL[stage]:
        return ("eval", "pretrain,linear")
    return ("pretrain,linear",)


def recorded(finished):
    """The files of the training stages, whose loss must not go unsaid."""
    for stage in ("pretrain", "linear"):
        yield f"{stage}/artifacts.json"
        manifest = json.loads((finished.whole / stage / "artifacts.json").read_text())
        yield from (f"{stage}/{name}" for name in manifest["files"])


@pytest.mark.parametrize(
    "name,how",
    [
        ("pretrain/encoder.keras", "bit flipped"),
        ("linear/classifier.keras", "truncated"),
    ],
)
def test_a_damaged_file_is_named_and_the_printed_command_makes_it_again(
    name, how, finished, capsys
):
    """Two of the cases that the slow test below tries."""
    assert name in set(recorded(finished))
    assert try_damage(finished, name, how, capsys) == "message"


@pytest.mark.slow
def test_no_damage_of_a_finished_run_is_silent_or_a_dead_end(finished, capsys):
    names = list(recorded(finished))
    cases = [
        (name, how)
        for name in names
        for how in DAMAGES
        if not (name.endswith(".keras") and how in ("{}", "[]"))  # As good as truncated.
    ]
    older = [
        checkpoint
        for stage in ("pretrain", "linear")
        for checkpoint in sorted((finished.whole / stage / "checkpoints").iterdir())[:-1]
    ]
    others = [
        path.relative_to(finished.whole)
        for path in finished.whole.rglob("*")
        if not any(path.is_relative_to(checkpoint) for checkpoint in older)
    ]
    files = sorted(str(path) for path in others if (finished.whole / path).is_file())
    for name in files:
        if name in names:
            continue
        hows = ("deleted", "truncated", "bit flipped") if "checkpoints" in name else ("deleted",)
        cases += [(name, how) for how in hows]
    counts = {"message": 0, "right result": 0, "no damage": 0}
    silent, failed = [], []
    for name, how in cases:
        try:
            ended = try_damage(finished, name, how, capsys)
        except BaseException as error:  # The sweep continues, so that its counts are complete.
            if isinstance(error, KeyboardInterrupt):
                raise
            failed.append((name, how, f"{type(error).__name__}: {error}"))
            continue
        counts[ended] += 1
        if name in names and ended == "right result":
            silent.append((name, how))
    counts["tried"] = len(cases) - counts.pop("no damage")
    with capsys.disabled():
        print(f"\nDamaged run folders: {counts}; silent: {silent}; failed: {failed}")
    assert not silent and not failed
    assert counts["tried"] >= 61


@pytest.mark.slow
@pytest.mark.parametrize("how", ("deleted", "truncated", "bit flipped", "another run's"))
def test_an_evaluation_does_not_need_the_other_files_of_a_run(how, finished, capsys):
    """All of them are damaged at once, so that the cases above need not evaluate for each."""
    finished.restore()
    names = [
        str(path.relative_to(finished.path)) for path in finished.path.rglob("*") if path.is_file()
    ]
    unread = [name for name in names if "eval" not in modes_that_read(name)]
    chosen = set(unread) & set(recorded(finished)) if how == "another run's" else unread
    damaged = [finished.damage(name, how) for name in sorted(chosen)]
    assert sum(damaged) >= 8
    capsys.readouterr()
    with no_hang(how):
        run_inside("--mode=eval", *finished.flags)
    said = capsys.readouterr().out
    assert not [name for name in unread if f"{finished.path}/{name}" in said]
    figures = json.loads((finished.path / "eval/eval.json").read_text())
    del figures["classifier_sha256"]
    assert figures == finished.state["figures"]


# The data is part of what a run is.


@pytest.fixture
def other_data(finished, tmp_path):
    """A copy of the data to change, and flags that name it."""
    data = tmp_path / "data"
    shutil.copytree(finished.data, data)
    return data, (*finished.flags, f"--data_dir={data}")


@pytest.mark.parametrize("steps", [6, pytest.param(4, marks=pytest.mark.slow)])
def test_a_copy_of_the_data_elsewhere_is_the_same_data(steps, finished, other_data, capsys):
    """For a finished run, which says so, and for one that resumes."""
    finished.restore() if steps == 6 else finished.unfinish(steps=steps)
    run_inside("--mode=pretrain", *other_data[1])
    assert ("already finished" in capsys.readouterr().out) == (steps == 6)
    assert finished.encoder() == finished.state["encoder"]


@pytest.mark.parametrize("stage", ["pretrain", "linear", "eval", "embed"])
def test_changed_data_is_refused_with_the_difference(stage, finished, other_data):
    """By the stage that resumes, and by those that build on a finished one."""
    data, arguments = other_data
    finished.unfinish(steps=4) if stage == "pretrain" else finished.restore()
    if stage == "linear":
        shutil.rmtree(finished.path / "linear")
    (data / "train/dog").rename(data / "train/wolf")
    (data / "test/dog").rename(data / "test/wolf")
    (data / "train/cat/0.png").rename(data / "train/cat/new.png")
    shutil.copy(data / "train/cat/1.png", data / "train/cat/more.png")
    with pytest.raises(ValueError) as caught:
        run_inside(f"--mode={stage}", *arguments)
    message = str(caught.value)
    for text in ("class renamed: dog -> wolf", "file renamed: cat/0.png -> cat/new.png",
                 "file added: cat/more.png"):  # fmt: skip
        assert text in message
    remedy = {"pretrain": "--override_flags", "linear": "--reference_ckpt="}
    assert remedy.get(stage, "--eval_data_dir") in message


@pytest.mark.slow
def test_training_goes_on_with_changed_data_when_told_to(finished, other_data):
    data, arguments = other_data
    finished.unfinish(steps=4)
    shutil.copy(data / "train/cat/1.png", data / "train/cat/more.png")
    run_inside("--mode=pretrain", *arguments, "--override_flags")
    assert finished.encoder() != finished.state["encoder"]


def test_other_data_is_evaluated_by_class_names_with_flags_of_its_own(finished, other_data, capsys):
    data, _ = other_data
    finished.restore()
    expected = finished.state["figures"]
    for split in ("train", "test"):  # Another order of labels: the classes are found by name.
        (data / split / "ant").mkdir()
        shutil.copy(data / split / "cat/0.png", data / split / "ant")
    arguments = ("--mode=eval", *finished.flags, f"--eval_data_dir={data}")
    with pytest.raises(ValueError, match="also has ant"):
        run_inside(*arguments)
    for split in ("train", "test"):
        shutil.rmtree(data / split / "ant")
    run_inside(*arguments, "--eval_train_examples=10")
    result = json.loads((finished.path / "eval/eval.json").read_text())
    assert result["top_1"] == expected["top_1"] and result["data_dir"] == str(data)
    assert result["num_train_examples"] == 10
    run_inside("--mode=eval", *finished.flags, "--eval_split=train")
    assert json.loads((finished.path / "eval/eval.json").read_text())["num_examples"] == 12
    capsys.readouterr()
    (data / "train/cat/0.png").unlink()
    run_inside(*arguments, f"--data_dir={data}", f"--eval_data_dir={finished.data}",
               "--eval_train_examples=10")  # fmt: skip
    assert "skipping k-NN and logistic regression" in capsys.readouterr().out
    result = json.loads((finished.path / "eval/eval.json").read_text())
    assert "knn_top_1" not in result and result["top_1"] == expected["top_1"]


def test_a_refused_run_leaves_nothing_that_a_later_one_would_use(finished, other_data, tmp_path):
    """Such as the whitening that it measured on other data."""
    data, arguments = other_data
    arguments = (*arguments, f"--model_dir={tmp_path / 'run'}", "--mode=pretrain",
                 "--pretrain_epochs=0")  # fmt: skip
    (tmp_path / "nothing/pretrain").mkdir(parents=True)
    with pytest.raises(ValueError, match="has no encoder"):
        run_inside(*arguments, f"--reference_ckpt={tmp_path / 'nothing'}")
    assert [path.name for path in (tmp_path / "run/pretrain").iterdir()] == ["lock"]
    for path in data.glob("train/*/*.png"):
        Image.fromarray(255 - np.array(Image.open(path))).save(path)
    run_inside(*arguments)
    one, other = (
        files.read_sealed(str(path / "pretrain/identity.json"))["measured"]["whitening"]
        for path in (finished.whole, tmp_path / "run")
    )
    np.testing.assert_allclose(other["mean"], -np.array(one["mean"]), atol=1e-3)


# Checkpoints say what they are.


@pytest.mark.slow  # test_interruption.py renames a checkpoint of one variable.
def test_a_renamed_checkpoint_of_a_run_is_not_restored_as_another_step(finished, capsys):
    finished.unfinish(steps=4)
    newest = finished.checkpoints()[-1]
    newest.rename(newest.with_name("step_00000005"))
    run_inside("--mode=pretrain", *finished.flags)
    assert "it records step 4" in capsys.readouterr().out
    assert finished.encoder() == finished.state["encoder"]


def test_without_its_records_a_run_still_refuses_other_flags(finished):
    finished.unfinish(steps=4)
    for name in ("stage.flags", "identity.json"):
        (finished.path / "pretrain" / name).unlink()
    with pytest.raises(ValueError, match="--pretrain_weight_decay=.*->.*=0.1"):
        run_inside("--mode=pretrain", *finished.flags, "--pretrain_weight_decay=0.1")


@pytest.mark.slow
def test_without_its_records_a_run_resumes_with_the_same_flags(finished):
    finished.unfinish(steps=4)
    for name in ("stage.flags", "identity.json"):
        (finished.path / "pretrain" / name).unlink()
    run_inside("--mode=pretrain", *finished.flags)
    assert finished.encoder() == finished.state["encoder"]


def test_a_checkpoint_of_another_run_is_refused(finished):
    finished.unfinish(steps=2)
    shutil.copytree(
        finished.other("pretrain") / "checkpoints/step_00000004",
        finished.path / "pretrain/checkpoints/step_00000004",
    )
    with pytest.raises(ValueError, match="step_00000004 cannot be used.*\n.*--seed=1"):
        run_inside("--mode=pretrain", *finished.flags)


def test_fewer_steps_than_were_trained_are_refused(finished):
    finished.restore()
    with pytest.raises(ValueError, match="reached step 6.* 3 steps. .* at least 2 epochs"):
        run_inside("--mode=pretrain", *finished.flags, "--override_flags", "--pretrain_epochs=1")
    run_inside("--mode=pretrain,linear", *finished.flags)
    assert finished.describe() == finished.state  # The refused run changed nothing.


def test_results_are_not_made_again_by_training_from_the_start(finished):
    finished.restore()
    (finished.path / "pretrain/encoder.keras").unlink()
    shutil.rmtree(finished.path / "pretrain/checkpoints")
    with pytest.raises(ValueError, match="no checkpoint of step 6 .* Delete .*pretrain"):
        run_inside("--mode=pretrain", *finished.flags)


# The log.


@pytest.mark.parametrize("line", [b"5\n", b"\xff{}\n", b"[]\n", b'{"step": "x"}\n', b"\0\0\n"])
def test_damaged_lines_of_the_log_are_set_aside_and_named(line, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(str(tmp_path))
    for step in range(1, 6):
        log.write(step, {"loss": step / 4})
    log.close()
    lines = path.read_bytes().splitlines(keepends=True)
    whole = b"".join(lines)
    path.write_bytes(b"".join([*lines[:2], line, *lines[3:]]))
    log = MetricsLog(str(tmp_path), start_step=5)
    log.close()
    assert log.last == {"step": 5, "loss": 1.25}
    assert "damaged in line 3" in capsys.readouterr().out
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == line
    assert path.read_bytes() == whole  # The third line comes from TensorBoard's file.


def test_a_lost_log_is_restored_from_what_tensorboard_has(tmp_path):
    """Without the tags of the released code and the pictures, which are no lines of the log."""
    log = MetricsLog(str(tmp_path), stage="linear")
    log.write_image("views", np.zeros([4, 4, 3], np.uint8))
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 4, "accuracy": 0.5, "learning_rate": 1.0})
    log.close()
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").unlink()
    MetricsLog(str(tmp_path), start_step=3).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


# A full disk.


@contextlib.contextmanager
def full_disk():
    """A limit of 3 kB per file simulates a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_log_on_a_full_disk_says_what_to_do(tmp_path):
    log = MetricsLog(str(tmp_path))
    with pytest.raises(OSError, match="Free some disk .* same command again"), full_disk():
        for step in range(1, 1_000):
            log.write(step, {"loss": 1.0})
    log.close()


@pytest.mark.parametrize("stage", ["embed", "export"])
def test_an_output_on_a_full_disk_leaves_the_one_before(stage, finished):
    finished.restore()
    folder = finished.path / stage
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "embeddings.writing.npz").write_text("left by a kill")
    with pytest.raises(OSError, match="Free some disk .* same command again"), full_disk():
        run_inside(f"--mode={stage}", *finished.flags, "--embed_split=train")
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    outputs = [path for path in before if "saved_model" in str(path) or path.suffix == ".npz"]
    assert outputs and all(after[path] == before[path] for path in outputs)
