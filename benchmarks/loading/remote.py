"""Tasks that read over S3. Each runs in a process of its own (benchmarks/support/measure.py)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.loading.inputs import mixture_of
from benchmarks.support.measure import UnavailableError, cpu_of_all, memory_bytes


def ours(*, root: str, histogram: str | None, samples: int, batch_size: int, local: str) -> dict[str, float]:
    """Read `samples` samples with an empty cache; what was read, in what time, and what of it was used."""
    from torch.utils.data import DataLoader

    from crisp_stream.loading.mixture_dataset import MixtureDataset
    from crisp_stream.loading.reader import ReadOptions

    mixture = mixture_of(root, histogram)
    batches = samples // batch_size
    started = time.perf_counter()
    dataset = MixtureDataset(
        root,
        mixture,
        batch_size=batch_size,
        reading=ReadOptions(local=local),
        num_samples=batches * batch_size,
    )
    batches_of = iter(DataLoader(dataset, batch_size=None))
    window_ids = [next(batches_of)["window"].numpy()]
    first = time.perf_counter()
    cpu = cpu_of_all()
    for _ in range(batches - 1):
        window_ids.append(next(batches_of)["window"].numpy())
    seconds, cpu = time.perf_counter() - first, cpu_of_all() - cpu
    size = dataset.dataset.manifest.sample_bytes
    windows, draws = np.unique(np.concatenate(window_ids), return_counts=True)
    shards = np.unique(np.searchsorted(dataset.dataset.first_window_per_shard, windows, side="right") - 1)
    return {
        "first_seconds": first - started,
        "samples_per_second": (batches - 1) * batch_size / seconds,
        "cpu_us": cpu / ((batches - 1) * batch_size) * 1e6,
        "served_bytes": int(draws.sum()) * size,
        "used_bytes": len(windows) * size,
        "read_bytes": dataset.bytes_read,
        "requests": dataset.requests,
        "whole_shard_bytes": sum(dataset.dataset.shards[int(shard)].shard_bytes for shard in shards),
        "whole_shards": len(shards),
        "peak_bytes": memory_bytes("VmHWM"),
    }


def streaming(*, root: str, histogram: str | None, samples: int, local: str) -> dict[str, float]:
    """The windows of our order's first samples, through StreamingDataset: it fetches their whole shards."""
    try:
        from streaming import StreamingDataset
    except ImportError as error:
        raise UnavailableError("mosaicml-streaming is not installed (pip install 'crisp-stream[train]')") from error
    from crisp_stream.loading.mixture_dataset import MixtureDataset

    ours = MixtureDataset(root, mixture_of(root, histogram), batch_size=1)
    window_ids = np.unique(ours.order().window_ids(np.arange(samples)))
    started = time.perf_counter()
    dataset = StreamingDataset(remote=f"{root}/shards", local=local, batch_size=1, shuffle=False)
    for window in window_ids:
        assert len(dataset[int(window)]["tokens"]) == ours.dataset.manifest.window_tokens
    fetched = [path.stat().st_size for path in Path(local).rglob("*.mds")]
    return {
        "seconds": time.perf_counter() - started,
        "used_bytes": len(window_ids) * ours.dataset.manifest.sample_bytes,
        "read_bytes": sum(fetched),
        "requests": len(fetched),
    }


def ceiling(*, root: str, paths: Sequence[str], offset_bytes: int, range_bytes: int, ranges: int) -> dict[str, float]:
    """What a bare client gets through the same way: ranges of the shards, 32 at a time."""
    from crisp_stream.storage.store import open_store

    store = open_store(root)
    places = [(paths[number % len(paths)], offset_bytes * (number // len(paths))) for number in range(ranges)]
    started, cpu = time.perf_counter(), cpu_of_all()
    with ThreadPoolExecutor(32) as pool:
        read = sum(pool.map(lambda place: len(store.get_range(place[0], place[1], range_bytes)), places))
    seconds = time.perf_counter() - started
    return {
        "bytes_per_second": read / seconds,
        "requests_per_second": ranges / seconds,
        "cpu_seconds": cpu_of_all() - cpu,
        "seconds": seconds,
    }
