"""Four logical CPUs stand for replicas in every test."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Two threads that wait for each other are far slower than one where several tests share a core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import tensorflow as tf

from supcon_tf import strategies

strategies.split_cpu(4)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: worker processes, long runs; needs --slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow; pytest --slow runs it, as CI does"))


@pytest.fixture(scope="session")
def two_replicas():
    """MirroredStrategy over two logical CPUs, which takes half as long to trace as over four."""

    class TwoReplicas(tf.distribute.MirroredStrategy):
        # A process cannot have groups of two sizes under the same key.
        _collective_key_base = 1000

    return TwoReplicas(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def mirrored():
    """MirroredStrategy over the four logical CPUs."""
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(4)])
