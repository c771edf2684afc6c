"""The section of many shards: more than a process may have open files, or mappings."""

from __future__ import annotations

from typing import Any

from benchmarks.loading.inputs import Inputs
from benchmarks.loading.local_sections import BATCH_SIZE, OURS
from benchmarks.support.measure import run_repeated
from benchmarks.support.report import Column, Row, count, digits, mega
from crisp_stream.format.dataset import open_dataset

SHARDS_COLUMNS = [
    Column(title="side", key="side"),
    Column(title="shards", key="shards", show=count),
    Column(title="opening, s", key="open_seconds", show=digits(2)),
    Column(title="opening, MB", key="open_bytes", show=mega),
    Column(title="CPU µs per sample", key="cpu_us", show=digits(1)),
    Column(title="range of the runs", key="cpu_us_spread", show=lambda pair: f"{pair[0]:.1f} to {pair[1]:.1f}"),
    Column(title="checksum of every window", key="verified"),
]


def shards(inputs: Inputs, repeats: int) -> tuple[list[Row], list[str]]:
    """Opening a dataset and CPU per sample, against the number of shards; page cache warm, every shard read before."""
    rows: list[Row] = []
    for name in ("shards64", "shards100k"):
        root, plan = inputs.dataset(name), inputs.plan(name)
        shared = {"shards": open_dataset(root).manifest.num_shards, "verified": "yes"}
        batches = plan.windows // BATCH_SIZE
        options: dict[str, Any] = {"root": str(root), "histogram": str(inputs.histogram(name, None))}
        opened = run_repeated("loading.ours:opening", {"root": str(root)}, times=repeats)
        reading = options | {"batches": batches, "warm_up": batches}
        ours = reading | {"loader": "iterator", "batch_size": BATCH_SIZE}
        read = run_repeated("loading.ours:cpu_per_sample", ours, times=repeats, timeout=1_200)
        rows.append({"side": f"{OURS}, bare iterator", **shared, **opened, **read})
        loop = reading | {"verify": True, "keep_open": False}
        read = run_repeated("loading.peers:cpu_of_pread", loop, times=repeats, timeout=1_200)
        rows.append({"side": "loop of `os.open`, `os.pread`, `os.close`", **shared, **read})
    return rows, ["One process; each side has read as many samples as the dataset has windows before it is measured."]
