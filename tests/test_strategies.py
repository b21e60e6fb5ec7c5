"""What the run runs on: which strategy is taken, in which precision, and that it is all one."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from helpers import tiny_training
from helpers.forked import ForkedCommand

from supcon_tf import strategies
from supcon_tf.augment import policies
from supcon_tf.cli import command_line
from supcon_tf.data import pipeline, sources
from supcon_tf.losses.supcon import SupConLoss
from supcon_tf.models import contrastive
from supcon_tf.stages import process
from supcon_tf.training import loop, optimizers, steps

ROOT = Path(__file__).parent.parent
TWO_WORKERS = {"worker": ["host0:1", "host1:1"]}

if "mode" not in flags.FLAGS:
    command_line.define_flags()


# Which strategy.


@pytest.fixture
def no_cluster(monkeypatch):
    for name in list(os.environ):
        if name == "TF_CONFIG" or name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    return monkeypatch


def set_tf_config(monkeypatch, cluster, job="worker", index=0):
    config = {"cluster": cluster, "task": {"type": job, "index": index}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))


def test_without_a_cluster_it_is_one_device(no_cluster):
    assert strategies.find_cluster() is None
    set_tf_config(no_cluster, {"worker": ["host0:1"]})
    assert strategies.find_cluster() is None
    no_cluster.setenv("SLURM_NTASKS", "4")  # An allocation, in which srun started nothing.
    no_cluster.setenv("SLURM_PROCID", "0")
    no_cluster.delenv("TF_CONFIG")
    assert strategies.find_cluster() is None
    strategy = strategies.create_strategy("auto")
    assert strategies.strategy_name(strategy) == "one_device"
    assert strategies.is_chief(strategy) and strategies.num_hosts(strategy) == 1
    assert strategies.gather_from_workers(strategy, 7) == [7]


def test_tf_config_names_the_cluster(no_cluster):
    set_tf_config(no_cluster, TWO_WORKERS, index=1)
    resolver = strategies.find_cluster()
    assert resolver.cluster_spec().as_dict() == TWO_WORKERS
    assert (resolver.task_type, resolver.task_id) == ("worker", 1)


def test_slurm_names_the_cluster_on_nodes_without_gpus(no_cluster):
    """TensorFlow's own resolver asks nvidia-smi, and divides by the number of GPUs."""
    no_cluster.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in {
        "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "node[07-08]",
        "SLURM_STEP_TASKS_PER_NODE": "2,1",
    }.items():  # fmt: skip
        no_cluster.setenv(name, value)
    resolver = strategies.find_cluster()
    tasks = ["node07:8888", "node07:8889", "node08:8888"]
    assert resolver.cluster_spec().as_dict() == {"worker": tasks}
    assert (resolver.task_type, resolver.task_id) == ("worker", 2)
    assert resolver.num_accelerators() == {"GPU": 0}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    "config,message",
    [
        ("{", "TF_CONFIG=.* is not valid"),
        ('{"cluster": {"worker": 3}}', "TF_CONFIG=.* is not valid"),
        ({"cluster": {**TWO_WORKERS, "ps": ["host2:1"]}}, "only 'worker' and at most one"),
        (
            {"cluster": TWO_WORKERS, "task": {"type": "worker", "index": 2}},
            "worker 2, which is not in its cluster",
        ),
        (
            {"cluster": TWO_WORKERS, "task": {"type": "chief", "index": 0}},
            "chief 0, which is not in its cluster",
        ),
    ],
)
def test_a_wrong_tf_config_is_refused(no_cluster, config, message):
    no_cluster.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(ValueError, match=message):
        strategies.create_strategy("auto")


def test_multi_worker_without_a_cluster_says_how_to_name_one(no_cluster):
    with pytest.raises(ValueError, match='TF_CONFIG=.{"cluster": {"worker": .*srun'):
        strategies.create_strategy("multi_worker")


