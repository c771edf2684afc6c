"""Tasks of the others: a plain pread loop, mosaicml-streaming, LitData. Each runs in a process of its own.

Every side ends at the same thing: batches of int64 torch tensors. Checksums that a side
does not check are said in its row.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.loading.peer_inputs import folders_below
from benchmarks.support.measure import UnavailableError, cpu_of_all, mapped_memory, memory_bytes, pause, reset_peak

if TYPE_CHECKING:
    from torch import Tensor

BATCH_SIZE = 96
WARM_UP_BATCHES = 20


def _streaming() -> Any:
    try:
        import streaming
    except ImportError as error:
        raise UnavailableError("mosaicml-streaming is not installed (pip install 'crisp-stream[train]')") from error
    return streaming


def _litdata() -> Any:
    try:
        return import_module("litdata")
    except ImportError as error:
        raise UnavailableError("litdata is not installed (pip install 'crisp-stream[bench]')") from error


def cpu_of_pread(
    *,
    root: str,
    histogram: str | None,
    verify: bool,
    batches: int,
    warm_up: int = WARM_UP_BATCHES,
    keep_open: bool = True,
) -> dict[str, float]:
    """A naive loop over the windows that our order gives: pread, frombuffer, tensor, stack.

    Without `keep_open` each window's shard is opened and closed, as where there are too many to keep them open.
    """
    import torch
    import xxhash

    from benchmarks.loading.inputs import mixture_of
    from crisp_stream.loading.mixture_dataset import MixtureDataset

    dataset = MixtureDataset(root, mixture_of(root, histogram), batch_size=BATCH_SIZE)
    window_ids = dataset.order().window_ids(np.arange((warm_up + batches) * BATCH_SIZE))
    opened = dataset.dataset
    shard_of = opened.shard_of_windows(window_ids)
    size, rows = opened.manifest.sample_bytes, opened.shards
    first_byte = rows.first_sample_offset
    offsets = (first_byte[shard_of] + (window_ids - opened.first_window_per_shard[shard_of]) * size).tolist()
    paths = [f"{root}/{row.path}" for row in rows]
    files = [os.open(path, os.O_RDONLY) for path in paths] if keep_open else []
    numbers, seeds = shard_of.tolist(), opened.checksum_seeds(window_ids, shard_of).tolist()

    def read(at: int) -> Tensor:
        if keep_open:
            sample = os.pread(files[numbers[at]], size, offsets[at])
        else:
            file = os.open(paths[numbers[at]], os.O_RDONLY)
            sample = os.pread(file, size, offsets[at])
            os.close(file)
        stored = int.from_bytes(sample[:4], "little")
        if verify and xxhash.xxh3_64_intdigest(sample[4:], seeds[at]) & 0xFFFFFFFF != stored:
            raise ValueError(f"window {window_ids[at]} does not match its checksum")
        return torch.from_numpy(np.frombuffer(sample, np.uint16, offset=8).astype(np.int64))

    def stacked() -> Iterator[Tensor]:
        for start in range(0, len(window_ids), BATCH_SIZE):
            yield torch.stack([read(at) for at in range(start, start + BATCH_SIZE)])

    return _cpu_per_sample(stacked(), batches, warm_up)


def _cpu_per_sample(batches_of: Iterator[Tensor], batches: int, warm_up: int = WARM_UP_BATCHES) -> dict[str, float]:
    for _ in range(warm_up):
        next(batches_of)
    cpu, wall, samples = cpu_of_all(), time.perf_counter(), 0
    for _ in range(batches):
        samples += len(next(batches_of))
    return {
        "cpu_us": (cpu_of_all() - cpu) / samples * 1e6,
        "wall_us": (time.perf_counter() - wall) / samples * 1e6,
    }


def cpu_of_streaming(*, folders: str, batches: int, one_stream: bool = False) -> dict[str, float]:
    """StreamingDataset, shuffled, one Stream per folder below `folders`, or one for all of it."""
    batches_of, close = _streaming_batches(folders, one_stream=one_stream)
    result = _cpu_per_sample(batches_of, batches)
    close()
    return result


def cpu_of_litdata(*, folders: str, window_tokens: int, batches: int) -> dict[str, float]:
    """CombinedStreamingDataset, shuffled, one StreamingDataset per folder below `folders`."""
    return _cpu_per_sample(_litdata_batches(folders, window_tokens), batches)


def first_batch_of_streaming(
    *, folders: str, one_stream: bool = False, epoch_size: int | None = None, position: int = 0, paused: bool = False
) -> dict[str, float]:
    """From StreamingDataset(...) to the first batch."""
    from torch.utils.data import DataLoader

    _streaming()
    del DataLoader  # imported before the measurement
    held: list[Callable[[], None]] = []

    def first() -> None:
        batches_of, close = _streaming_batches(folders, one_stream=one_stream, epoch_size=epoch_size, position=position)
        held.append(close)
        next(batches_of)

    result = _measured(first, paused)
    held[0]()
    return result


def first_batch_of_litdata(*, folders: str, window_tokens: int, paused: bool = False) -> dict[str, float]:
    """From CombinedStreamingDataset(...) to the first batch."""
    _litdata()
    held: list[Iterator[Tensor]] = []

    def first() -> None:
        held.append(_litdata_batches(folders, window_tokens))
        next(held[0])

    return _measured(first, paused)


def _measured(first: Callable[[], None], paused: bool) -> dict[str, float]:
    if paused:
        pause()
    resident, private = memory_bytes("VmRSS"), mapped_memory()["private"]
    reset_peak()
    started, cpu = time.perf_counter(), cpu_of_all()
    first()
    result = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": cpu_of_all() - cpu,
        "peak_bytes": memory_bytes("VmHWM") - resident,
    }
    if paused:
        pause()
    result["private_bytes"] = mapped_memory()["private"] - private
    if paused:
        pause()
    return result


def _weights(count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Log-normal shares, as the histograms of our own sides have."""
    weights = np.exp(2 * np.random.default_rng(7).normal(size=count))
    return weights / weights.sum()


