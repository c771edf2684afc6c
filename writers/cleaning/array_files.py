"""Arrays in many .npy files as one long array, read in pieces: what finding duplicates among 10^9 documents needs.

Plain reads at computed places, not memory maps: a map per file costs a page table each, counts as memory of the
process, and a truncated file would end it with SIGBUS instead of an error.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from crisp_stream.errors import FormatError

_CHUNK_BYTES = 1 << 20
_GAP_BYTES = 4096


class ArrayFiles:
    """Rows of .npy files [rows, columns] (or [rows]) that follow one another, or one band of files [bands, rows].

    Raises:
        FormatError: a file that is missing, cut short, or not a C-ordered array of the expected dtype and width.
    """

    def __init__(self, paths: Sequence[Path], dtype: DTypeLike, *, columns: int = 1, band: int | None = None) -> None:
        """Read the headers of `paths`.

        Args:
            paths: in document order.
            dtype: of the arrays.
            columns: of every file (bands, when one is read).
            band: read the arrays as [bands, rows] and only this band, as one column.
        """
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self._paths = list(paths)
        self._offsets: list[int] = []
        rows = np.zeros(len(self._paths) + 1, np.int64)
        for number, path in enumerate(self._paths):
            shape, offset = self._read_header(path)
            width, rows[number + 1] = shape if band is not None else shape[::-1]
            if width != columns:
                raise FormatError(
                    f"{path}: must be an array of {columns} columns (or bands), got shape {shape}. "
                    "Remove it, so that it is made again."
                )
            self._offsets.append(offset + (band or 0) * shape[1] * self.dtype.itemsize)
        self.num_columns = 1 if band is not None else columns
        self.first_row: NDArray[np.int64] = np.cumsum(rows)
        """[num_files + 1], number of each file's first row among all."""

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return int(self.first_row[-1])

    def chunks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """All rows in order, in pieces of at most a megabyte: (number of the first row, [rows, columns])."""
        rows_per_chunk = max(_CHUNK_BYTES // (self.num_columns * self.dtype.itemsize), 1)
        for number, path in enumerate(self._paths):
            first, end = self.first_row[number : number + 2].tolist()
            if first == end:
                continue
            with path.open("rb") as file:
                for start in range(first, end, rows_per_chunk):
                    yield start, self._read(file.fileno(), number, start - first, min(rows_per_chunk, end - start))

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The rows with these numbers, in their order; each is read once, near ones together."""
        wanted, inverse = np.unique(rows, return_inverse=True)
        taken = np.empty((len(wanted), self.num_columns), self.dtype)
        file_borders = np.searchsorted(wanted, self.first_row)
        for number in np.flatnonzero(np.diff(file_borders)).tolist():
            begin, end = file_borders[number : number + 2].tolist()
            local = wanted[begin:end] - self.first_row[number]
            far = np.diff(local) * self.num_columns * self.dtype.itemsize > _GAP_BYTES
            cuts = [0, *(np.flatnonzero(far) + 1).tolist(), end - begin]
            with self._paths[number].open("rb") as file:
                for start, stop in itertools.pairwise(cuts):
                    first, last = int(local[start]), int(local[stop - 1])
                    span = self._read(file.fileno(), number, first, last - first + 1)
                    taken[begin + start : begin + stop] = span[local[start:stop] - first]
        return taken[inverse]

    def _read_header(self, path: Path) -> tuple[tuple[int, int], int]:
        try:
            with path.open("rb") as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(file)
                offset, num_bytes = file.tell(), os.fstat(file.fileno()).st_size
        except (OSError, ValueError) as error:
            raise FormatError(
                f"{path}: must be a .npy array, got: {error}. Remove it, so that it is made again."
            ) from (error)
        if len(shape) == 1:
            shape = (shape[0], 1)
        expected = offset + int(np.prod(shape)) * self.dtype.itemsize
        if len(shape) != 2 or dtype != self.dtype or (fortran and min(shape) > 1) or num_bytes != expected:
            raise FormatError(
                f"{path}: must be a whole array of two dimensions of {self.dtype}, got shape {shape} of {dtype} in "
                f"{num_bytes} bytes. Remove it, so that it is made again."
            )
        return (int(shape[0]), int(shape[1])), offset

    def _read(self, descriptor: int, number: int, row: int, rows: int) -> NDArray[Any]:
        row_bytes = self.num_columns * self.dtype.itemsize
        content = os.pread(descriptor, rows * row_bytes, self._offsets[number] + row * row_bytes)
        if len(content) != rows * row_bytes:
            raise FormatError(f"{self._paths[number]}: was cut short while it was read. Start again.")
        return np.frombuffer(content, self.dtype).reshape(rows, self.num_columns)