@pytest.mark.parametrize(
    "cluster,job,index,is_chief",
    [
        (TWO_WORKERS, "worker", 0, True),
        (TWO_WORKERS, "worker", 1, False),
        ({"chief": ["host0:1"], "worker": ["host1:1"]}, "chief", 0, True),
        ({"chief": ["host0:1"], "worker": ["host1:1"]}, "worker", 0, False),
    ],
)
def test_the_chief_is_the_chief_task_or_else_worker_0(cluster, job, index, is_chief):
    class Several(tf.distribute.MultiWorkerMirroredStrategy):
        cluster_resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(cluster), task_type=job, task_id=index
        )

        def __init__(self):
            pass

    assert strategies.is_chief(Several()) is is_chief
    assert strategies.is_multi_worker(Several()) and strategies.num_hosts(Several()) == 2


@pytest.fixture
def tpu(monkeypatch):
    """Stands for a TPU: what is called, in order."""
    calls = []

    def resolver(**options):
        calls.append(options)
        return "resolver"

    def record(name, result=None):
        return lambda argument: calls.append((name, argument)) or result

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", resolver)
    monkeypatch.setattr(tf.config, "experimental_connect_to_cluster", record("connect"))
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", record("initialize"))
    monkeypatch.setattr(tf.distribute, "TPUStrategy", record("strategy", "the strategy"))
    return calls


@pytest.mark.parametrize("name", ["auto", "tpu"])
def test_a_tpu_is_connected_initialised_and_taken(tpu, name, no_cluster):
    set_tf_config(no_cluster, TWO_WORKERS)  # A TPU machine may have one too.
    options = {"tpu_name": "mine", "tpu_zone": "us-east5-a", "gcp_project": "project"}
    assert strategies.create_strategy(name, **options) == "the strategy"
    assert tpu == [
        {"tpu": "mine", "zone": "us-east5-a", "project": "project"},
        ("connect", "resolver"), ("initialize", "resolver"), ("strategy", "resolver"),
    ]  # fmt: skip


def test_no_tpu_is_said_with_its_name(tpu, monkeypatch):
    def fail(**_):
        raise OSError("no answer from the metadata server\nand more")

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", fail)
    with pytest.raises(ValueError, match=r"tpu_name=mine.*metadata server\)"):
        strategies.create_strategy("auto", tpu_name="mine")
    with pytest.raises(ValueError, match="needs the TPU's name"):
        strategies.create_strategy("tpu")


# Evaluation over hosts.


@pytest.mark.parametrize("num_examples,limit", [(16, None), (21, None), (21, 5)])
def test_hosts_share_every_example_of_an_evaluation_once(num_examples, limit):
    images = np.arange(num_examples, dtype=np.uint8)[:, None, None, None]
    images = np.tile(images, (1, 8, 8, 3))
    source = sources.ArraySource(images, np.arange(num_examples, dtype=np.int32), ("a", "b"))
    options = {"batch_size": 8, "image_size": 8, "limit": limit}

    def examples_of(**share):
        batches = list(pipeline.create_eval_batches(source, **options, **share))
        real = [
            (int(index), int(label), int(image[0, 0, 0]))
            for batch in batches
            for index, label, image in zip(
                batch["index"].numpy(), batch["label"].numpy(), batch["image"].numpy(), strict=True
            )
            if index >= 0
        ]
        return len(batches), [len(batch["label"]) for batch in batches], real

    num_batches, _, expected = examples_of()
    assert len(expected) == (limit or num_examples)
    for num_hosts in (2, 4):
        found = []
        for host in range(num_hosts):
            count, sizes, real = examples_of(host=host, num_hosts=num_hosts)
            assert count == num_batches and set(sizes) == {8 // num_hosts}
            found += real
        assert sorted(found) == expected


# Precision.

SIDE, BATCH_SIZE = 8, 8


@pytest.fixture
def policy():
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


def create_step(
    strategy, *, name=None, weight_decay=0.0, scale=None, microbatch_size=None, poison=None
):
    """A contrastive step of a small encoder, or of the one with this name.

    `poison` changes the value of each example.
    """
    with strategy.scope():
        keras.utils.set_random_seed(0)
        synchronized = not microbatch_size
        if name is None:
            encoder = tiny_training.create_encoder(synchronized=synchronized)
        else:
            encoder = contrastive.create_encoder(
                name, image_size=SIDE, use_global_batch_norm=synchronized
            )
        head = contrastive.ProjectionHead([16])
        model = contrastive.ContrastiveModel(encoder, head)
        optimizer = optimizers.create_optimizer("momentum", 0.5, weight_decay=weight_decay)
        if scale or contrastive.computes_in_float16(model):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=scale or 2**15)
        loss = SupConLoss(reduction=None)
        if poison:
            plain = loss.call
            loss.call = lambda labels, features: poison(plain(labels, features))
        return steps.ContrastiveStep(
            model=model,
            loss=loss,
            optimizer=optimizer,
            global_batch_size=BATCH_SIZE,
            microbatch_size=microbatch_size,
        )


