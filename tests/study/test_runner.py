"""Jobs run once, side by side where they may, and go on after failures, kills and signals."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from crisp_stream.errors import CrispError, FormatError, InputError
from crisp_stream.study.jobs import Done, Job, job_folder
from crisp_stream.study.runner import run_jobs
from tests.study.small_jobs import add, chat, die, fail, job, nap

ROOT = Path(__file__).parents[2]


def added(name: str, *numbers: int, needs: tuple[str, ...] = (), setting: object = 0) -> Job:
    return job(name, functools.partial(add, numbers=list(numbers)), needs=needs, setting=setting)


def quiet(line: str) -> None:
    """Takes log lines."""


def runs_of(out: Path, own: Job) -> int:
    return len((job_folder(out, own.name, own.key) / "runs").read_text().splitlines())


def test_jobs_run_once_and_what_they_return_is_found_again(tmp_path: Path) -> None:
    jobs = [added("one", 1), added("two", 2, 3, needs=("one",))]
    first = run_jobs(lambda done: jobs, tmp_path, workers=1, log=quiet)
    again = run_jobs(lambda done: jobs, tmp_path, workers=1, log=quiet)
    assert {name: own.values for name, own in first.items()} == {"one": {"sum": 1}, "two": {"sum": 5}}
    assert again == first
    assert [runs_of(tmp_path, own) for own in jobs] == [1, 1]


def test_another_key_is_another_folder_and_an_earlier_one_is_found_again(tmp_path: Path) -> None:
    before, after = added("one", 1, setting="a"), added("one", 2, setting="b")
    for own, total in ((before, 1), (after, 2), (before, 1)):
        found = run_jobs(lambda done, own=own: [own], tmp_path, workers=1, log=quiet)
        assert found["one"].values == {"sum": total}
    assert [runs_of(tmp_path, own) for own in (before, after)] == [1, 1]


def test_a_plan_may_name_later_jobs_by_what_earlier_ones_found(tmp_path: Path) -> None:
    first = added("first", 20, 1)

    def plan(done: Mapping[str, Done]) -> list[Job]:
        return [first, *([added("second", done["first"].values["sum"], needs=("first",))] if done else [])]

    assert run_jobs(plan, tmp_path, workers=1, log=quiet)["second"].values == {"sum": 21}


def test_jobs_run_side_by_side_but_whole_machine_jobs_alone(tmp_path: Path) -> None:
    naps = [job(f"nap-{number}", nap) for number in range(4)]
    alone = job("alone", nap, whole_machine=True)
    found = run_jobs(lambda done: [*naps[:2], alone, *naps[2:]], tmp_path, workers=2, log=quiet)
    times = {name: (own.values["began"], own.values["ended"]) for name, own in found.items()}
    began, ended = times.pop("alone")
    assert all(end <= began or start >= ended for start, end in times.values())
    assert len({own.values["pid"] for name, own in found.items() if name != "alone"}) == 2
    assert found["alone"].values["processes"] >= 1
    assert all(found[own.name].values["processes"] == 1 for own in naps)


def test_what_a_job_prints_is_in_its_folder_and_not_on_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = job("chat", chat)
    lines: list[str] = []
    run_jobs(lambda done: [own], tmp_path, workers=1, log=lines.append)
    log = (job_folder(tmp_path, own.name, own.key) / "log.txt").read_text()
    for way in ("by the log", "by print", "by stderr", "by the descriptor", "by a child"):
        assert way in log
    assert "by " not in "".join(capfd.readouterr())
    assert len(lines) == 1
    assert lines[0].startswith("[1/1] chat")


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [("input", InputError, "broken: text: must be there"), ("other", CrispError, r"broken failed: ZeroDivisionError")],
)
def test_an_error_names_its_job_and_what_ran_beside_it_is_kept(
    tmp_path: Path, kind: str, error: type[CrispError], message: str
) -> None:
    beside = job("beside", functools.partial(nap, seconds=0.5))
    jobs = [beside, job("broken", functools.partial(fail, kind=kind)), added("later", 1, needs=("broken",))]
    with pytest.raises(error, match=message) as raised:
        run_jobs(lambda done: jobs, tmp_path, workers=2, log=quiet)
    assert "log.txt" in str(raised.value)
    assert (job_folder(tmp_path, "beside", beside.key) / "done.json").is_file()
    assert not job_folder(tmp_path, "later", jobs[2].key).exists()


def test_a_killed_worker_is_named_and_the_same_call_goes_on(tmp_path: Path) -> None:
    jobs = [added("before", 1), job("dies", die, needs=("before",))]
    with pytest.raises(CrispError, match=r"dies: its worker process was killed.*same command again"):
        run_jobs(lambda done: jobs, tmp_path, workers=1, log=quiet)
    assert run_jobs(lambda done: jobs, tmp_path, workers=1, log=quiet)["dies"].values == {"lived": True}
    assert runs_of(tmp_path, jobs[0]) == 1


def test_sigterm_ends_training_with_a_checkpoint_and_the_same_command_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.study.small_jobs", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("long-*/begun")) and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        output, _ = running.communicate(timeout=60)
    assert running.returncode == 143, output
    assert "1 jobs are finished. The same command goes on." in output
    assert list(tmp_path.glob("long-*/checkpoint"))
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(again.stdout.splitlines()[-1])["long"] == {"went_on": True}
    assert len(list(tmp_path.glob("behind-*/done.json"))) == 1


def test_two_studies_do_not_share_a_folder(tmp_path: Path) -> None:
    def plan(done: Mapping[str, Done]) -> list[Job]:
        with pytest.raises(InputError, match="another study is running here"):
            run_jobs(lambda done: [], tmp_path, workers=1, log=quiet)
        return [added("one", 1)]

    assert run_jobs(plan, tmp_path, workers=1, log=quiet)["one"].values == {"sum": 1}


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([added("one", 1), added("one", 2)], "two jobs are called one"),
        ([added("one", 1, needs=("none",))], "one needs none, which is not in it"),
        ([added("one", 1, needs=("two",)), added("two", 1, needs=("one",))], "one needs jobs that need it"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused(tmp_path: Path, jobs: list[Job], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_jobs(lambda done: jobs, tmp_path, workers=1, log=quiet)


@pytest.mark.parametrize("content", ['{"name": "one"', '{"name": "one"}', '"text"'])
def test_a_damaged_record_of_a_job_is_an_error_with_its_place(tmp_path: Path, content: str) -> None:
    own = added("one", 1)
    folder = job_folder(tmp_path, own.name, own.key)
    folder.mkdir(parents=True)
    (folder / "done.json").write_text(content)
    with pytest.raises(FormatError, match=r"done.json is damaged.*Delete its folder"):
        run_jobs(lambda done: [own], tmp_path, workers=1, log=quiet)
