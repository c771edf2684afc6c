"""Tasks of crisp-stream itself. Each runs in a process of its own (benchmarks/support/measure.py)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.loading.inputs import mixture_of
from benchmarks.support.measure import cpu_of_all, mapped_memory, memory_bytes, pause, reset_peak

WARM_UP_BATCHES = 50


def _open(root: str, mixture: Any, options: dict[str, Any]) -> Any:
    from crisp_stream.loading.mixture_dataset import MixtureDataset

    return MixtureDataset(root, mixture, **options)


def _batches(dataset: Any, loader: str) -> Iterator[dict[str, Any]]:
    """Batches from the bare iterator, or from a DataLoader with `loader` workers."""
    from torch.utils.data import DataLoader

    if loader == "iterator":
        return iter(dataset)
    workers = int(loader)
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))


def cpu_per_sample(*, root: str, histogram: str | None, loader: str, batch_size: int, batches: int) -> dict[str, float]:
    """CPU time of all processes per sample, after the first batches, over whole blocks of the order."""
    batches_of = _batches(_open(root, mixture_of(root, histogram), {"batch_size": batch_size}), loader)
    for _ in range(WARM_UP_BATCHES):
        next(batches_of)
    cpu, wall, tokens = cpu_of_all(), time.perf_counter(), 0
    for _ in range(batches):
        tokens += next(batches_of)["input_ids"].numel()
    samples = batches * batch_size
    assert tokens
    return {
        "cpu_us": (cpu_of_all() - cpu) / samples * 1e6,
        "wall_us": (time.perf_counter() - wall) / samples * 1e6,
    }


def first_batch(
    *, root: str, histogram: str | None, position: int = 0, further_batches: int = 0, paused: bool = False
) -> dict[str, float]:
    """From MixtureDataset(...) to the first batch at a position: seconds, and memory above the bare import.

    Args:
        root: of the dataset.
        histogram: file of the mixture; the corpus itself when None.
        position: where the run is resumed; 0 starts it.
        further_batches: read after the first, before the peak is taken.
        paused: wait for another rank before the start, with the first batch in hand, and when both were measured.
    """
    from torch.utils.data import DataLoader

    from crisp_stream.loading.mixture_dataset import MixtureDataset

    del DataLoader, MixtureDataset  # imported before the measurement
    if paused:
        pause()
    resident, private = memory_bytes("VmRSS"), mapped_memory()["private"]
    loading = time.perf_counter()
    mixture = mixture_of(root, histogram)
    loaded = time.perf_counter()
    load_peak = memory_bytes("VmHWM") - resident
    reset_peak()
    started, cpu = time.perf_counter(), cpu_of_all()
    dataset = _open(root, mixture, {"batch_size": 96})
    if position:
        dataset.skip_to(position)
    batches = _batches(dataset, "0")
    next(batches)
    seconds, cpu = time.perf_counter() - started, cpu_of_all() - cpu
    for _ in range(further_batches):
        next(batches)
    result = {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_bytes": memory_bytes("VmHWM") - resident,
        "load_seconds": loaded - loading,
        "load_peak_bytes": load_peak,
    }
    if paused:
        pause()
    result["private_bytes"] = mapped_memory()["private"] - private
    if paused:
        pause()
    return result
