"""Fixtures that several test files share, and what keeps the test processes of `make test` apart."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path

import pytest
from hypothesis import settings

from crisp_stream.processes import preload
from tests.support.seaweed import S3Server, seaweed
from tests.support.written_dataset import text_file as text_file
from tests.support.written_dataset import word_encoder as word_encoder
from tests.support.written_dataset import written as written

# Machines are shared: a slow moment is no failure.
settings.register_profile("crisp-stream", deadline=None)
settings.load_profile("crisp-stream")

TESTS = Path(__file__).parent
MAX_TEST_PROCESSES = 8
"""More would not end sooner: a file is run by one process."""
SLOW = [line.split()[1] for line in (TESTS / "slow.txt").read_text().splitlines() if not line.startswith("#")]
"""Files that take long. In this order they begin, so that all test processes end at about the same time; `--quick`
leaves them out."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare `--quick`, the tests of `make check`."""
    parser.addoption("--quick", action="store_true", help="leave out the files that take long (tests/slow.txt)")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import the slow files of a quick run, nor what needs another stack where there is none."""
    name = _name(collection_path)
    left_out = (config.getoption("quick") and name in SLOW) or (
        name == "test_stacks.py" and "OTHER_PYTHON" not in os.environ
    )
    return True if left_out else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow files first."""
    places = {name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: places.get(_name(item.path), len(SLOW)))


def _name(path: Path) -> str:
    return path.relative_to(TESTS).as_posix() if path.is_relative_to(TESTS) else path.name


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give this process one thread for its models, and a temporary folder of its own with a short path.

    torch's DataLoader workers send batches through sockets below TMPDIR and lose them where that path has about 95
    characters. A worker of xdist has its folder in that of the process that started it. All of it is removed at the
    end; pytest's `--basetemp` keeps what the tests wrote.
    """
    gone = [name for name in SLOW if not (TESTS / name).is_file()]
    if gone:
        raise pytest.UsageError(f"tests/slow.txt names files that are not there: {', '.join(gone)}")
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
    # Before any test starts the server of forked processes, which then would hold nothing.
    preload("crisp_stream.training.train", "crisp_stream.evaluation.judge", "sentence_transformers")
    gc.disable()  # while the tests are imported: a quarter of the 35 s of CPU that it takes each process


def pytest_collection_finish() -> None:
    """Collect garbage again, but not among what has been imported."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let the interpreter free everything at its end; libraries complain of what is left."""
    gc.unfreeze()


def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: three processes for two usable cores, because many tests wait."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(2, cores * 3 // 2), MAX_TEST_PROCESSES)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server; its endpoint and credentials are in the environment for the rest of the session."""
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server, pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment().items():
            environment.setenv(name, value)
        yield server


@pytest.fixture(scope="module", autouse=True)
def no_process_group_left_behind() -> Iterator[None]:
    """Remove the process group that Composer made for a training of one process, after each file.

    It would hide RANK and WORLD_SIZE from the tests of the next file.
    """
    yield
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.fixture
def names_in_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let StreamingDataset count its names in /dev/shm from a number that no other process counts from.

    It takes the first free number from 0 on; two processes that do so at the same moment share barriers, and wait.
    """
    monkeypatch.setattr(
        "streaming.base.shared.prefix._each_prefix_int", functools.partial(itertools.count, os.getpid() * 1_000)
    )
