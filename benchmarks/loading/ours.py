"""Tasks of crisp-stream itself. Each runs in a process of its own (benchmarks/support/measure.py)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.loading.inputs import mixed_in, mixture_of
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


def opening(*, root: str) -> dict[str, float]:
    """CPU seconds and memory of opening a dataset."""
    from pyarrow import parquet

    from crisp_stream.format.dataset import open_dataset

    del parquet  # imported before the measurement
    resident, cpu = memory_bytes("VmRSS"), time.process_time()
    dataset = open_dataset(root)
    cpu = time.process_time() - cpu
    assert len(dataset.shards)
    return {"open_seconds": cpu, "open_bytes": memory_bytes("VmRSS") - resident}


def cpu_per_sample(
    *,
    root: str,
    histogram: str | None,
    loader: str,
    batch_size: int,
    batches: int,
    warm_up: int = WARM_UP_BATCHES,
) -> dict[str, float]:
    """CPU time of all processes per sample, after the first batches, over whole blocks of the order."""
    batches_of = _batches(_open(root, mixture_of(root, histogram), {"batch_size": batch_size}), loader)
    for _ in range(warm_up):
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


def sources(*, corpus: str, histogram: str, task: str, share: float, batch_size: int, batches: int) -> dict[str, float]:
    """A task's own windows at a share of a corpus: seconds to the first batch, CPU per sample after it.

    With a share of 0 the corpus alone, by the same histogram.
    """
    from crisp_stream.loading.mixture_dataset import MixtureDataset

    mixture = mixed_in(corpus, histogram, task, share) if share else mixture_of(corpus, histogram)
    started = time.perf_counter()
    data = {"corpus": corpus, "task": task} if share else corpus
    batches_of = iter(MixtureDataset(data, mixture, batch_size=batch_size))
    next(batches_of)
    seconds = time.perf_counter() - started
    for _ in range(WARM_UP_BATCHES):
        next(batches_of)
    cpu = cpu_of_all()
    for _ in range(batches):
        next(batches_of)
    return {"seconds": seconds, "cpu_us": (cpu_of_all() - cpu) / (batches * batch_size) * 1e6}


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


def changes(*, root: str, level: int, marks: list[int], changed: bool) -> dict[str, float]:
    """CPU per batch, time and size of a state, and memory, after each of `marks` changes: one for every batch."""
    import pickle

    import numpy as np

    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.histograms.histogram import Histogram
    from crisp_stream.histograms.mixture import Mixture
    from crisp_stream.loading.reader import ReadOptions

    batch_size, ahead, rng = 16, 8, np.random.default_rng(0)
    dataset = open_dataset(root)
    manifest = dataset.manifest
    nodes = np.unique(dataset.leaves // np.uint32(manifest.arity ** (manifest.depth - level)))
    histograms = [
        Histogram(
            level=level,
            nodes=nodes,
            proportions=rng.dirichlet(np.ones(len(nodes))),
            arity=manifest.arity,
            depth=manifest.depth,
            tree_fingerprint=manifest.tree_fingerprint,
        )
        for _ in range(20)
    ]
    stream = _open(root, Mixture.base(manifest), {"batch_size": batch_size, "reading": ReadOptions(lookahead=32)})
    for number in range(ahead if changed else 0):
        stream.set_proportions(histograms[number % 20], at_sample=batch_size * number)
    batches, found = iter(stream), {"nodes": float(len(nodes))}
    next(batches)
    cpu, since, resident = cpu_of_all(), 0, memory_bytes("VmRSS")
    for number in range(marks[-1]):
        if changed:
            at = batch_size * (number + 1 + ahead)
            stream.set_proportions(histograms[(number + ahead) % 20], at_sample=at)
        next(batches)
        if number + 1 in marks:
            spent, before = cpu_of_all() - cpu, time.process_time()
            state = stream.state_dict()
            found[f"state_ms@{number + 1}"] = (time.process_time() - before) * 1e3
            found[f"cpu_ms@{number + 1}"] = spent / (number + 1 - since) * 1e3
            found[f"state_bytes@{number + 1}"] = len(pickle.dumps(state))
            found[f"grown_bytes@{number + 1}"] = memory_bytes("VmRSS") - resident
            cpu, since = cpu_of_all(), number + 1
    return found
