"""Sizes as recipes and Python calls write them: bytes, or text such as `200gb`."""

from __future__ import annotations

import re
from numbers import Integral

_BYTES = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)b?")


def parse_bytes(size: object) -> int | None:
    """A whole number, or text such as `200gb` or `1.5 kb` (powers of 1000), in bytes; None: it is neither."""
    if isinstance(size, bool):
        return None
    if isinstance(size, Integral):
        return int(size)
    match = _BYTES.fullmatch(size.strip().lower()) if isinstance(size, str) else None
    if match is None:
        return None
    return int(float(match[1]) * 1000 ** ("kmgt".find(match[2]) + 1 if match[2] else 0))
