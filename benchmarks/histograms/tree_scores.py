"""What trees are worth to tasks: the tuned held-out score at each level, for several trees of the same windows.

    python benchmarks/histograms/tree_scores.py fit EMBEDDINGS.npy TREE --seed S [--min-split N]
    python -m benchmarks.histograms.tree_scores tasks ROOT FOLDER NAME=FILE… [--questions NAME=FILE…]
    python -m benchmarks.histograms.tree_scores score ROOT EMBEDDINGS.npy FOLDER LABEL=TREE,TREE…  LABEL=TREE,TREE…

`fit` runs under any version of the project that has `fit_tree` (PYTHONPATH says which), so that trees of before and of
now are made of the same windows; a tree of a version before packages by subject, too. `tasks` embeds examples once.
`score` assigns all windows and all examples to every tree and tunes (docs/task/histograms.md): the score of a level is
the sum of the best parts of the levels down to it, by cross-validation. Trees of one label are seeds; means over them,
and the range. The first label is compared with the others, seed by seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FITS = ("crisp_stream.writers.tree.fit_tree", "crisp_stream.writers.fit_tree")
"""Modules of `fit_tree`, newest first."""
_FOLDS_SEEDS = range(3)
"""Seeds by which examples are put into folds; their scores are averaged."""


def main() -> None:
    """Fit, embed or score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("fit")
    verb.add_argument("embeddings")
    verb.add_argument("tree")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--min-split", type=int)
    verb.set_defaults(run=fit)
    verb = verbs.add_parser("tasks")
    verb.add_argument("root")
    verb.add_argument("folder", type=Path)
    verb.add_argument("texts", nargs="*", metavar="NAME=FILE")
    verb.add_argument("--questions", nargs="*", default=[], metavar="NAME=FILE")
    verb.set_defaults(run=embed)
    verb = verbs.add_parser("score")
    verb.add_argument("root")
    verb.add_argument("embeddings")
    verb.add_argument("folder", type=Path)
    verb.add_argument("trees", nargs="+", metavar="LABEL=TREE,…")
    verb.set_defaults(run=score)
    asked = parser.parse_args()
    asked.run(asked)


def fit(asked: argparse.Namespace) -> None:
    """Fit a tree with the default options of a write."""
    module: Any = None
    for name in _FITS:
        try:
            module = importlib.import_module(name)
            break
        except ModuleNotFoundError as error:
            if not name.startswith(str(error.name)):
                raise
    began = time.process_time()
    rows = np.load(asked.embeddings, mmap_mode="r")
    tree = module.fit_tree(rows, seed=asked.seed, min_examples_to_split=asked.min_split)
    tree.save(asked.tree)
    nodes = [len(level) for level in tree.nodes_per_level]
    print(f"{asked.tree}: {tree.num_leaves:,} leaves, nodes {nodes}, {time.process_time() - began:.0f} CPU s")


def embed(asked: argparse.Namespace) -> None:
    """Embed the examples of the tasks by the encoder of a dataset."""
    from crisp_stream.counting.task_embeddings import embed_task
    from crisp_stream.format.dataset import open_dataset

    dataset = open_dataset(asked.root)
    asked.folder.mkdir(parents=True, exist_ok=True)
    for pair in [*asked.texts, *asked.questions]:
        name, _, path = pair.partition("=")
        answers = "right" if pair in asked.questions else None
        embed_task([path], dataset, answers=answers, processes=1).save(asked.folder / f"{name}.parquet")


def score(asked: argparse.Namespace) -> None:
    """Print the scores of all tasks and levels."""
    from crisp_stream.counting.task_embeddings import TaskEmbeddings
    from crisp_stream.format.dataset import open_dataset

    dataset = open_dataset(asked.root)
    vectors = np.load(asked.embeddings, mmap_mode="r")
    tasks = {path.stem: TaskEmbeddings.load(path) for path in sorted(asked.folder.glob("*.parquet"))}
    found: dict[str, list[dict[str, NDArray[np.float64]]]] = {}
    for pair in asked.trees:
        label, _, trees = pair.partition("=")
        found[label] = [scores_of(tree, dataset, vectors, tasks) for tree in trees.split(",")]
    print(table(found))


def scores_of(
    folder: str, dataset: Any, vectors: NDArray[np.float16], tasks: dict[str, Any]
) -> dict[str, NDArray[np.float64]]:
    """[levels] of each task: the score of the best histogram of that level, nats per window."""
    from crisp_stream.counting.task_embeddings import histogram_of_task
    from crisp_stream.histograms.tuning import tune
    from crisp_stream.tree.tree import ClusterTree

    tree = ClusterTree.load(folder)
    leaves = np.concatenate([tree.assign(vectors[at : at + (1 << 18)]) for at in range(0, len(vectors), 1 << 18)])
    nodes, counts = np.unique(leaves, return_counts=True)
    shape = {"arity": tree.arity, "depth": tree.depth, "tree_fingerprint": tree.fingerprint}
    manifest = dataclasses.replace(dataset.manifest, **shape, num_windows=len(leaves), num_leaves=len(nodes))
    of_tree: Any = SimpleNamespace(root=folder, tree=tree, manifest=manifest, leaves=nodes, windows_per_leaf=counts)
    depth = max(level for level, own in enumerate(tree.nodes_per_level, 1) if len(own))
    print(f"{folder}: {len(nodes):,} leaves with windows of {tree.num_leaves:,}, depth {depth}", flush=True)
    scores = {}
    for name, task in tasks.items():
        histogram = histogram_of_task(task, of_tree, tree.depth, log=lambda line: None)
        tunings = [tune(histogram, of_tree, sizes=(), draws=1, seed=seed) for seed in _FOLDS_SEEDS]
        parts = np.mean([np.array(one.scores).max(axis=1) for one in tunings], axis=0)
        scores[name] = np.cumsum(parts)[:depth]
    return scores


def table(found: dict[str, list[dict[str, NDArray[np.float64]]]]) -> str:
    """A row per task and level: the mean of each label over seeds, its range, and how the first differs."""
    first, *others = found
    names = list(found[first][0])
    head = ["task", "level", *found, *(f"{first} - {other}" for other in others)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in [*names, "mean of the tasks"]:
        rows = {
            label: [np.mean([one[task] for task in names], axis=0) if name not in one else one[name] for one in seeds]
            for label, seeds in found.items()
        }
        for level in range(max(len(row) for seeds in rows.values() for row in seeds)):
            cells = [_spread([row[level] for row in seeds if level < len(row)], "") for seeds in rows.values()]
            for other in others:
                pairs = zip(rows[first], rows[other], strict=True)
                cells.append(_spread([a[level] - b[level] for a, b in pairs if level < min(len(a), len(b))], "+"))
            lines.append(f"| {name} | {level + 1} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: list[float], sign: str) -> str:
    if not values:
        return ""
    return f"{np.mean(values):{sign}.3f} ({min(values):{sign}.3f} to {max(values):{sign}.3f})"


if __name__ == "__main__":
    main()
