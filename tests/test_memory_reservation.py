"""The memory of a training is reserved in one region, where address space is not limited."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers import command

import supcon_tf
from supcon_tf.training import memory_reservation

GIB = 2**30


@pytest.fixture
def taken(monkeypatch):
    """The sizes of the regions that were taken, on a machine of 64 GiB with nothing reserved."""
    sizes = []

    def take(size):
        sizes.append(size)
        return True

    values = {"SC_PHYS_PAGES": 64 * GIB // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(memory_reservation.os, "sysconf", values.get)
    monkeypatch.delenv("TF_MKL_ALLOC_MAX_BYTES", raising=False)
    monkeypatch.setattr(memory_reservation, "_tried", [])
    monkeypatch.setattr(memory_reservation, "can_reserve", lambda: True)
    monkeypatch.setattr(memory_reservation, "_take_region", take)
    return sizes


def test_the_size_follows_the_estimate_in_powers_of_two(taken):
    for needed, size in ((1_000, 2**20), (2 * GIB, 4 * GIB), (5 * GIB, 8 * GIB)):
        assert memory_reservation.reserve(needed) == size
    assert taken == [2**20, 4 * GIB, 8 * GIB]


def test_only_a_larger_training_reserves_again_and_only_within_the_machine(taken, monkeypatch):
    assert memory_reservation.reserve(5 * GIB) == 8 * GIB
    assert memory_reservation.reserve(5 * GIB) == memory_reservation.reserve(2 * GIB) == 0
    assert memory_reservation.reserve(9 * GIB) == 16 * GIB
    assert memory_reservation.reserve(20 * GIB) == 0  # 32 more would be 56 of 64.
    assert taken == [8 * GIB, 16 * GIB]


def test_a_limit_of_the_allocator_holds(taken, monkeypatch):
    monkeypatch.setenv("TF_MKL_ALLOC_MAX_BYTES", str(10 * GIB))
    assert memory_reservation.reserve(5 * GIB) == 0
    assert memory_reservation.reserve(2 * GIB) == 4 * GIB


def test_a_region_that_was_refused_is_not_asked_for_again(taken, monkeypatch):
    asked = []
    monkeypatch.setattr(memory_reservation, "_take_region", lambda size: asked.append(size))
    assert memory_reservation.reserve(4 * GIB) == memory_reservation.reserve(4 * GIB) == 0
    assert asked == [8 * GIB]


def test_nothing_is_reserved_where_it_is_not_possible(monkeypatch, taken):
    """Windows has no `os.sysconf`, so the size of its memory is not asked for."""
    monkeypatch.setattr(memory_reservation, "can_reserve", lambda: False)
    monkeypatch.delattr(memory_reservation.os, "sysconf")
    assert memory_reservation.reserve(4 * GIB) == 0 and not taken


def test_reserving_needs_linux_cpus_and_address_space_without_limits(tmp_path, monkeypatch):
    path = tmp_path / "proc/sys/vm/overcommit_memory"
    path.parent.mkdir(parents=True)
    path.write_text("0\n")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [])
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda name: unlimited)

    def can_reserve():
        return memory_reservation.can_reserve(str(tmp_path))

    assert can_reserve()
    for name in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        with monkeypatch.context() as limited:
            limits = {name: (30 * GIB, resource.RLIM_INFINITY)}
            limited.setattr(resource, "getrlimit", lambda n, found=limits: found.get(n, unlimited))
            assert not can_reserve()
    for kind in ("GPU", "TPU"):
        with monkeypatch.context() as accelerated:
            devices = {kind: ["a device"]}
            accelerated.setattr(
                tf.config, "list_logical_devices", lambda k, found=devices: found.get(k, [])
            )
            assert not can_reserve()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("sys.platform", "darwin")
        assert not can_reserve()
    path.write_text("2\n")
    assert not can_reserve()
    path.unlink()
    assert not can_reserve()
    path.write_text("1\n")
    assert can_reserve()


def test_no_room_for_a_region_is_no_error(monkeypatch):
    """TensorFlow itself waits ten seconds before it says so."""

    def allocate(**_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    assert memory_reservation._take_region(2**21)
    monkeypatch.setattr(tf.raw_ops, "Empty", allocate)
    assert not memory_reservation._take_region(2**21)


FILL = """
import resource

import tensorflow as tf
from supcon_tf.training import memory_reservation

def gibibytes():
    with open("/proc/self/statm") as file:
        pages = map(int, file.read().split()[:2])
    return [count * resource.getpagesize() / 2**30 for count in pages]

tf.zeros([2**18])  # The allocator has its first regions.
before = gibibytes()
size = memory_reservation.reserve(2**30)
after = gibibytes()
print(size / 2**30, after[0] - before[0], after[1] - before[1])
kept = [tf.zeros([2**24]) for _ in range(28)]  # 1.75 GiB.
print(gibibytes()[0] - after[0], gibibytes()[1] - after[1])
"""


@pytest.mark.slow
def test_tensors_fill_the_region_and_what_they_do_not_use_costs_little():
    if not memory_reservation.can_reserve():
        pytest.skip("memory is reserved only on Linux, without a limit of address space")
    done = subprocess.run(
        [sys.executable, "-c", FILL], cwd=command.ROOT, stdout=subprocess.PIPE, text=True,
        check=True, env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1"},
    )  # fmt: skip
    reserved, filled = ([float(word) for word in line.split()] for line in done.stdout.splitlines())
    size, more_addresses, more_memory = reserved
    assert size == 2.0
    assert size <= more_addresses < size + 0.5  # With the stacks of threads.
    assert more_memory < 0.2  # The table of the region.
    more_addresses, more_memory = filled
    assert more_addresses < 0.8, "The tensors were not placed in the region."
    assert more_memory == pytest.approx(1.75, abs=0.1)


@pytest.fixture
def needed(monkeypatch):
    """The bytes for which trainings reserve memory."""
    calls = []
    monkeypatch.setattr(memory_reservation, "can_reserve", lambda: True)
    monkeypatch.setattr(memory_reservation, "reserve", calls.append)
    return calls


def test_the_stages_that_train_an_encoder_reserve_before_their_first_step(tmp_path, needed):
    short = (f"--model_dir={tmp_path}", "--batch_size=32", "--pretrain_epochs=0")
    quiet = ("--pretrain_warmup_epochs=0", "--knn_interval_epochs=0", "--linear_epochs=0")
    command.run_inside("--mode=pretrain,linear", *short, *quiet)
    assert len(needed) == 1  # The linear stage trains on embeddings.
    command.run_inside("--mode=finetune", *short, "--finetune_epochs=0")
    assert len(needed) == 2
    assert 2_000_000 < needed[1] <= needed[0] < 100_000_000


def test_compiled_trainings_do_not_reserve(tmp_path, needed):
    command.run_inside(
        "--mode=pretrain", f"--model_dir={tmp_path}", "--batch_size=32", "--pretrain_epochs=0",
        "--pretrain_warmup_epochs=0", "--knn_interval_epochs=0", "--jit_compile",
    )  # fmt: skip
    assert not needed


def test_the_classifier_of_the_library_reserves_too(needed):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, [16, 8, 8, 3], np.uint8)
    supcon_tf.SupConClassifier(epochs=0, batch_size=8).fit(images, np.arange(16) % 2)
    assert len(needed) == 1 and needed[0] > 1_000_000
