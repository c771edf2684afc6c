"""What is shown while a stage runs: counts out of a total, time left, and a clock that moves while nothing is done."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crisp_stream import processes
from crisp_stream.processes import Pool, Progress, duration, report_units, units_reported
from crisp_stream.writers.write import write
from tests.support.written_dataset import small_options


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds pass ten times as fast."""
    monkeypatch.setattr(processes, "CLOCK_SECONDS", 0.1)
    monkeypatch.setattr(processes, "LOG_SECONDS", 0.3)


@contextlib.contextmanager
def shown(stage: str, unit: str, lines: list[str], total: int | None = None) -> Iterator[Progress]:
    progress = Progress(stage, unit, log=lines.append, total=total)
    try:
        yield progress
    finally:
        progress.close()


def test_without_a_terminal_a_line_comes_at_every_interval_with_the_time_left() -> None:
    lines: list[str] = []
    with shown("embedding windows", "windows", lines, 1000) as progress:
        report_units(250)
        time.sleep(1.05)
        assert 2 <= len(lines) <= 3  # also though no task has ended
        assert re.fullmatch(
            r"embedding windows: 250 of 1,000 windows in \d s \([\d,.]+ a second\), about \d+ s left", lines[0]
        )
        progress.add(400)
        assert progress.count == 400
    progress = Progress("embedding windows", "windows", log=lines.append, total=1000)
    progress.add(1000)
    progress.finish()
    assert re.fullmatch(r"embedding windows: 1,000 windows in 0 s \([\d,.]+ a second\)", lines[-1])


def test_what_is_not_counted_has_a_clock_and_an_end() -> None:
    lines: list[str] = []
    progress = Progress("making the tokenizer", "", log=lines.append)
    progress.add(1)
    time.sleep(0.5)
    progress.finish()
    assert lines[0] == "making the tokenizer: 0 s"
    assert lines[-1] == "making the tokenizer: done in 1 s" or lines[-1] == "making the tokenizer: done in 0 s"


def test_one_of_a_unit_is_said_as_one() -> None:
    lines: list[str] = []
    progress = Progress("reading documents", "documents", log=lines.append)
    progress.add(1)
    progress.finish()
    assert lines[0].startswith("reading documents: 1 document in ")


@pytest.mark.parametrize(("unit", "total"), [("windows", 100), ("windows", None), ("", None)])
def test_on_a_terminal_the_clock_moves_without_a_task_that_ends(
    unit: str, total: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, lines = Terminal(), []
    monkeypatch.setattr(sys, "stderr", terminal)
    with shown("embedding windows", unit, lines, total) as progress:
        time.sleep(0.35)
        before = len(terminal.getvalue())
        report_units(30)
        time.sleep(0.35)
        assert len(terminal.getvalue()) > before
        assert lines == []
        assert progress.count == 30
    if total is not None:
        assert re.search(r"30%.*30/100 \[00:\d\d<", terminal.getvalue())


def report_five(number: int) -> int:
    report_units(5)
    return number


def test_processes_of_a_pool_report_what_they_have_done() -> None:
    before = units_reported()
    with contextlib.closing(Pool(2)) as pool:
        assert sorted(pool.map_unordered(report_five, range(4))) == [0, 1, 2, 3]
    assert units_reported() - before == 20


def test_durations_are_said_as_people_say_them() -> None:
    seconds = (4.4, 59, 61, 3599, 12_030)
    assert [*map(duration, seconds)] == ["4 s", "59 s", "1 min", "60 min", "3 h 20 min"]


def test_a_write_names_its_stages_for_people_and_counts_windows_of_a_known_total(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals: dict[str, int | None] = {}

    class Remembering(Progress):
        def __init__(self, stage: str, unit: str, **more: object) -> None:
            totals[stage] = more.get("total")  # type: ignore[assignment]
            super().__init__(stage, unit, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("crisp_stream.writers.engine.tasks.Progress", Remembering)
    lines: list[str] = []
    options = small_options(text_file, tmp_path / "out", encoder="lsi", max_length=None)
    report = write(options, log=lines.append)
    assert totals["embedding windows"] == totals["sorting windows"] == report.windows
    printed = "\n".join(lines)
    assert re.search(r"^making the tokenizer: done in \d+ s$", printed, re.MULTILINE)
    assert re.search(r"^reading documents: 79 documents in \d+ s", printed, re.MULTILINE)
    assert re.search(rf"^embedding windows: {report.windows:,} windows in \d+ s", printed, re.MULTILINE)
