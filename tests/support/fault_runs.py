"""Training loops that are watched: what they delivered, how they ended, what they left behind.

`python -m tests.support.fault_runs '{"root": …}'` runs one in a process of its own, to be killed or to change its user.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import gc
import json
import multiprocessing
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crisp_stream import Histogram, Mixture, MixtureDataset, Phase
from crisp_stream.errors import CrispError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.loading.reader import ReadOptions, read_windows

BATCH = 8
BATCHES = 100
TIMEOUT = 3.0
SLACK = 40.0
"""Seconds beyond the timeout that a busy machine may take until an exception arrives."""
HELPER_MARK = "CRISP_STREAM_TEST_RUN"
PROCESSES_FILE = "CRISP_STREAM_TEST_PROCESSES"


@dataclass
class Outcome:
    """How a training loop ended."""

    batches: int = 0
    """Batches delivered, each compared with the source."""
    wrong: int = 0
    """Batches whose windows or tokens are not those of the source."""
    error: str = ""
    """Type and text of the exception that ended the loop."""
    expected_error: bool = True
    """Whether that was a CrispError, or torch's word of a dead worker."""
    seconds: float = 0.0
    """From the last batch (or the start) to the end."""
    how: str = ""
    """By what means the fault was made, where there are several."""
    litter: list[str] = dataclasses.field(default_factory=list)
    """Temporary files found in the cache."""

    @property
    def right(self) -> bool:
        """All batches came, all of them right."""
        return self.batches == BATCHES and not self.wrong and not self.error

    def __str__(self) -> str:
        if not self.error:
            return (
                f"all {self.batches} batches, {self.wrong} wrong" if self.wrong else f"all {self.batches} batches right"
            )
        return f"{self.batches} batches right, then after {self.seconds:.1f} s {self.error}"


class Source:
    """The dataset as it should arrive."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.dataset: Dataset = open_dataset(root)
        everything = np.arange(self.dataset.manifest.num_windows)
        self._window_ids: dict[tuple[int, int], np.ndarray] = {}
        self.tokens = torch.from_numpy(read_windows(self.dataset, everything)["tokens"].astype(np.int64))

    @property
    def mixture(self) -> Mixture:
        """The corpus as it is, for all batches of all ranks."""
        num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
        return Mixture([Phase(Histogram.base(self.dataset.manifest), num_ranks * BATCHES * BATCH)])

    def window_ids(self) -> np.ndarray:
        """[BATCHES, BATCH], in the order of this rank (RANK of WORLD_SIZE, on one node)."""
        rank, num_ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if (rank, num_ranks) not in self._window_ids:
            made = MixtureDataset(self.root, self.mixture, batch_size=BATCH)
            everything = made.order().window_ids(np.arange(num_ranks * BATCHES * BATCH))
            self._window_ids[rank, num_ranks] = everything[rank::num_ranks].reshape(BATCHES, BATCH)
        return self._window_ids[rank, num_ranks]

    def matches(self, ids: np.ndarray, batch: dict[str, torch.Tensor]) -> bool:
        """Whether a batch holds these windows with their tokens."""
        return bool((batch["window"].numpy() == ids).all() and (batch["input_ids"] == self.tokens[ids]).all())


def train(
    source: Source,
    root: str,
    cache: Path | None,
    *,
    num_workers: int = 0,
    timeout: float = TIMEOUT,
    cache_limit: int | None = None,
    after_batch: Callable[[int, Any], None] = lambda number, iterator: None,
    opened: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run a training loop over `root` and compare every batch with the source."""
    expected = source.window_ids()
    outcome, since = Outcome(), time.monotonic()
    try:
        made = MixtureDataset(
            root,
            source.mixture,
            batch_size=BATCH,
            reading=ReadOptions(local=cache, cache_limit=cache_limit, timeout=timeout),
        )
        opened()
        iterator = iter(made.loader(num_workers))
        for batch in iterator:
            outcome.wrong += not source.matches(expected[outcome.batches], batch)
            outcome.batches += 1
            after_batch(outcome.batches, iterator)
            since = time.monotonic()
    except Exception as error:
        text = str(error).strip().splitlines()
        worker = "Original Traceback" in str(error)  # torch shows the worker's traceback, then its error
        outcome.error = (
            f"from a worker, {text[-1].rpartition('errors.')[2]}" if worker else f"{type(error).__name__}: {error}"
        )
        outcome.expected_error = isinstance(error, CrispError) or "DataLoader worker" in str(error)
    outcome.seconds = time.monotonic() - since
    gc.collect()  # torch's iterator, held by a cycle, ends its workers when it goes
    return outcome


