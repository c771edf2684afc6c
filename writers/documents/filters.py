"""Per-document filters on any field: `language == en`, `meta.score >= 0.5`, `quality_signals.rps_doc_word_count > 50`.

A filter names what is kept. What is compared:

* null equals null alone, and differs from everything else; no order holds with it, so `>= 5` drops it and `!= 5` keeps
  it. An object on the way that is null (`meta` of `meta.lang`) makes the field null.
* A field that is not there at all is not null, but an error.
* A list is a signal of RedPajama-v2, of [start, end, score] spans. One span is the whole document's, and its score is
  compared; an empty list has none and is null. Any other list can only be compared with null, which it is not.
* Dates compare as ISO texts, and numbers with numbers whatever their type. Two types never compare.
* NaN equals nothing, not even itself, and no order holds with it.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from crisp_stream.errors import InputError
from crisp_stream.writers.documents.bad_records import BadRecordError
from crisp_stream.writers.documents.fields import MISSING, find_field, listed_fields

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_PARTS = re.compile(r"\s*([^<>=!~]*?)\s*([<>=!~]+)\s*(.*?)\s*", re.DOTALL)
_LINE_SIGNAL = "rps_lines_"


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Keep the documents whose field compares so with the value."""

    expression: str
    """The text the user wrote; documents are counted as dropped under it."""
    field: str
    """Dotted path."""
    operator: str
    value: str | float | bool | None

    @property
    def reason(self) -> str:
        """Reason under which its documents are counted as dropped."""
        return f"filter: {self.expression}"

    def keeps(self, record: dict[str, Any], *, from_texts: bool = False) -> bool:
        """Decide whether a document stays.

        Args:
            record: its fields.
            from_texts: the fields are texts because the file can hold nothing else (.csv). One that is compared with
                something else is read as such, and an empty one is null then.

        Raises:
            BadRecordError: the field is not there, or its value cannot be compared with the filter's.
        """
        value = find_field(record, self.field)
        if value is MISSING:
            raise BadRecordError(
                "no field for a filter",
                f"the field {self.field!r} of the filter {self.expression!r} must exist, got: {listed_fields(record)}",
                "Name one of these, leave the filter out, or drop such records (write, append: --missing drop).",
            )
        if from_texts and not isinstance(self.value, str):
            value = _read_text(value)
        if isinstance(value, list):
            value = self._score(value, record)
        value = _plain(value)
        if value is None or self.value is None:
            same = value is None and self.value is None
            return same if self.operator == "==" else not same and self.operator == "!="
        if _type_name(value) != _type_name(self.value) or (_orders(self.operator) and isinstance(value, bool)):
            raise BadRecordError(
                "field that a filter cannot compare",
                f"the filter {self.expression!r} compares with a {_type_name(self.value)}, got a "
                f"{_type_name(value)} in {self.field!r}",
                'Write a value of that type (texts may be quoted: "10").',
            )
        return _OPERATORS[self.operator](value, self.value)

    def _score(self, spans: list[Any], record: dict[str, Any]) -> Any:
        """The score of a document's signal; None when the list is empty. Against null, any other list is a value."""
        by_line = self.field.rpartition(".")[2].startswith(_LINE_SIGNAL)
        if not spans and (self.value is None or not by_line):
            return None
        if by_line or len(spans) > 1 or not _is_span(spans[0]):
            if self.value is None:
                return spans
            prefix = self.field.rpartition(".")[0]
            beside = find_field(record, prefix) if prefix else record
            usable = _document_signals(_literal(beside) if isinstance(beside, str) else beside)
            raise BadRecordError(
                "field that a filter cannot compare",
                f"the filter {self.expression!r} needs one value per document, got a list of {len(spans)} in "
                f"{self.field!r}",
                f"Use a signal of the whole document: {', '.join(usable) or 'there is none here'}.",
            )
        return spans[0][2]


def parse_filter(expression: str) -> Filter:
    """A filter out of `FIELD OPERATOR VALUE`.

    The value is a number, true, false, null or a quoted text in the notation of JSON; anything else is a text as it
    stands. Dates compare as ISO texts.

    Raises:
        InputError: no such parts, an unknown operator, or an order comparison with true, false or null.
    """
    known = ", ".join(_OPERATORS)
    parts = _PARTS.fullmatch(expression)
    if parts is None or not parts[1] or not parts[3]:
        raise InputError(
            f"filter {expression!r}: must be FIELD OPERATOR VALUE with one of {known}. "
            "Write for example 'language_score >= 0.8'."
        )
    field, sign, written = parts.groups()
    if sign not in _OPERATORS:
        hint = "Write == for equality." if sign == "=" else "Use one of these."
        raise InputError(f"filter {expression!r}: the operator must be one of {known}, got {sign}. {hint}")
    value = _literal(written)
    if isinstance(value, list | dict) or (isinstance(value, float) and math.isnan(value)):
        raise InputError(
            f"filter {expression!r}: the value must be a number, a text, true, false or null, got {written}. "
            "Write one of these."
        )
    if _orders(sign) and (value is None or isinstance(value, bool)):
        raise InputError(f"filter {expression!r}: {sign} needs a number or a text, got {written}. Use == or !=.")
    return Filter(expression=expression, field=field, operator=sign, value=value)


def _literal(written: str) -> Any:
    try:
        return json.loads(written)
    except ValueError:
        return written


def _read_text(value: Any) -> Any:
    """A field of a file that holds texts alone, as the filter's value would be read; empty is null."""
    if not isinstance(value, str):
        return value
    literal = _literal(value) if value.strip() else None
    return value if isinstance(literal, list | dict) else literal


def _orders(sign: str) -> bool:
    return sign[0] in "<>"


def _plain(value: Any) -> Any:
    if isinstance(value, decimal.Decimal):
        return float(value)
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "truth value"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else type(value).__name__


def _is_span(span: Any) -> bool:
    return isinstance(span, list | tuple) and len(span) == 3


def _document_signals(record: Any) -> list[str]:
    return [
        name
        for name, spans in (record.items() if isinstance(record, dict) else ())
        if isinstance(spans, list) and len(spans) == 1 and _is_span(spans[0]) and not name.startswith(_LINE_SIGNAL)
    ]
