"""Reads the tensors of a file that PyTorch's `torch.save` wrote, without PyTorch.

The file may be damaged or malicious. It contains a pickle that describes the tensors, and the raw
numbers of each storage. Since PyTorch 1.6 these are entries of a zip archive; before, they follow
each other in the file. The pickle is read by `restricted_pickle`, and no allocation is larger than
the content of the file.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import zipfile
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from supcon_tf.interop import restricted_pickle
from supcon_tf.interop.restricted_pickle import Global, RefusedError

MAX_TENSOR_BYTES = 4 * 2**30
MAX_DIMENSIONS = 8
# The first pickle of a file from before PyTorch 1.6, and the format version in the second pickle.
_LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PROTOCOL = 1001
_DTYPES = {
    Global("torch", "FloatStorage"): "<f4",
    Global("torch", "DoubleStorage"): "<f8",
    Global("torch", "HalfStorage"): "<f2",
    Global("torch", "LongStorage"): "<i8",
    Global("torch", "IntStorage"): "<i4",
    Global("torch", "ShortStorage"): "<i2",
    Global("torch", "CharStorage"): "<i1",
    Global("torch", "ByteStorage"): "<u1",
    Global("torch", "BoolStorage"): "?",
}


def read_state_dict(path: str) -> dict[str, np.ndarray]:
    """Reads the model's tensors from a file of `torch.save`, as read-only arrays by name.

    No code in the file is executed.

    Args:
        path: A local or remote file with a state dict, {"state_dict": ...}, or
            {"model": state dict, ...} as SupContrast writes it. The prefix "module.", which
            DataParallel adds to names, is removed.

    Raises:
        ValueError: If the file is damaged, is not a PyTorch checkpoint, or contains anything other
            than tensors, plain values and an argparse.Namespace.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        try:
            content, read_storage = _open(file, file.size())
            return _tensors(content, read_storage)
        except Exception as error:  # zipfile and NumPy raise many types for damaged files.
            reason = str(error) if isinstance(error, RefusedError) else _describe_damage(error)
            raise ValueError(
                f"{path} cannot be read as a PyTorch checkpoint: {reason}. Expected a complete "
                "file of torch.save with tensors, plain values and at most an argparse.Namespace. "
                "Download it again, or save its weights again in PyTorch: "
                "torch.save(model.state_dict(), new_path)."
            ) from error


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A sequence of numbers of one type in the file."""

    dtype: str
    key: str
    count: int

    @property
    def num_bytes(self):
        return self.count * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """The part of a storage that a tensor consists of. The numbers are read later."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self):
        numbers = (self.offset, *self.size, *self.stride)
        if type(self.storage) is not _Storage or any(type(n) is not int or n < 0 for n in numbers):
            raise RefusedError("the description of one of its tensors is invalid")
        if len(self.size) != len(self.stride) or len(self.size) > MAX_DIMENSIONS:
            raise RefusedError(
                f"one of its tensors has {len(self.size)} dimensions and {len(self.stride)} "
                f"strides; expected equal numbers of at most {MAX_DIMENSIONS}"
            )
        count, length = self.storage.count, math.prod(max(n, 1) for n in self.size)
        if 0 in self.size:
            fits = length < 2**31
        else:
            last = sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
            # A stride of 0 repeats numbers, so a few bytes could describe a tensor of any size.
            fits = self.offset + last < count and length <= count
        if not fits:
            raise RefusedError(
                f"one of its tensors extends beyond the {count:,} numbers of its storage"
            )

    def view(self, data):
        numbers = np.frombuffer(data, np.dtype(self.storage.dtype))
        if 0 in self.size:
            return np.zeros(self.size, numbers.dtype)
        # The stride of a dimension of length 1 is never used and may be any number.
        strides = [
            step * numbers.itemsize if length > 1 else 0
            for length, step in zip(self.size, self.stride, strict=True)
        ]
        return np.lib.stride_tricks.as_strided(
            numbers[self.offset :], self.size, strides, writeable=False
        )


@dataclasses.dataclass(frozen=True)
class _Options:
    """Placeholder for an argparse.Namespace, whose values are not needed."""


def _rebuild_tensor(storage, offset, size, stride, *_):
    if type(size) is not tuple or type(stride) is not tuple:
        raise RefusedError("one of its tensors has no shape")
    return _Tensor(storage, offset, size, stride)


def _new_dict():
    return {}  # Unlike `dict`, this accepts no arguments.


