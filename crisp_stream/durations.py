"""Lengths of training as Composer writes them: `400ba`, `1000000tok`."""

from __future__ import annotations

import re
from typing import Literal

from crisp_stream.errors import RecipeError

DURATION = re.compile(r"(\d+)(ba|tok)")


def parse_duration(text: str) -> tuple[int, Literal["ba", "tok"]]:
    """Split `400ba` or `1000000tok` into number and unit.

    Raises:
        RecipeError: neither form.
    """
    match = DURATION.fullmatch(text.replace("_", ""))
    if match is None:
        raise RecipeError(f"a duration is a number of batches or tokens such as 400ba or 1000000tok, not {text!r}.")
    return int(match[1]), "ba" if match[2] == "ba" else "tok"


def batches_of(text: str, *, tokens_per_batch: int) -> int:
    """Number of whole batches of a duration; tokens are rounded up to the batch that reaches them."""
    count, unit = parse_duration(text)
    return count if unit == "ba" else -(-count // tokens_per_batch)
