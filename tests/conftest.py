"""Every test has four logical CPUs, which serve as replicas."""

import gc
import itertools
import os
import weakref

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Two threads that wait for each other are far slower than one where several tests share a core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import tensorflow as tf

from supcon_tf import strategies

strategies.split_cpu(4)

# TensorFlow numbers the collective operations of every strategy from the same key, so that those of
# two strategies in one process would be taken for the same and fail when their shapes differ. The
# tests create many strategies in a process: each gets separate keys.
_KEYS: weakref.WeakKeyDictionary[tf.distribute.Strategy, int] = weakref.WeakKeyDictionary()
_count_strategies = itertools.count(1)
tf.distribute.MirroredStrategy._collective_key_base = property(
    lambda strategy: _KEYS.setdefault(strategy, 1000 * next(_count_strategies))
)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: worker processes, long runs; needs --slow")
    if not config.getoption("--slow"):
        # Optimizing a graph takes longer than running it for a few steps. The slow tests and the
        # commands that tests start in processes of their own run optimized graphs, as users do.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def pytest_collection_finish(session):
    """Collects garbage less often, because TensorFlow's many objects make each collection slow."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 25)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow; pytest --slow runs it, as CI does"))


@pytest.fixture(scope="session")
def two_replicas():
    """MirroredStrategy over two logical CPUs, which takes half as long to trace as over four."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def mirrored():
    """MirroredStrategy over the four logical CPUs."""
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(4)])
