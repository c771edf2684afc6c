"""The section that reads from S3: a real SeaweedFS, with latency added to every request."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import obstore

from benchmarks.loading.inputs import Inputs
from benchmarks.loading.latency_proxy import LatencyProxy
from benchmarks.loading.local_sections import BATCH_SIZE, OURS, STREAMING
from benchmarks.support.measure import cpu_of_process, medians_of, run_task
from benchmarks.support.report import Column, Row, count, digits, mega
from crisp_stream.format.dataset import open_dataset
from tests.support.seaweed import S3Server, seaweed

DELAY_MS = 30.0

S3_COLUMNS = [
    Column(title="side, histogram", key="side"),
    Column(title="samples", key="samples", show=count),
    Column(title="first batch, s", key="first_seconds", show=digits(2)),
    Column(title="samples per s", key="samples_per_second", show=count),
    Column(title="CPU µs per sample", key="cpu_us", show=digits(1)),
    Column(title="requests", key="requests", show=count),
    Column(title="read, MB", key="read_bytes", show=mega),
    Column(title="used, MB", key="used_bytes", show=mega),
    Column(title="read / used", key="amplification", show=digits(2)),
    Column(title="MB per request", key="bytes_per_request", show=lambda value: f"{value / 1e6:.2f}"),
    Column(title="whole shards / used", key="whole_shards_amplification", show=digits(1)),
    Column(title="CPU of client / proxy / server, s", key="cpu_split"),
]


class _S3:
    """A running server with uploaded datasets, and a proxy in front of it."""

    def __init__(self, server: S3Server, proxy: LatencyProxy) -> None:
        self.server, self.proxy = server, proxy

    def upload(self, root: Path) -> str:
        """Put a dataset on the server, past the proxy; returns its s3:// root."""
        store = self.server.store(root.name)
        files = [path for path in root.rglob("*") if path.is_file()]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda path: obstore.put(store, path.relative_to(root).as_posix(), path), files))
        return f"s3://{self.server.bucket}/{root.name}"

    def run(self, task: str, options: dict[str, Any], *, direct: bool = False) -> Row:
        """Run a task through the proxy (or past it) with what it costs the proxy and the server beside its result."""
        endpoint = self.server.endpoint if direct else self.proxy.endpoint
        env = self.server.environment() | {"AWS_ENDPOINT_URL": endpoint, "S3_ENDPOINT_URL": endpoint}
        before, server_cpu = self.proxy.totals(), self._server_cpu()
        result = run_task(task, options, env=env, timeout=300)
        after = self.proxy.totals()
        for key in after:
            result[f"proxy_{key}"] = after[key] - before[key]
        result["server_cpu_seconds"] = self._server_cpu() - server_cpu
        return result

    def _server_cpu(self) -> float:
        assert self.server.process is not None
        return cpu_of_process(self.server.process.pid)


