"""The memory of a training is reserved in one region, where address space is not limited."""

import resource
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers import command

import supcon_tf
from supcon_tf.training import memory_reservation

GB = 10**9


@pytest.fixture
def taken(monkeypatch):
    """The sizes of the regions that were taken, on a machine with 100 GB and nothing reserved."""
    sizes = []

    def take(size):
        sizes.append(size)
        return True

    values = {"SC_PHYS_PAGES": 100 * GB // 4000, "SC_PAGE_SIZE": 4000}
    monkeypatch.setattr(memory_reservation.os, "sysconf", values.get)
    monkeypatch.setattr(memory_reservation, "_reserved", [])
    monkeypatch.setattr(memory_reservation, "_can_reserve", lambda: True)
    monkeypatch.setattr(memory_reservation, "_take_region", take)
    return sizes


@pytest.mark.parametrize(
    "needed,available,expected",
    [
        (4 * GB, 90 * GB, 6 * GB),
        (4 * GB, 5 * GB, 5 * GB),  # What the process can use.
        (4 * GB, None, 6 * GB),
        (60 * GB, None, 75 * GB),  # Three quarters of the machine.
        (0, 90 * GB, 0),
    ],
)
def test_the_size_follows_the_estimate_within_what_the_machine_has(
    needed, available, expected, taken
):
    assert memory_reservation.reserve(needed, available) == expected
    assert sum(taken) == expected


def test_only_a_larger_training_reserves_again(taken):
    assert memory_reservation.reserve(12 * GB, 90 * GB) == 18 * GB
    assert memory_reservation.reserve(12 * GB, 90 * GB) == 0
    assert memory_reservation.reserve(18 * GB, 90 * GB) == 27 * GB
    # 30 of the 75 GB are left, which is less than the training would like to have.
    assert memory_reservation.reserve(40 * GB, 90 * GB) == 30 * GB
    assert memory_reservation.reserve(50 * GB, 90 * GB) == 0
    assert taken == [18 * GB, 27 * GB, 30 * GB]


def test_a_region_that_cannot_be_taken_does_not_count(taken, monkeypatch):
    monkeypatch.setattr(memory_reservation, "_take_region", lambda size: False)
    assert memory_reservation.reserve(4 * GB, 90 * GB) == 0
    assert memory_reservation._reserved == []


def test_nothing_is_reserved_where_it_is_not_possible(tmp_path, monkeypatch, taken):
    monkeypatch.setattr(memory_reservation, "_can_reserve", lambda: False)
    assert memory_reservation.reserve(4 * GB, 90 * GB) == 0 and not taken


def test_reserving_needs_linux_cpus_and_address_space_without_limits(tmp_path, monkeypatch):
    path = tmp_path / "proc/sys/vm/overcommit_memory"
    path.parent.mkdir(parents=True)
    path.write_text("0\n")
    monkeypatch.setattr("sys.platform", "linux")
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda name: unlimited)

    def can_reserve():
        return memory_reservation._can_reserve(str(tmp_path))

    assert can_reserve()
    for name in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        with monkeypatch.context() as limited:
            limits = {name: (30 * GB, resource.RLIM_INFINITY)}
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


@pytest.mark.slow  # TensorFlow waits ten seconds for memory.
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reserves memory")
def test_a_region_that_is_too_large_is_refused_without_an_error():
    assert not memory_reservation._take_region(2**50)


FILL = """
import tensorflow as tf
from supcon_tf.training import memory_reservation

def pages():
    with open("/proc/self/statm") as file:
        return [int(number) * 4096 / 1e9 for number in file.read().split()[:2]]

tf.zeros([2**18])  # The allocator has its first regions.
before = pages()
size = memory_reservation.reserve(1_300_000_000, None)
after = pages()
print(size / 1e9, after[0] - before[0], after[1] - before[1])
kept = [tf.zeros([2**24]) for _ in range(24)]  # 1.6 GB.
print(pages()[0] - after[0], pages()[1] - after[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reserves memory")
def test_tensors_fill_the_region_and_what_they_do_not_use_costs_little():
    if not memory_reservation._can_reserve():
        pytest.skip("this machine limits address space")
    done = subprocess.run(
        [sys.executable, "-c", FILL], cwd=command.ROOT, capture_output=True, text=True, check=True
    )
    reserved, filled = ([float(word) for word in line.split()] for line in done.stdout.splitlines())
    size, more_addresses, more_memory = reserved
    assert size == pytest.approx(1.95)
    assert size <= more_addresses < size + 0.6  # Rounded up, and with the stacks of threads.
    assert more_memory < 0.2  # The table of the region.
    more_addresses, more_memory = filled
    assert more_addresses < 0.1, "The tensors were not placed in the region."
    assert more_memory == pytest.approx(1.6, abs=0.1)


@pytest.fixture
def needed(monkeypatch):
    """The bytes for which trainings reserve memory."""
    calls = []
    monkeypatch.setattr(memory_reservation, "reserve", lambda size, available: calls.append(size))
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
