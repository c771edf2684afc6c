"""Tasks of a stage that are made when they are needed.

A stage has as many tasks as the corpus has parts, millions of them. An object of each, with its names and settings,
is a kilobyte or more; here 8 bytes are held of each, its fingerprint, which is the part of it that takes time. Making a
task again takes about 10 microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from crisp_stream.writers.engine.tasks import Task

AnyTask = TypeVar("AnyTask", bound=Task)


class TaskList(Sequence[AnyTask], Generic[AnyTask]):
    """The tasks `make(0)`, `make(1)`, … of one stage."""

    def __init__(self, num_tasks: int, make: Callable[[int], AnyTask]) -> None:
        """`make` gives the same task for the same position each time."""
        self._make = make
        self._fingerprints = np.zeros(num_tasks, np.uint64)
        """0 where it is not known yet."""

    def __len__(self) -> int:
        return len(self._fingerprints)

    def fingerprints(self) -> NDArray[np.uint64]:
        """[num_tasks], those of all tasks."""
        for at in np.flatnonzero(self._fingerprints == 0).tolist():
            self[at]
        return self._fingerprints

    @overload
    def __getitem__(self, at: int) -> AnyTask: ...
    @overload
    def __getitem__(self, at: slice) -> list[AnyTask]: ...
    def __getitem__(self, at: int | slice) -> AnyTask | list[AnyTask]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        known = int(self._fingerprints[at])  # raises IndexError at the end
        task = self._make(at if at >= 0 else at + len(self))
        if known:
            task.has_fingerprint(f"{known:016x}")
        else:
            self._fingerprints[at] = int(task.fingerprint, 16)
        return task

    def __iter__(self) -> Iterator[AnyTask]:
        return (self[at] for at in range(len(self)))
