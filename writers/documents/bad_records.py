"""How many bad records a run may leave out, and which those were.

One bad record in a billion should not end a run, and a wrong column should not pass as a corpus of bad
records; so there is a budget, and its default is 0. A file that cannot be read to its end is no bad record: nobody
knows how many documents are lost with it (`--skip-corrupt`).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from crisp_stream.errors import InputError
from crisp_stream.records.bad_record import BadReason, BadRecord

_SHOWN = 3
_BUDGET = re.compile(r"(\d+)|(\d+(?:\.\d+)?)\s*%")


class BadRecordError(Exception):
    """Raised while a record is taken apart; whoever reads records catches it and goes on with the next one."""

    def __init__(self, reason: BadReason, text: str, remedy: str) -> None:
        super().__init__(text)
        self.record = BadRecord(reason=reason, text=text, remedy=remedy)


@dataclass(frozen=True, slots=True)
class BadPlace:
    """A bad record of a file."""

    line: int
    """Number of the line or record in its file, from 1."""
    reason: BadReason
    text: str


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How many bad records a run may leave out: a number, or a share of all records."""

    written: str
    """As the user wrote it: `20` or `0.1%`."""
    records: int | None
    share: Fraction
    """Share of the records where no number is given."""

    @classmethod
    def parse(cls, written: str | int) -> Budget:
        """A budget out of `N` or `P%`. Raises InputError."""
        match = _BUDGET.fullmatch(str(written).strip())
        percent = Fraction(match[2]) if match and match[2] else Fraction(0)
        if match is None or percent > 100:
            raise InputError(
                f"max-bad: must be a number of records or a share of them, such as 20 or 0.1%, got {written!r}."
            )
        records = int(match[1]) if match[1] else None if percent else 0
        return cls(written=str(written).strip(), records=records, share=percent / 100)

    def check(self, num_bad: int, num_records: int, shown: str, *, so_far: bool = False) -> None:
        """Raises InputError where `num_bad` of `num_records` are too many; `shown` are the first of them."""
        allowed = self.records if self.records is not None else int(self.share * num_records)
        if num_bad > allowed:
            of_all = f" of {num_records:,} records" if self.records is None else ""
            raise InputError(
                f"bad records: at most {allowed:,}{of_all} may be left out (--max-bad {self.written}), got {num_bad:,}"
                f"{' so far' if so_far else ''}:"
                f"\n{shown}\nMend them, or allow more with --max-bad N or --max-bad P%."
            )


ANY_NUMBER = Budget.parse("100%")


class BadRecords:
    """The bad records of a run, or of a part of it, in the order of reading."""

    def __init__(self, budget: Budget | None = None) -> None:
        """Without a budget nothing may be left out: the first one is an error."""
        from crisp_stream.format.ledger import LISTED_PER_REASON  # imports pyarrow, and the command line imports this

        self.counts: Counter[BadReason] = Counter()
        self.places: list[tuple[int, BadPlace]] = []
        """(number of the file, place): the first of each reason, as many as a ledger lists."""
        self._listed_per_reason = LISTED_PER_REASON
        self._budget = budget
        self._shown: list[str] = []

    def add(self, file: int, line: int, record: BadRecord, place: str) -> None:
        """Take note of one. `place` is what messages call it.

        Raises:
            InputError: the budget, if it is a number, is used up.
        """
        self.counts[record.reason] += 1
        if self.counts[record.reason] <= self._listed_per_reason:
            self.places.append((file, BadPlace(line, record.reason, record.text)))
        if self._budget is None or self._budget.records == 0:
            hint = "" if self._budget is None else " Or leave bad records out with --max-bad N or --max-bad P%."
            raise InputError(f"{record.error(place)}{hint}")
        if len(self._shown) < _SHOWN:
            self._shown.append(f"  {place}: {record.text}")
        if self._budget.records is not None:
            self._budget.check(self.counts.total(), 0, self.shown(), so_far=True)

    def shown(self) -> str:
        """The first of them, a line each."""
        return "\n".join(self._shown + ["  …"] * (self.counts.total() > len(self._shown)))
