"""Ranks on this machine, forked from a process that has imported Composer: as new interpreters, 10 s of CPU each."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch.distributed

from crisp_stream.evaluation.models import open_model
from crisp_stream.evaluation.multiple_choice import judge_questions
from crisp_stream.evaluation.question_sets import open_question_set
from tests.support.ports import free_port

_PATIENCE_SECONDS = 1500.0


def run_ranks(num_ranks: int, work: Callable[[], None], folder: Path) -> None:
    """Call `work`, which must be picklable, in every rank of a group.

    The ranks find their places in the environment, as those of Composer's launcher do (test_runs.py and test_launch.py
    test that one). What they print stands in `folder`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crisp_stream.training.train"])
    group = {"WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks, "NODE_RANK": 0}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    logs = [folder / f"rank-{rank}-of-{num_ranks}.log" for rank in range(num_ranks)]
    ranks = [
        context.Process(target=_rank, args=(group | {"RANK": rank, "LOCAL_RANK": rank}, work, log))
        for rank, log in enumerate(logs)
    ]
    for rank in ranks:
        rank.start()
    until = time.monotonic() + _PATIENCE_SECONDS
    while any(rank.is_alive() for rank in ranks) and not any(rank.exitcode for rank in ranks):
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    for rank in ranks:
        rank.kill()  # one that waits for one that failed
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * num_ranks, "".join(log.read_text() for log in logs)


def _rank(place: dict[str, object], work: Callable[[], None], log: Path) -> None:
    os.environ |= {name: str(value) for name, value in place.items()}
    with log.open("w") as file:
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
