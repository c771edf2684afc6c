"""Ctrl-C in a terminal and SIGTERM: one message that says how to go on, no tracebacks, no workers left."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.written_dataset import files_below
from tests.writers.test_crashes import finish, start, wait_until, workers_of


def is_writing(work: Path) -> bool:
    return len(list(work.glob("windows/*.json"))) > 2


MOMENTS: dict[str, Callable[[Path, int], bool]] = {
    "while workers start": lambda work, pid: bool(workers_of(pid)),
    "at work": lambda work, pid: is_writing(work),
}


@pytest.mark.parametrize(("processes", "moment"), [("1", "at work"), ("2", "at work"), ("2", "while workers start")])
@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_to_the_whole_group_ends_with_one_message(
    number: signal.Signals, name: str, processes: str, moment: str, text_file: Path, tmp_path: Path
) -> None:
    log, work = tmp_path / "log", tmp_path / "work"
    process = start(text_file, tmp_path / "root", log, "--work", str(work), "--processes", processes)
    assert wait_until(lambda: MOMENTS[moment](work, process.pid), process), log.read_text()
    workers = workers_of(process.pid)
    begun = time.monotonic()
    os.killpg(process.pid, number)
    assert process.wait(60) == 128 + number
    assert time.monotonic() - begun < 20
    printed = log.read_text()
    assert "Traceback" not in printed, printed
    last = f"stopped: by {name}. What is finished is kept: run the same command again to go on."
    assert re.findall(r"^(?:stopped|error): .*", printed, re.MULTILINE) == [last]
    until = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_same_command_goes_on_after_a_signal_to_itself_alone(text_file: Path, tmp_path: Path) -> None:
    log, work = tmp_path / "log", tmp_path / "work"
    process = start(text_file, tmp_path / "root", log, "--work", str(work))
    assert wait_until(lambda: is_writing(work), process), log.read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert "stopped: by SIGTERM." in log.read_text()
    assert "tasks were done by an earlier run" in finish(text_file, tmp_path / "root", log, "--work", str(work))
    finish(text_file, tmp_path / "whole", log)
    assert files_below(tmp_path / "root") == files_below(tmp_path / "whole")
