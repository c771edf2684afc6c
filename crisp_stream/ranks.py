"""Ranks that fail together: where one of them cannot go on, the others do not wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from crisp_stream.errors import CrispError, import_extra

T = TypeVar("T")


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
