"""What ends a study from outside: signals, a terminal's Ctrl-C, a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from crisp_stream.errors import RunInterruptedError
from crisp_stream.study.jobs.job import Done, Job, job_folder
from crisp_stream.study.jobs.runner import run_jobs
from tests.support import small_jobs
from tests.support.small_jobs import PATIENCE_SECONDS, fixed, job, lines_of, silent

ROOT = Path(__file__).parent.parent.parent


class Study:
    """A study in a process group of its own, in a folder of marks that its jobs leave."""

    def __init__(self, kind: str, folder: Path, *, grace: float = PATIENCE_SECONDS) -> None:
        command = [
            sys.executable,
            "-u",
            "-m",
            "tests.support.small_jobs",
            kind,
            str(folder / "out"),
            str(folder),
            str(grace),
        ]
        self._folder = folder
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def __enter__(self) -> Study:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def await_mark(self, name: str) -> None:
        """Until a job has begun."""
        until = time.monotonic() + PATIENCE_SECONDS
        while not (self._folder / name).exists():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < until, f"{name} did not come"
            time.sleep(0.02)

    def end(self) -> str:
        """What it printed, once it has ended in order and without a traceback."""
        out, err = self.process.communicate(timeout=2 * PATIENCE_SECONDS)
        assert self.process.returncode == 0, out + err
        assert err == ""
        return out


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_lets_a_training_save_and_the_same_command_goes_on(
    tmp_path: Path, number: signal.Signals, to_all: bool
) -> None:
    with Study("4", tmp_path) as study:
        study.await_mark("training")
        study.await_mark("dying")
        (os.killpg if to_all else os.kill)(study.process.pid, number)
        assert f"RunInterruptedError: the study was stopped by {number.name}; " in study.end()
    step = job_folder(tmp_path / "out", "training", job("training", small_jobs.add).key) / "step"
    assert 1 <= int(step.read_text()) <= 3
    assert lines_of(tmp_path / "last.runs") == []
    with Study("4", tmp_path) as study:
        found = json.loads(study.end().splitlines()[-1])
    assert found["training"] == {"first": int(step.read_text()), "steps": 4}
    assert len(lines_of(tmp_path / "first.runs")) == len(lines_of(tmp_path / "last.runs")) == 1


@pytest.mark.parametrize("times", [1, 2])
def test_a_job_that_hears_no_signal_is_ended_after_the_grace_or_by_a_second_ctrl_c(tmp_path: Path, times: int) -> None:
    with Study("deaf", tmp_path, grace=1 if times == 1 else 10 * PATIENCE_SECONDS) as study:
        study.await_mark("deaf")
        os.killpg(study.process.pid, signal.SIGINT)
        if times == 2:
            time.sleep(1)
            os.killpg(study.process.pid, signal.SIGINT)
        assert ("RunInterruptedError" if times == 1 else "KeyboardInterrupt") in study.end()
    assert not is_running(int((tmp_path / "deaf").read_text()))


def test_ctrl_c_while_workers_start_leaves_no_traceback(tmp_path: Path) -> None:
    """Of the first worker, with which Python starts a process of its own, too."""
    with Study("slow-start", tmp_path, grace=1) as study:
        study.await_mark("starting")
        os.killpg(study.process.pid, signal.SIGINT)
        assert "RunInterruptedError" in study.end()


def test_workers_end_with_a_study_that_is_killed(tmp_path: Path) -> None:
    with Study("deaf", tmp_path) as study:
        study.await_mark("deaf")
    pid, until = int((tmp_path / "deaf").read_text()), time.monotonic() + PATIENCE_SECONDS
    while is_running(pid):
        assert time.monotonic() < until, "the worker lives on"
        time.sleep(0.05)
    assert run_jobs(fixed(), tmp_path / "out", log=silent) == {}


@pytest.mark.parametrize("after", ["a", "b"])
def test_a_signal_between_jobs_or_after_the_last_ends_the_study_too(tmp_path: Path, after: str) -> None:
    def plan(done: Mapping[str, Done]) -> list[Job]:
        if after in done:
            os.kill(os.getpid(), signal.SIGTERM)
        return [job("a", small_jobs.add), job("b", small_jobs.add, "a")]

    before = signal.getsignal(signal.SIGTERM)
    num_done = 1 if after == "a" else 2
    with pytest.raises(RunInterruptedError, match=f"stopped by SIGTERM; {num_done} of 2 jobs are finished"):
        run_jobs(plan, tmp_path, workers=1, log=silent)
    assert signal.getsignal(signal.SIGTERM) is before
