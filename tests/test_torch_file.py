"""PyTorch checkpoints are read without PyTorch, from any project."""

import argparse
import collections
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.fuzz_torch_files import fuzzed_file
from helpers.torch_files import StorageWriter, Tensor, write_checkpoint, write_zip

from supcon_tf.interop import restricted_pickle, torch_file

HELPERS = Path(__file__).parent / "helpers"
REFUSED = (
    r"cannot be read as a PyTorch checkpoint: {}.*torch\.save\(model\.state_dict\(\), new_path"
)
MOST_BYTES, MOST_SECONDS = 150 * 2**20, 10


@pytest.mark.parametrize("name", ["torch_checkpoint.pth", "torch_checkpoint_legacy.pth"])
def test_a_file_of_torch_is_read_without_torch(name):
    """tests/supcontrast_torch.py wrote them with PyTorch, today's format and that before 1.6."""
    arrays = torch_file.read_state_dict(str(HELPERS / name))
    numbers = np.arange(24, dtype=np.float32)
    expected = {
        "encoder.plain": numbers.reshape(2, 3, 4),
        "encoder.transposed": numbers.reshape(4, 6).T,
        "encoder.part": numbers[5:9],
        "head.half": np.array([0.5, -1.0], np.float16),
        "head.scalar": np.array(7),
        "head.parameter": np.full([1, 2], 3, np.float32),
    }
    assert set(arrays) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)
        assert arrays[name].dtype == value.dtype
        assert not arrays[name].flags.writeable or arrays[name].flags.owndata
    assert "torch" not in sys.modules


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_the_state_dict_is_found_by_its_key(key, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        file = io.BytesIO()
        writer = StorageWriter(file)
        state = {"module.a": np.ones([2, 1])}
        writer.dump(state if key is None else {key: state})
        archive.writestr("x/data.pkl", file.getvalue())
        archive.writestr("x/data/0", writer.storages[0])
    (name, array), *rest = torch_file.read_state_dict(str(tmp_path / "x.pth")).items()
    assert name == "a" and array.tolist() == [[1.0], [1.0]] and not rest


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, getattr, np.load])
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(function, tmp_path):
    marker = tmp_path / "ran"
    argument = f"open({str(marker)!r}, 'w')" if function is eval else f"touch {marker}"
    data = pickle.dumps({"model": {}, "opt": Hostile(function, argument)}, protocol=2)
    path = write_zip(tmp_path / "x.pth", data)
    with pytest.raises(ValueError, match=REFUSED.format("it contains the name ")):
        torch_file.read_state_dict(path)
    assert not marker.exists()


def nested_tuples(count):
    """Each of two references to the one before: 2^count elements for code that walks them."""
    pairs = b"".join(b"q%ch%c\x86" % (index, index) for index in range(count))
    return b")" + pairs


def dumps(state):
    file = io.BytesIO()
    StorageWriter(file).dump({"model": state})
    return file.getvalue()


BUILT = b"\x80\x02%s}X\x01\x00\x00\x00mK\x01s\x86b."  # An object, (object's state, {"m": 1}), BUILD
SAME_HASH = b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N"
                     for n in range(1, 20_000))  # fmt: skip
PICKLES = {
    "BUILD on a class": BUILT % b"cargparse\nNamespace\nN",
    "BUILD on a function": BUILT % b"ctorch._utils\n_rebuild_tensor_v2\nN",
    "BUILD on a type": BUILT % b"ccollections\nOrderedDict\nN",
    "a shared tuple as a key": b"\x80\x02}" + nested_tuples(30) + b"Ns.",
    "a shared tuple as a storage": b"\x80\x02" + nested_tuples(30) + b"Q.",
    "a shared tuple as an argument": b"\x80\x02ccollections\nOrderedDict\n"
    + nested_tuples(30) + b"R.",
    "tuples nested deeply": b"\x80\x02)" + b"\x85" * 200_000 + b".",
    "lists nested deeply": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "keys of one hash": b"\x80\x02}(" + SAME_HASH + b"u.",
    "a dictionary of a list of pairs": b"\x80\x02ccollections\nOrderedDict\n]\x85R.",
    "more instructions than a checkpoint has": b"\x80\x02" + b"N" * 2_000_000 + b".",
    "a huge number in text": b"\x80\x02L" + b"9" * 2_000_000 + b"L\n.",
    "a text that claims to be longer": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "no end": b"\x80\x02}",
    "an empty stack": b"\x80\x02s.",
    "nothing": b"",
    "a later protocol": b"\x80\x09N.",
    "no state dict": b"\x80\x02]q\x00.",
    "a stride of 0": dumps({"a": Tensor((2**31,), (0,), count=1)}),
    "a storage larger than its entry": dumps({"a": Tensor((2**20,), (1,), count=2**20)}),
    "a storage of an absurd size": dumps({"a": Tensor((2**62,), (1,), count=2**62)}),
    "a tensor beyond its storage": dumps({"a": Tensor((2, 3), (3, 1), count=5)}),
    "a negative offset": dumps({"a": Tensor((1,), (1,), count=1, offset=-1)}),
    "a negative stride": dumps({"a": Tensor((2,), (-1,), count=2, offset=1)}),
    "too many dimensions": dumps({"a": Tensor((1,) * 40, (1,) * 40, count=1)}),
    "no numbers, but a huge shape": dumps({"a": Tensor((0, 2**40), (1, 1), count=1)}),
    "a size that is no number": dumps({"a": Tensor(("x",), (1,), count=1)}),
    "a size that is no tuple": dumps({"a": Tensor(None, (1,), count=1)}),
    "a storage that is not there": dumps({"a": Tensor((1,), (1,), count=1, key="../0")}),
    "one storage described twice": dumps(
        {"a": Tensor((1,), (1,), count=1), "b": Tensor((2,), (1,), count=2)}
    ),
}  # fmt: skip


