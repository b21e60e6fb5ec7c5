"""The lock of a stage's folder: one of many concurrent starts holds it."""

import contextlib
import fcntl
import json
import threading
import time

import pytest
import tensorflow as tf

from supcon_tf.stages import run_lock

TOKEN = "0" * 32  # Comes before every other token.


def _starts_that_hold(path, num_starts):
    """How many of `num_starts` simultaneous starts hold the lock; none lets go before all know."""
    ready, known = threading.Barrier(num_starts), threading.Barrier(num_starts)
    held, errors = [], []

    def start():
        ready.wait()
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(run_lock.hold(path))
                held.append(1)
            except Exception as error:
                errors.append(error)
            known.wait(60)

    threads = [threading.Thread(target=start) for _ in range(num_starts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("Another run" in str(error) for error in errors), errors
    return len(held)


@pytest.mark.parametrize("system", ["ram", "file", "local"])
def test_one_of_many_simultaneous_starts_holds_the_lock(system, tmp_path):
    """TensorFlow's in-memory file system and its file:// paths take the place of gs://."""
    folder = {"ram": "ram://locks", "file": f"file://{tmp_path}", "local": str(tmp_path)}[system]
    tf.io.gfile.makedirs(folder)
    counts = [_starts_that_hold(f"{folder}/lock", 2 + i % 3) for i in range(40)]
    assert counts == [1] * 40


def _expect_refusal(path, message="Another run"):
    with pytest.raises(ValueError, match=message), run_lock.hold(path):
        pass


def _write_claim(folder, number, seconds):
    owner = {"host": "other", "process": 7, "time": time.time() + seconds}
    tf.io.gfile.makedirs(f"{folder}/locks")
    with tf.io.gfile.GFile(f"{folder}/locks/{number}-{TOKEN}", "w") as file:
        file.write(json.dumps(owner))


@pytest.mark.parametrize("number", ["000000001", "choosing"])
@pytest.mark.parametrize("seconds", [0, 60, -601, 86400])
def test_a_remote_lock_blocks_while_its_date_is_near(number, seconds, tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "CHOOSING_SECONDS", 0.1)
    folder = f"file://{tmp_path}"
    _write_claim(folder, number, seconds)
    if abs(seconds) < 600:
        _expect_refusal(f"{folder}/lock", "other, process 7.*locks or wait")
        assert tf.io.gfile.listdir(f"{folder}/locks") == [f"{number}-{TOKEN}"]
    else:
        with run_lock.hold(f"{folder}/lock"):
            assert len(tf.io.gfile.listdir(f"{folder}/locks")) == 1  # The dead claim is gone.
        assert tf.io.gfile.listdir(f"{folder}/locks") == []


def test_a_remote_lock_that_cannot_be_read_blocks(tmp_path):
    """Its owner can be writing it at that moment."""
    (tmp_path / "locks").mkdir()
    (tmp_path / f"locks/000000001-{TOKEN}").write_text("")
    _expect_refusal(f"file://{tmp_path}/lock", "delete")


def _date_of_claim(path):
    (claim,) = path.iterdir()
    while not (text := claim.read_text()):  # It is being written.
        time.sleep(0.01)
    return json.loads(text)["time"]


def test_a_remote_lock_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "STALE_LOCK_SECONDS", 0.5)
    with run_lock.hold(f"file://{tmp_path}/lock"):
        first, deadline = _date_of_claim(tmp_path / "locks"), time.monotonic() + 120
        while _date_of_claim(tmp_path / "locks") < first + 1:  # Twice as long as a lock lasts.
            assert time.monotonic() < deadline
            time.sleep(0.05)
        monkeypatch.undo()
        _expect_refusal(f"file://{tmp_path}/lock")


def test_a_deleted_local_lock_still_keeps_a_second_run_out(tmp_path):
    lock = tmp_path / "lock"
    with run_lock.hold(str(lock)):
        lock.unlink()
        _expect_refusal(str(lock))
    with run_lock.hold(str(lock)):
        pass


def test_a_file_system_that_locks_no_folders_still_locks_files(tmp_path, monkeypatch):
    flock = fcntl.flock

    def flock_of_files(file, operation):
        if isinstance(file, int):
            raise OSError(9, "Bad file descriptor")
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock_of_files)
    with run_lock.hold(str(tmp_path / "lock")):
        _expect_refusal(str(tmp_path / "lock"))
