"""Signals in DataLoader workers. Imports nothing heavy: a worker that is starting must not be deaf for long."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def shield_worker(_: int) -> None:
    """For a DataLoader worker: signals that stop the run go to the whole process group, and the batch is still needed.

    Ctrl-C is ignored, and SIGTERM unless it comes from the process whose worker this is, which ends its workers so.
    Where the system does not say who sent a signal (macOS), SIGTERM ends the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        parent = multiprocessing.parent_process()  # the run, also where a server forks its workers
        threading.Thread(target=_end_for, args=(parent.pid if parent else os.getppid(),), daemon=True).start()


def _end_for(sender: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != sender:
        pass
    os._exit(0)
