"""Rows of .npy files, read by ranges from a folder or an object store.

Plain reads at computed places, not memory maps: a map per file costs a page table each, counts as memory of the
process, and a truncated file would end it with SIGBUS instead of an error.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from crisp_stream.errors import FormatError
from crisp_stream.storage.store import Store

_HEADER_BYTES = 256
_REMEDY = "Remove it, so that it is made again."


class ArrayFile:
    """A .npy file in C order of one or two dimensions, of which stretches are read."""

    def __init__(self, store: Store, name: str, dtype: DTypeLike, *, shape: tuple[int | None, ...]) -> None:
        """Read the header; `shape` is what the file must have, None for a dimension of any length.

        Raises:
            FormatError: the file is no such array, or cut short. MissingObjectError, StorageError.
        """
        self._store, self._name, self._where = store, name, f"{store.url}/{name}"
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        header = io.BytesIO(store.get_range(name, 0, min(_HEADER_BYTES, store.object_bytes(name))))
        try:
            version = np.lib.format.read_magic(header)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            found, fortran, found_dtype = read(header)
        except ValueError as error:
            raise FormatError(f"{self._where}: must be a .npy array, got: {error}. {_REMEDY}") from error
        self.shape: tuple[int, ...] = found
        fits = len(found) == len(shape) and all(one in (None, other) for one, other in zip(shape, found, strict=True))
        self._first_byte = header.tell()
        num_bytes = self._first_byte + int(np.prod(found)) * self.dtype.itemsize
        is_c = not fortran or len(found) == 1 or min(found) <= 1
        if not (fits and is_c and found_dtype == self.dtype and store.object_bytes(name) == num_bytes):
            wanted = ", ".join("any" if one is None else str(one) for one in shape)
            raise FormatError(
                f"{self._where}: must be a whole array of {self.dtype} of shape ({wanted}), got shape {found} of "
                f"{found_dtype} in {store.object_bytes(name)} bytes. {_REMEDY}"
            )

    def read(self, start: int, count: int) -> NDArray[Any]:
        """`count` elements from element `start` on, as they stand in C order. Raises FormatError: it was cut short."""
        if not count:
            return np.empty(0, self.dtype)
        num_bytes = count * self.dtype.itemsize
        content = self._store.get_range(self._name, self._first_byte + start * self.dtype.itemsize, num_bytes)
        if len(content) != num_bytes:
            raise FormatError(f"{self._where}: was cut short while it was read. Start again.")
        return np.frombuffer(content, self.dtype)