class Child:
    """A forked process that runs a training loop."""

    def __init__(self, function: Callable[[], Outcome]) -> None:
        context = multiprocessing.get_context("fork")
        self._answer, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=lambda: theirs.send(function()))
        self.process.start()
        theirs.close()

    def outcome(self, seconds: float) -> Outcome:
        """What the loop returned. Raises TimeoutError when it hangs."""
        if not self._answer.poll(seconds):
            self.process.kill()
            raise TimeoutError(f"the process has not ended after {seconds} s")
        outcome = self._answer.recv()
        self.process.join()
        return outcome


@contextmanager
def no_process_left(mark: str, seconds: float = 120.0) -> Iterator[None]:
    """Every process forked in the block, and every helper started with `mark` in its environment, soon ends."""
    ours, inherited = os.pipe()  # forked processes hold its end open as long as they live
    try:
        yield
        os.close(inherited)
        inherited = -1
        assert select.select([ours], [], [], seconds)[0], "a forked process is left behind"
        until = time.monotonic() + seconds
        while left := helpers(mark):
            assert time.monotonic() < until, f"helper processes are left behind: {left}"
            time.sleep(0.05)
    finally:
        os.close(ours)
        if inherited >= 0:
            os.close(inherited)


def helpers(mark: str) -> list[int]:
    """Process ids of helpers that have HELPER_MARK=mark in their environment (Linux)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue  # it ended meanwhile, or is another user's
        if b"object_helper" in command and f"{HELPER_MARK}={mark}".encode() in environment:
            found.append(int(folder.name))
    return found


def _note_process() -> None:
    """Add this process to the file that names the processes of a test."""
    if PROCESSES_FILE in os.environ:
        with Path(os.environ[PROCESSES_FILE]).open("a") as file:
            file.write(f"{os.getpid()}\n")


os.register_at_fork(after_in_child=_note_process)


@contextmanager
def no_shared_memory_left(file: Path) -> Iterator[None]:
    """Every entry that torch makes in /dev/shm in this process and in those forked in the block is gone at its end.

    Entries of other processes of the machine do not count. torch names an entry by the process that made it; `file`
    gets the ids of the processes.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(PROCESSES_FILE, str(file))
        _note_process()
        yield
    processes = set(file.read_text().split())
    entries = [path.name for path in Path("/dev/shm").glob("torch_*")]
    left = [name for name in entries if name.split("_")[1] in processes]
    assert not left, f"shared memory is left behind: {left}"


def cache_litter(cache: Path, seconds: float = TIMEOUT + SLACK) -> list[str]:
    """Temporary and claim files of a cache folder, once what is still being written has had time to finish."""
    until = time.monotonic() + seconds
    while True:
        files = [path for path in cache.rglob("*") if path.is_file()]
        litter = [str(path) for path in files if path.name.startswith(".") or path.suffix in (".tmp", ".claim")]
        if not litter or time.monotonic() > until:
            return litter
        time.sleep(0.05)


@contextmanager
def tiny_disk(path: Path, size_kb: int) -> Iterator[None]:
    """A full disk sooner or later: a tmpfs in a mount namespace of this (forked, single-threaded) process."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, new_user = 0x00020000, 0x10000000
    user, group = os.getuid(), os.getgid()
    if user != 0:  # a user namespace, in which this user may mount
        if libc.unshare(new_namespace | new_user):
            raise OSError(ctypes.get_errno(), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    elif libc.unshare(new_namespace):
        raise OSError(ctypes.get_errno(), "unshare")
    private = 1 << 18 | 1 << 14  # MS_PRIVATE | MS_REC: the mount is not seen outside
    if libc.mount(b"none", b"/", None, private, None):
        raise OSError(ctypes.get_errno(), "mount")
    if libc.mount(b"tmpfs", bytes(path), b"tmpfs", 0, f"size={size_kb}k".encode()):
        raise OSError(ctypes.get_errno(), "mount")
    yield
    libc.umount2(bytes(path), 2)


@contextmanager
def no_space_by_audit(path: Path, size_kb: int) -> Iterator[None]:
    """Where no mount is allowed: opening a file of the folder for writing fails with ENOSPC after some files."""
    opened = 0

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal opened
        if event == "open" and str(arguments[0]).startswith(str(path)) and arguments[2] & os.O_ACCMODE:
            opened += 1
            if opened > size_kb // 4:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    sys.addaudithook(refuse)
    yield


def main(argument: str) -> None:
    """Train as told by a JSON object and print every batch's number, then the outcome as JSON."""
    _note_process()
    told = json.loads(argument)
    source = Source(told.pop("source"))
    user = told.pop("user", None)
    if user is not None:
        # what is imported late is imported now: another user may not read this interpreter's folder
        warm_up = train(source, told["root"], Path(told.pop("warm_up")))
        assert warm_up.right, warm_up
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    cache = Path(told.pop("cache"))
    outcome = train(
        source, told.pop("root"), cache, after_batch=lambda number, _: print("batch", number, flush=True), **told
    )
    print(json.dumps(dataclasses.asdict(outcome)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
