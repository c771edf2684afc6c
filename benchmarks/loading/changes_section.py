"""The section of mixtures that change while training runs: a new one for every batch."""

from __future__ import annotations

from typing import Any

from benchmarks.loading.inputs import Inputs
from benchmarks.loading.local_sections import OURS
from benchmarks.support.measure import run_repeated
from benchmarks.support.report import Column, Row, count, digits, mega

CHANGES_COLUMNS = [
    Column(title="side", key="side"),
    Column(title="clusters", key="clusters", show=count),
    Column(title="nodes of a mixture", key="nodes", show=count),
    Column(title="after changes", key="changes", show=count),
    Column(title="CPU ms per batch", key="cpu_ms", show=digits(2)),
    Column(title="state_dict, ms", key="state_ms", show=digits(1)),
    Column(title="state, MB", key="state_bytes", show=mega),
    Column(title="memory since the first batch, MB", key="grown_bytes", show=mega),
]


def changes(inputs: Inputs, repeats: int) -> tuple[list[Row], list[str]]:
    """CPU per batch of 16, memory and state after more and more changes; and without any."""
    rows: list[Row] = []
    for name, level, last in (("leaves4k", 2, 100_000), ("leaves262k", 2, 10_000)):
        marks = [5, 20] if inputs.quick else [10, 1_000, last]
        for side in (OURS, "no change"):
            options: dict[str, Any] = {"root": str(inputs.dataset(name)), "level": level, "marks": marks}
            options["changed"] = side == OURS
            found = run_repeated("loading.ours:changes", options, times=repeats, timeout=3_000)
            shared = {"side": side, "clusters": inputs.plan(name).leaves, "nodes": found.get("nodes")}
            if "unavailable" in found:
                rows.append(shared | found)
                continue
            for mark in marks if side == OURS else marks[-1:]:
                measured = {key.partition("@")[0]: found[key] for key in found if key.endswith(f"@{mark}")}
                rows.append(shared | {"changes": mark} | measured)
    return rows, ["Changes are made 8 batches ahead, from 20 histograms in turn; batches of 16, one process."]
