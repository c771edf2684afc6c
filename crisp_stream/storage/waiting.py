"""Say that storage is waited for, while it is: a line every ten seconds for all requests of a process together.

obstore tries a request again until its time is up and tells nobody meanwhile: an outage would be two silent minutes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

LINE_SECONDS = 10.0
"""Age from which a request is spoken of, and time between two lines."""
SLOW_BYTES_PER_SECOND = 5e6
"""An upload that is faster than this is not spoken of."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Request:
    what: str
    began: float
    """By `time.monotonic`."""
    patience: float
    """Seconds after which it is late."""
    timeout: float
    """Seconds after which it is given up, or each part of it."""
    in_parts: bool

    def line(self, now: float) -> str:
        limit = f"each part for up to {self.timeout:.0f} s"
        if not self.in_parts:
            limit = f"for up to {max(self.timeout - (now - self.began), 0):.0f} s more"
        return f"storage: waiting for {now - self.began:.0f} s to {self.what}; {limit}"


class WaitingRequests:
    """The requests that are under way, and a thread that speaks of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._requests: set[_Request] = set()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def add(self, what: str, *, timeout: float, upload_bytes: int = 0) -> Iterator[None]:
        """Count a request while the block lasts.

        Args:
            what: what it does, as in "cannot …".
            timeout: seconds after which it is given up.
            upload_bytes: size of a file that it sends in parts.
        """
        patience = LINE_SECONDS + upload_bytes / SLOW_BYTES_PER_SECOND
        request = _Request(
            what=what, began=time.monotonic(), patience=patience, timeout=timeout, in_parts=upload_bytes > 0
        )
        with self._changed:
            self._requests.add(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._speak, name="crisp-stream-waiting", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._requests.remove(request)

    def line(self, now: float) -> str | None:
        """What is to be said at a time; None: no request is late."""
        with self._changed:
            late = [request for request in self._requests if now - request.began >= request.patience]
        if not late:
            return None
        others = f" (other requests that wait: {len(late) - 1})" if len(late) > 1 else ""
        return min(late, key=lambda request: request.began).line(now) + others

    def _speak(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._requests)
            time.sleep(LINE_SECONDS)
            line = self.line(time.monotonic())
            if line is not None:
                log.warning(line)


_waiting = WaitingRequests()


def _forget() -> None:
    global _waiting
    _waiting = WaitingRequests()


os.register_at_fork(after_in_child=_forget)


def waiting_to(what: str, *, timeout: float, upload_bytes: int = 0) -> contextlib.AbstractContextManager[None]:
    """`WaitingRequests.add` for this process."""
    return _waiting.add(what, timeout=timeout, upload_bytes=upload_bytes)
