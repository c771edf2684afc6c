"""Start the ranks of a run together, and raise the error of one rank on all of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TypeVar

from crisp_stream.errors import CrispError, import_extra

T = TypeVar("T")

TIMEOUT_SECONDS = 1800.0
"""Time that ranks wait for one of them: rank 0 uploads the last checkpoint, the first rank of a node fetches one."""


def join_ranks() -> None:
    """Connect the processes of a launcher; does nothing in a single process. May be called again.

    From then on SIGTERM ends a rank at once, until something else handles it: Composer's handler would be called when
    the other ranks have answered, which may be never.
    """
    dist = import_extra("composer.utils.dist", extra="train", purpose="training")
    if dist.get_world_size() > 1:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        dist.initialize_dist(device_name(), timeout=TIMEOUT_SECONDS)


def together(act: Callable[[], T]) -> T:
    """Do something on every rank, such as opening files, and fail on all of them where one fails. All ranks call this.

    Raises:
        CrispError: the error of the lowest rank that failed, on every rank.
    """
    dist = import_extra("composer.utils.dist", extra="train", purpose="training")
    done: T | None = None
    failed: CrispError | None = None
    try:
        done = act()
    except CrispError as error:
        failed = error
    for error in dist.all_gather_object(failed):
        if error is not None:
            raise error
    return done  # pyright: ignore[reportReturnType]


def device_name() -> str:
    """`gpu` if there is one, else `cpu`, as Composer names devices."""
    torch = import_extra("torch", extra="train", purpose="training")
    return "gpu" if torch.cuda.is_available() else "cpu"
