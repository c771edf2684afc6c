"""Samples from DataLoader workers to the training process through memory that both have mapped.

An unnamed file that a dataset makes before its workers start, so that nothing has to be handed over later. Each worker
claims a group of slots. A slot is marked with the number of the batch in it, which the receiver compares and clears, so
a slot is never read as another batch. Where no slot is free, the bytes go through DataLoader's pipe, which costs the
training process three times as much CPU. Memory is used for slots that were filled, not for those that could be.
"""

from __future__ import annotations

import mmap
import multiprocessing.context
import multiprocessing.reduction
import os
import secrets
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import CorruptDataError

GROUP_SLOTS = 8
_NUM_GROUPS = 128
_NUM_SLOTS = GROUP_SLOTS * _NUM_GROUPS
_HEADER_BYTES = -(-8 * (_NUM_SLOTS + 2 * _NUM_GROUPS) // mmap.PAGESIZE) * mmap.PAGESIZE

_here: WeakValueDictionary[int, Slots] = WeakValueDictionary()
"""Those of this process, by name."""

Place = tuple[int, int, int, int]
"""Name of the slots, slot, mark, and number of bytes."""


class Slots:
    """Slots for the samples of one batch each, of a dataset and its copies in workers."""

    def __init__(self, slot_bytes: int, *, shared: tuple[int, int] | None = None) -> None:
        """Args:
        slot_bytes: size of a slot.
        shared: descriptor and name of those that another process made.

        Raises:
            OSError, AttributeError: the system has no such memory.
        """
        self._slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        length = _HEADER_BYTES + _NUM_SLOTS * self._slot_bytes
        self._file = -1
        self._file, self.name = shared or (os.memfd_create("crisp-stream-slots"), secrets.randbits(62))
        if shared is None:
            os.ftruncate(self._file, length)
        mapped = mmap.mmap(self._file, length)
        numbers = np.frombuffer(mapped, np.int64, _NUM_SLOTS + 2 * _NUM_GROUPS)
        self._marks, self._owners, self._iterations = np.split(numbers, [_NUM_SLOTS, _NUM_SLOTS + _NUM_GROUPS])
        self._bytes = np.frombuffer(mapped, np.uint8, _NUM_SLOTS * self._slot_bytes, _HEADER_BYTES)
        _here[self.name] = self

    def __reduce__(self) -> tuple[Any, ...]:
        assert multiprocessing.context.get_spawning_popen() is not None, "another copy shares nothing"
        return (_attach, (self._slot_bytes, multiprocessing.reduction.DupFd(self._file), self.name))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone before this object
        if self._file >= 0:
            close(self._file)

    def claim(self, iteration: int) -> int | None:
        """Claim a group of slots for this process, for one iteration; None when there is none. One process at a time.

        Groups of processes that have ended are claimed again; what they sent may still be on its way, unless it is from
        an iteration before the last one.
        """
        for group, owner in enumerate(self._owners.tolist()):
            if owner in (0, os.getpid()) or not _runs(owner):
                marks = self._marks[group * GROUP_SLOTS :][:GROUP_SLOTS]
                if self._iterations[group] < iteration - 1:
                    marks[:] = 0
                if (marks == 0).all():
                    self._owners[group], self._iterations[group] = os.getpid(), iteration
                    return group
        return None

    def put(self, group: int, samples: NDArray[Any]) -> Place | None:
        """Place samples in a free slot of a group; returns the place for `taken`, None when no slot is free."""
        content = samples.view(np.uint8)
        free = np.flatnonzero(self._marks[group * GROUP_SLOTS :][:GROUP_SLOTS] == 0)
        if not len(free) or len(content) > self._slot_bytes:
            return None
        slot, mark = group * GROUP_SLOTS + int(free[0]), secrets.randbits(62) | 1
        start = slot * self._slot_bytes
        self._bytes[start : start + len(content)] = content
        self._marks[slot] = mark
        return (self.name, slot, mark, len(content))

    def get(self, slot: int, mark: int, length: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """The bytes in a slot and its mark, to be set to 0 when they were used; None when it holds another batch."""
        if self._marks[slot] != mark:
            return None
        start = slot * self._slot_bytes
        return self._bytes[start : start + length], self._marks[slot : slot + 1]


def made_slots(slot_bytes: int) -> Slots | None:
    """Make slots, where the system has such memory; else None."""
    try:
        return Slots(slot_bytes)
    except (AttributeError, OSError):
        return None


def taken(place: Place) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Get the bytes and the mark of a slot by the place that `Slots.put` returned in another process.

    Raises:
        CorruptDataError: the slot holds another batch.
    """
    name, slot, mark, length = place
    slots = _here.get(name)
    content = None if slots is None else slots.get(slot, mark, length)
    if content is None:
        raise CorruptDataError(
            "a batch of a DataLoader worker was unpacked twice, or too late. Unpickle it once, in the training process."
        )
    return content


def _attach(slot_bytes: int, duplicate: Any, name: int) -> Slots:
    return Slots(slot_bytes, shared=(duplicate.detach(), name))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
