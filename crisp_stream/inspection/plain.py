"""Values of a manifest or a histogram as text for people: no brackets, no quotes, none of Python's own words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, starmap

from crisp_stream.table import NONE, aligned

_WIDTH = 90
"""Characters of a value before it goes on in the next line."""


def plain(value: object) -> str:
    """A value on one line: a dash for nothing, yes and no, lists with commas, names with their values."""
    if value is None or value == "" or (isinstance(value, Sequence | Mapping) and not value):
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {plain(item)}" for name, item in value.items() if item is not None) or NONE
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(plain, value))
    return str(value)


def facts_text(facts: Sequence[tuple[str, object]]) -> str:
    """Names and values in two columns; what holds other facts has a row for each, long values several lines."""
    lines: list[tuple[str, str]] = []
    for name, value in chain.from_iterable(starmap(_rows, facts)):
        first, *more = textwrap.wrap(plain(value), _WIDTH, break_on_hyphens=False) or [NONE]
        lines += [(name, first), *(("", line) for line in more)]
    return aligned(lines)


def _rows(name: str, value: object) -> Iterator[tuple[str, object]]:
    """The value under its name, or a row for each part of it where these have parts themselves."""
    if isinstance(value, Mapping) and any(map(_has_names, value.values())):
        for key, item in value.items():
            yield from _rows(f"{name} {key}", item)
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        for number, item in enumerate(value, 1):
            yield from _rows(f"{name} {number}", item)
    else:
        yield name, value


def _has_names(value: object) -> bool:
    parts = value if isinstance(value, list | tuple) else ()
    return isinstance(value, Mapping) or any(isinstance(item, Mapping | list | tuple) for item in parts)
