"""Runs as processes: stopped by signals, killed, continued; one process, and two of the launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from crisp_stream.training.train import train
from tests.support.ranks import Command, Forked, start_ranks
from tests.support.small_runs import SmallRun, account_of, launch, losses_of, small_run, windows_of

LONG = ("max_duration=120ba", "save_interval=50ba", "log_interval=1", "mixture.phases.0.until=80ba")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def whole(done: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save folder of the long run, uninterrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(done.recipe(*LONG, f"save_folder={folder}")).interrupted_at is None
    return folder


def check_stopped_and_continue(done: SmallRun, whole: Path, folder: Path, name: str) -> None:
    """The account says where it stopped, the checkpoint is there, and continuing gives the uninterrupted run."""
    record = account_of(folder)
    batch = record["interrupted_at"]
    assert record["interrupted_by"] == name
    assert 5 <= batch < 120
    assert record["checkpoint"] == str(folder / f"ep0-ba{batch}-rank0.pt")
    assert losses_of(folder) == losses_of(whole)[:batch]
    report = train(done.recipe(*LONG, f"save_folder={folder}", "autoresume=true"))
    assert (report.resumed_at, report.interrupted_at, report.interrupted_by) == (batch, None, None)
    assert losses_of(folder) == losses_of(whole)
    assert windows_of(folder) == windows_of(whole)
    assert (folder / "cluster_losses.csv").read_text() == (whole / "cluster_losses.csv").read_text()
    for key in ("mixture_error", "repeated_share", "phases"):
        assert account_of(folder)[key] == account_of(whole)[key]


@pytest.mark.parametrize(
    ("sent", "to_group", "workers", "code"),
    [
        (signal.SIGTERM, False, 0, 143),
        (signal.SIGTERM, True, 2, 143),  # as a batch system does
        (signal.SIGINT, True, 2, 130),  # as a terminal does
    ],
)
def test_a_signal_ends_a_run_with_a_checkpoint_that_goes_on_bit_for_bit(
    done: SmallRun, whole: Path, tmp_path: Path, sent: signal.Signals, to_group: bool, workers: int, code: int
) -> None:
    folder = tmp_path / "run"
    work = Command("train", done.recipe_file, *LONG, f"save_folder={folder}", f"data.num_workers={workers}")
    running = Forked(work, tmp_path / "printed")
    running.wait_for("batch 5/120")
    running.send(sent, to_group=to_group)
    assert running.end() == code, running.text
    assert f"{sent.name}: stopping after batch" in running.text
    check_stopped_and_continue(done, whole, folder, sent.name)


def check_both_stopped_and_continue(done: SmallRun, folder: Path) -> None:
    """Both ranks stopped after one batch, with a checkpoint, and two ranks go on from it."""
    record = account_of(folder)
    assert record["interrupted_by"] == "SIGTERM"
    assert (folder / f"ep0-ba{record['interrupted_at']}-rank0.pt").is_file()
    assert len(losses_of(folder)) == record["interrupted_at"]
    launch(done, 2, [[*LONG, f"save_folder={folder}", "autoresume=true"]], folder.parent)
    assert account_of(folder)["resumed_at"] == record["interrupted_at"]
    assert len(losses_of(folder)) == 120


def test_a_signal_to_the_launcher_stops_all_ranks_at_one_batch(done: SmallRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ["train", done.recipe_file, *LONG, f"save_folder={folder}", "--nproc", "2"]
    launcher = Forked(Command(*command, "--rank-logs", tmp_path / "ranks"), tmp_path / "printed")
    launcher.wait_for("batch 5/120")
    launcher.send(signal.SIGTERM)
    assert launcher.end() == 143, launcher.text
    check_both_stopped_and_continue(done, folder)
    assert (tmp_path / "ranks" / "rank1.stdout.txt").is_file()


def test_a_signal_to_one_rank_stops_both_at_one_batch(done: SmallRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first, second = start_ranks(2, Command("train", done.recipe_file, *LONG, f"save_folder={folder}"), tmp_path)
    first.wait_for("batch 5/120")
    second.send(signal.SIGTERM)
    assert (first.end(), second.end()) == (143, 143), first.text + second.text
    check_both_stopped_and_continue(done, folder)


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_process_ends_though_its_loader_still_has_workers(start: str) -> None:
    """As after an error: workers that shield themselves from a batch system still end with their process."""
    script = (
        "import multiprocessing, torch\n"
        f"multiprocessing.set_start_method('{start}')\n"
        "from crisp_stream.loading.worker_signals import shield_worker\n"
        "rows = torch.utils.data.TensorDataset(torch.arange(1000))\n"
        "loader = torch.utils.data.DataLoader(rows, num_workers=2, worker_init_fn=shield_worker)\n"
        "batches = iter(loader)\n"
        "next(batches)  # of the first worker; one that still imports has no shield\n"
        "print(next(batches)[0].item(), *(worker.pid for worker in batches._workers), flush=True)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *workers = map(int, done.stdout.split())
    assert first == 1
    assert len(workers) == 2
    until = time.monotonic() + 60  # a server of forked processes sees their end a moment later
    while any(psutil.pid_exists(worker) for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.05)