def run_steps(strategy, step, *, num_steps=3, **options):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (32, SIDE, SIDE, 3), np.uint8)
    source = sources.ArraySource(images, np.arange(32, dtype=np.int32) % 4, tuple("abcd"))
    batches = strategy.distribute_datasets_from_function(
        lambda context: pipeline.create_train_batches(
            source,
            policy=policies.create_policy("identity"),
            batch_size=BATCH_SIZE,
            image_size=SIDE,
            seed=0,
            num_replicas=strategy.num_replicas_in_sync,
        )
    )
    done, metrics = loop.create_loop(strategy, step, **options)(
        iter(batches), tf.constant(num_steps)
    )
    return int(done), {name: float(value) for name, value in metrics.items()}


def one_device():
    return tf.distribute.OneDeviceStrategy("CPU:0")


def weights(step):
    return [variable.numpy() for variable in step.model.trainable_variables]


@pytest.fixture(scope="module")
def in_float32():
    step = create_step(one_device(), name="tiny", weight_decay=0.1)
    return run_steps(one_device(), step)[1]["loss"], weights(step)


@pytest.mark.parametrize("name", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("num_replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_lower_precision_trains_alike_with_loss_and_outputs_in_float32(
    name, num_replicas, policy, two_replicas, in_float32
):
    policy(name)
    strategy = two_replicas if num_replicas == 2 else one_device()
    seen = []
    step = create_step(
        strategy,
        name="tiny",
        weight_decay=0.1,
        scale=2.0**8 if name == "mixed_float16" else None,  # Keras starts at 2^15, too high here.
        poison=lambda x: seen.append(x.dtype) or x,
    )
    done, metrics = run_steps(strategy, step)
    loss, expected = in_float32
    assert done == 3 and metrics["finite"] == 1.0
    assert set(seen) == {tf.float32}
    assert step.model.encoder.layers[3].compute_dtype == name.removeprefix("mixed_")
    assert {variable.dtype for variable in step.model.variables} == {"float32"}
    images = tf.random.stateless_uniform([2, 1, SIDE, SIDE, 3], [1, 2], maxval=255)
    embeddings, projections = step.model(images, return_embeddings=True)
    assert embeddings.dtype == projections.dtype == tf.float32
    assert step.model.encoder.output.dtype == "float32"
    np.testing.assert_allclose(np.linalg.norm(projections, axis=-1), 1.0, rtol=1e-5)
    assert metrics["loss"] == pytest.approx(loss, rel=0.02)
    change = [
        np.linalg.norm(a - b) / np.linalg.norm(b)
        for a, b in zip(weights(step), expected, strict=True)
    ]
    assert np.median(change) < 0.05


def test_images_keep_their_fractions_until_the_encoder(policy):
    policy("mixed_bfloat16")
    inputs = keras.Input([SIDE, SIDE, 3], dtype="float32")
    encoder = keras.Model(inputs, keras.layers.GlobalAveragePooling2D(dtype="float32")(inputs))
    model = contrastive.ContrastiveModel(encoder)
    images = tf.fill([1, 1, SIDE, SIDE, 3], 200.3)
    np.testing.assert_allclose(model(images, return_embeddings=True)[0], 200.3, rtol=1e-6)


def test_loss_scaling_changes_neither_weights_nor_weight_decay():
    plain = create_step(one_device(), weight_decay=0.3)
    scaled = create_step(one_device(), weight_decay=0.3, scale=2.0**12)
    losses = [run_steps(one_device(), step)[1]["loss"] for step in (plain, scaled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for a, b in zip(weights(scaled), weights(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def broken_gradient(values):
    """The same values with a gradient of 0 * inf."""
    return values + tf.sqrt(values - tf.stop_gradient(values))


def of_one_replica(values):
    """... on the second of two replicas."""
    context = tf.distribute.get_replica_context()
    is_second = tf.equal(context.replica_id_in_sync_group, 1)
    return tf.where(is_second, broken_gradient(values), values)


@pytest.mark.parametrize(
    "poison", [broken_gradient, pytest.param(of_one_replica, marks=pytest.mark.slow)]
)
def test_a_broken_gradient_is_left_out_by_all_replicas_unless_scaled(poison, two_replicas):
    strategy = two_replicas if poison is of_one_replica else one_device()
    step = create_step(strategy, scale=8.0, poison=poison)
    before = weights(step)
    done, metrics = run_steps(strategy, step, num_steps=3)
    assert done == 3 and np.isfinite(metrics["finite"])  # Scale 8, 4, 2 ...
    done, metrics = run_steps(strategy, step, num_steps=3)
    assert done == 1 and np.isnan(metrics["finite"])  # ... and 1 stops the run.
    for a, b in zip(weights(step), before, strict=True):
        np.testing.assert_array_equal(a, b)
    unscaled = create_step(strategy, poison=poison)
    done, metrics = run_steps(strategy, unscaled, num_steps=3)
    assert done == 1 and np.isnan(metrics["finite"])


@pytest.mark.slow
@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_a_compiled_step_equals_the_plain_one(microbatch_size):
    losses = []
    for jit_compile in (False, True):
        step = create_step(one_device(), microbatch_size=microbatch_size)
        losses.append(run_steps(one_device(), step, jit_compile=jit_compile)[1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# Through the command's setup.


def start(*arguments):
    with flagsaver.flagsaver():
        flags.FLAGS(command_line.expand_recipe(["supcon_tf", *arguments]))
        return process.start(flags.FLAGS)


def test_it_says_once_what_it_runs_on(capsys, no_cluster, policy):
    start("--strategy=mirrored", "--precision=mixed_bfloat16", "--nouse_global_batch_norm")
    run, hardware = capsys.readouterr().out.splitlines()
    assert run.startswith("Run: pretrain, linear, eval; ")
    assert re.match(
        r"Hardware: CPU with \d+ cores?; mirrored: 4 replica\(s\) on 1 host\(s\), 16 examples per "
        r"replica, mixed_bfloat16, batch norm of each replica\.",
        hardware,
    )
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    start()
    assert "one_device: 1 replica(s)" in capsys.readouterr().out
    assert keras.config.dtype_policy().name == "float32"


def test_compiling_over_replicas_is_refused(no_cluster):
    with pytest.raises(ValueError, match="jit_compile .* 4 replicas"):
        start("--strategy=mirrored", "--jit_compile")


def test_deterministic_asks_tensorflow_for_it(monkeypatch, no_cluster):
    calls = []
    monkeypatch.setattr(
        tf.config.experimental, "enable_op_determinism", lambda: calls.append("asked")
    )
    start()
    assert calls == []
    start("--deterministic")
    assert calls == ["asked"]


# Through the real command, in processes of their own.

SHORT = (
    "--image_size=8", "--num_images=256", "--batch_size=32", "--pretrain_epochs=1",
    "--pretrain_warmup_epochs=0", "--linear_epochs=1", "--linear_base_learning_rate=1",
    "--knn_interval_epochs=0", "--summary_interval_steps=1", "--pretrain_optimizer=momentum",
    "--pretrain_base_learning_rate=4", "--pretrain_weight_decay=1e-3",
)  # fmt: skip


def start_command(model_dir, *arguments, name="log", common=SHORT, **environment):
    """A process of the command, whose output goes to <model_dir>.<name>."""
    command = [*common, f"--model_dir={model_dir}", *arguments]
    return ForkedCommand(command, f"{model_dir}.{name}", **environment)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_workers(model_dir, *arguments, **options):
    workers = [f"localhost:{port}" for port in free_ports(2)]
    return [
        start_command(
            model_dir,
            *arguments,
            name=f"worker{index}",
            **options,
            TF_CONFIG=json.dumps(
                {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            ),
        )
        for index in range(2)
    ]


def finish(processes, model_dir):
    """The exit codes and what was said; nothing outlives the test."""
    try:
        codes = [process.wait(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logs = sorted(Path(model_dir).parent.glob(f"{Path(model_dir).name}.*"))
    return codes, [path.read_text() for path in logs]


@pytest.fixture(scope="module")
def three_ways(tmp_path_factory):
    """The same run on one device, on four logical CPUs and by two workers."""
    folder = tmp_path_factory.mktemp("three_ways")
    ways = {
        "one": [start_command(folder / "one", "--strategy=one_device")],
        "four": [start_command(folder / "four", "--strategy=mirrored", "--logical_cpus=4")],
    }
    for name, processes in ways.items():
        codes, logs = finish(processes, folder / name)
        assert codes == [0], logs
    codes, logs = finish(start_workers(folder / "two"), folder / "two")
    assert codes == [0, 0], logs
    return folder, logs


def distance(folder, other, file, load):
    """The largest relative distance of a weight between two runs."""
    pairs = zip(*(load(folder / name / file).get_weights() for name in (other, "one")), strict=True)
    return max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("other", ["four", "two"])
def test_replicas_and_workers_train_the_weights_of_one_device(three_ways, other):
    folder, _ = three_ways
    assert distance(folder, other, "pretrain/encoder.keras", keras.models.load_model) < 1e-4
    assert distance(folder, other, "linear/classifier.keras", keras.models.load_model) < 1e-4
    logs = [
        [json.loads(line) for line in (folder / name / "pretrain/metrics.jsonl").open()]
        for name in (other, "one")
    ]
    assert [line["step"] for line in logs[0]] == list(range(1, 9))
    for name in ("loss", "probe_loss"):
        np.testing.assert_allclose(
            [line[name] for line in logs[0]], [line[name] for line in logs[1]], rtol=1e-4
        )
    results = [json.loads((folder / n / "eval/eval.json").read_text()) for n in (other, "one")]
    assert results[0]["num_examples"] == 360
    assert results[0]["top_1"] == pytest.approx(results[1]["top_1"], abs=0.01)


@pytest.mark.slow
def test_two_workers_fit_the_linear_classifier_of_one_device(three_ways, tmp_path):
    """Both embed, the chief fits, and both evaluate what it found."""
    folder, _ = three_ways
    common = ("--image_size=8", "--num_images=256", "--mode=linear,eval")
    for name in ("one", "two"):
        shutil.copytree(folder / "one/pretrain", tmp_path / name / "pretrain")
    codes, logs = finish([start_command(tmp_path / "one", common=common)], tmp_path / "one")
    assert codes == [0], logs
    codes, logs = finish(start_workers(tmp_path / "two", common=common), tmp_path / "two")
    assert codes == [0, 0], logs
    assert "--linear_optimizer=lbfgs" in (tmp_path / "two/linear/stage.flags").read_text()
    assert distance(tmp_path, "two", "linear/classifier.keras", keras.models.load_model) < 1e-3
    results = [
        json.loads((tmp_path / name / "linear/result.json").read_text()) for name in ("one", "two")
    ]
    assert results[1]["top_1"] == pytest.approx(results[0]["top_1"], abs=0.003)


@pytest.mark.slow
def test_only_the_chief_talks_and_writes(three_ways):
    folder, (chief, other) = three_ways
    assert "2 replica(s) on 2 host(s)" in chief and "2 replica(s) on 2 host(s)" in other
    accuracy = re.compile(r"^eval +top-1", re.M)
    assert accuracy.search(chief) and not accuracy.search(other)
    assert "Worker 0, the chief, logs the progress." in other
    assert "pretrain: step 1 of" in chief and "pretrain: step" not in other
    one, two = (
        list((folder / name / "pretrain" / "tensorboard").iterdir()) for name in ("one", "two")
    )
    assert len(two) == len(one)


def assert_same_weights(one, other):
    weights = (
        keras.models.load_model(path / "pretrain/encoder.keras").get_weights()
        for path in (one, other)
    )
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_killed_worker_stops_the_others_and_the_job_goes_on_afterwards(three_ways, tmp_path):
    """The chief is killed after the first checkpoint, and the other worker in the resumed job."""
    folder, _ = three_ways
    model_dir = tmp_path / "run"
    arguments = ("--mode=pretrain", "--save_interval_steps=2", "--steps_per_loop=1")
    log = model_dir / "pretrain/metrics.jsonl"
    saved = model_dir / "pretrain/checkpoints/step_00000002"

    def has_resumed():
        chief = Path(f"{model_dir}.worker0").read_text()
        (step,) = re.findall(r"resuming at step (\d+)", chief) or [1_000]
        return log.read_text().count("\n") > int(step)

    for killed, is_reached in ((0, saved.is_dir), (1, has_resumed)):
        processes = start_workers(model_dir, *arguments)
        while not (is_reached() or any(process.poll() is not None for process in processes)):
            time.sleep(0.02)
        processes[killed].send_signal(signal.SIGKILL)
        codes, logs = finish(processes, model_dir)
        assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == 1, logs
        assert "Another worker exited or does not respond" in logs[1 - killed]
        assert "resume from the last checkpoint" in logs[1 - killed]
        assert "Traceback" not in logs[1 - killed]

    codes, logs = finish(start_workers(model_dir, *arguments), model_dir)
    assert codes == [0, 0], logs
    assert "resuming at step" in logs[0]
    assert_same_weights(model_dir, folder / "two")


@pytest.mark.slow
def test_a_signal_to_one_of_two_workers_saves_and_stops_both_at_the_same_step(tmp_path):
    model_dir = tmp_path / "run"
    arguments = ("--mode=pretrain", "--pretrain_epochs=25")  # 200 steps.
    log = model_dir / "pretrain/metrics.jsonl"
    processes = start_workers(model_dir, *arguments)
    while not (log.exists() or any(process.poll() is not None for process in processes)):
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)  # The chief, which writes, hears of it by the other.
    codes, logs = finish(processes, model_dir)
    assert codes == [75, 75], logs
    (saved,) = set(re.findall(r"saved at step (\d+)", logs[0] + logs[1]))
    assert 1 <= int(saved) < 200
    assert (model_dir / f"pretrain/checkpoints/step_{int(saved):08d}").is_dir()

    codes, logs = finish(start_workers(model_dir, *arguments), model_dir)
    assert codes == [0, 0], logs
    assert f"resuming at step {saved}" in logs[0]
    assert [json.loads(line)["step"] for line in log.open()] == list(range(1, 201))


@pytest.mark.slow
def test_what_the_chief_refuses_ends_all_workers(three_ways):
    folder, _ = three_ways
    codes, logs = finish(
        start_workers(folder / "two", "--pretrain_base_learning_rate=5"), folder / "two"
    )
    assert codes == [1, 1], logs
    assert "pretrain_base_learning_rate" in logs[0]
    assert "Another worker exited or does not respond" in logs[1]
    assert not any("Traceback" in text for text in logs)


@pytest.mark.slow
def test_an_encoder_of_lower_precision_loads_with_keras_alone(tmp_path):
    precisions = ("mixed_bfloat16", "mixed_float16")
    for precision in precisions:
        arguments = (f"--precision={precision}", "--deterministic", "--mode=pretrain,linear")
        process = start_command(tmp_path / precision, *arguments)
        codes, logs = finish([process], tmp_path / precision)
        assert codes == [0] and precision in logs[0], logs
    code = (
        "import keras, numpy as np, sys\n"
        f"for precision in {precisions}:\n"
        "    encoder = keras.models.load_model(f'{precision}/pretrain/encoder.keras')\n"
        "    result = encoder(np.full([1, 8, 8, 3], 100, np.float32))\n"
        "    print('RESULT', result.shape, result.dtype.name, 'supcon_tf' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.stdout.count("RESULT (1, 64) float32 False") == 2, ran.stderr
