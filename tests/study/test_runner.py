"""Jobs of a study: in parallel, each once, going on after whatever ended the study."""

from __future__ import annotations

import functools
import itertools
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from crisp_stream.errors import CrispError, FormatError, InputError, StorageError
from crisp_stream.processes import num_processes
from crisp_stream.study.jobs.job import DONE, LOG, Done, Job, job_folder
from crisp_stream.study.jobs.runner import _Room, run_jobs
from crisp_stream.study.jobs.worker import run_job
from tests.support import small_jobs
from tests.support.small_jobs import fixed, job, lines_of, silent

# What runs, and when.


def test_a_job_runs_after_those_it_needs(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    work = functools.partial(small_jobs.add, terms=(2, 3), runs=runs)
    jobs = (job("c", work, "a", "b"), job("b", work, "a"), job("a", work), job("d", work, "c"))
    done = run_jobs(fixed(*jobs), tmp_path / "out", workers=3, log=silent)
    assert [line[0] for line in lines_of(runs)] == ["a", "b", "c", "d"]
    assert list(done) == ["c", "b", "a", "d"]
    assert done["d"].values == {"sum": 5, "terms": [2, 3]}


def test_jobs_run_side_by_side(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    jobs = (
        job("one", functools.partial(small_jobs.meet, own=one, other=other)),
        job("other", functools.partial(small_jobs.meet, own=other, other=one)),
    )
    assert len(run_jobs(fixed(*jobs), tmp_path / "out", workers=2, log=silent)) == 2


def test_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    runs, lines = tmp_path / "runs", list[str]()
    first = job("a", functools.partial(small_jobs.add, terms=(1,), runs=runs))
    second = job("b", functools.partial(small_jobs.add, terms=(2,), runs=runs), "a")
    before = run_jobs(fixed(first), tmp_path / "out", workers=1, log=silent)
    after = run_jobs(fixed(first, second), tmp_path / "out", workers=1, log=lines.append)
    assert len(lines_of(runs)) == 2
    assert after["a"] == before["a"]
    assert lines[:2] == ["1 of 2 jobs are finished already", "b: started"]
    assert [re.sub(r"\d+ s$", "N s", line) for line in lines[2:]] == ["[2/2] b: finished in N s"]


def test_another_key_is_another_folder_and_the_earlier_outcome_is_kept(tmp_path: Path) -> None:
    runs = tmp_path / "runs"

    def study(terms: tuple[int, ...], key: str) -> dict[str, Done]:
        work = functools.partial(small_jobs.add, terms=terms, runs=runs)
        return run_jobs(fixed(job("sum", work, key=key * 64)), tmp_path / "out", workers=1, log=silent)

    assert [study(terms, key)["sum"].values["sum"] for terms, key in (((1,), "a"), ((2,), "b"), ((1,), "a"))] == [
        1,
        2,
        1,
    ]
    assert lines_of(runs) == ["sum-aaaaaaaaaa", "sum-bbbbbbbbbb"]


def test_a_plan_grows_by_what_was_found_and_is_the_same_when_asked_again(tmp_path: Path) -> None:
    runs, lines = tmp_path / "runs", list[str]()

    def plan(done: Mapping[str, Done]) -> list[Job]:
        tried = [
            job(f"try-{each}", functools.partial(small_jobs.add, terms=(each % 3,), runs=runs)) for each in range(4)
        ]
        if any(own.name not in done for own in tried):
            return tried
        best = max(tried, key=lambda own: done[own.name].values["sum"])
        return [*tried, job("all", functools.partial(small_jobs.add, terms=(7,), runs=runs), best.name)]

    first = run_jobs(plan, tmp_path / "out", workers=2, log=lines.append)
    assert re.fullmatch(r"\[5/5\] all: finished in \d+ s", lines[-1])
    assert sorted(lines_of(runs)[:4]) == sorted(f"try-{each}-{f'try-{each}'.encode().hex()[:10]}" for each in range(4))
    assert run_jobs(plan, tmp_path / "out", workers=2, log=silent) == first
    assert len(lines_of(runs)) == 5


def test_a_plan_whose_inputs_changed_meanwhile_runs_what_follows_anew(tmp_path: Path) -> None:
    """The job that ran has the key of the old input when it is finished; it must not stand for the new one."""
    runs, asked = tmp_path / "runs", list[int]()

    def plan(done: Mapping[str, Done]) -> list[Job]:
        asked.append(len(done))
        key = "new" if any(each > 0 for each in asked) else "old"
        first = job("first", functools.partial(small_jobs.add, runs=runs), key=key * 20)
        names = [f"second-{own.key[:3]}" for own in done.values() if own.name == "first"]
        return [first, *(job(name, functools.partial(small_jobs.add, runs=runs), "first") for name in names)]

    done = run_jobs(plan, tmp_path / "out", workers=1, log=silent)
    assert list(done) == ["first", "second-new"]
    assert [line.partition("-")[2][:3] for line in lines_of(runs)] == ["old", "new", "new"]


def test_a_whole_machine_job_runs_alone_and_before_others_that_wait_for_room(tmp_path: Path) -> None:
    begun, short = tmp_path / "begun", small_jobs.note_interval
    jobs = (
        job("long", functools.partial(short, awaited=begun)),
        job("short", functools.partial(short, mark=begun)),
        job("late", short),
        job("whole", short, "short", whole=True),
        job("early", short, whole=True),
    )
    done = run_jobs(fixed(*jobs), tmp_path / "out", workers=2, log=silent)
    cores, ran = num_processes(None), {name: own.values for name, own in done.items()}
    assert [(own["processes"], own["threads"]) for own in ran.values()] == [(1, max(1, cores // 2))] * 3 + [
        (cores, cores)
    ] * 2
    assert ran["short"]["started"] < ran["long"]["ended"]
    order = ("early", "long", "whole", "late")
    for first, second in itertools.pairwise(order):
        assert ran[first]["ended"] <= ran[second]["started"], (first, second)
    assert ran["early"]["ended"] <= ran["short"]["started"]
    assert ran["short"]["ended"] <= ran["whole"]["started"]


# What a job finds and leaves.


def test_what_a_job_prints_is_in_its_log_however_it_prints(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loud, quiet = job("a/loud", small_jobs.print_everywhere), job("a/quiet", small_jobs.add, "a/loud")
    run_jobs(fixed(loud, quiet), tmp_path, workers=1, log=silent)
    assert sorted(lines_of(job_folder(tmp_path, loud.name, loud.key) / LOG)) == [
        "logged",
        "printed",
        "printed by a child",
        "written past Python",
    ]
    assert lines_of(job_folder(tmp_path, quiet.name, quiet.key) / LOG) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("burning", [small_jobs.burn_in_child, small_jobs.burn_in_pool])
def test_the_time_of_child_processes_is_counted(burning: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    burn = job("burn", functools.partial(burning, seconds=2.0))
    done = run_jobs(fixed(burn, job("rest", small_jobs.add, "burn")), tmp_path, workers=1, log=silent)
    assert done["burn"].cpu_seconds >= (4.0 if burning is small_jobs.burn_in_pool else 2.0)
    assert done["burn"].wall_seconds >= 2.0
    assert done["rest"].cpu_seconds < 1.0


def test_workers_share_cores_and_gpus_before_anything_is_imported(tmp_path: Path) -> None:
    room = _Room(workers=3, cores=8, gpus=("2", "GPU-5f"))
    found: list[dict[str, Any]] = []
    for pool in (room.pool(number) for number in (0, 1, 2, None)):
        own = job(f"job-{len(found)}", small_jobs.environment)
        folder = job_folder(tmp_path, own.name, own.key)
        folder.mkdir(parents=True)
        try:
            outcome = pool.submit(run_job, own, folder, 1, 1).result()
        finally:
            pool.close()
        assert isinstance(outcome, Done)
        found.append(outcome.values)
    assert (
        [own["OMP_NUM_THREADS"] for own in found] == [own["MKL_NUM_THREADS"] for own in found] == ["2", "2", "2", "8"]
    )
    assert [own["CUDA_VISIBLE_DEVICES"] for own in found[:3]] == ["2", "GPU-5f", "2"]
    assert found[3]["CUDA_VISIBLE_DEVICES"] == os.environ.get("CUDA_VISIBLE_DEVICES")
    assert {own["OMP_WAIT_POLICY"] for own in found} == {os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    assert not any(own["numpy"] for own in found)


def test_a_worker_lives_over_many_jobs_and_one_that_was_killed_while_idle_is_replaced(tmp_path: Path) -> None:
    killed = list[int]()

    def plan(done: Mapping[str, Done]) -> list[Job]:
        if "b" in done and not killed:
            killed.append(done["b"].values["pid"])
            os.kill(killed[0], signal.SIGKILL)
            time.sleep(1)  # for the pool to notice
        return [job("a", small_jobs.environment), job("b", small_jobs.environment, "a"), job("c", small_jobs.add, "b")]

    done = run_jobs(plan, tmp_path, workers=1, log=silent)
    assert done["a"].values["pid"] == done["b"].values["pid"]
    assert killed


def test_a_whole_machine_job_finds_no_idle_workers_and_has_every_core(tmp_path: Path) -> None:
    jobs = (
        job("before", small_jobs.environment),
        job("whole", small_jobs.environment, "before", whole=True),
        job("after", small_jobs.environment, "whole"),
    )
    done = run_jobs(fixed(*jobs), tmp_path, workers=num_processes(None), log=silent)
    assert [own.values["OMP_NUM_THREADS"] for own in done.values()] == ["1", str(num_processes(None)), "1"]
    assert len({own.values["pid"] for own in done.values()}) == 3


# What goes wrong.


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ((job("a", small_jobs.add), job("a", small_jobs.add, key="f" * 64)), "two jobs are called a"),
        ((job("a", small_jobs.add, "b"),), "a needs b, which is not in it"),
        ((job("a", small_jobs.add, "b"), job("b", small_jobs.add, "a")), "in a circle, so that none can be run: a, b"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(tmp_path: Path, jobs: tuple[Job, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_jobs(fixed(*jobs), tmp_path, workers=1, log=silent)


@pytest.mark.parametrize(
    "error", [InputError("the corpus is empty. Add documents."), RuntimeError("a bug"), SystemExit(3)]
)
def test_beside_a_job_that_fails_the_others_are_finished_and_kept(tmp_path: Path, error: BaseException) -> None:
    runs, failed, lines = tmp_path / "runs", tmp_path / "failed", list[str]()

    def log(line: str) -> None:
        lines.append(line)
        if "jobs that run are finished first" in line:
            failed.touch()

    jobs = (
        job("slow", functools.partial(small_jobs.note_interval, awaited=failed)),
        job("bad", functools.partial(small_jobs.fail, error=error)),
        job("later", functools.partial(small_jobs.add, runs=runs)),
    )
    with pytest.raises(CrispError) as raised:
        run_jobs(fixed(*jobs), tmp_path / "out", workers=2, log=log)
    message, log_file = str(raised.value), job_folder(tmp_path / "out", "bad", jobs[1].key) / LOG
    assert str(log_file) in message
    if isinstance(error, CrispError):
        assert type(raised.value) is type(error)
        assert message.startswith(f"bad: {error}")
        assert "Traceback" not in message
    else:
        assert type(raised.value) is CrispError
        assert message.startswith(f"bad failed: {type(error).__name__}: {error}")
        assert "the last thing before it failed" in message
    assert "1 jobs that run are finished first" in lines[-2]
    assert re.fullmatch(r"\[1/3\] slow: finished in \d+ s", lines[-1])
    assert lines_of(runs) == []
    assert not (log_file.parent / DONE).exists()


def test_a_killed_worker_is_named_costs_no_other_job_its_work_and_the_same_call_goes_on(tmp_path: Path) -> None:
    once, mark = tmp_path / "once", tmp_path / "mark"
    killed = job("killed", functools.partial(small_jobs.kill_worker, once=once))
    slow = job("slow", functools.partial(small_jobs.sleep_after, mark=mark, seconds=1))
    plan = fixed(killed, slow)
    with pytest.raises(CrispError, match=r"killed: its worker process was killed, .* Run the same command again"):
        run_jobs(plan, tmp_path / "out", workers=2, log=silent)
    assert lines_of(job_folder(tmp_path / "out", killed.name, killed.key) / LOG) == ["about to be killed"]
    mark.unlink()
    assert run_jobs(plan, tmp_path / "out", workers=2, log=silent).keys() == {"killed", "slow"}
    assert not mark.exists()


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (functools.partial(small_jobs.return_this, value={"path": Path("a")}), "odd failed: TypeError: .*not JSON"),
        (functools.partial(small_jobs.return_this, value=None), "odd failed: TypeError: a job must return a dict"),
        (lambda place: {}, "odd failed: .*pickle"),
    ],
)
def test_work_that_cannot_be_handed_over_fails_by_name(tmp_path: Path, work: Any, message: str) -> None:
    odd = job("odd", work)
    with pytest.raises(CrispError, match=message):
        run_jobs(fixed(odd), tmp_path, workers=1, log=silent)
    assert not (job_folder(tmp_path, odd.name, odd.key) / DONE).exists()


def test_an_error_of_the_plan_lets_jobs_that_run_finish(tmp_path: Path) -> None:
    slow = job("slow", functools.partial(small_jobs.sleep_after, mark=tmp_path / "mark", seconds=1))

    def plan(done: Mapping[str, Done]) -> list[Job]:
        if "quick" in done:
            raise FormatError("the input is gone")
        return [slow, job("quick", small_jobs.add)]

    with pytest.raises(FormatError, match="the input is gone"):
        run_jobs(plan, tmp_path / "out", workers=2, log=silent)
    assert (job_folder(tmp_path / "out", slow.name, slow.key) / DONE).exists()


def test_a_damaged_record_stops_the_study_with_its_place(tmp_path: Path) -> None:
    own = job("sum", small_jobs.add)
    run_jobs(fixed(own), tmp_path, workers=1, log=silent)
    (job_folder(tmp_path, own.name, own.key) / DONE).write_text("{")
    with pytest.raises(FormatError, match=r"sum-.*/done\.json is damaged"):
        run_jobs(fixed(own), tmp_path, workers=1, log=silent)


def test_two_studies_at_once_in_one_folder_are_refused(tmp_path: Path) -> None:
    def plan(done: Mapping[str, Done]) -> list[Job]:
        with pytest.raises(InputError, match="another study is running here"):
            run_jobs(fixed(), tmp_path, workers=1, log=silent)
        return [job("sum", small_jobs.add)]

    assert len(run_jobs(plan, tmp_path, workers=1, log=silent)) == 1
    assert run_jobs(fixed(), tmp_path, workers=1, log=silent) == {}


def test_a_folder_that_cannot_be_made_and_no_workers_are_errors(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file/out: a study must be able to write there"):
        run_jobs(fixed(), tmp_path / "file" / "out", log=silent)
    with pytest.raises(InputError, match="jobs at a time must be at least 1, got 0"):
        run_jobs(fixed(), tmp_path, workers=0, log=silent)
