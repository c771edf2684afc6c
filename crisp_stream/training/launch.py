"""`crisp-stream train … --nproc N`: start one process per GPU, wait for all of them, and end them together.

Composer's launcher would do nearly that, after it has imported torch and Composer (9 s of CPU). But 30 seconds after a
SIGTERM it kills ranks that still save their checkpoint; it exits with 241 for a rank that died of that signal, and with
the code of a rank that it has ended itself where another one had failed. This one imports neither.

Several nodes: the same command on each, with WORLD_SIZE, NODE_RANK, MASTER_ADDR and MASTER_PORT in the environment
(examples/slurm.sh).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from crisp_stream.errors import InputError, import_extra, require_extra
from crisp_stream.processes import StopSignals

GRACE_SECONDS = 3600.0
"""Time that ranks may take to end after a signal. A batch system kills everything sooner if it has less patience."""
FAILED_SECONDS = 30.0
"""Time that the other ranks may take to end once one has failed: they cannot go on without it."""

_POLL_SECONDS = 0.1
_EXPECTED_ERROR = 2
_STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)


def processes(text: str) -> int | None:
    """The value of `--nproc`: a number, or `auto` (None) for the number of GPUs, or one without any.

    Raises:
        ValueError: neither. (argparse makes a message of it.)
    """
    if text == "auto":
        return None
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def launch(arguments: Sequence[str], *, nproc: int | None, rank_logs: str | None = None) -> int:
    """Run `crisp-stream ARGUMENTS` as ranks of this node, and wait for them.

    Args:
        arguments: of the command, without those of the launcher.
        nproc: ranks on this node; None: as many as there are GPUs.
        rank_logs: folder that gets what ranks other than the node's first print; None: it is shown if they fail.

    Returns:
        as `run_ranks`.

    Raises:
        InputError: this process is itself a rank, or variables are missing that several nodes need.
        MissingExtraError: Composer is not installed.
        KeyboardInterrupt: a second Ctrl-C.
    """
    with StopSignals() as signals:
        require_extra("composer", extra="train", purpose="several processes")
        places = rank_places(_gpus() if nproc is None else nproc)
        logs = None if rank_logs is None else Path(rank_logs)
        return run_ranks([sys.executable, "-m", "crisp_stream", *arguments], places, signals, logs=logs)


def _gpus() -> int:
    torch = import_extra("torch", extra="train", purpose="several processes")
    return max(torch.cuda.device_count(), 1)


def rank_places(nproc: int) -> list[dict[str, str]]:
    """The environment that tells each rank of this node its place. Raises InputError: this node's own does not fit."""
    if "RANK" in os.environ:
        raise InputError(
            "--nproc starts ranks, and this process is one already (RANK is set). Drop --nproc, or the other launcher."
        )
    world_size = os.environ.get("WORLD_SIZE", str(nproc))
    if not world_size.isdigit() or int(world_size) < nproc:
        raise InputError(f"WORLD_SIZE is {world_size}, but this node alone has {nproc} processes (--nproc).")
    missing = [name for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if int(world_size) > nproc and missing:
        raise InputError(
            f"WORLD_SIZE is {world_size} and this node has {nproc} processes (--nproc), so there are other nodes; "
            f"missing in the environment: {', '.join(missing)}. examples/slurm.sh sets them."
        )
    node = os.environ.get("NODE_RANK", "0")
    if not node.isdigit() or (int(node) + 1) * nproc > int(world_size):
        raise InputError(
            f"NODE_RANK is {node}, but with {nproc} processes on each node (--nproc), WORLD_SIZE = {world_size} has "
            f"room for nodes 0 to {int(world_size) // nproc - 1}."
        )
    shared = {
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": str(nproc),
        "NODE_RANK": node,
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or _free_port(),
        "PYTHONUNBUFFERED": "1",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }
    first = int(node) * nproc
    return [{**shared, "RANK": str(first + local), "LOCAL_RANK": str(local)} for local in range(nproc)]


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


class _Rank:
    """A rank's process. All but the first of a node print into files."""

    def __init__(self, command: Sequence[str], place: dict[str, str], files: list[IO[bytes]]) -> None:
        self.number, self._files = place["RANK"], files
        output, errors = (files[0], files[-1]) if files else (None, None)
        self.process = subprocess.Popen(command, env={**os.environ, **place}, stdout=output, stderr=errors)

    def code(self) -> int | None:
        """Its exit code, as a shell gives it: 128 + n where signal n ended it. None while it runs."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    def show(self) -> None:
        """Print what it had printed into files."""
        for file in self._files:
            file.seek(0)
            printed = file.read().decode(errors="replace").rstrip()
            if printed:
                print(f"---------- rank {self.number} printed:\n{printed}\n----------", file=sys.stderr, flush=True)


def run_ranks(
    command: Sequence[str], places: Sequence[dict[str, str]], signals: StopSignals, *, logs: Path | None
) -> int:
    """Run a command once for each place, and wait for all. A signal, or one that fails, ends all.

    Args:
        command: what each rank runs.
        places: environment of each rank.
        signals: remembers a signal that comes at any time, also before the first rank has started.
        logs: folder for what ranks but the first print; None: it is shown if they fail.

    Returns:
        0 where all ended with 0. Else 143 or 130 where a signal ended them, or the code of the rank that failed first.
    """
    ranks: list[_Rank] = []
    with contextlib.ExitStack() as stack:
        try:
            for place in places:
                if signals.received is None:
                    files = [stack.enter_context(file) for file in _files(place, logs)]
                    ranks.append(_Rank(command, place, files))
            failed = _await_the_first(ranks, signals)
            _end(ranks, signals)
        finally:
            for rank in ranks:
                rank.process.kill()
                rank.process.wait()
        codes = failed or [rank.code() for rank in ranks]
        for rank, code in zip(ranks, codes, strict=True):
            if code not in (None, 0, *_STOPPED):
                rank.show()
    code = _exit_code(codes)
    if signals.received is not None and (code in _STOPPED or not ranks):
        return 128 + signals.received
    return code


def _files(place: dict[str, str], logs: Path | None) -> list[IO[bytes]]:
    """Files for what a rank prints; none for the first of a node."""
    if place["LOCAL_RANK"] == "0":
        return []
    if logs is None:
        return [tempfile.TemporaryFile()]
    logs.mkdir(parents=True, exist_ok=True)
    return [(logs / f"rank{place['RANK']}.{name}.txt").open("ab+") for name in ("stdout", "stderr")]


Codes = list[int | None]
"""Exit codes of all ranks; None: it runs."""


def _await_the_first(ranks: Sequence[_Rank], signals: StopSignals) -> Codes:
    """Wait until a signal comes, a rank fails, or all have ended. The codes where a rank failed; [] where none has."""
    while True:
        codes = [rank.code() for rank in ranks]
        if any(codes):
            return codes
        if signals.received is not None or None not in codes:
            return []
        time.sleep(_POLL_SECONDS)


def _end(ranks: Sequence[_Rank], signals: StopSignals) -> None:
    """Tell the ranks that run to end, and give them time for it."""
    running = [rank for rank in ranks if rank.code() is None]
    if running:
        why = "a rank failed" if signals.received is None else signals.received.name
        print(f"{why}: waiting for {len(running)} of {len(ranks)} ranks to end", file=sys.stderr, flush=True)
    for rank in running:
        rank.process.terminate()
    until, one_failed = time.monotonic() + GRACE_SECONDS, False
    while None in (codes := [rank.code() for rank in ranks]) and time.monotonic() < until:
        if any(codes) and not one_failed:
            until, one_failed = min(until, time.monotonic() + FAILED_SECONDS), True
        time.sleep(_POLL_SECONDS)


def _exit_code(codes: Codes) -> int:
    """One code for all: that of an expected error, else of a stop, else of a crash, which a stop may have caused."""
    failed = [code for code in codes if code]
    return min(failed, key=lambda code: (code != _EXPECTED_ERROR, code not in _STOPPED), default=0)
