"""The limit of `--memory`: number of processes, and data that each may hold.

The limit bounds what grows with the corpus. What does not grow is counted at the sizes below, measured as the sum of
the proportional set sizes (PSS) of all processes. What one process needs for a while, such as the fit of an LSI, is
held beside: meanwhile fewer processes run, or it is refused before hours of work.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crisp_stream.errors import InputError
from crisp_stream.records.bad_record import LEAST_BYTES_PER_BYTE
from crisp_stream.writers.engine.tasks import Kind

DRIVER_BYTES = 448 << 20
"""Memory of the process that runs the others, or all tasks alone: it lists, trains the tokenizer, holds an LSI, joins,
and has imported faiss and scikit-learn (measured 0.44 GB)."""
ENCODER_BYTES = 1400 << 20
"""Memory of a process with torch, sentence-transformers and all-MiniLM-L6-v2 on the CPU (measured 1.3 GB)."""
ENCODER_WEIGHTS_BYTES = 91 << 20
"""Part of it that is all-MiniLM-L6-v2's weights; a larger encoder adds what its weights have beyond."""
LIGHT_BYTES = 384 << 20
"""Memory of a process that tokenises, embeds by an LSI, fits, assigns or sorts, before the data it holds (measured
0.12 to 0.36 GB)."""
LEAST_WORK_BYTES = 64 << 20
"""Data that a process must be able to hold beside."""
SORTER_BYTES = 160 << 20
"""Memory of a process of the pool that sorts and holds no encoder (measured 0.14 GB), before the shard it makes."""
_COPIES_OF_SHARD = 2.5
"""A shard that is not full and what is appended to it are held twice, and sorted windows beside."""
_MORE_OR_A_TREE = "Give more, or a tree that was fitted elsewhere (--tree)."
_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3
_LARGE_BLOCK_BYTES = 256 << 10


class MemoryLimit:
    """A limit on the memory of all processes of a machine together."""

    def __init__(self, limit_bytes: int) -> None:
        """Raises InputError where not even one process fits."""
        self._limit_bytes = limit_bytes
        self._encoder_bytes = ENCODER_BYTES
        self._beside_bytes = 0
        self._light_bytes = LIGHT_BYTES + LEAST_WORK_BYTES
        self.require("one process", 0)
        bound_allocators()

    def processes(self, kind: Kind) -> int:
        """Number of processes that fit at once; one runs in the driver itself. Raises InputError where none fits."""
        each = self._encoder_bytes if kind == "encoder" else self._light_bytes
        free = self._limit_bytes - self._beside_bytes
        fitting = (free - DRIVER_BYTES) // each
        if kind == "encoder" and fitting < 1 and free < each:
            raise InputError(
                f"memory: embedding needs {each >> 20} MB for one process, got {free >> 20} MB. "
                "Give more, or use --encoder lsi, which needs no neural network."
            )
        return max(fitting, 1)

    def work_bytes(self, processes: int) -> int:
        """Data that each of so many light processes may hold."""
        return (self._limit_bytes - DRIVER_BYTES) // processes - (LIGHT_BYTES if processes > 1 else 0)

    def require(self, purpose: str, num_bytes: int, remedy: str | None = None) -> None:
        """Raises InputError where a process that needs `num_bytes` beside what every one needs does not fit."""
        remedy = remedy or (_MORE_OR_A_TREE if num_bytes else "Give more.")
        self._require(LEAST_WORK_BYTES + num_bytes, f", what {purpose} needs", remedy)

    def _require(self, num_bytes: int, purpose: str, remedy: str) -> None:
        least = DRIVER_BYTES + num_bytes
        if self._limit_bytes < least:
            got = f"got {self._limit_bytes >> 20} MB"
            raise InputError(f"memory: must be at least {_megabytes(least)} MB{purpose}, {got}. {remedy}")

    @contextmanager
    def beside(self, purpose: str, num_bytes: int, remedy: str | None = None) -> Iterator[None]:
        """Let fewer processes run while `num_bytes` are held beside. Raises InputError as `require` does."""
        self.require(purpose, num_bytes, remedy)
        self._beside_bytes = num_bytes
        try:
            yield
        finally:
            self._beside_bytes = 0

    @contextmanager
    def in_each(self, purpose: str, num_bytes: int) -> Iterator[None]:
        """Let fewer processes run while each holds `num_bytes`. Raises InputError where not even one fits."""
        self._require(max(LEAST_WORK_BYTES, num_bytes), f", what {purpose} needs", _MORE_OR_A_TREE)
        before = self._light_bytes
        self._light_bytes = max(before, LIGHT_BYTES + num_bytes)
        try:
            yield
        finally:
            self._light_bytes = before

    def count_shards(self, shard_bytes: int) -> None:
        """Count a shard, which its process holds until it is full. Raises InputError where it does not fit."""
        held = int(_COPIES_OF_SHARD * shard_bytes)
        self._light_bytes = max(LIGHT_BYTES + LEAST_WORK_BYTES, SORTER_BYTES + held)
        purpose, remedy = f" for shards of {_megabytes(shard_bytes)} MB", "Give more, or smaller shards (--shard-mb)."
        self._require(max(LEAST_WORK_BYTES, held), purpose, remedy)

    def require_parts(self, part_characters: int) -> None:
        """Raises InputError where a part of so many characters does not fit: a process reads, packs and cuts it."""
        needed = max(LEAST_WORK_BYTES, part_characters * LEAST_BYTES_PER_BYTE)
        purpose, remedy = f" for parts of {part_characters:,} characters", "Give more, or a smaller --part-characters."
        self._require(needed, purpose, remedy)
        if needed > LEAST_WORK_BYTES:
            self._light_bytes = max(self._light_bytes, LIGHT_BYTES + needed)

    def count_encoder(self, weights_bytes: int) -> None:
        """Count the weights of the neural encoder that is used. Raises InputError where it does not fit."""
        self._encoder_bytes = ENCODER_BYTES + max(0, weights_bytes - ENCODER_WEIGHTS_BYTES)
        self.processes("encoder")


def _megabytes(num_bytes: int) -> int:
    return -(-num_bytes >> 20)


def bound_allocators() -> None:
    """Make this process return what it frees: one heap, and large blocks apart, which go back at once.

    By default glibc keeps up to eight heaps per core and moves blocks of up to 32 MB into them, and Arrow keeps pools:
    of a driver of 0.5 GB they were 100 MB. Elsewhere than on Linux nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt: Any = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())


def return_memory() -> None:
    """Return what is free inside the heap of this process."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
