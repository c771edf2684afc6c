"""Start the ranks of a run together, and raise the error of one rank on all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from crisp_stream.errors import CrispError, import_extra

T = TypeVar("T")

TIMEOUT_SECONDS = 1800.0
"""Time that ranks wait for one of them: rank 0 uploads the last checkpoint, the first rank of a node fetches one."""


def join_ranks() -> None:
    """Connect the processes of a launcher; does nothing in a single process. May be called again."""
    dist = import_extra("composer.utils.dist", extra="train", purpose="training")
    if dist.get_world_size() > 1:
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
