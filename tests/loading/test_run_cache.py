"""The cache of runs: whole or absent, bounded, shared, claimed by one; and runs that fit what the order draws."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from crisp_stream import Histogram, Mixture, MixtureDataset, Phase
from crisp_stream.errors import InputError, StorageError
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.mds import sample_dtype
from crisp_stream.loading import run_cache
from crisp_stream.loading.reader import ReadOptions
from crisp_stream.loading.run_cache import RunCache, WindowRun
from crisp_stream.loading.runs import RunPlan
from crisp_stream.order.blocks import Blocks
from crisp_stream.order.draw_table import DrawTable
from crisp_stream.order.order import SampleOrder, phases_in_turn
from tests.support.seaweed import S3Server
from tests.support.synthetic import upload, write_synthetic_dataset

DTYPE = sample_dtype(4, "uint16")


def samples_of(run: WindowRun) -> np.ndarray:
    samples = np.zeros(run.num_windows, DTYPE)
    samples["cluster"] = run.first + np.arange(run.num_windows)
    return samples


def cache_in(folder: Path, limit: int | None = None) -> RunCache:
    return RunCache(folder, limit, DTYPE)


@pytest.mark.parametrize("wanted", [[5], [3, 60, 7], list(range(64))])
def test_windows_of_a_stored_run_land_in_their_places(tmp_path: Path, wanted: list[int]) -> None:
    cache, run = cache_in(tmp_path), WindowRun(0, 1000, 64)
    assert not cache.holds(run)
    cache.store(run, samples_of(run).tobytes())
    assert cache.holds(run)
    out, places = np.zeros(100, DTYPE), np.arange(len(wanted)) + 20
    assert cache.read(run, np.array(wanted) + 1000, out, places)
    assert (out["cluster"][places] == np.array(wanted) + 1000).all()
    cache.drop(run)
    assert not cache.read(run, np.array(wanted) + 1000, out, places)


def test_a_file_of_another_size_counts_as_absent(tmp_path: Path) -> None:
    cache, run = cache_in(tmp_path), WindowRun(0, 0, 8)
    cache.store(run, samples_of(run).tobytes()[:-1])
    assert not cache.read(run, np.arange(3), np.zeros(3, DTYPE), np.arange(3))


def test_one_of_many_claims_a_run_until_it_releases_it_or_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, run = cache_in(tmp_path), cache_in(tmp_path), WindowRun(0, 128, 64)
    assert one.claim(run)
    assert not other.claim(run)
    assert other.claimed(run)
    one.release(run)
    assert not other.claimed(run)
    assert other.claim(run)
    monkeypatch.setattr(run_cache, "CLAIM_SECONDS", 0.1)
    time.sleep(0.3)  # the process that made the claim was killed
    assert not one.claimed(run)
    assert one.claim(run)


def test_claims_are_this_process_s_own_where_the_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one, other, run = cache_in(tmp_path / "file"), cache_in(tmp_path / "file"), WindowRun(0, 128, 64)
    assert one.claim(run)
    assert not one.claim(run)
    assert other.claim(run)


@pytest.mark.parametrize("limit_runs", [1, 10, 1000])
def test_the_cache_stays_below_its_limit_and_keeps_what_is_used(tmp_path: Path, limit_runs: int) -> None:
    run_bytes = 64 * DTYPE.itemsize
    cache = cache_in(tmp_path, limit_runs * run_bytes)
    stored = [WindowRun(0, 64 * number, 64) for number in range(60)]
    for number, run in enumerate(stored):
        cache.store(run, samples_of(run).tobytes())
        os.utime(cache._path(run), (number, number))
        if number >= 5 and limit_runs == 10:  # run 0 is used again and again
            assert cache.read(stored[0], np.array([0]), np.zeros(1, DTYPE), np.array([0]))
    held = [run for run in stored if cache.holds(run)]
    assert sum(run_bytes for _ in held) <= limit_runs * run_bytes
    assert stored[-1] in held
    assert len(held) == min(60, limit_runs)
    assert limit_runs != 10 or stored[0] in held


def test_a_limit_of_many_groups_is_kept_by_several_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_cache, "_GROUP_BYTES", 4 * 64 * DTYPE.itemsize)
    limit = 200 * 64 * DTYPE.itemsize
    writers = [cache_in(tmp_path, limit) for _ in range(3)]
    for number in range(900):
        run = WindowRun(0, 64 * number, 64)
        writers[number % 3].store(run, samples_of(run).tobytes())
    held = sum(path.stat().st_size for path in tmp_path.rglob("*.run"))
    assert 0.5 * limit < held <= limit


def test_what_killed_processes_left_is_removed_by_the_next(tmp_path: Path) -> None:
    run = WindowRun(0, 0, 64)
    cache_in(tmp_path).store(run, samples_of(run).tobytes())
    litter = [Path(cache_in(tmp_path)._path(run) + ending) for ending in (".abc.tmp", ".xyz.tmp", ".new.tmp")]
    for path in litter:
        path.write_bytes(b"")
    for path in litter[:2]:
        os.utime(path, (1, 1))
    cache_in(tmp_path).store(run, samples_of(run).tobytes())
    assert [path.exists() for path in litter] == [False, False, True]


def test_limits_and_folders_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cache_limit must be a positive number of bytes, got -1"):
        cache_in(tmp_path, -1)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write to the cache .*local="):
        cache_in(tmp_path / "file").store(WindowRun(0, 0, 1), b"x")


def test_a_limit_on_the_cache_of_another_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal is simulated, because root is refused nothing; tests/loading/test_faults.py has two users."""
    run, samples = WindowRun(0, 0, 2), samples_of(WindowRun(0, 0, 2))
    cache_in(tmp_path).store(run, samples.tobytes())

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refuse)
    read, windows = np.empty_like(samples), np.arange(2)
    assert cache_in(tmp_path).read(run, windows, read, windows)
    told = (
        rf"{tmp_path}/.*\.run: cannot use the cache \(Permission denied\)\. It belongs to the user {tmp_path.owner()}\."
    )
    with pytest.raises(StorageError, match=rf"{told} With cache_limit=, files are marked .* local="):
        cache_in(tmp_path, 10**6).read(run, windows, read, windows)


