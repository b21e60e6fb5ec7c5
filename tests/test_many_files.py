"""Many files are looked at one after the other, or together where the storage is slow."""

import threading
import time

import pytest

from supcon_tf.data import many_files


@pytest.mark.parametrize("count", [0, 1, 64, 65, 1000])
@pytest.mark.parametrize("slow_seconds", [0.0, 1e9], ids=["threads", "alone"])
def test_the_results_are_in_order(monkeypatch, slow_seconds, count):
    monkeypatch.setattr(many_files, "SLOW_SECONDS", slow_seconds)
    paths = [str(number) for number in range(count)]
    assert many_files.for_each(lambda path: path + "!", paths) == [path + "!" for path in paths]


@pytest.mark.parametrize("is_slow", [True, False])
def test_threads_wait_for_slow_storage_only(is_slow):
    threads = set()

    def look(path):
        threads.add(threading.get_ident())
        if is_slow and path == "0":
            time.sleep(2 * many_files.SLOW_SECONDS)
        return path

    many_files.for_each(look, [str(number % 64) for number in range(64 * 8)])
    assert (threads != {threading.get_ident()}) == is_slow


def test_remote_files_are_looked_at_in_threads_from_the_start():
    threads = set()
    many_files.for_each(lambda path: threads.add(threading.get_ident()), ["gs://bucket/a"] * 3)
    assert threading.get_ident() not in threads


def test_an_error_reaches_the_caller():
    with pytest.raises(KeyError):
        many_files.for_each(lambda path: {}[path], ["a"])
