"""Commands and ranks as processes, forked from one that has imported Composer: a new interpreter needs 10 s of CPU."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch.distributed

from crisp_stream.cli.main import main
from crisp_stream.evaluation.models import open_model
from crisp_stream.evaluation.multiple_choice import judge_questions
from crisp_stream.evaluation.question_sets import open_question_set
from tests.support.ports import free_port

_PATIENCE_SECONDS = 1500.0


class Forked:
    """A process that does some work in a session of its own and prints to a file."""

    def __init__(self, work: Callable[[], None], output: Path, environment: Mapping[str, object] | None = None) -> None:
        """Start it.

        Args:
            work: must be picklable.
            output: file that gets stdout and stderr.
            environment: variables besides those of this process.
        """
        context = multiprocessing.get_context("forkserver")
        variables = {**os.environ, **{name: str(value) for name, value in (environment or {}).items()}}
        self._output = output
        self._process = context.Process(target=_do, args=(work, output, variables))
        self._process.start()

    @property
    def text(self) -> str:
        """What it printed so far."""
        return self._output.read_text() if self._output.exists() else ""

    @property
    def code(self) -> int | None:
        """Its exit code; minus the number of the signal that killed it; None while it runs."""
        return self._process.exitcode

    def wait_for(self, text: str) -> None:
        """Wait until it has printed something."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while text not in self.text:
            assert self.code is None, self.text
            assert time.monotonic() < until, self.text
            time.sleep(0.01)

    def send(self, number: signal.Signals, *, to_group: bool = False) -> None:
        """Send a signal to it, or to it and its children."""
        assert self._process.pid is not None
        (os.killpg if to_group else os.kill)(self._process.pid, number)

    def end(self) -> int:
        """Wait for it; the exit code, as `code`."""
        self._process.join(_PATIENCE_SECONDS)
        assert self.code is not None, self.text
        return self.code

    def kill(self) -> None:
        """End it, if it still runs."""
        self._process.kill()
        self._process.join()


class Command:
    """Work of a process: `crisp-stream` with some arguments."""

    def __init__(self, *arguments: object) -> None:
        self._arguments = [str(argument) for argument in arguments]

    def __call__(self) -> None:
        sys.exit(main(self._arguments))


def start_ranks(num_ranks: int, work: Callable[[], None], folder: Path, **environment: str) -> list[Forked]:
    """Start some work in every rank of a group.

    The ranks find their places in the environment, as those of the launcher do (test_runs.py and test_launch.py
    test that one). What they print stands in `folder`.
    """
    group = {"WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks, "NODE_RANK": 0}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        Forked(
            work,
            folder / f"rank-{rank}-of-{num_ranks}.log",
            {**environment, **group, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in range(num_ranks)
    ]


def end_ranks(ranks: Sequence[Forked]) -> list[int | None]:
    """Wait until all have ended or one has failed, whose companions are ended; their exit codes."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while any(rank.code is None for rank in ranks) and not any(rank.code for rank in ranks):
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    for rank in ranks:
        rank.kill()  # one that waits for one that failed
    return [rank.code for rank in ranks]


def run_ranks(num_ranks: int, work: Callable[[], None], folder: Path) -> None:
    """Do some work in every rank of a group, to its end."""
    ranks = start_ranks(num_ranks, work, folder)
    assert end_ranks(ranks) == [0] * num_ranks, "".join(rank.text for rank in ranks)


def _do(work: Callable[[], None], output: Path, environment: Mapping[str, str]) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as in an interpreter of its own
    os.environ.clear()
    os.environ |= environment
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    work()


@contextlib.contextmanager
def group_of_one(folder: Path) -> Iterator[None]:
    """Make this process a group by itself, which meets in a folder."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def judge_as_rank(checkpoint: str, questions: str, folder: Path) -> None:
    """Judge a model by questions together with the other ranks; each writes what it found in a file of `folder`."""
    torch.distributed.init_process_group("gloo")
    results = judge_questions(open_model(checkpoint), open_question_set(questions), batch_size=1, device="cpu")
    (folder / os.environ["RANK"]).write_text(json.dumps(results.log_probs))
    torch.distributed.destroy_process_group()
