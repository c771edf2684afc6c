"""The measurements of docs/write/tree.md: making the centroids, what balancing buys, tree against flat k-means.

    python -m benchmarks.writing.tree_study EMBEDDINGS.npy [--domains DOMAINS.npy] [--seeds 3] [--shapes 64x1 16x2 64x2]
        [--plot FILE]

EMBEDDINGS is [num_windows, dim] of norm 1; DOMAINS is [num_windows] strings. A fifth of the windows, drawn by a fixed
seed, is held out; trees are fitted on the others. Prints Markdown tables of means over seeds; times are CPU seconds on
one thread.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.tree.balanced_kmeans import search_device
from crisp_stream.writers.tree.fit_tree import fit_tree
from crisp_stream.writers.tree.quality import label_agreement
from crisp_stream.writers.tree.report import inspect_tree
from crisp_stream.writers.tree.settings import TreeSettings

HELD_OUT = 0.2
FLAT_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Embeddings to fit on and to measure on."""

    fitted: NDArray[Any]
    held_out: NDArray[Any]
    fitted_domains: NDArray[Any] | None
    held_out_domains: NDArray[Any] | None


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """Labels and centroids of one fit."""

    num_clusters: int
    fitted: NDArray[np.int64]
    held_out: NDArray[np.int64]
    centroid_of_held_out: NDArray[np.float32]
    seconds: float


def main() -> None:
    """Read the arrays, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("--domains", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", default=["64x1", "16x2", "64x2"], help="arity x depth")
    parser.add_argument("--plot", type=Path, help=".svg or .png of the last shape's tree")
    arguments = parser.parse_args()
    windows = read_windows(arguments.embeddings, arguments.domains)
    seeds = list(range(arguments.seeds))
    shapes = [(int(arity), int(depth)) for arity, depth in (shape.split("x") for shape in arguments.shapes)]
    print(
        f"{len(windows.fitted):,} windows fitted on, {len(windows.held_out):,} held out, "
        f"{windows.fitted.shape[1]} dimensions; {len(seeds)} seeds; {search_device()}, one thread\n"
    )
    import faiss
    from threadpoolctl import threadpool_limits

    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        print_rules(windows, seeds)
        for arity, depth in shapes:
            print_shape(windows, seeds, arity, depth)
        print_report(windows, TreeSettings(arity=shapes[-1][0], depth=shapes[-1][1]), arguments.plot)


def read_windows(embeddings_path: Path, domains_path: Path | None) -> Windows:
    """Split what the files hold."""
    embeddings = np.load(embeddings_path)
    domains = None if domains_path is None else np.load(domains_path)
    order = np.random.default_rng(0).permutation(len(embeddings))
    held_out, fitted = np.split(order, [round(HELD_OUT * len(order))])
    return Windows(
        fitted=embeddings[fitted],
        held_out=embeddings[held_out],
        fitted_domains=None if domains is None else domains[fitted],
        held_out_domains=None if domains is None else domains[held_out],
    )


def print_rules(windows: Windows, seeds: list[int]) -> None:
    """The root alone: centroid rule, normalisation, balancing, examples per step."""
    print("### One node: arity 64, 20 steps\n")
    header("examples per step", "centroids", "normalised", "balancing limit", "fit")
    base = TreeSettings(depth=1)
    for examples_per_step in (6400, 1600, 640):
        for rule in ("step_mean", "running_mean"):
            for normalised in (True, False):
                for limit in (None, 1.0):
                    settings = replace(
                        base,
                        examples_per_step=examples_per_step,
                        centroid_rule=rule,
                        normalise_centroids=normalised,
                        balance_limit=limit,
                    )
                    names = (
                        f"{min(examples_per_step, len(windows.fitted)):,}",
                        rule.replace("_", " "),
                        "yes" if normalised else "no",
                        "none" if limit else f"{settings.limit:.3f}",
                    )
                    row(windows, [by_tree(windows, replace(settings, seed=seed)) for seed in seeds], *names)
    print()


def print_shape(windows: Windows, seeds: list[int], arity: int, depth: int) -> None:
    """Tree with and without balancing against flat k-means with as many clusters, each on all windows fitted on."""
    settings = TreeSettings(arity=arity, depth=depth, min_examples_to_split=2 * arity)
    trees = [by_tree(windows, replace(settings, seed=seed)) for seed in seeds]
    unbalanced = [by_tree(windows, replace(settings, seed=seed, balance_limit=1.0)) for seed in seeds]
    flat = [by_flat(windows, tree.num_clusters, seed) for tree, seed in zip(trees, seeds, strict=True)]
    print(f"### {arity}^{depth}: tree (a node of {settings.min_examples} windows or more is split) and flat k-means\n")
    header("method", "fit")
    row(windows, trees, "tree")
    row(windows, unbalanced, "tree without balancing")
    row(windows, flat, f"faiss k-means, {FLAT_STEPS} steps, spherical")
    print()


def print_report(windows: Windows, settings: TreeSettings, plot: Path | None) -> None:
    """The report on the first seed's tree, measured on held-out windows and compared with the second seed's."""
    settings = replace(settings, min_examples_to_split=2 * settings.arity)
    tree, other = fit_tree(windows.fitted, settings), fit_tree(windows.fitted, replace(settings, seed=1))
    report = inspect_tree(tree, embeddings=windows.held_out, against=other)
    print(f"### {settings.arity}^{settings.depth}: the report, on held-out windows, against another seed\n")
    print(f"```\n{report.text()}```")
    if plot is not None:
        report.plot(plot)


def by_tree(windows: Windows, settings: TreeSettings) -> Clustering:
    """Fit a tree; its clusters are its leaves."""
    started = time.process_time()
    tree = fit_tree(windows.fitted, settings)
    seconds = time.process_time() - started
    held_out = tree.assign(windows.held_out)
    return Clustering(
        num_clusters=tree.num_leaves,
        fitted=tree.assign(windows.fitted).astype(np.int64),
        held_out=held_out.astype(np.int64),
        centroid_of_held_out=leaf_centroids(tree, held_out),
        seconds=seconds,
    )


def leaf_centroids(tree: ClusterTree, leaves: NDArray[np.uint32]) -> NDArray[np.float32]:
    """[num_windows, dim], the centroid of each window's leaf."""
    found = np.zeros((len(leaves), tree.dim), np.float32)
    inside = np.ones(len(leaves), np.bool_)
    for level, (nodes, centroids) in enumerate(zip(tree.nodes_per_level, tree.centroids_per_level, strict=True), 1):
        own = tree.node_of(leaves, level)
        inside &= np.isin(own, nodes)
        found[inside] = centroids[np.searchsorted(nodes, own[inside])]
    return found


