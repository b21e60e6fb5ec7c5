import math
import os
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.tiny_training import (
    BATCH_SIZE,
    create_encoder,
    create_step,
    folder_of,
    one_device,
    pipeline_batches,
    read_log,
    run,
    state,
)

from supcon_tf.models import contrastive
from supcon_tf.storage import files
from supcon_tf.training import loop, metrics_log, optimizers, progress, steps
from supcon_tf.training.checkpoint import CheckpointFolder


@pytest.fixture(scope="module")
def five_steps(tmp_path_factory):
    """An uninterrupted run of five steps on one device, with the probe."""
    folder = str(tmp_path_factory.mktemp("five_steps"))
    step = create_step(one_device(), probe=True)
    before = state(step)
    metrics = run(one_device(), step, folder, 5)
    return {"folder": folder, "before": before, "after": state(step), "metrics": metrics}


# Training.


def test_a_continued_run_ends_with_the_same_bits(five_steps, tmp_path):
    """Weights, batch norm, optimizer slots, probe: all equal to the run that was not stopped."""
    run(one_device(), create_step(one_device(), probe=True), tmp_path, 3)
    continued = create_step(one_device(), probe=True)
    for variable in continued.model.trainable_variables:
        variable.assign(variable.value * 2)  # What counts comes from the checkpoint.
    run(one_device(), continued, tmp_path, 5)
    after = state(continued)
    assert after.keys() == five_steps["after"].keys()
    for name, expected in five_steps["after"].items():
        np.testing.assert_array_equal(after[name], expected, err_msg=name)


def test_training_moves_every_weight(five_steps):
    for name, before in five_steps["before"].items():
        if name.startswith(("model", "probe/")) and "seed_generator" not in name:
            assert np.any(five_steps["after"][name] != before), name


def test_the_log_has_every_interval_and_the_end(five_steps):
    lines = read_log(five_steps["folder"])
    assert [line["step"] for line in lines] == [2, 4, 5]
    names = {"loss", "collapse_ratio", "probe_loss", "probe_accuracy", "learning_rate", "epoch"}
    assert names | {"positive_similarity", "negative_similarity"} <= set(lines[0])
    assert not [name for name in lines[0] if name.endswith("_pairs")]
    assert lines[-1]["epoch"] == pytest.approx(5 / 3)
    assert {**lines[-1]} == {"step": 5, **five_steps["metrics"]}
    ratio = lines[0]["loss"] / (0.1 * math.log(2 * BATCH_SIZE - 1))
    assert lines[0]["collapse_ratio"] == pytest.approx(ratio)
    assert os.listdir(os.path.join(five_steps["folder"], "tensorboard"))


def test_the_probe_changes_no_weight_of_the_model(five_steps, tmp_path):
    step = create_step(one_device(), probe=False)
    run(one_device(), step, tmp_path, 5)
    for name, expected in state(step).items():
        np.testing.assert_array_equal(five_steps["after"][name], expected, err_msg=name)


def test_the_probe_loss_has_no_gradient_but_for_the_probe(monkeypatch):
    step = create_step(one_device(), probe=True)
    batch = next(iter(pipeline_batches()))
    monkeypatch.setattr(steps, "apply_gradients", lambda *_, **__: tf.constant(1.0))
    with tf.GradientTape(persistent=True) as tape:
        metrics = step(batch)
    everything = [*step.model.trainable_variables, *step.probe.trainable_variables]
    own, probes = len(step.model.trainable_variables), len(step.probe.trainable_variables)
    for name, expected in (
        ("loss", [True] * own + [False] * probes),
        ("probe_loss", [False] * own + [True] * probes),
    ):
        gradients = tape.gradient(metrics[name], everything)
        assert [gradient is not None for gradient in gradients] == expected