@contextmanager
def _s3(work: Path) -> Iterator[_S3]:
    folder = Path(tempfile.mkdtemp(prefix="seaweed-", dir=work))
    try:
        with seaweed(folder) as server, LatencyProxy(server.endpoint, DELAY_MS) as proxy:
            yield _S3(server, proxy)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def s3(inputs: Inputs, repeats: int) -> tuple[list[Row], list[str]]:
    """Time to first batch, throughput, bytes and requests over S3 with 30 ms of latency added to every request."""
    inputs.work.mkdir(parents=True, exist_ok=True)
    with _s3(inputs.work) as remote:
        roots = {name: remote.upload(inputs.dataset(name)) for name in ("scattered", "wide262k")}
        notes = [] if inputs.quick else [_ceilings(remote, inputs, roots["scattered"])]
        rows: list[Row] = []
        many, few = (192, 192) if inputs.quick else (288_000, 19_200)
        scattered = str(inputs.histogram("scattered", 5_000, by_size=True))
        cases = [
            ("5,000 scattered leaves of 262,144", "scattered", scattered, many),
            ("5,000 scattered leaves of 262,144", "scattered", scattered, few),
            ("base", "wide262k", None, few),
            ("one hot leaf", "scattered", str(inputs.hottest("scattered")), few),
        ]
        for name, dataset, histogram, samples in cases[1:] if inputs.quick else cases:
            side = {"side": f"{OURS}, {name}", "samples": samples // BATCH_SIZE * BATCH_SIZE}
            runs = [_ours(remote, inputs, roots[dataset], histogram, samples) for _ in range(repeats)]
            rows.append(_finished(side | medians_of(runs)))
        row: Row = {"side": f"{STREAMING}, the windows of 5,000 scattered leaves", "samples": few}
        with _cache(inputs.work) as local:
            options = {"root": roots["scattered"], "histogram": scattered, "samples": few, "local": local}
            rows.append(_finished(row | remote.run("loading.remote:streaming", options)))
    for name, histogram in (("5,000 scattered leaves of 262,144", scattered), ("one hot leaf", cases[-1][2])):
        with LatencyProxy(inputs.dataset("scattered"), DELAY_MS) as web:
            side = {"side": f"{OURS}, {name}, from a web server", "samples": many // BATCH_SIZE * BATCH_SIZE}
            runs = [_from_web(web, histogram, many) for _ in range(repeats)]
            rows.append(_finished(side | medians_of(runs)))
    notes += [
        "From a web server: a light one with the same latency, and a cache folder in memory. SeaweedFS takes 1 to 3 ms "
        "of CPU for a GET, and the disk of this machine 0.6 for a new file, on two cores that all sides share.",
        f"Every request waits {DELAY_MS:.0f} ms in a proxy; server, proxy and client share the machine.",
        "Base: 1.5 windows for each of 262,144 leaves, so nearly every window is a request of its own.",
        "Used: distinct windows served x bytes of a sample. A window that is drawn again is read from the cache.",
        "Whole shards: bytes of the shards that hold the used windows, which is what a reader of whole shards fetches.",
    ]
    return rows, notes


def _ours(remote: _S3, inputs: Inputs, root: str, histogram: str | None, samples: int) -> Row:
    with _cache(inputs.work) as local:
        options = {"root": root, "histogram": histogram, "samples": samples, "batch_size": BATCH_SIZE, "local": local}
        return remote.run("loading.remote:ours", options)


def _from_web(web: LatencyProxy, histogram: str | None, samples: int) -> Row:
    with _cache(Path("/dev/shm")) as local:
        options = {"root": web.endpoint, "histogram": histogram, "samples": samples, "batch_size": BATCH_SIZE}
        before = web.totals()["cpu_seconds"]
        result = run_task("loading.remote:ours", options | {"local": local}, timeout=300)
        return result | {"proxy_cpu_seconds": 0.0, "server_cpu_seconds": web.totals()["cpu_seconds"] - before}


def _finished(row: Row) -> Row:
    if "unavailable" in row:
        return row
    row["amplification"] = row["read_bytes"] / row["used_bytes"]
    row["bytes_per_request"] = row["read_bytes"] / max(1, row["requests"])
    if "whole_shard_bytes" in row:
        row["whole_shards_amplification"] = row["whole_shard_bytes"] / row["used_bytes"]
        client = row["cpu_us"] * row["samples"] / 1e6
        row["cpu_split"] = f"{client:.1f} / {row['proxy_cpu_seconds']:.1f} / {row['server_cpu_seconds']:.1f}"
    return row


def _ceilings(remote: _S3, inputs: Inputs, root: str) -> str:
    """What the proxy lets through, beside the server without it."""
    dataset = open_dataset(inputs.dataset("scattered"))
    paths = [row.path for row in dataset.shards]
    smallest = min(row.shard_bytes for row in dataset.shards)
    texts = []
    for range_bytes, ranges in ((min(4 << 20, smallest), 128), (2_056, 2_048)):
        offset = max(0, smallest - range_bytes) // max(1, ranges // len(paths))
        options = {"root": root, "paths": paths, "offset_bytes": offset, "range_bytes": range_bytes, "ranges": ranges}
        through, direct = (remote.run("loading.remote:ceiling", options, direct=direct) for direct in (False, True))
        texts.append(
            f"ranges of {range_bytes / 1e6:.3f} MB {through['bytes_per_second'] / 1e6:,.0f} MB/s and "
            f"{through['requests_per_second']:,.0f} requests/s ({direct['bytes_per_second'] / 1e6:,.0f} MB/s and "
            f"{direct['requests_per_second']:,.0f} requests/s without the proxy)"
        )
    return f"A bare client, 32 requests at a time, gets through the proxy: {'; '.join(texts)}."


@contextmanager
def _cache(work: Path) -> Iterator[str]:
    """An empty cache folder."""
    with tempfile.TemporaryDirectory(prefix=f"cache-{os.getpid()}-", dir=work) as folder:
        yield folder
