"""Writing `.npz` archives in pieces."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf


class NpzWriter:
    """An `.npz` archive that is written from front to back, also to a remote path."""

    def __init__(self, path: str):
        self._file = tf.io.gfile.GFile(path, "wb")
        self._archive = zipfile.ZipFile(_FrontToBack(self._file), "w")  # type: ignore[call-overload]  # Has no tell.

    def __enter__(self) -> NpzWriter:
        return self

    def __exit__(self, *_) -> None:
        try:
            self._archive.close()
        finally:
            self._file.close()

    @contextlib.contextmanager
    def rows(
        self, name: str, shape: Sequence[int], dtype: type | np.dtype
    ) -> Iterator[Callable[[np.ndarray], int]]:
        """Yields a function that appends rows to the array `name` of this shape."""
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
            "fortran_order": False,
            "shape": tuple(shape),
        }
        with self._archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array_header_2_0(entry, header)
            yield lambda rows: entry.write(np.ascontiguousarray(rows, dtype).tobytes())


class _FrontToBack:
    """A file without tell and seek, so that `zipfile` never goes back to fill in a size."""

    def __init__(self, file):
        self._file, self.flush = file, file.flush

    def write(self, data: bytes) -> int:
        self._file.write(data)
        return len(data)