def read_measured(path):
    """The refusal, after checking that it took little time and memory."""
    started = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=REFUSED.format("")) as error:
            torch_file.read_state_dict(path)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < MOST_BYTES and time.process_time() - started < MOST_SECONDS
    assert path in str(error.value) and len(str(error.value)) < 1000 + len(path)
    return str(error.value)


@pytest.mark.parametrize("what", PICKLES)
def test_a_hostile_pickle_is_refused_within_bounds(what, tmp_path):
    path = write_zip(tmp_path / "x.pth", PICKLES[what], [bytes(4)])
    message = read_measured(path)
    print(message)
    assert not hasattr(argparse.Namespace, "m")
    for made in (torch_file._CONSTRUCTORS.values(), [restricted_pickle.Global]):
        assert not any(hasattr(thing, "m") for thing in made)
    # The next file of the process is read as before.
    good = write_checkpoint(tmp_path / "good.pth", {"a": np.ones(3)})
    assert torch_file.read_state_dict(good)["a"].tolist() == [1.0, 1.0, 1.0]


def test_namespaces_and_nested_values_of_a_training_are_passed_over(tmp_path):
    options = argparse.Namespace(lr=0.1, epochs=[1, 2], name=None, nested={"a": (1, 2.5, True)})
    state = collections.OrderedDict(a=np.ones(2))
    state._metadata = collections.OrderedDict(version=1)
    file = io.BytesIO()
    writer = StorageWriter(file)
    writer.dump({"opt": options, "optimizer": {"state": {0: {"step": 1}}}, "model": state})
    path = write_zip(tmp_path / "x.pth", file.getvalue(), writer.storages)
    assert torch_file.read_state_dict(path)["a"].tolist() == [1.0, 1.0]


def test_a_compressed_archive_is_refused_before_it_is_inflated(tmp_path):
    pickled = dumps({"a": Tensor((2**26,), (1,), count=2**26)})
    zeros = [bytes(2**28)]
    path = write_zip(tmp_path / "x.pth", pickled, zeros, compression=zipfile.ZIP_DEFLATED)
    del zeros
    assert os.path.getsize(path) < 2**20
    assert "compressed" in read_measured(path)


def test_an_archive_whose_entries_claim_more_than_the_file_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    write_zip(path, dumps({"a": Tensor((2**28,), (1,), count=2**28)}), [bytes(4)])
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # In the directory: of the last entry, the storage.
    struct.pack_into("<II", content, entry + 20, 2**30, 2**30)
    path.write_bytes(content)
    assert "larger than the file" in read_measured(str(path))


def test_files_of_another_kind_are_refused(tmp_path):
    for name, content in {
        "empty": b"",
        "text": b"not a checkpoint",
        "pickle": pickle.dumps({"model": {}}),
        "legacy": (HELPERS / "torch_checkpoint_legacy.pth").read_bytes()[:-3],
        "legacy, start only": (HELPERS / "torch_checkpoint_legacy.pth").read_bytes()[:15],
    }.items():
        (tmp_path / name).write_bytes(content)
        read_measured(str(tmp_path / name))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("something", "else")
    message = read_measured(str(tmp_path / "x.zip"))
    assert "zip archive, but was not written by torch.save" in message


@pytest.mark.parametrize("legacy", [False, True])
def test_a_fuzzed_file_is_read_or_refused(legacy, tmp_path):
    """Some dozens; the slow test tries 2,000."""
    refused = 0
    for number in range(60):
        path = tmp_path / "fuzzed.pth"
        path.write_bytes(fuzzed_file(number, legacy=legacy))
        try:
            torch_file.read_state_dict(str(path))
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 40


@pytest.mark.slow
@pytest.mark.parametrize("legacy,count", [(False, 1500), (True, 500)])
def test_every_fuzzed_file_is_read_or_refused_within_bounds(legacy, count):
    script = [sys.executable, str(HELPERS / "fuzz_torch_files.py"), f"--count={count}"]
    done = subprocess.run(
        [*script, *(["--legacy"] if legacy else [])],
        env={**os.environ, "PYTHONPATH": str(HELPERS.parent.parent)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    print(result)
    assert set(result["outcomes"]) == {"read", "ValueError"}
    assert sum(result["outcomes"].values()) == count
    assert result["slowest_seconds"] < 5 and result["most_bytes"] < 64 * 2**20