def test_replicas_do_not_change_the_weights(two_replicas, tmp_path):
    """Gathered embeddings, summed gradients, synchronized batch norm: as on one device.

    The slow tests train on four replicas: `test_strategies.py`.
    """
    results = []
    for name, strategy in (("one", one_device()), ("two", two_replicas)):
        step = create_step(strategy, learning_rate=0.2, probe=True)
        metrics = run(strategy, step, tmp_path / name, 3)
        results.append((state(step), metrics))
    (single, single_metrics), (several, several_metrics) = results
    assert single.keys() == several.keys()
    for name, expected in single.items():
        np.testing.assert_allclose(several[name], expected, rtol=2e-3, atol=2e-5, err_msg=name)
    for name in ("loss", "probe_loss", "probe_accuracy"):
        assert several_metrics[name] == pytest.approx(single_metrics[name], rel=1e-3)


class Exploding(keras.optimizers.schedules.LearningRateSchedule):
    """0.1 for two steps, then infinite."""

    def __call__(self, step):
        return tf.where(step < 2, 0.1, np.inf)


def test_a_loss_that_is_not_finite_stops_with_step_and_checkpoint(tmp_path):
    """The infinite rate spoils the weights in step 3, which shows in step 4."""
    step = create_step(one_device(), learning_rate=Exploding())
    with pytest.raises(ValueError) as error:
        run(one_device(), step, tmp_path, 10)
    assert "not finite at step 4" in str(error.value)
    assert "last good checkpoint is of step 2" in str(error.value)
    assert "lower learning rate" in str(error.value)
    assert [line["step"] for line in read_log(tmp_path)] == [2]
    fresh = create_step(one_device(), learning_rate=Exploding())
    folder = CheckpointFolder(str(tmp_path / "checkpoints"), **fresh.models, **fresh.optimizers)
    assert folder.restore_latest() == 2
    assert all(np.all(np.isfinite(weights)) for weights in state(fresh).values())


def test_an_exploding_gradient_stops_at_its_own_step(tmp_path):
    step = create_step(one_device())
    step.model.trainable_variables[0].assign(
        np.full(step.model.trainable_variables[0].shape, np.inf, np.float32)
    )
    with pytest.raises(ValueError, match=r"not finite at step 1 .*nothing was saved yet"):
        run(one_device(), step, tmp_path, 4)


def test_evaluation_is_logged_at_its_interval_and_at_the_end(tmp_path):
    calls = []

    def evaluate():
        calls.append(1)
        return {"knn_accuracy": len(calls) / 10}

    options = {"evaluate": evaluate, "evaluate_interval_steps": 2, "summary_interval_steps": 1}
    run(one_device(), create_step(one_device()), tmp_path, 3, **options)
    logged = {line["step"]: line.get("knn_accuracy") for line in read_log(tmp_path)}
    assert logged == {1: None, 2: 0.1, 3: 0.2}


def test_linear_stage_trains_the_head_and_nothing_else(tmp_path):
    strategy = one_device()
    keras.utils.set_random_seed(0)
    encoder, head = create_encoder(), contrastive.create_linear_head(6, 3)
    frozen = [variable.numpy() for variable in encoder.variables]
    step = steps.ClassifierStep(
        encoder=encoder,
        linear_head=head,
        optimizer=optimizers.create_optimizer("momentum", 0.1),
        global_batch_size=BATCH_SIZE,
    )
    run(strategy, step, tmp_path, 30, summary_interval_steps=1, save_interval_steps=30)
    for variable, before in zip(encoder.variables, frozen, strict=True):
        np.testing.assert_array_equal(variable, before)
    log = read_log(tmp_path)
    first, last = (np.mean([line["loss"] for line in part]) for part in (log[:3], log[-3:]))
    assert last < 0.9 * first
    assert np.mean([line["accuracy"] for line in log[-3:]]) > 0.6


