"""The section of several sources: task text mixed into a corpus, beside the corpus alone."""

from __future__ import annotations

from typing import Any

from benchmarks.loading.inputs import Inputs
from benchmarks.loading.local_sections import BATCH_SIZE
from benchmarks.support.measure import run_repeated
from benchmarks.support.report import Column, Row, count, digits

SHARE = 0.05

SOURCES_COLUMNS = [
    Column(title="stream", key="side"),
    Column(title="clusters", key="clusters", show=count),
    Column(title="first batch, s", key="seconds", show=digits(2)),
    Column(title="CPU µs per sample", key="cpu_us", show=digits(1)),
    Column(title="range of the runs", key="cpu_us_spread", show=lambda pair: f"{pair[0]:.1f} to {pair[1]:.1f}"),
    Column(title="times one source", key="ratio", show=digits(2)),
]


def sources(inputs: Inputs, repeats: int) -> tuple[list[Row], list[str]]:
    """Opening and CPU per sample of one source and of two; local, page cache warm, in turns."""
    corpus, task = inputs.dataset("wide262k"), inputs.dataset("task10k")
    options: dict[str, Any] = {"corpus": str(corpus), "task": str(task), "batch_size": BATCH_SIZE}
    options |= {"histogram": str(inputs.histogram("wide262k", None)), "batches": 40 if inputs.quick else 4_000}
    run_repeated("loading.ours:sources", options | {"share": SHARE}, times=1)  # the page cache
    leaves, more = inputs.plan("wide262k").leaves, inputs.plan("task10k").leaves
    one = run_repeated("loading.ours:sources", options | {"share": 0.0}, times=repeats)
    two = run_repeated("loading.ours:sources", options | {"share": SHARE}, times=repeats)
    rows: list[Row] = [
        {"side": "one source", "clusters": leaves, **one},
        {"side": f"two sources, {SHARE:.0%} task text", "clusters": leaves + more, **two},
    ]
    for row in rows:
        row["ratio"] = row["cpu_us"] / rows[0]["cpu_us"]
    return rows, ["The bare iterator, batches of 96 windows of 1,024 tokens, every checksum compared."]
