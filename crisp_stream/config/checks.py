"""Checks of values of a recipe, each with an error that names the key."""

from __future__ import annotations

from crisp_stream.errors import RecipeError


def require(condition: bool, message: str) -> None:
    """Raise RecipeError where a condition does not hold."""
    if not condition:
        raise RecipeError(message)


def require_above_zero(prefix: str = "", **values: float | None) -> None:
    """Raise RecipeError about a value that is 0 or less; `prefix` stands before its key in the message."""
    for key, value in values.items():
        require(value is None or value > 0, f"`{prefix}{key}` must be above 0; got {value}.")
