"""Run a command as several processes: --nproc and --rank-logs, and the place of one process among them."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from crisp_stream.errors import InputError
from crisp_stream.training.launch import launch, processes


def add_launch_arguments(verb: argparse.ArgumentParser, *, alone: str) -> None:
    """Declare --nproc and --rank-logs; `alone` says what happens without them."""
    verb.add_argument(
        "--nproc",
        type=processes,
        default=argparse.SUPPRESS,
        metavar="N|auto",
        help="start N processes on this node; auto: one per GPU. Further nodes: WORLD_SIZE, "
        f"NODE_RANK, MASTER_ADDR and MASTER_PORT in the environment. Absent: {alone}",
    )
    verb.add_argument(
        "--rank-logs",
        metavar="DIR",
        help="with --nproc: folder for what the ranks of this node but its first print; else shown if they fail",
    )


def handed_over(arguments: argparse.Namespace) -> int | None:
    """Run the same command as ranks of this node; returns their exit code, or None: this process does it."""
    if "nproc" not in arguments:
        return None
    launcher_options = argparse.ArgumentParser(add_help=False)
    add_launch_arguments(launcher_options, alone="")
    _, rest = launcher_options.parse_known_args(arguments.given)
    return launch(rest, nproc=arguments.nproc, rank_logs=arguments.rank_logs)


def is_first_rank() -> bool:
    """Whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def as_a_rank(arguments: argparse.Namespace) -> Iterator[None]:
    """Work in this process, which may be one of several. Raises InputError: options for the launcher alone.

    SIGTERM is exit code 143 from here on; a launcher makes the same of a rank that dies of it.
    """
    # Read when torch loads its OpenMP. Threads that spin while they wait made training beside other jobs 4x slower:
    # 40 batches on 2 busy cores took 251 s and 71 s CPU; with passive waiting 64 s and 21 s CPU.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if arguments.rank_logs is not None:
        raise InputError("--rank-logs is for the processes that --nproc starts; there is no --nproc.")
    before = _on_sigterm(_leave)
    try:
        yield
    finally:
        # A launcher ends the ranks that end last, and hands on their exit codes.
        _on_sigterm(signal.SIG_IGN if "RANK" in os.environ else before)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _on_sigterm(handler: Any) -> Any:
    """Set what SIGTERM does, in the main thread; returns what it did."""
    if threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGTERM, handler)
    return handler