def test_broken_input_names_its_steps_and_the_explanation(tmp_path):
    def broken(start_step, host, num_hosts):
        batch = next(iter(pipeline_batches()))
        batches = tf.data.Dataset.from_tensors(batch).repeat()
        return batches.map(
            lambda b: {**b, "image": tf.debugging.check_numerics(0 / tf.constant(0.0), "x") * 0
                       + tf.cast(b["image"], tf.float32)}
        )  # fmt: skip

    step = create_step(one_device())
    with pytest.raises(ValueError, match="Step 1 failed: steps 0 to 0: look here"):
        loop.train(
            strategy=one_device(),
            step=step,
            create_batches=broken,
            checkpoints=CheckpointFolder(str(tmp_path / "c"), **step.models),
            log_folder=str(tmp_path),
            total_steps=2,
            steps_per_epoch=1.0,
            schedule=lambda step: 0.1,
            explain_failure=lambda first, last: f"steps {first} to {last}: look here",
        )


def test_cross_entropy_smooths_its_labels():
    """(1 - s) log p_y + s mean log p, as in Szegedy et al. 2016."""
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    labels = np.array([0, 1, 2, 3, 1], np.int32)
    log_probs = logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    for smoothing in (0.0, 0.1):
        own = log_probs[np.arange(5), labels]
        expected = -((1 - smoothing) * own + smoothing * log_probs.mean(1))
        result = steps.sparse_cross_entropy(labels, tf.constant(logits), smoothing)
        np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_progress_comes_with_the_first_step_and_with_every_slow_one(monkeypatch, capsys, tmp_path):
    """The groups in which steps are called are traced once and do not change the weights."""
    results, traces = [], []
    for seconds, expected in ((1e9, [1, 2, 4, 6, 7]), (0.0, [1, 2, 3, 4, 5, 6, 7])):
        step = create_step(one_device())
        call, counts = step._gradients, []
        monkeypatch.setattr(step, "_gradients", lambda *x, c=call, n=counts: n.append(1) or c(*x))
        monkeypatch.setattr(loop, "UPDATE_SECONDS", seconds)
        monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
        run(one_device(), step, tmp_path / str(seconds), 7)
        shown = re.findall(r"train: step (\d) of 7", capsys.readouterr().err)
        assert shown == [str(step) for step in expected]
        results.append(state(step))
        traces.append(len(counts))
    for name, value in results[0].items():
        np.testing.assert_array_equal(results[1][name], value, err_msg=name)
    assert traces[0] == traces[1]


# The log.


def test_log_drops_later_and_half_written_lines(tmp_path):
    lines = ['{"step": 2, "loss": 1.0}\n', '{"step": 4, "loss": 0.5}\n', '{"step": 6}\n',
             '{"loss": 3}\n', '{"step": 4, "lo']  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    log = metrics_log.MetricsLog(str(tmp_path), start_step=4)
    log.write(5, {"loss": 0.25})
    log.close()
    assert read_log(tmp_path) == [
        {"step": 2, "loss": 1.0},
        {"step": 4, "loss": 0.5},
        {"step": 5, "loss": 0.25},
    ]


