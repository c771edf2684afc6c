"""Lengths of training as Composer writes them: `400ba`, `1000000tok`, and shares of a run: `0.1dur`."""

from __future__ import annotations

import re
from typing import Literal

from crisp_stream.errors import RecipeError

DURATION = re.compile(r"(\d+)(ba|tok)")
SHARE = re.compile(r"(0?\.\d+|0|1)dur")


def parse_duration(text: str) -> tuple[int, Literal["ba", "tok"]]:
    """Split `400ba` or `1000000tok` into number and unit. Raises RecipeError: neither form."""
    match = DURATION.fullmatch(text.replace("_", ""))
    if match is None:
        raise RecipeError(f"a duration is a number of batches or tokens such as 400ba or 1000000tok, not {text!r}.")
    return int(match[1]), "ba" if match[2] == "ba" else "tok"


def check_time(key: str, text: str, *, may_be_zero: bool = False, share: str = "0.1dur") -> None:
    """Check the value of a key: a length of training, or a share of the run. Raises RecipeError: neither, or 0.

    `share` is an example of a share, for messages; empty where shares are not allowed.
    """
    match = SHARE.fullmatch(text) if share else None
    if match is None and DURATION.fullmatch(text.replace("_", "")) is None:
        also = f" or a share such as {share}" if share else ""
        raise RecipeError(f"`{key}` must be batches such as 400ba, tokens such as 1000000tok{also}; got {text!r}.")
    count = parse_duration(text)[0] if match is None else float(match[1])
    if count <= 0 and not may_be_zero:
        raise RecipeError(f"`{key}` must be above 0; got {text}.")


def batches_of(text: str, *, tokens_per_batch: int, run_batches: int | None = None) -> int:
    """Number of whole batches of a duration.

    Args:
        text: tokens are rounded up to the batch that reaches them, a share to the nearest batch.
        tokens_per_batch: over all ranks.
        run_batches: length of the run, for a share of it.

    Raises:
        RecipeError: not a duration, or a share where there is no run to take it of.
    """
    share = SHARE.fullmatch(text)
    if share is not None and run_batches is not None:
        return round(float(share[1]) * run_batches)
    count, unit = parse_duration(text)
    return count if unit == "ba" else -(-count // tokens_per_batch)