def by_flat(windows: Windows, num_clusters: int, seed: int) -> Clustering:
    """Spherical k-means of faiss over all windows."""
    import faiss

    vectors = np.ascontiguousarray(windows.fitted, np.float32)
    held_out_vectors = np.ascontiguousarray(windows.held_out, np.float32)
    kmeans: Any = faiss.Kmeans(
        vectors.shape[1],
        num_clusters,
        niter=FLAT_STEPS,
        spherical=True,
        seed=seed + 1,
        max_points_per_centroid=1 << 24,
        min_points_per_centroid=1,
    )
    started = time.process_time()
    kmeans.train(vectors)
    seconds = time.process_time() - started
    fitted = kmeans.index.search(vectors, 1)[1][:, 0]
    held_out = kmeans.index.search(held_out_vectors, 1)[1][:, 0]
    return Clustering(
        num_clusters=num_clusters,
        fitted=fitted,
        held_out=held_out,
        centroid_of_held_out=kmeans.centroids[held_out],
        seconds=seconds,
    )


def header(*names: str) -> None:
    """Print the head of a table; the last name is of the fit's columns."""
    columns = [
        *names[:-1],
        "clusters",
        "squared distance",
        "cosine",
        "imbalance",
        "largest / average",
        "empty",
        "domain of held-out",
        "two seeds: ARI",
        "NMI",
        "CPU s",
    ]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))


def row(windows: Windows, clusterings: list[Clustering], *names: str) -> None:
    """Print means over seeds: errors, balance and domains of held-out windows, agreement of seeds on them, time."""
    measured = np.array([list(measures(windows, own)) for own in clusterings]).mean(axis=0)
    clusters, distance, cosine, imbalance, largest, empty, domain, seconds = measured.tolist()
    pairs = list(itertools.pairwise(clusterings))
    alike = [label_agreement(one.held_out, other.held_out) for one, other in pairs]
    cells = [
        *names,
        f"{clusters:,.0f}",
        f"{distance:.4f}",
        f"{cosine:.4f}",
        f"{imbalance:.3f}",
        f"{largest:.2f}",
        f"{empty:.0f}",
        "-" if windows.held_out_domains is None else f"{domain:.3f}",
        f"{np.mean([own.adjusted_rand for own in alike]):.3f}" if alike else "-",
        f"{np.mean([own.normalised_mutual_information for own in alike]):.3f}" if alike else "-",
        f"{seconds:.1f}",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


def measures(windows: Windows, own: Clustering) -> Iterator[float]:
    """Clusters, squared distance and cosine (held out), imbalance, largest, empty (all), domain accuracy, seconds.

    The domain of a held-out window is guessed to be the most frequent one of its cluster among the windows fitted on.
    """
    vectors = np.asarray(windows.held_out, np.float32)
    centroids = own.centroid_of_held_out
    yield own.num_clusters
    yield float(np.square(vectors - centroids).sum(axis=1).mean())
    yield float((np.einsum("ij,ij->i", vectors, centroids) / np.linalg.norm(centroids, axis=1)).mean())
    labels = np.concatenate([own.fitted, own.held_out])
    sizes = np.unique(labels, return_counts=True)[1]
    yield float(own.num_clusters * np.square(sizes / len(labels)).sum())
    yield float(sizes.max() / len(labels) * own.num_clusters)
    yield own.num_clusters - len(sizes)
    yield domain_accuracy(windows, own)
    yield own.seconds


def domain_accuracy(windows: Windows, own: Clustering) -> float:
    """Share of held-out windows whose domain is the most frequent one of their cluster; nan without domains."""
    if windows.fitted_domains is None or windows.held_out_domains is None:
        return float("nan")
    names, domains = np.unique(windows.fitted_domains, return_inverse=True)
    clusters, cluster = np.unique(own.fitted, return_inverse=True)
    counts = np.bincount(cluster * len(names) + domains, minlength=len(clusters) * len(names))
    guess = names[counts.reshape(len(clusters), len(names)).argmax(axis=1)]
    at = np.minimum(np.searchsorted(clusters, own.held_out), len(clusters) - 1)
    known = clusters[at] == own.held_out
    return float((known & (guess[at] == windows.held_out_domains)).mean())


if __name__ == "__main__":
    main()