def test_log_drops_a_line_that_lacks_only_its_end(tmp_path):
    """Else the next line would be written behind it, and both could not be read."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}')
    log = metrics_log.MetricsLog(str(tmp_path), start_step=4)
    log.write(6, {"loss": 0.25})
    log.close()
    assert read_log(tmp_path) == [{"step": 2}, {"step": 6, "loss": 0.25}]


# Checkpoints.


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    variable = tf.Variable([0.0])
    folder = folder_of(tmp_path, variable, max_to_keep=2)
    assert folder.steps() == [] and folder.restore_latest() == 0
    for step in (1, 5, 20, 100_000_000):
        variable.assign([float(step)])
        folder.save(step)
    assert folder.steps() == [20, 100_000_000]
    assert sorted(os.listdir(folder.folder)) == ["step_00000020", "step_100000000"]
    variable.assign([-1.0])
    assert folder.restore_latest() == 100_000_000
    assert variable.numpy() == [1e8]


def test_a_checkpoint_can_be_written_again(tmp_path):
    variable = tf.Variable([1.0])
    folder = folder_of(tmp_path, variable)
    folder.save(3)
    variable.assign([2.0])
    folder.save(3)
    variable.assign([0.0])
    assert folder.restore_latest() == 3 and variable.numpy() == [2.0]


def test_a_checkpoint_counts_whole_or_not_at_all(tmp_path):
    variable = tf.Variable([1.0])
    folder = folder_of(tmp_path, variable)
    folder.save(1)
    variable.assign([2.0])
    os.remove(os.path.join(folder.save(2), "complete.json"))
    os.makedirs(os.path.join(folder.folder, "writing_00000003"))
    os.makedirs(os.path.join(folder.folder, "step_12"))
    assert folder.steps() == [1]
    assert folder.restore_latest() == 1 and variable.numpy() == [1.0]
    variable.assign([5.0])
    folder.save(3)  # over the leftover
    assert folder.steps() == [1, 3]


DAMAGES = {
    "cut data": ("data", lambda content: content[:1]),
    "half the data": ("data", lambda content: content[: len(content) // 2]),
    "changed data": ("data", lambda content: b"x" * 100 + content[100:]),
    "no data": ("data", None),
    "cut index": ("index", lambda content: content[: len(content) // 2]),
    "empty index": ("index", lambda content: b""),
    "no index": ("index", None),
}


def damage(path, what):
    part, change = DAMAGES[what]
    (name,) = (name for name in os.listdir(path) if part in name)
    file = os.path.join(path, name)
    with open(file, "rb") as opened:
        content = opened.read()
    os.remove(file)
    if change is not None:
        with open(file, "wb") as opened:
            opened.write(change(content))


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_passed_over(what, tmp_path, capsys):
    variable = tf.Variable(np.arange(100.0))
    folder = folder_of(tmp_path, variable)
    folder.save(1)
    variable.assign(variable + 1)
    damaged = folder.save(2)
    damage(damaged, what)
    assert folder.restore_latest() == 1
    np.testing.assert_array_equal(variable, np.arange(100.0))
    assert f"{damaged} cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("what", DAMAGES)
def test_only_damaged_checkpoints_are_an_error(what, tmp_path):
    folder = folder_of(tmp_path, tf.Variable(np.arange(100.0)))
    damage(folder.save(1), what)
    with pytest.raises(ValueError, match="None of the 1 checkpoints in .* can be read"):
        folder.restore_latest()


@pytest.mark.parametrize("version", [None, 1, 99])
def test_a_checkpoint_of_another_format_version_is_refused_with_a_remedy(version, tmp_path):
    """The first versions recorded none; their momentum buffers have another meaning."""
    variable = tf.Variable([1.0])
    folder = folder_of(tmp_path, variable)
    marker = os.path.join(folder.save(1), "complete.json")
    record = files.read_sealed(marker)
    del record["format_version"]
    if version is None:
        files.write_json(marker, record)
    else:
        files.write_sealed(marker, {**record, "format_version": version})
    variable.assign([2.0])
    with pytest.raises(ValueError, match=f"version {version or 1}; .*delete {folder.folder} to"):
        folder.restore_latest()
    assert variable.numpy() == [2.0] and folder.steps() == [1]


@pytest.mark.parametrize("change", ["width", "more variables", "optimizer"])
def test_a_checkpoint_of_another_architecture_is_refused(change, five_steps):
    step = create_step(
        one_device(),
        probe=True,
        filters=8 if change == "width" else 4,
        optimizer="adam" if change == "optimizer" else "momentum",
    )
    objects = {**step.models, **step.optimizers}
    if change == "more variables":
        objects["extra"] = tf.Variable([1.0])
    folder = CheckpointFolder(os.path.join(five_steps["folder"], "checkpoints"), **objects)
    with pytest.raises(ValueError, match="step_00000005 was written by another architecture"):
        folder.restore_latest()
