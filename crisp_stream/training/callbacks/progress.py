"""Progress of a training: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import datetime
import shutil
import sys
import time
from typing import TYPE_CHECKING, TextIO

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from crisp_stream import digits

if TYPE_CHECKING:
    from crisp_stream.training.callbacks.monitor import RunMonitor


_REFRESH_SECONDS = 0.2
_WARM_UP = 3
"""First batches, which compile and fill caches: not timed for the estimate."""
_TIMED = 5
"""Batches after them from which the time of the run is estimated."""


class Progress(Callback):
    """Show the run's progress on rank 0: one line that keeps up on a terminal, one line every few batches elsewhere.

    Composer's bar prints its configuration first and its console logger a block of lines per interval.
    """

    def __init__(
        self,
        *,
        num_batches: int,
        log_interval: int,
        monitor: RunMonitor | None = None,
        stream: TextIO | None = None,
    ) -> None:
        """Args:
        num_batches: length of the run.
        log_interval: batches between lines without a terminal; the last batch always has one.
        monitor: its mixture error and wait for data are shown, too.
        stream: file to write to; standard error when None.
        """
        self._num_batches = num_batches
        self._log_interval = log_interval
        self._monitor = monitor
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._line_start = "\r\x1b[K" if self._terminal else ""
        self._started = (0.0, 0, 0)
        self._printed_at = 0.0
        self._timed_from = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        self._started = (time.monotonic(), int(state.timestamp.token), int(state.timestamp.batch))

    def batch_end(self, state: State, logger: Logger) -> None:
        batch, now = int(state.timestamp.batch), time.monotonic()
        last = batch == self._num_batches
        self._estimate(batch, now)
        due = now - self._printed_at > _REFRESH_SECONDS if self._terminal else batch % self._log_interval == 0
        if dist.get_global_rank() or not (due or last):
            return
        self._printed_at = now
        started, first_tokens, first_batch = self._started
        seconds = max(now - started, 1e-9)
        tokens = int(state.timestamp.token)
        minutes_left, seconds_left = divmod(round((self._num_batches - batch) * seconds / (batch - first_batch)), 60)
        loss = float(state.total_loss_dict["loss/train/total"])
        line = (
            f"batch {batch:,}/{self._num_batches:,}  loss {digits.loss(loss)}"
            f"  {tokens:,} tokens  {(tokens - first_tokens) / seconds:,.0f} tokens/s"
            f"  {minutes_left}:{seconds_left:02d} left"
        )
        if self._monitor is not None:
            line += f"  mixture error {digits.mixture_error(self._monitor.mixture_error)}"
            line += f"  waiting {self._monitor.wait_share:.1%}"
        if self._terminal:  # a longer line would wrap, and then stay
            line = line[: shutil.get_terminal_size().columns - 1]
        print(self._line_start + line, end="\n" if last or not self._terminal else "", file=self._stream, flush=True)

    def _estimate(self, batch: int, now: float) -> None:
        """Say once, after the first batches, how long the run will take."""
        first_batch = self._started[2]
        if batch == first_batch + _WARM_UP:
            self._timed_from = now
        if batch != first_batch + _WARM_UP + _TIMED or dist.get_global_rank():
            return
        seconds = (now - self._timed_from) / _TIMED
        whole = datetime.timedelta(seconds=round((self._num_batches - first_batch) * seconds))
        print(
            f"{self._line_start}estimated time: {whole} for {self._num_batches - first_batch:,} batches of "
            f"{seconds:.3g} s, saving and measuring not counted",
            file=self._stream,
            flush=True,
        )
