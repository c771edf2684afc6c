"""SIGTERM, or one Ctrl-C, ends a run after the batch in progress, with a checkpoint.

A signal may reach one rank only, and ranks that stop at different batches wait for each other for ever. So the ranks
exchange one integer after every batch, and all stop where any of them had a signal. Composer stops in order then: the
last step is saved, loggers are flushed.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class GracefulStop(Callback):
    """Stops the run after a batch in which a signal had come."""

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        """The signal that ended the run."""
        self._received = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Receive signals instead of dying of them. A second Ctrl-C is a KeyboardInterrupt at once.

        Other threads than the main one cannot receive signals; there nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = self._received or number  # after a Ctrl-C, the launcher says SIGTERM

    def batch_end(self, state: State, logger: Logger) -> None:
        received = state.device.tensor_to_device(torch.tensor([self._received]))
        dist.all_reduce(received, reduce_operation="MAX")
        number = int(received.item())
        finished = state.max_duration is not None and state.timestamp >= state.max_duration
        if number == 0 or finished:
            return
        self.stopped_by = signal.Signals(number)
        if dist.get_global_rank() == 0:
            print(
                f"\n{self.stopped_by.name}: stopping after batch {int(state.timestamp.batch):,}",
                file=sys.stderr,
                flush=True,
            )
        state.stop_training()