def _streaming_batches(
    folders: str, *, one_stream: bool = False, epoch_size: int | None = None, position: int = 0
) -> tuple[Iterator[Tensor], Callable[[], None]]:
    import torch
    from torch.utils.data import DataLoader

    streaming = _streaming()
    if one_stream:
        which: dict[str, Any] = {"local": folders}
    else:
        below = folders_below(folders)
        pairs = zip(below, _weights(len(below)), strict=True)
        which = {"streams": [streaming.Stream(local=folder, proportion=float(share)) for folder, share in pairs]}
    dataset = streaming.StreamingDataset(**which, batch_size=BATCH_SIZE, shuffle=True, epoch_size=epoch_size)
    if position:
        dataset.load_state_dict(dataset.state_dict(position, True))
    loader = DataLoader(dataset, batch_size=BATCH_SIZE, drop_last=True)

    def batches_of() -> Iterator[Tensor]:
        while True:
            for batch in loader:
                yield batch["tokens"].to(torch.int64)

    return batches_of(), lambda: _close_streaming(dataset)


def _close_streaming(dataset: Any) -> None:
    """Its shared memory outlives a process that does not say so."""
    for name in ("_cache_filelock", "_shared_barrier", "_shard_states", "_shard_access_times", "_next_epoch"):
        shared = getattr(dataset, name, None)
        memory = getattr(shared, "shm", None)
        if memory is not None:
            memory.cleanup()


def _litdata_batches(folders: str, window_tokens: int) -> Iterator[Tensor]:
    import torch

    litdata = _litdata()
    tokens_loader = import_module("litdata.streaming.item_loader").TokensLoader
    datasets = [
        litdata.StreamingDataset(folder, item_loader=tokens_loader(block_size=window_tokens), shuffle=True)
        for folder in folders_below(folders)
    ]
    combined = litdata.CombinedStreamingDataset(
        datasets, weights=_weights(len(datasets)).tolist(), iterate_over_all=False
    )
    loader = litdata.StreamingDataLoader(combined, batch_size=BATCH_SIZE, num_workers=0)
    while True:
        for batch in loader:
            yield batch.to(torch.int64)
