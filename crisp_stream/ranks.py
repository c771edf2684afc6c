"""Ranks that begin together, and fail together: where one of them cannot go on, the others do not wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from crisp_stream.errors import CrispError, import_extra

T = TypeVar("T")

TIMEOUT_SECONDS = 1800.0
"""How long ranks wait for one of them: rank 0 uploads the last checkpoint, the first rank of a node fetches one."""


def join_ranks() -> None:
    """Have the processes of a launcher know each other; a single process needs no other. May be called again."""
    dist = import_extra("composer.utils.dist", extra="train", purpose="training")
    if dist.get_world_size() > 1:
        pass

        dist.initialize_dist(device_name(), timeout=TIMEOUT_SECONDS)


def together(act: Callable[[], T]) -> T:
    """Do what every rank does on its own, such as opening files. All ranks call this.

    Raises:
        CrispError: of the lowest rank that failed, on every rank.
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
