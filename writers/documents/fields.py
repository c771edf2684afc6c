"""Fields of a document's record by dotted path: `text`, `meta.lang`, `quality_signals.rps_doc_word_count`.

A key that itself contains dots wins over the path through nested objects. A string that holds a JSON object is gone
into as well, because published datasets keep nested metadata so.
"""

from __future__ import annotations

import json
from typing import Any, Final

_SHOWN_NAMES = 60
_NULL = "null"
"""JSON text of a nested object that is null."""


class _Missing:
    """The type of MISSING."""


MISSING: Final = _Missing()
"""Result of find_field for a field that is not there (a null field is None)."""


def find_field(record: dict[str, Any], path: str) -> Any:
    """The value at `path`, None when it or an object on the way is null, MISSING when it is not there."""
    if path in record:
        return record[path]
    cut = path.rfind(".")
    while cut > 0:  # the longest key first
        inner = record.get(path[:cut], MISSING)
        if inner is None or inner == _NULL:
            return None
        value = find_field(_opened(inner), path[cut + 1 :])
        if value is not MISSING:
            return value
        cut = path.rfind(".", 0, cut)
    return MISSING


def listed_fields(record: dict[str, Any]) -> str:
    """The paths of a record's fields, as errors name them; nested objects to a depth of three, 60 names at most."""
    names = _nested_names(record, "", 3)
    return ", ".join(names[:_SHOWN_NAMES] + ["…"] * (len(names) > _SHOWN_NAMES)) or "none"


def _nested_names(record: dict[str, Any], prefix: str, depth: int) -> list[str]:
    names: list[str] = []
    for key, value in record.items():
        inner = _opened(value) if depth > 1 else {}
        names += _nested_names(inner, f"{prefix}{key}.", depth - 1) if inner else [f"{prefix}{key}"]
    return names


def _opened(value: Any) -> dict[str, Any]:
    """The object that `value` is or holds as JSON text, else an empty one."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}
