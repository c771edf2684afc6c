"""What a reader found where a record should be.

A record is bad when it cannot be used as it stands: a line that is no JSON, a text that is no string, a field that is
not there. The records around it are good; whoever reads decides whether one may be left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crisp_stream.errors import InputError

LEAST_BYTES_PER_BYTE = 4
"""Memory that a text takes at least while it is read, compressed, or cut into tokens, per byte of it."""

BadReason = Literal[
    "not a JSON object",
    "line that is too long",
    "row of another length",
    "text that is not UTF-8",
    "no text field",
    "text that is not a string",
    "no id field",
    "id that is no id",
    "no field for a filter",
    "field that a filter cannot compare",
]
"""Kinds of bad records; the report, the manifest and the ledger count by them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRecord:
    """A record that cannot be used, and why. A reader gives it in place of the record's fields."""

    reason: BadReason
    text: str
    """The rule and what was there instead, such as "every line must be a JSON object, got list"; without the place."""
    remedy: str
    """A sentence, such as "Mend or remove the line."."""

    def error(self, place: str) -> InputError:
        """The error that ends a run which may leave out nothing."""
        return InputError(f"{place}: {self.text}. {self.remedy}")


class LargeRecordError(Exception):
    """A record takes more memory than there is for it."""

    def __init__(self, number: int, num_bytes: int, needed_bytes: int) -> None:
        """Number of the record, its bytes, and the memory that it takes at least."""
        super().__init__(number, num_bytes, needed_bytes)
        self.number, self.num_bytes, self.needed_bytes = number, num_bytes, needed_bytes


def not_utf8(subject: str, error: UnicodeDecodeError) -> BadRecord:
    """A text that cannot be decoded; `subject` says whose."""
    return BadRecord(
        reason="text that is not UTF-8",
        text=f"{subject} must be UTF-8, got: {error}",
        remedy="Convert the file to UTF-8.",
    )
