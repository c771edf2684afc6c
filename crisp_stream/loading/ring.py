"""Samples from a DataLoader worker to the training process through memory that both have mapped.

Made once by each worker; its descriptor goes along with the first batch. A slot is marked with the number of the batch
in it, which the receiver compares and clears, so a slot is never read as another batch. Where no slot is free, the
bytes go through DataLoader's pipe, which costs the training process three times as much CPU.
"""

from __future__ import annotations

import mmap
import multiprocessing.reduction
import os
import secrets
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import CorruptDataError

NUM_SLOTS = 8
_HEADER_BYTES = 4096

_received: dict[int, tuple[int, Ring]] = {}
"""Rings of other processes that are mapped here: by name, the process and the ring."""


class Ring:
    """Slots for the samples of one batch each."""

    def __init__(self, slot_bytes: int, file: int | None = None) -> None:
        """Args:
        slot_bytes: size of a slot.
        file: descriptor of a ring that another process made; a new ring when None.

        Raises:
            OSError: the system has no such memory.
        """
        self._slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        length = _HEADER_BYTES + NUM_SLOTS * self._slot_bytes
        self._file = -1
        self._file = os.memfd_create("crisp-stream-ring") if file is None else file
        if file is None:
            os.ftruncate(self._file, length)
        mapped = mmap.mmap(self._file, length)
        self._number_of_slot = np.frombuffer(mapped, np.int64, NUM_SLOTS)
        self._bytes = np.frombuffer(mapped, np.uint8, NUM_SLOTS * self._slot_bytes, _HEADER_BYTES)
        self._name = secrets.randbits(62)
        self._sent = False

    def __del__(self, close: Any = os.close) -> None:  # `os` may be gone before this object
        if self._file >= 0:
            close(self._file)

    def put(self, samples: NDArray[Any]) -> tuple[Any, ...] | None:
        """Place samples in a free slot; returns the place for `taken`, or None when no slot is free."""
        content = samples.view(np.uint8)
        free = np.flatnonzero(self._number_of_slot == 0)
        if not len(free) or len(content) > self._slot_bytes:
            return None
        slot, number = int(free[0]), secrets.randbits(62) | 1
        start = slot * self._slot_bytes
        self._bytes[start : start + len(content)] = content
        self._number_of_slot[slot] = number
        descriptor = None if self._sent else multiprocessing.reduction.DupFd(self._file)
        self._sent = True
        return (self._name, self._slot_bytes, os.getpid(), descriptor, slot, number, len(content))

    def get(self, slot: int, number: int, length: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """The bytes in a slot and its mark, to be set to 0 when they were used; None when it holds another batch."""
        if self._number_of_slot[slot] != number:
            return None
        start = slot * self._slot_bytes
        return self._bytes[start : start + length], self._number_of_slot[slot : slot + 1]


def made_ring(slot_bytes: int) -> Ring | None:
    """Make a ring, where the system has such memory; else None."""
    try:
        return Ring(slot_bytes)
    except (AttributeError, OSError):
        return None


def taken(place: tuple[Any, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Get the bytes and the mark of a slot by the place that `Ring.put` returned in another process.

    Raises:
        CorruptDataError: the slot holds another batch.
    """
    name, slot_bytes, maker, descriptor, slot, number, length = place
    if descriptor is not None and name not in _received:
        for other in [other for other, (pid, _) in _received.items() if not _runs(pid)]:
            del _received[other]  # or every pass over a dataset would leave the rings of its workers
        _received[name] = (maker, Ring(slot_bytes, descriptor.detach()))
    content = _received[name][1].get(slot, number, length) if name in _received else None
    if content is None:
        raise CorruptDataError(
            "a batch of a DataLoader worker was unpacked twice, or too late. Unpickle it once, in the training process."
        )
    return content


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
