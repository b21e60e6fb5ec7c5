"""Runs that are stopped, killed, starved of disk or continued from damaged files."""

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from helpers.command import ROOT, read_lines, run_inside
from helpers.forked import ForkedCommand, run_forked
from helpers.tiny_training import (
    create_step,
    folder_of,
    one_device,
    pipeline_batches,
    read_log,
    run,
    state,
)

from supcon_tf.training import checkpoint, metrics_log, signals
from supcon_tf.training import loop as training_loop

# A run of 32 steps, then 16 of the linear stage.
TINY = (
    "--mode=pretrain,linear", "--num_images=512", "--image_size=8", "--strategy=one_device",
    "--pretrain_epochs=4", "--pretrain_warmup_epochs=1", "--linear_epochs=2",
    "--knn_interval_epochs=2", "--steps_per_loop=4", "--summary_interval_steps=1",
    "--save_interval_steps=5",
)  # fmt: skip


@pytest.fixture
def listening():
    """Signals as the command takes them, for one test."""
    before = {number: signal.getsignal(number) for number in signals.EXIT_CODES}
    signals.listen()
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)
    signals._State.received = None


def signalled_at(step, number=signal.SIGTERM):
    """Batches of which one, from within the compiled loop, sends this process a signal."""

    def create_batches(start_step, host, num_hosts):
        def count(index, batch):
            def send():
                """Returns once the loop knows of the signal, however busy the machine is."""
                is_known, tell_loop = threading.Event(), signals._State.on_signal
                signals._State.on_signal = lambda: (tell_loop(), is_known.set())
                os.kill(os.getpid(), number)
                assert is_known.wait(120)
                return np.int64(0)

            zero = tf.cond(
                index + start_step == step,
                lambda: tf.numpy_function(send, [], tf.int64, stateful=True),
                lambda: tf.constant(0, tf.int64),
            )
            zero = tf.ensure_shape(tf.cast(zero, batch["label"].dtype), [])
            return {**batch, "label": batch["label"] + zero}

        return pipeline_batches(start_step).enumerate().map(count)

    return create_batches


# Signals.


ALL_40_AT_ONCE = {"steps_per_loop": 40, "summary_interval_steps": 40, "save_interval_steps": 40}


@pytest.fixture(scope="module")
def forty_steps(tmp_path_factory):
    """The state after a run of 40 steps without a signal."""
    step = create_step(one_device())
    run(one_device(), step, tmp_path_factory.mktemp("forty_steps"), 40, **ALL_40_AT_ONCE)
    return state(step)


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_in_a_long_loop_saves_at_that_step_and_the_next_run_goes_on(
    number, code, listening, forty_steps, tmp_path
):
    """The loop would run all 40 steps in one call; Python's own handlers run only after it."""
    with pytest.raises(signals.Stopped, match=f"^{code}$") as caught:
        run(
            one_device(), create_step(one_device()), tmp_path / "run", 40,
            create_batches=signalled_at(9, number), **ALL_40_AT_ONCE,
        )  # fmt: skip
    (saved,) = folder_of(tmp_path / "run", tf.Variable(0.0)).steps()
    assert 0 < saved < 20  # The signal comes as batch 9 is made, some steps ahead of its use.
    assert caught.value.message == (
        f"Stopped by {number.name}: train is saved at step {saved} of 40"
    )
    assert not (tmp_path / "run/metrics.jsonl").exists()  # Its lines stand at the intervals.
    signals._State.received = None
    continued = create_step(one_device())
    run(one_device(), continued, tmp_path / "run", 40, **ALL_40_AT_ONCE)
    found = state(continued)
    for name, expected in forty_steps.items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


@pytest.mark.slow  # test_strategies.py stops two worker processes at the same step.
def test_all_replicas_stop_at_the_same_step_when_one_is_told_to(two_replicas):
    """What they read is summed; here only the worker's one flag exists, and two read it."""
    step = create_step(two_replicas)
    stop = training_loop.create_stop_flag()
    loop = training_loop.create_loop(two_replicas, step, stop)
    batches = two_replicas.distribute_datasets_from_function(lambda _: pipeline_batches(0, 2))
    iterator = iter(batches)
    done, metrics = loop(iterator, tf.constant(3))
    assert int(done) == 3 and float(metrics["stop"]) == 0.0
    stop.assign(1.0)
    done, metrics = loop(iterator, tf.constant(3))
    assert int(done) == 1 and float(metrics["stop"]) == 2.0


