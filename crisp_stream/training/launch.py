"""`crisp-stream train … --nproc N`: one process per GPU, started by Composer's launcher in this process.

The launcher gives every rank its place in the environment, ends all ranks when one has failed, and returns the exit
code of the first rank that has one. What it lacks is patience: 30 seconds after a SIGTERM it kills ranks that are still
saving their checkpoint. A signal to this process therefore extends that time; a rank that failed does not.

Several nodes: the same command on each, with WORLD_SIZE, NODE_RANK, MASTER_ADDR and MASTER_PORT in the environment
(examples/slurm.sh).
"""

from __future__ import annotations

import datetime
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from crisp_stream.errors import InputError, import_extra

GRACE_SECONDS = 3600
"""Time that ranks may take to end after a signal. A batch system kills everything sooner if it has less patience."""


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
        0, or the exit code of the first rank that has another.

    Raises:
        InputError: this process is itself a rank, or variables are missing that several nodes need.
        MissingExtraError: Composer is not installed.
    """
    launcher: Any = import_extra("composer.cli.launcher", extra="train", purpose="several processes")
    torch = import_extra("torch", extra="train", purpose="several processes")
    count = max(torch.cuda.device_count(), 1) if nproc is None else nproc
    _check_environment(count)
    options = ["-n", str(count)]
    if rank_logs is not None:
        Path(rank_logs).mkdir(parents=True, exist_ok=True)
        folder = rank_logs.replace("{", "{{").replace("}", "}}")
        options += [
            "--stdout",
            f"{folder}/rank{{rank}}.stdout.txt",
            "--stderr",
            f"{folder}/rank{{rank}}.stderr.txt",
        ]

    def stop(number: int, frame: FrameType | None) -> None:
        launcher.CLEANUP_TIMEOUT = datetime.timedelta(seconds=GRACE_SECONDS)
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    sys.argv = ["composer", *options, "-m", "crisp_stream", *arguments]
    return launcher.main()


def _check_environment(nproc: int) -> None:
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
