"""Sections that read local files: CPU time per sample, start, resume."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from benchmarks.loading.inputs import Inputs
from benchmarks.loading.peer_inputs import litdata_folders, mds_folders
from benchmarks.support.measure import Child, UnavailableError, run_repeated
from benchmarks.support.report import Column, Row, count, digits, mega

OURS = "crisp-stream"
STREAMING = "StreamingDataset"
LITDATA = "LitData Combined"
BATCH_SIZE = 96
RESUME_POSITION = 10**8

CPU_COLUMNS = [
    Column(title="side", key="side"),
    Column(title="clusters", key="clusters", show=count),
    Column(title="CPU µs per sample", key="cpu_us", show=digits(1)),
    Column(title="range of the runs", key="cpu_us_spread", show=lambda pair: f"{pair[0]:.1f} to {pair[1]:.1f}"),
    Column(title="wall µs per sample", key="wall_us", show=digits(1)),
    Column(title="checksum of every window", key="verified"),
]
START_COLUMNS = [
    Column(title="side", key="side"),
    Column(title="clusters", key="clusters", show=count),
    Column(title="non-zero", key="nonzero", show=count),
    Column(title="first batch, s", key="seconds", show=digits(2)),
    Column(title="peak memory, MB", key="peak_bytes", show=mega),
    Column(title="private, second rank, MB", key="second_private_bytes", show=mega),
    Column(title="reading the histogram, s", key="load_seconds", show=digits(2)),
]
RESUME_COLUMNS = [
    Column(title="side", key="side"),
    Column(title="clusters", key="clusters", show=count),
    Column(title="non-zero", key="nonzero", show=count),
    Column(title="position", key="position", show=count),
    Column(title="first batch, s", key="seconds", show=digits(2)),
    Column(title="peak memory, MB", key="peak_bytes", show=mega),
]


def cpu(inputs: Inputs, repeats: int) -> tuple[list[Row], list[str]]:
    """CPU time per sample: local, page cache warm, batches of 96 windows of 1,024 tokens as int64 tensors."""
    root = inputs.dataset("wide262k")
    _warm_page_cache(root)
    leaves = inputs.plan("wide262k").leaves
    rows: list[Row] = []

    def add(side: str, task: str, clusters: int, verified: str, **options: Any) -> None:
        result = run_repeated(task, options, times=repeats, timeout=180)
        rows.append({"side": side, "clusters": clusters, "verified": verified, **result})

    histograms = {} if inputs.quick else {5_000: str(inputs.histogram("wide262k", 5_000))}
    histograms[leaves] = str(inputs.histogram("wide262k", None))
    batches = 40 if inputs.quick else 2 * (1 << 18) // BATCH_SIZE
    ways = {"iterator": "bare iterator", "0": "DataLoader", "2": "DataLoader, 2 workers, CPU of all processes"}
    for nonzero, histogram in histograms.items():
        for loader, name in ways.items():
            options = {"root": str(root), "histogram": histogram, "loader": loader, "batch_size": BATCH_SIZE}
            add(f"{OURS}, {name}", "loading.ours:cpu_per_sample", nonzero, "yes", **options, batches=batches)
    some = 10 if inputs.quick else 1_000
    for verify in (True,) if inputs.quick else (True, False):
        options = {"root": str(root), "histogram": histograms[leaves], "verify": verify, "batches": some}
        add("`os.pread` loop", "loading.peers:cpu_of_pread", leaves, "yes" if verify else "no", **options)
    few = 2 if inputs.quick else 200
    shards = str(root / "shards")  # with a folder per level-1 cluster
    if not inputs.quick:
        add(STREAMING, "loading.peers:cpu_of_streaming", 1, "no", folders=shards, one_stream=True, batches=few)
    add(STREAMING, "loading.peers:cpu_of_streaming", inputs.plan("wide262k").arity, "no", folders=shards, batches=few)
    for clusters in (2,) if inputs.quick else (1, 64, 1_024):
        try:
            folders = str(litdata_folders(root, inputs.work, clusters))
        except UnavailableError as reason:
            rows.append({"side": LITDATA, "clusters": clusters, "unavailable": str(reason)})
            break
        width = inputs.plan("wide262k").window_tokens
        add(LITDATA, "loading.peers:cpu_of_litdata", clusters, "no", folders=folders, window_tokens=width, batches=few)
    return rows, ["One process unless said otherwise; set-up and the first batches are left out."]


def start(inputs: Inputs, repeats: int) -> tuple[list[Row], list[str]]:
    """Seconds and peak memory from the constructor to the first batch, against the number of clusters."""
    rows: list[Row] = []
    cases = [("leaves64", None), ("leaves4k", None), ("leaves262k", 5_000), ("leaves262k", None)]
    cases += [("leaves16m", 100_000), ("leaves16m", None)]
    for name, nonzero in cases[-1:] if inputs.quick else cases:
        options = {"root": str(inputs.dataset(name)), "histogram": str(inputs.histogram(name, nonzero))}
        rows.append(_row(OURS, inputs, name, nonzero) | _started("loading.ours:first_batch", options, repeats))
    counts = (4,) if inputs.quick else (64, 1_024, 4_096)
    for clusters in counts:
        for side, task, convert in (
            (STREAMING, "loading.peers:first_batch_of_streaming", mds_folders),
            (LITDATA, "loading.peers:first_batch_of_litdata", litdata_folders),
        ):
            row: Row = {"side": side, "clusters": clusters, "nonzero": clusters}
            try:
                folders = str(convert(inputs.dataset("leaves4k"), inputs.work, clusters))
            except UnavailableError as reason:
                rows.append(row | {"unavailable": str(reason)})
                continue
            options: dict[str, Any] = {"folders": folders}
            if side == LITDATA:
                options["window_tokens"] = inputs.plan("leaves4k").window_tokens
            rows.append(row | _started(task, options, repeats))
    notes = [
        "Peak memory is above the bare import of the library and torch, and holds the histogram and the mapped files.",
        "The peers have one folder per cluster, local, of the same 2,000,000 windows; more clusters than shown were not"
        " tried: files and time grow with every cluster.",
    ]
    return rows, notes


def resume(inputs: Inputs, repeats: int) -> tuple[list[Row], list[str]]:
    """Seconds to the first batch at position 10^8, and the memory of a run at 10^9 against one at 10^5."""
    rows: list[Row] = []
    cases = [("leaves262k", None, RESUME_POSITION), ("leaves16m", 100_000, RESUME_POSITION)]
    cases += [("leaves16m", None, RESUME_POSITION)]
    cases += [(name, None, position) for name in ("leaves262k", "leaves16m") for position in (10**5, 10**9)]
    for name, nonzero, position in cases[-1:] if inputs.quick else cases:
        options: dict[str, Any] = {"root": str(inputs.dataset(name)), "histogram": str(inputs.histogram(name, nonzero))}
        options |= {"position": position, "further_batches": 0 if position == RESUME_POSITION else 100}
        row = _row(OURS, inputs, name, nonzero) | {"position": position}
        rows.append(row | run_repeated("loading.ours:first_batch", options, times=repeats))
    whole = str(inputs.dataset("leaves4k") / "shards")
    for epoch in (2_000,) if inputs.quick else (10**7, 10**8):
        options = {"folders": whole, "one_stream": True, "epoch_size": epoch, "position": epoch // 2}
        result = run_repeated("loading.peers:first_batch_of_streaming", options, times=min(repeats, 2), timeout=300)
        side = f"{STREAMING}, one stream, epoch of {epoch:,}"
        rows.append({"side": side, "clusters": 1, "nonzero": 1, "position": epoch // 2, **result})
    rows.append({"side": LITDATA, "unavailable": "replays its random choices one by one: O(position x clusters)"})
    return rows, ["At 10^5 and 10^9 the peak is taken after 100 further batches."]


def _row(side: str, inputs: Inputs, name: str, nonzero: int | None) -> Row:
    leaves = inputs.plan(name).leaves
    return {"side": side, "clusters": leaves, "nonzero": min(nonzero or leaves, leaves)}


def _started(task: str, options: dict[str, Any], repeats: int) -> Row:
    result = run_repeated(task, options, times=repeats, timeout=300)
    if "unavailable" not in result:
        result["second_private_bytes"] = _second_rank(task, options)
    return result


def _second_rank(task: str, options: dict[str, Any]) -> float | None:
    """Private memory above the bare import of rank 1, while rank 0 of the same node holds its first batch too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        Child(task, {**options, "paused": True}, {**ranks, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    for _ in range(3):  # both are imported; hold their first batch; have measured themselves
        if not all([child.wait_until_paused() for child in children]):
            break
        for child in children:
            child.resume()
    return [child.result(300) for child in children][1].get("private_bytes")


def _warm_page_cache(root: Path) -> None:
    buffer = bytearray(1 << 20)
    for path in root.rglob("*.mds"):
        with path.open("rb", buffering=0) as source:
            while source.readinto(buffer):
                pass
