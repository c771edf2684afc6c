"""Fixtures that several test files share, and what keeps the test processes of `make test` apart."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.seaweed import S3Server, seaweed
from tests.support.written_dataset import text_file as text_file
from tests.support.written_dataset import word_encoder as word_encoder
from tests.support.written_dataset import written as written

# Machines are shared: a slow moment is no failure.
settings.register_profile("crisp-stream", deadline=None)
settings.load_profile("crisp-stream")

MAX_TEST_PROCESSES = 8
"""More would not end sooner: a file is run by one process."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give this process one thread for its models, and a temporary folder of its own with a short path.

    torch's DataLoader workers send batches through sockets below TMPDIR and lose them where that path has about 95
    characters. A worker of xdist has its folder in that of the process that started it. All of it is removed at the
    end; pytest's `--basetemp` keeps what the tests wrote.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None:
        folder = Path(tempfile.mkdtemp(prefix="cs-")).resolve()
        # Last of all: multiprocessing's own finalizers remove sockets there.
        Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=-1000)
        if config.option.basetemp is None:
            config.option.basetemp = str(folder / "tests")
    else:
        folder = Path(tempfile.gettempdir(), worker)
        folder.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: one process per usable core. Two on a single core, too: many tests wait."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(2, cores), MAX_TEST_PROCESSES)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server; its endpoint and credentials are in the environment for the rest of the session."""
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server, pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment().items():
            environment.setenv(name, value)
        yield server