# Every name that a checkpoint may contain, and the function that creates its value.
_CONSTRUCTORS = {
    Global("collections", "OrderedDict"): _new_dict,
    Global("argparse", "Namespace"): _Options,
    Global("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    Global("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    **dict.fromkeys(_DTYPES),
}


def _find_storage(storages, saved_id):
    """Returns the storage of a persistent id, and adds it to `storages` under its key."""
    if type(saved_id) is not tuple or not 5 <= len(saved_id) <= 6 or saved_id[0] != "storage":
        raise RefusedError("it refers to data other than a storage of numbers")
    _, kind, key, _, count, *view = saved_id
    if type(kind) is not Global or kind not in _DTYPES or type(key) is not str:
        raise RefusedError("it refers to data other than a storage of numbers")
    if type(count) is not int or not 0 <= count <= MAX_TENSOR_BYTES or view not in ([], [None]):
        raise RefusedError("it has a storage of an invalid size or a view of another storage")
    storage = _Storage(_DTYPES[kind], key, count)
    if storages.setdefault(key, storage) != storage:
        raise RefusedError("it has two different descriptions of one storage")
    return storage


def _open(file, num_bytes):
    """Returns the content of the file, and a function that reads the bytes of a `_Storage`."""
    start = file.read(len(_LEGACY_START))
    file.seek(0)
    if start == _LEGACY_START:
        return _open_legacy(file, num_bytes)
    if not zipfile.is_zipfile(file):
        raise RefusedError("it is neither a zip archive nor in the format of PyTorch before 1.6")
    return _open_zip(zipfile.ZipFile(file), num_bytes)


def _open_zip(archive, num_bytes):
    entries = {entry.filename: entry for entry in archive.infolist()}
    # PyTorch does not compress, so the data that is read can never be larger than the file.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise RefusedError("it has compressed entries, which torch.save does not write")
    if sum(max(entry.file_size, entry.compress_size) for entry in entries.values()) > num_bytes:
        raise RefusedError("its entries are declared to be larger than the file")
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise RefusedError("it is a zip archive, but was not written by torch.save")
    folder = pickles[0].removesuffix("/data.pkl")
    order = entries.get(f"{folder}/byteorder")
    if order and archive.read(order) != b"little":
        raise RefusedError("its byte order is not little-endian")
    if entries[pickles[0]].file_size > restricted_pickle.MAX_BYTES:
        raise RefusedError(f"its pickle is larger than {restricted_pickle.MAX_BYTES:,} bytes")
    content = restricted_pickle.load_pickle(
        io.BytesIO(archive.read(pickles[0])),
        constructors=_CONSTRUCTORS,
        persistent_load=functools.partial(_find_storage, {}),
    )

    def read_storage(storage):
        entry = entries.get(f"{folder}/data/{storage.key}")
        found = entry.file_size if entry else 0
        if found != storage.num_bytes:
            raise RefusedError(
                f"one of its storages has {found:,} bytes, but its tensors need "
                f"{storage.num_bytes:,}"
            )
        return archive.read(entry)

    return content, read_storage


def _open_legacy(file, num_bytes):
    """Reads the format before PyTorch 1.6: five pickles, then count and numbers per storage."""
    head = io.BytesIO(file.read(min(num_bytes, restricted_pickle.MAX_BYTES)))
    storages = {}
    restricted_pickle.load_pickle(head, constructors={})  # The magic number, checked above.
    if restricted_pickle.load_pickle(head, constructors={}) != _LEGACY_PROTOCOL:
        raise RefusedError(f"its format version is not {_LEGACY_PROTOCOL}")
    system = restricted_pickle.load_pickle(head, constructors={})
    if type(system) is not dict or system.get("little_endian") is not True:
        raise RefusedError("its byte order is not little-endian")
    content = restricted_pickle.load_pickle(
        head,
        constructors=_CONSTRUCTORS,
        persistent_load=functools.partial(_find_storage, storages),
    )
    keys = restricted_pickle.load_pickle(head, constructors={})
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise RefusedError("the list of its storages is missing")
    if sorted(keys) != sorted(storages):
        raise RefusedError("its list of storages does not match its tensors")
    places, position = {}, head.tell()
    for key in keys:
        file.seek(position)
        count = int.from_bytes(file.read(8), "little")
        places[key] = position + 8
        position += 8 + storages[key].num_bytes
        if count != storages[key].count or position > num_bytes:
            raise RefusedError("one of its storages is incomplete")

    def read_storage(storage):
        file.seek(places[storage.key])
        return file.read(storage.num_bytes)

    return content, read_storage


def _tensors(content, read_storage: Callable[[_Storage], bytes]) -> dict[str, np.ndarray]:
    state = content
    for name in ("model", "state_dict"):
        if type(content) is dict and name in content:
            state = content[name]
            break
    if type(state) is not dict:
        raise RefusedError(f"it contains a {type(state).__name__} instead of a state dict")
    tensors = {
        name.replace("module.", ""): tensor
        for name, tensor in state.items()
        if type(name) is str and type(tensor) is _Tensor
    }
    storages = {tensor.storage for tensor in tensors.values()}
    total = sum(storage.num_bytes for storage in storages)
    if total > MAX_TENSOR_BYTES:
        raise RefusedError(f"its tensors have {total:,} bytes; the limit is {MAX_TENSOR_BYTES:,}")
    data = {storage: read_storage(storage) for storage in storages}
    return {name: tensor.view(data[tensor.storage]) for name, tensor in tensors.items()}


def _describe_damage(error):
    lines = str(error).strip().splitlines()
    return f"it is damaged ({type(error).__name__}{': ' + lines[0][:200] if lines else ''})"