def test_a_signal_during_an_evaluation_stops_after_it(listening, tmp_path):
    calls = []

    def evaluate():
        calls.append(os.kill(os.getpid(), signal.SIGTERM))
        return {"knn_accuracy": 0.5}

    with pytest.raises(signals.Stopped):
        run(
            one_device(), create_step(one_device()), tmp_path, 9,
            evaluate=evaluate, evaluate_interval_steps=3,
        )  # fmt: skip
    assert len(calls) == 1
    assert {"step": 3, "knn_accuracy": 0.5}.items() <= read_log(tmp_path)[1].items()
    assert folder_of(tmp_path, tf.Variable(0.0)).steps()[-1] == 4


def test_a_signal_between_stages_stops_at_once(listening):
    with pytest.raises(signals.Stopped, match="^75$"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def test_a_signal_before_the_loop_stops_its_first_step(listening, tmp_path):
    """Such as one that came while the graph was traced."""
    signals._State.received = signal.SIGTERM
    with pytest.raises(signals.Stopped, match="^75$"):
        run(one_device(), create_step(one_device()), tmp_path, 9)
    assert folder_of(tmp_path, tf.Variable(0.0)).steps() == [1]


def wait_until(process, is_reached):
    while not is_reached():
        assert process.poll() is None, process.output()
        time.sleep(0.005)


def steps_logged(model_dir, stage="pretrain"):
    path = model_dir / stage / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("never_killed")
    done = run_forked(*TINY, f"--model_dir={model_dir}", folder=model_dir)
    assert done.returncode == 0, done.stderr
    return model_dir


def assert_same_end(one, other):
    for name in ("pretrain/encoder.keras", "linear/classifier.keras"):
        weights = (keras.models.load_model(path / name).get_weights() for path in (one, other))
        for a, b in zip(*weights, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
    for stage in ("pretrain", "linear"):
        logs = (read_lines(path / stage / "metrics.jsonl") for path in (one, other))
        for a, b in itertools.zip_longest(*logs):
            assert {**a, "images_per_second": 0} == {**b, "images_per_second": 0}


@pytest.mark.slow
def test_killed_in_a_step_in_a_save_and_between_stages_the_bits_are_the_same(
    never_killed, tmp_path
):
    checkpoints = tmp_path / "pretrain/checkpoints"
    for is_reached in (
        lambda: steps_logged(tmp_path) >= 7,
        lambda: steps_logged(tmp_path) > 12 and any(checkpoints.glob("writing_*")),
        lambda: (tmp_path / "pretrain/artifacts.json").exists(),
    ):
        process = ForkedCommand([*TINY, f"--model_dir={tmp_path}"], tmp_path / "log")
        wait_until(process, is_reached)
        process.kill()
        process.wait()
    done = run_forked(*TINY, f"--model_dir={tmp_path}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pretrain is already finished" in done.stdout
    assert_same_end(never_killed, tmp_path)


@pytest.mark.slow
def test_the_command_stops_with_a_code_of_its_own_and_goes_on(never_killed, tmp_path):
    for number, code, steps in ((signal.SIGTERM, 75, 6), (signal.SIGINT, 130, 14)):
        process = ForkedCommand([*TINY, f"--model_dir={tmp_path}"], tmp_path / "log")
        wait_until(process, lambda steps=steps: steps_logged(tmp_path) >= steps)
        process.send_signal(number)
        assert process.wait() == code, process.output()
        output = process.output()
        assert f"Stopped by {number.name}: pretrain is saved at step" in output
        assert "Traceback" not in output
    done = run_forked(*TINY, f"--model_dir={tmp_path}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_end(never_killed, tmp_path)


HANGING = """
import sys
from supcon_tf.training import signals
signals.listen()
with signals.deferred(lambda: print("heard", flush=True)):
    print("ready", flush=True)
    sys.stdin.readline()  # A step that ends when the test says so.
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_after_another_signal_ends_at_once(first):
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    for line, number in (("ready", first), ("heard", signal.SIGINT)):
        assert process.stdout.readline().strip() == line
        assert process.poll() is None
        process.send_signal(number)
    process.wait(120)
    errors = process.stderr.read()
    assert process.returncode == 130 and "Stopped immediately" in errors


def test_a_repeated_sigterm_changes_nothing():
    """Job systems send it to every process of a job, and some of them twice."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    for line in ("ready", "heard"):
        assert process.stdout.readline().strip() == line
        process.send_signal(signal.SIGTERM)
    process.communicate("the end of the step\n", timeout=120)
    assert process.returncode == 75


# Checkpoints.


SHORT = (
    *TINY, "--mode=pretrain", "--num_images=128", "--pretrain_epochs=1", "--seed=3",
    "--augmentation_type=identity", "--knn_interval_epochs=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A run of two steps in this process."""
    model_dir = tmp_path_factory.mktemp("two_steps")
    run_inside(*SHORT, f"--model_dir={model_dir}")
    return model_dir


def test_the_checkpoint_notes_step_seed_and_flags(two_steps):
    path = two_steps / "pretrain/checkpoints/step_00000002/complete.json"
    record = json.loads(path.read_text())
    assert record["step"] == 2 and record["seed"] == 3
    assert record["format_version"] == checkpoint.FORMAT_VERSION
    assert {"--seed=3", "--pretrain_epochs=1.0", "--temperature=0.1"} <= set(record["flags"])
    assert record["environment"]["tensorflow"] == tf.__version__
    assert record["environment"]["cpu_threads"] >= 1


def test_another_number_of_threads_is_said(tmp_path, capsys):
    for threads, expected in ((2, ""), (2, ""), (4, "cpu_threads 2 -> 4")):
        folder = folder_of(
            tmp_path, tf.Variable(1.0), record={"environment": {"cpu_threads": threads}}
        )
        folder.restore_latest()
        output = capsys.readouterr().out
        assert expected in output and bool(expected) == ("may differ by rounding" in output)
        folder.save(1)


def test_every_changed_byte_is_noticed_or_does_not_matter(tmp_path):
    """One bit of one byte, all over the files."""
    rng = np.random.default_rng(0)
    values = np.arange(100.0)
    variable = tf.Variable(values)
    folder = folder_of(tmp_path, variable)
    path = folder.save(1)
    noticed = {}
    for name in sorted(os.listdir(path)):
        if name == "complete.json":
            continue
        file = os.path.join(path, name)
        with open(file, "rb") as opened:
            content = opened.read()
        for offset in rng.permutation(len(content))[:60]:
            changed = bytearray(content)
            changed[offset] ^= 1 << rng.integers(8)
            with open(file, "wb") as opened:
                opened.write(changed)
            variable.assign(values * 0)
            try:
                folder.restore_latest()
                np.testing.assert_array_equal(variable, values)
            except ValueError as error:
                assert "None of the 1 checkpoints" in str(error)
                noticed[name] = noticed.get(name, 0) + 1
        with open(file, "wb") as opened:
            opened.write(content)
    assert noticed["state.data-00000-of-00001"] == 60
    assert noticed["state.index"] > 40  # The rest is padding.


@pytest.mark.parametrize("content", ["", '{"step": 2', "[]", "\0" * 20])
def test_a_damaged_marker_counts_as_a_damaged_checkpoint(content, tmp_path, capsys):
    variable = tf.Variable([1.0])
    folder = folder_of(tmp_path, variable)
    folder.save(1)
    variable.assign([2.0])
    with open(os.path.join(folder.save(2), "complete.json"), "w") as file:
        file.write(content)
    assert folder.restore_latest() == 1 and variable.numpy() == [1.0]
    assert "step_00000002 cannot be read (" in capsys.readouterr().out


def test_a_renamed_checkpoint_is_not_restored_as_another_step(tmp_path, capsys):
    variable = tf.Variable([1.0])
    folder = folder_of(tmp_path, variable)
    folder.save(2)
    variable.assign([2.0])
    path = folder.save(4)
    os.rename(path, path.replace("step_00000004", "step_00000005"))
    assert folder.restore_latest() == 2 and variable.numpy() == [1.0]
    assert "it records step 4" in capsys.readouterr().out


def test_a_damaged_checkpoint_does_not_count_when_old_ones_are_deleted(tmp_path):
    """It is put aside once an older one was read; else it would stay as the newest."""
    variable = tf.Variable([1.0])
    folder = folder_of(tmp_path, variable, max_to_keep=1)
    folder.save(5)
    folder.max_to_keep = 2
    os.remove(os.path.join(folder.save(30), "state.index"))
    folder.max_to_keep = 1
    assert folder.restore_latest() == 5
    assert sorted(os.listdir(folder.folder)) == ["damaged_00000030", "step_00000005"]
    variable.assign([2.0])
    folder.save(10)
    assert folder.steps() == [10] and folder.restore_latest() == 10


def test_what_killed_saves_left_is_removed_at_the_start(tmp_path):
    folder = folder_of(tmp_path, tf.Variable([1.0]))
    folder.save(1)
    for name in ("writing_00000002", "deleting_00000000"):
        os.makedirs(os.path.join(folder.folder, name))
        with open(os.path.join(folder.folder, name, "state.index"), "w") as file:
            file.write("half")
    assert folder.restore_latest() == 1
    assert os.listdir(folder.folder) == ["step_00000001"]


class BecomingInfinite(keras.optimizers.schedules.LearningRateSchedule):
    """0.1 for two steps, then infinite: the third step's gradient is finite, its weights not."""

    def __call__(self, step):
        return tf.where(step < 2, 0.1, np.inf)


def test_broken_weights_are_never_saved(tmp_path):
    """The step that spoils them has a finite loss and gradient, and a save is due after it."""
    step = create_step(one_device(), learning_rate=BecomingInfinite())
    with pytest.raises(ValueError, match="model: .* is not finite after step 3, so nothing was "
                       "saved; nothing was saved yet. Try a lower learning rate"):  # fmt: skip
        run(one_device(), step, tmp_path, 9, save_interval_steps=3)
    assert folder_of(tmp_path, tf.Variable(0.0)).steps() == []


def test_other_workers_take_part_in_a_save_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    variable = tf.Variable([1.0])
    worker = folder_of(tmp_path, variable, is_chief=False)
    worker.save(1)
    log = metrics_log.MetricsLog(str(tmp_path / "log"), is_chief=False)
    log.write(1, {"loss": 1.0})
    log.sync()
    log.close()
    assert log.last == {"step": 1, "loss": 1.0}
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    folder_of(tmp_path, variable).save(2)
    variable.assign([5.0])
    assert worker.restore_latest() == 2 and variable.numpy() == [1.0]


@pytest.fixture
def small_files_only():
    """A limit of 20 kB per file simulates a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, small_files_only):
    variable = tf.Variable(np.ones(1_000), shape=[None])
    folder = folder_of(tmp_path, variable)
    folder.save(1)
    variable.assign(np.ones(10_000))
    with pytest.raises(OSError, match="step 2 could not be written to .* the last good checkpoint "
                       "is of step 1. Free some disk space"):  # fmt: skip
        folder.save(2)
    assert os.listdir(folder.folder) == ["step_00000001"]
    variable.assign(np.zeros(1_000))
    assert folder.restore_latest() == 1 and variable.numpy().min() == 1.0


@pytest.mark.slow
def test_a_full_disk_ends_the_command_with_a_message(tmp_path):
    arguments = (*TINY, "--mode=pretrain", f"--model_dir={tmp_path}")
    done = run_forked(*arguments, folder=tmp_path, max_file_bytes=100_000)
    assert done.returncode == 1
    assert "ERROR: The checkpoint of step 5 could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path / "pretrain/checkpoints") == []
    done = run_forked(*arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr


# The log.


def test_the_log_is_rewritten_whole_or_not_at_all(tmp_path, small_files_only):
    """A rewrite that fails, as on a full disk, leaves the old file."""
    path = tmp_path / "metrics.jsonl"
    lines = "".join(json.dumps({"step": step, "pad": "x" * 50}) + "\n" for step in range(1, 201))
    resource.setrlimit(resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE)[1:] * 2)
    path.write_text(lines * 3)
    with open(path, "a") as file:
        file.write('{"step": 7')
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    )
    with pytest.raises((OSError, tf.errors.OpError)):
        metrics_log.MetricsLog(str(tmp_path), start_step=500)
    assert path.read_text() == lines * 3 + '{"step": 7'
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "tensorboard"]


def test_tensorboard_shows_each_step_once(tmp_path):
    """Read by TensorBoard itself: the second run says from where on the first is void."""
    from tensorboard.backend.event_processing import plugin_event_accumulator

    parts = ((0, range(1, 3)), (0, range(1, 8)), (4, range(5, 10)))
    for number, (start_step, steps) in enumerate(parts):
        log = metrics_log.MetricsLog(str(tmp_path), start_step=start_step)
        for step in steps:
            log.write(step, {"loss": float(step + 100 * start_step)})
        log.close()
        # Files are read in the order of their names, which hold the second of their start.
        for file in (tmp_path / "tensorboard").glob("events.out.tfevents.1[0-9]*"):
            rest = file.name.split(".", 4)[4]
            file.rename(file.with_name(f"events.out.tfevents.{number:010}.{rest}"))
    path = str(tmp_path / "tensorboard")
    events = plugin_event_accumulator.EventAccumulator(path, size_guidance={"tensors": 0}).Reload()
    points = [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in
              events.Tensors("loss")]  # fmt: skip
    assert points == [(s, s) for s in range(1, 5)] + [(s, s + 400.0) for s in range(5, 10)]


# Flags.


def test_a_flag_of_a_later_version_had_its_default_before(two_steps, tmp_path):
    """A run that started without the flag resumes; with another value it is rejected."""
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    arguments = (*SHORT, f"--model_dir={tmp_path}")
    path = tmp_path / "pretrain/stage.flags"
    lines = path.read_text().splitlines()
    new = ("--temperature", "--online_probe", "--nowarm_start_projection_head")
    path.write_text("\n".join(line for line in lines if not line.startswith(new)) + "\n")
    run_inside(*arguments)
    with pytest.raises(ValueError, match=r"--temperature=0.1  ->  --temperature=0.5"):
        run_inside(*arguments, "--temperature=0.5")
    with pytest.raises(ValueError, match=r"--online_probe  ->  --noonline_probe"):
        run_inside(*arguments, "--noonline_probe")
    with pytest.raises(ValueError, match=r"\(no --use_initial_max_pool\)  ->  --use_initial"):
        run_inside(*arguments, "--use_initial_max_pool")
    assert flags.FLAGS.temperature == 0.1  # Nothing of it stays.


STARVED = """
import threading, sys
import numpy as np, tensorflow as tf
from supcon_tf.training import loop, signals
signals.WAIT_SECONDS = 1.0
signals.listen()
class Step:
    metric_names = ("loss",)
    def __call__(self, batch):
        return {"loss": tf.reduce_sum(batch), "finite": 1.0}
def batches():
    for _ in range(3):
        yield np.ones(2, np.float32)
    print("starved", flush=True)
    threading.Event().wait()
data = tf.data.Dataset.from_generator(batches, output_signature=tf.TensorSpec([2], tf.float32))
if sys.argv[1] == "in the loop":
    stop, waits = loop.create_stop_flag(), loop.create_stop_flag()
    run = loop.create_loop(tf.distribute.get_strategy(), Step(), stop, is_waiting=waits)
    iterator = iter(data)
    with signals.deferred(lambda: stop.assign(1.0), lambda: bool(waits.numpy())):
        run(iterator, tf.constant(10))
else:
    list(data)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "where,number", [("in the loop", signal.SIGTERM), ("before the loop", signal.SIGINT)]
)
def test_a_signal_ends_a_process_that_waits_for_input(where, number):
    process = subprocess.Popen(
        [sys.executable, "-c", STARVED, where],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "starved\n"
    time.sleep(0.5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == {signal.SIGTERM: 75, signal.SIGINT: 130}[number]
    assert "waiting for input" in errors and "Traceback" not in errors
