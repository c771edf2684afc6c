"""A tree on made-up embeddings, by the tasks of a write: time of each level, memory of each process, and quality.

    python -m benchmarks.writing.tree_scale --work FOLDER [--windows 10000000] [--dim 32] [--depth 4] [--min-split N]
        [--examples-per-step 6400] [--processes 2] [--flat]

Windows are a mixture over a random tree of 12^4 components of unequal weights: a component is a point near its parent,
a window a point near its component, of norm 1, in float16. Parts of 500 windows stand in a work folder as a write
leaves them. Another 100,000 windows are held out. `--flat` fits faiss's flat k-means on 1,000,000 windows with as many
clusters as levels 1 and 2 have. Prints Markdown. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import starmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.support.measure import descendants
from crisp_stream.processes import duration
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.engine.engine import LocalEngine
from crisp_stream.writers.engine.tasks import Record, Runner, Task
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.stages.runs import tree_of
from crisp_stream.writers.stages.tree import FittedTree, fit_tree_in_stages
from crisp_stream.writers.stages.windows import Part
from crisp_stream.writers.tree.quality import quality_of_counts, tree_quality
from crisp_stream.writers.tree.settings import TreeSettings

PART_WINDOWS = 500
PARTS_PER_CALL = 2000
HELD_OUT = 100_000
FLAT_WINDOWS, FLAT_STEPS = 1_000_000, 20
BRANCHES, BRANCH_LEVELS, SHRINKS, NOISE = 12, 4, 0.7, 0.5
"""Of the random tree: children of a node, levels, distance to the parent by that of its parent, and of a window."""


def main() -> None:
    """Make the windows, fit, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for 2 to 4 times the vectors; kept")
    parser.add_argument("--windows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--arity", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--min-split", type=int)
    parser.add_argument("--examples-per-step", type=int, default=TreeSettings.examples_per_step)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--flat", action="store_true")
    chosen = parser.parse_args()
    settings = TreeSettings(
        arity=chosen.arity,
        depth=chosen.depth,
        min_examples_to_split=chosen.min_split,
        examples_per_step=chosen.examples_per_step,
    )
    parts = made_parts(chosen.work / "vectors", chosen.windows, chosen.dim, chosen.processes)
    fit_folder = chosen.work / "fit"
    shutil.rmtree(fit_folder, ignore_errors=True)
    fit_folder.mkdir(parents=True)
    (fit_folder / "vectors").symlink_to((chosen.work / "vectors").resolve())
    workspace = Workspace(str(fit_folder))
    began = time.monotonic()
    runner = TimedRunner(LocalEngine(processes=chosen.processes), workspace)
    with contextlib.closing(runner.engine), peaks() as peak:
        fitted = fit_tree_in_stages(runner, parts, settings, fit_windows=None)
    seconds = time.monotonic() - began
    on_disk = sum(path.stat().st_size for path in fit_folder.rglob("*") if path.is_file())
    print(f"\nfitted in {duration(seconds)} by {chosen.processes} processes; {on_disk / 1e9:.2f} GB of files\n")
    print(f"largest process: {peak['rss'] / 1e6:,.0f} MB (RSS), {peak['pss'] / 1e6:,.0f} MB (PSS)\n")
    runner.print_table()
    print_quality(tree_of(workspace, fitted.key), fitted, parts, chosen.dim, flat=chosen.flat, work=chosen.work)


class Mixture:
    """The random tree of components."""

    def __init__(self, dim: int) -> None:
        rng = np.random.default_rng(2026)
        centres, logs = np.zeros((1, dim)), np.zeros(1)
        for level in range(BRANCH_LEVELS):
            near = rng.normal(size=(len(centres) * BRANCHES, dim)) * SHRINKS**level
            centres = np.repeat(centres, BRANCHES, axis=0) + near
            logs = np.repeat(logs, BRANCHES) + 0.5 * rng.normal(size=len(centres))
        self.centres = (centres / np.sqrt(dim)).astype(np.float32)
        self.shares = np.cumsum(np.exp(logs)) / np.exp(logs).sum()

    def windows(self, number: int, seed: int) -> NDArray[np.float16]:
        """[number, dim] windows of norm 1."""
        rng = np.random.default_rng([seed, 1])
        chosen = np.searchsorted(self.shares, rng.random(number)).clip(max=len(self.centres) - 1)
        dim = self.centres.shape[1]
        vectors = rng.standard_normal((number, dim), np.float32) * np.float32(NOISE * SHRINKS**2 / np.sqrt(dim))
        vectors += self.centres[chosen]
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def made_parts(folder: Path, num_windows: int, dim: int, processes: int) -> tuple[Part, ...]:
    """The parts, in files that are made where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [min(PART_WINDOWS, num_windows - first) for first in range(0, num_windows, PART_WINDOWS)]
    calls = [(first, sizes[first : first + PARTS_PER_CALL]) for first in range(0, len(sizes), PARTS_PER_CALL)]
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(partial(_make_parts, folder, dim), calls))
    return tuple(
        Part(
            number=number,
            num_windows=size,
            windows_key="",
            embeddings_key=f"vectors/{number:06d}",
            fingerprint=f"{dim}-{number}-{size}",
        )
        for number, size in enumerate(sizes)
    )


def _make_parts(folder: Path, dim: int, call: tuple[int, list[int]]) -> None:
    mixture = Mixture(dim)
    for number, size in enumerate(call[1], call[0]):
        path = folder / f"{number:06d}.embeddings.npy"
        if not path.is_file():
            np.save(path, mixture.windows(size, number))


class TimedRunner(Runner):
    """Notes how long each stage of each level takes."""

    def __init__(self, engine: LocalEngine, workspace: Workspace) -> None:
        super().__init__(engine, workspace, log=print)
        self.engine: LocalEngine = engine
        self.rows: list[tuple[str, int, float]] = []

    def run(self, tasks: list[Task], **options: object) -> list[Record]:  # type: ignore[override]
        began = time.monotonic()
        records = super().run(tasks, **options)  # type: ignore[arg-type]
        if tasks:
            self.rows.append((tasks[0].stage, len(tasks), time.monotonic() - began))
        return records

    def print_table(self) -> None:
        """Print a row per stage and level."""
        print("| stage | tasks | seconds |\n|---|---|---|")
        print("\n".join(starmap("| {} | {:,} | {:.1f} |".format, self.rows)) + "\n")


@contextlib.contextmanager
def peaks() -> Iterator[dict[str, int]]:
    """The most bytes that any process of this one held, sampled; filled in at the end of the block."""
    import os

    most = {"rss": 0, "pss": 0}
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.5):
            for pid in (os.getpid(), *descendants(os.getpid())):
                with contextlib.suppress(OSError, ValueError):
                    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
                    held = {line.split(":")[0].lower(): int(line.split()[1]) << 10 for line in lines}
                    for name in most:
                        most[name] = max(most[name], held.get(name, 0))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def print_quality(
    tree: ClusterTree, fitted: FittedTree, parts: tuple[Part, ...], dim: int, *, flat: bool, work: Path
) -> None:
    """Assign all windows; print balance, error on held-out windows, and that of flat k-means."""
    held_out = Mixture(dim).windows(HELD_OUT, 1 << 40)
    counts = np.zeros(tree.arity**tree.depth, np.int64)
    began = time.monotonic()
    for first in range(0, len(parts), PARTS_PER_CALL):
        some = [_load(work, part) for part in parts[first : first + PARTS_PER_CALL]]
        np.add.at(counts, tree.assign(np.concatenate(some)), 1)
    seconds = time.monotonic() - began
    leaves = np.flatnonzero(counts).astype(np.uint32)
    print(
        f"{tree.num_leaves:,} leaves, {tree.num_leaves - len(leaves):,} of them empty; assigned at "
        f"{counts.sum() / seconds:,.0f} windows/s\n"
    )
    of_all = quality_of_counts(tree, leaves, counts[leaves]).levels
    of_held_out = tree_quality(tree, held_out).levels
    print("| level | clusters | empty | imbalance | largest / average | held-out cosine | fit seconds of all |")
    print("|---|---|---|---|---|---|---|")
    for level, other, fit_seconds in zip(of_all, of_held_out, fitted.fit_seconds, strict=True):
        print(
            f"| {level.level} | {level.num_clusters:,} | {level.empty_clusters:,} | {level.imbalance:.3f} | "
            f"{level.largest:.1f} | {other.cosine:.4f} | {fit_seconds:,.0f} |"
        )
    if flat:
        print_flat(parts, held_out, [tree.arity, tree.arity**2], work)


def _load(work: Path, part: Part) -> NDArray[np.float16]:
    return np.load(work / f"{part.embeddings_key}.embeddings.npy")


def print_flat(parts: tuple[Part, ...], held_out: NDArray[np.float16], shapes: list[int], work: Path) -> None:
    """Fit flat k-means and print its error and balance on the held-out windows."""
    import faiss

    step = max(1, len(parts) * PART_WINDOWS // FLAT_WINDOWS)
    sample = np.concatenate([_load(work, part) for part in parts[::step]]).astype(np.float32)
    vectors = held_out.astype(np.float32)
    print("\n| faiss flat k-means | windows | held-out cosine | imbalance | seconds |\n|---|---|---|---|---|")
    for clusters in shapes:
        began = time.monotonic()
        kmeans = faiss.Kmeans(
            sample.shape[1],
            clusters,
            niter=FLAT_STEPS,
            seed=1,
            spherical=True,
            max_points_per_centroid=len(sample),
            verbose=False,
        )
        kmeans.train(sample)
        seconds = time.monotonic() - began
        products, labels = kmeans.index.search(vectors, 1)
        shares = np.bincount(labels[:, 0], minlength=clusters) / len(vectors)
        imbalance = clusters * np.square(shares).sum()
        print(f"| {clusters:,} | {len(sample):,} | {products.mean():.4f} | {imbalance:.3f} | {seconds:,.0f} |")


if __name__ == "__main__":
    main()