def plan_for(
    dataset: Dataset, proportions: np.ndarray, samples: int, *, known: bool = True
) -> tuple[RunPlan, np.ndarray]:
    """A run plan for the first samples of an order, and the windows of those."""

    def order() -> SampleOrder:
        phases = phases_in_turn([(proportions, None)])
        return SampleOrder(DrawTable.of_leaves(dataset.leaves, dataset.windows_per_leaf), phases, Blocks(seed=3))

    return RunPlan(dataset, order(), samples if known else None), order().window_ids(np.arange(samples))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    sizes = {leaf: int(size) for leaf, size in enumerate(np.random.default_rng(0).integers(1, 1500, 16))}
    return write_synthetic_dataset(tmp_path_factory.mktemp("runs"), sizes, window_tokens=8, windows_per_shard=5000)


@pytest.mark.parametrize("samples", [10, 700, 3000, 30_000])
def test_when_the_end_is_known_every_window_that_is_fetched_is_used(dataset: Dataset, samples: int) -> None:
    proportions = np.exp(np.random.default_rng(1).normal(size=16))
    plan, ids = plan_for(dataset, proportions / proportions.sum(), samples)
    runs = plan.runs(ids, dataset.row_of_windows(ids))
    first, at = np.unique(runs.first, return_index=True)
    fetched = int(runs.num_windows[at].sum())
    assert fetched == len(np.unique(ids))
    assert ((runs.first <= ids) & (ids < runs.first + runs.num_windows)).all()
    assert (np.diff(first) >= runs.num_windows[at][:-1]).all()  # runs do not overlap
    drawn = np.bincount(dataset.row_of_windows(ids), minlength=16)
    assert len(first) <= (drawn // 64 + 3).sum()


def test_without_a_known_end_at_most_a_run_is_read_ahead_of_each_leaf(dataset: Dataset) -> None:
    plan, ids = plan_for(dataset, np.full(16, 1 / 16), 3000, known=False)
    runs = plan.runs(ids, dataset.row_of_windows(ids))
    _, at = np.unique(runs.first, return_index=True)
    assert int(runs.num_windows[at].sum()) <= len(np.unique(ids)) + 16 * 63


def test_over_s3_bytes_read_are_bytes_used_and_neighbours_are_joined(
    dataset: Dataset, s3: S3Server, tmp_path: Path
) -> None:
    url = upload(dataset, s3.fresh_prefix())
    mixture = Mixture([Phase(Histogram.from_leaves([2, 2, 7, 11], dataset.tree, 2), 2000)])
    stream = MixtureDataset(url, mixture, batch_size=50, reading=ReadOptions(local=tmp_path))
    ids = np.concatenate([batch["window"].numpy() for batch in stream])
    used = len(np.unique(ids)) * dataset.manifest.sample_bytes
    assert len(ids) == 2000
    assert stream.bytes_read == used
    assert stream.requests < 60
    assert not list(tmp_path.rglob("*.tmp"))


def test_two_jobs_that_share_a_cache_fetch_a_run_once(dataset: Dataset, s3: S3Server, tmp_path: Path) -> None:
    url = upload(dataset, s3.fresh_prefix())
    mixture = Mixture([Phase(Histogram.base(dataset.manifest), 3000)])
    jobs = [MixtureDataset(url, mixture, batch_size=50, reading=ReadOptions(local=tmp_path)) for _ in range(2)]
    together = list(zip(*jobs, strict=True))
    assert all((one["window"] == other["window"]).all() for one, other in together)
    served = np.concatenate([one["window"].numpy() for one, _ in together])
    used = len(np.unique(served)) * dataset.manifest.sample_bytes
    assert sum(job.bytes_read for job in jobs) <= 1.05 * used


def test_a_stream_goes_on_beyond_the_end_that_was_named(dataset: Dataset, s3: S3Server, tmp_path: Path) -> None:
    url = upload(dataset, s3.fresh_prefix())
    mixture = Mixture([Phase(Histogram.base(dataset.manifest))])
    expected = (
        MixtureDataset(url, mixture, batch_size=50, reading=ReadOptions(local=tmp_path / "a"))
        .order()
        .window_ids(np.arange(1500))
    )
    stream = MixtureDataset(url, mixture, batch_size=50, reading=ReadOptions(local=tmp_path / "b"), num_samples=720)
    batches = iter(stream)
    found = np.concatenate([next(batches)["window"].numpy() for _ in range(14)])
    used = len(np.unique(expected[:750])) * dataset.manifest.sample_bytes
    assert stream.bytes_read <= used  # nothing beyond sample 720, though the lookahead is longer
    found = np.concatenate([found, *(next(batches)["window"].numpy() for _ in range(16))])
    assert (found == expected).all()
