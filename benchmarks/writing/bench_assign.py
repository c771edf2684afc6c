"""How fast windows are assigned to the leaves of a full tree.

    python -m benchmarks.writing.bench_assign [--rows 1000000]

Random unit vectors around the leaves of a 64^3 tree of random unit centroids, 384 numbers, float16, one thread. The
floor is three bare float32 products per window with 64 centroids, 1,024 windows at a time from the cache: no gathering,
no float16, no choice. CPU time; both sides in turns in one run; the best of the repeats, because others share the
machine. The first `--check` windows are also assigned in batches of other sizes, and must get the same leaves.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.tree.tree import ClusterTree

DIM, ARITY, DEPTH = 384, 64, 3
PRODUCT_ROWS = 1024


def main() -> None:
    """Measure, print one Markdown row per batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[65_536, 262_144, 1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--check", type=int, default=20_000)
    arguments = parser.parse_args()
    from threadpoolctl import threadpool_limits

    tree, embeddings = synthetic(max(arguments.rows))
    with threadpool_limits(1):
        check(tree, embeddings[: arguments.check])
        print("| windows per call | assigned | bare products | share |\n|---|---|---|---|")
        for rows in arguments.rows:
            batch = embeddings[:rows]
            times = [(seconds(lambda b=batch: tree.assign(b)), floor() * rows) for _ in range(arguments.repeats)]
            assigned, bare = (min(column) for column in zip(*times, strict=True))
            print(f"| {rows:,} | {rows / assigned:,.0f} | {rows / bare:,.0f} | {bare / assigned:.0%} |", flush=True)


def synthetic(rows: int) -> tuple[ClusterTree, NDArray[np.float16]]:
    """A full tree, and vectors near all of its leaves."""
    rng = np.random.default_rng(0)
    nodes, centroids = [], []
    above = np.zeros((1, DIM), np.float32)
    for level in range(1, DEPTH + 1):
        steps = _unit(rng.normal(size=(ARITY**level, DIM)).astype(np.float32))
        above = _unit(np.repeat(above, ARITY, axis=0) + np.float32(0.7) * steps)
        nodes.append(np.arange(ARITY**level, dtype=np.uint32))
        centroids.append(above)
    tree = ClusterTree(arity=ARITY, depth=DEPTH, nodes_per_level=nodes, centroids_per_level=centroids)
    embeddings = np.empty((rows, DIM), np.float16)
    for start in range(0, rows, 1 << 14):
        leaves = above[rng.integers(0, len(above), min(1 << 14, rows - start))]
        noise = _unit(rng.normal(size=leaves.shape).astype(np.float32))
        embeddings[start : start + len(leaves)] = _unit(leaves + np.float32(0.5) * noise)
    return tree, embeddings


def check(tree: ClusterTree, embeddings: NDArray[np.float16]) -> None:
    """Fail unless leaves are the same in any batches."""
    expected = tree.assign(embeddings)
    for rows in (1, 64, 1000):
        parts = [tree.assign(embeddings[at : at + rows]) for at in range(0, len(embeddings), rows)]
        if (np.concatenate(parts) != expected).any():
            raise RuntimeError(f"leaves differ in batches of {rows}")


def floor() -> float:
    """CPU seconds per window of the products alone."""
    rng = np.random.default_rng(0)
    windows, centroids = rng.random((PRODUCT_ROWS, DIM), np.float32), rng.random((ARITY, DIM), np.float32)
    scores = np.empty((PRODUCT_ROWS, ARITY), np.float32)
    repeats = 100

    def multiply() -> None:
        for _ in range(repeats):
            np.matmul(windows, centroids.T, out=scores)

    return DEPTH * seconds(multiply) / repeats / PRODUCT_ROWS


def seconds(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def _unit(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


if __name__ == "__main__":
    main()
