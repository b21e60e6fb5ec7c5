"""Batches from other processes: one dispatcher and two workers on loopback."""

import contextlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from helpers.command import SHORT, read_lines, run_inside
from PIL import Image

from supcon_tf.augment import policies
from supcon_tf.data import data_service, pipeline, sources

WORKER = """
import sys, time
import tensorflow as tf
service = tf.data.experimental.service
config = service.WorkerConfig(dispatcher_address=sys.argv[1], heartbeat_interval_ms=200)
server = service.WorkerServer(config)
print("ready", flush=True)
server.join()
"""


@pytest.fixture(scope="module")
def address():
    """The dispatcher of a service whose two workers are processes of their own."""
    dispatcher = tf.data.experimental.service.DispatchServer()
    target = dispatcher.target
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, target.removeprefix("grpc://")],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 30
        while dispatcher._num_workers() < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        yield target
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def batches_of(source, num_steps, **options):
    batches = pipeline.create_train_batches(
        source, policy=policies.create_policy("autoaugment"), batch_size=8, image_size=16, seed=0,
        blur_probability=0.5, **options,
    )  # fmt: skip
    return [{name: x.numpy() for name, x in batch.items()} for batch in batches.take(num_steps)]


def keys(batches):
    return [batch["image"].tobytes() + batch["label"].tobytes() for batch in batches]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["array", "folder"])
def test_the_service_makes_each_batch_once_in_some_order(address, tmp_path, kind):
    if kind == "array":
        source = sources.load_source("digits", "train")
    else:
        rng = np.random.default_rng(0)
        for index in range(24):
            folder = tmp_path / "train" / ("cat" if index % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8))
            image.save(folder / f"{index}.{'png' if index % 3 else 'jpg'}")
        source = sources.load_source("folder", "train", str(tmp_path))
    served = keys(batches_of(source, 30, data_service=address, start_step=5))
    assert len(set(served)) == 30
    own = keys(batches_of(source, 60, start_step=5))
    assert len(set(served) & set(own)) >= 20  # The rest are steps still further ahead.


@pytest.mark.slow
def test_the_command_trains_from_the_service_and_says_what_that_costs(address, tmp_path, capsys):
    """Each step has all 64 images, uncropped: whatever their order, the losses are the same."""
    losses = {}
    for name, service in (("served", [f"--data_service={address}"]), ("own", [])):
        run_inside(
            "--mode=pretrain", f"--model_dir={tmp_path / name}", *service, "--num_images=64",
            "--batch_size=64", "--augmentation_type=identity", "--crop_area_range=1,1",
            "--horizontal_flip=false", "--pretrain_epochs=10", "--pretrain_warmup_epochs=0",
            "--knn_interval_epochs=0", "--noonline_probe", "--summary_interval_steps=1",
            "--steps_per_loop=5", "--strategy=one_device",
        )  # fmt: skip
        assert ("cannot be repeated exactly" in capsys.readouterr().out) == bool(service)
        log = read_lines(tmp_path / name / "pretrain/metrics.jsonl")
        losses[name] = [line["loss"] for line in log]
    assert len(losses["own"]) == 10 and losses["own"][-1] < losses["own"][0]
    np.testing.assert_allclose(losses["served"], losses["own"], rtol=2e-3)


@pytest.mark.parametrize(
    "address,message",
    [
        ("grpc://127.0.0.1:9", "No tf.data service dispatcher answers at .*127.0.0.1:9"),
        ("grpc://no-such-host.invalid:5050", "no-such-host.invalid:5050"),
        ("grpc://127.0.0.1", "expected grpc://host:port"),
        ("grpc://127.0.0.1:many", "expected grpc://host:port"),
    ],
)
def test_an_unreachable_service_is_refused_with_its_address(address, message, tmp_path):
    with pytest.raises((OSError, ValueError), match=message):
        run_inside(*SHORT, f"--data_service={address}", f"--model_dir={tmp_path}")


def test_a_service_that_does_not_answer_has_a_deadline():
    """A full queue of connections: nobody accepts, so the next connection waits."""
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        address = f"grpc://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(OSError, match="timed out"):
            data_service.check_reachable(address, timeout_seconds=0.5)
