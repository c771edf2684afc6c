"""CPU time, peak memory and bytes of the search for duplicates among made-up documents, stage by stage.

    python -m benchmarks.writing.duplicates_scale [--documents 1000000] [--dedup near] [--bundle-documents N]
        [--work-mb N] [--folder FOLDER]

Of the documents a tenth equal an earlier one and a tenth are similar to one (118 of 128 minima). One process runs all
tasks; memory is its peak above what it has after its imports. Linux only (reads /proc).
"""

from __future__ import annotations

import argparse
import importlib
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from crisp_stream.hashing import splitmix64_finalise
from crisp_stream.writers.cleaning.duplicates import BYTES_PER_HASH
from crisp_stream.writers.cleaning.near_duplicates import NearSettings
from crisp_stream.writers.engine.engine import LocalEngine
from crisp_stream.writers.engine.tasks import Record, Runner, Task
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.stages.batches import PLACE
from crisp_stream.writers.stages.removal.bundles import Stretch, bundles_of
from crisp_stream.writers.stages.removal.duplicates import BUNDLE_DOCUMENTS, WORK_BYTES, search_in_stages
from crisp_stream.writers.stages.removal.search import Search

GROUP_DOCUMENTS = 50_000
_CHANGED = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Cost of the search for duplicates, stage by stage.")
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--dedup", choices=["exact", "near"], default="near")
    parser.add_argument("--bundle-documents", type=int, default=BUNDLE_DOCUMENTS)
    parser.add_argument("--work-mb", type=int, default=WORK_BYTES >> 20)
    parser.add_argument("--folder", help="made-up documents are left here, and used if they are there")
    options = parser.parse_args()
    near = NearSettings(threshold=WriteOptions.near_threshold) if options.dedup == "near" else None
    importlib.import_module("scipy.sparse.csgraph")  # else it would count as memory of a stage
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Workspace(options.folder or scratch)
        if not workspace.sizes("documents"):
            make_documents(workspace, options.documents, near)
        _measure(workspace, options, near)


def make_documents(workspace: Workspace, num_documents: int, near: NearSettings | None) -> None:
    """Write places, digests and sketches of groups; a group repeats documents of the one before, the first its own."""
    rng = np.random.default_rng(1)
    before: dict[str, Any] = {}
    for group, start in enumerate(range(0, num_documents, GROUP_DOCUMENTS)):
        count = min(GROUP_DOCUMENTS, num_documents - start)
        places = np.array([(group, row) for row in range(count)], PLACE)
        digests = rng.integers(0, 2**64, (count, 2), dtype=np.uint64)
        minima = rng.integers(0, 256, (count, near.num_minima), dtype=np.uint8) if near else np.empty((count, 0))
        tenth = count // 10
        if before:
            digests[:tenth] = before["digests"][:tenth]
            minima[:tenth] = before["minima"][:tenth]
            minima[tenth : 2 * tenth] = before["minima"][tenth : 2 * tenth]
            if near:
                minima[tenth : 2 * tenth, rng.integers(0, near.num_minima, _CHANGED)] = 0
        else:
            before = {"digests": digests, "minima": minima}
        arrays = {"places": places, "digests": digests}
        if near is not None:
            arrays |= {"bands": _band_keys(minima, near), "minima": minima}
        for name, array in arrays.items():
            workspace.save_array(f"documents/{group}.{name}.npy", array)


def _band_keys(minima: Any, near: NearSettings) -> Any:
    num_bands, minima_per_band = near.bands
    keys = np.zeros((num_bands, len(minima)), np.uint64)
    for band in range(num_bands):
        for column in range(band * minima_per_band, (band + 1) * minima_per_band):
            keys[band] = splitmix64_finalise(keys[band] + minima[:, column] + np.uint64(band + 1))
    return keys


class MeasuringEngine(LocalEngine):
    """One process that notes what each stage costs."""

    def __init__(self) -> None:
        super().__init__(processes=1)
        self.rows: list[tuple[str, int, float, float]] = []
        """Stage, tasks, CPU seconds, peak in MB."""
        self._idle = _memory("VmRSS")

    def run(self, tasks: Iterable[Task], **known: Any) -> Iterator[tuple[int, Record]]:
        """Run a stage, and note it."""
        listed = list(tasks)
        Path("/proc/self/clear_refs").write_text("5")
        begin = _cpu_seconds()
        yield from super().run(listed, **known)
        self.rows.append((listed[0].stage, len(listed), _cpu_seconds() - begin, _memory("VmHWM") - self._idle))


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _memory(name: str) -> float:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1024


def _measure(workspace: Workspace, options: argparse.Namespace, near: NearSettings | None) -> None:
    count, work_bytes = options.documents, options.work_mb << 20
    stretches = (
        Stretch(
            group=group,
            key=f"documents/{group}",
            start=0,
            stop=min(GROUP_DOCUMENTS, count - first),
            first_place=group << 40,
        )
        for group, first in enumerate(range(0, count, GROUP_DOCUMENTS))
    )
    bundles = list(bundles_of(stretches, options.bundle_documents))
    search = Search(
        documents="made up",
        num_documents=count,
        near=near,
        bundle_documents=options.bundle_documents,
        num_bundles=len(bundles),
        digest_ranges=-(-count * BYTES_PER_HASH[2] // work_bytes),
        key_ranges=-(-count * BYTES_PER_HASH[1] // work_bytes),
    )
    engine = MeasuringEngine()
    began = time.monotonic()
    found = search_in_stages(Runner(engine, workspace, log=lambda line: None), search, bundles, work_bytes=work_bytes)
    print(f"{count:,} documents, {found.counts}, {time.monotonic() - began:.0f} s, {len(bundles)} bundles\n")
    print("| stage | tasks | CPU s | peak MB |\n|---|---|---|---|")
    for stage, tasks, seconds, peak in engine.rows:
        print(f"| {stage} | {tasks:,} | {seconds:.1f} | {peak:.0f} |")
    print(f"| all | | {sum(row[2] for row in engine.rows):.1f} | {max(row[3] for row in engine.rows):.0f} |\n")
    sizes: dict[str, int] = {}
    for name, num_bytes in workspace.sizes("").items():
        stage = name.partition("/")[0]
        sizes[stage] = sizes.get(stage, 0) + num_bytes
    print("| files of | bytes per document |\n|---|---|")
    for stage, num_bytes in sizes.items():
        print(f"| {stage} | {num_bytes / count:.1f} |")


if __name__ == "__main__":
    main()
