"""crisp-stream inspect and verify."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from crisp_stream.cli.verbs import add_verb
from crisp_stream.errors import InputError


def add_inspect(verbs: Any) -> None:
    verb = add_verb(
        verbs, "inspect", _inspect, "Show what is in a dataset or a histogram, with sample text of its top clusters."
    )
    verb.add_argument("target", metavar="ROOT|H", help="dataset root or histogram file")
    verb.add_argument("--data", metavar="ROOT", help="for a histogram: the dataset to take sample text from")
    verb.add_argument("--level", type=int, metavar="L", help="for a dataset: level of the clusters shown (default: 1)")
    verb.add_argument("--top", type=int, default=10, metavar="N", help="clusters shown")
    verb.add_argument("--generation", type=int, metavar="G", help="an older generation of a dataset that has grown")
    verb.add_argument(
        "--window", type=int, metavar="N", help="for a dataset: show this window, its place in the tree, its documents"
    )
    verb.add_argument(
        "--cluster",
        metavar="PATH",
        help="for a dataset: read windows of this cluster, a path from the root such as 0/10, or a number of --level",
    )
    verb.add_argument(
        "--scores",
        nargs="+",
        default=[],
        metavar="FILE",
        help="for a dataset: score files (*.scores.parquet) whose means and quantiles are shown, too",
    )
    verb.add_argument("--n", type=int, default=10, metavar="N", help="windows of --cluster to read")


def _inspect(arguments: argparse.Namespace) -> None:
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.histograms.histogram import Histogram
    from crisp_stream.histograms.window_scores import load_scores
    from crisp_stream.inspection.summary import describe_dataset, describe_histogram
    from crisp_stream.storage.store import is_remote, local_path

    for name in ("top", "n"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name}: must be at least 1, got {getattr(arguments, name)}.")
    if not is_remote(arguments.target) and local_path(arguments.target).is_file():
        for name in ("window", "cluster", "scores"):
            if getattr(arguments, name) not in (None, []):
                raise InputError(f"--{name}: must be given with a dataset, got the histogram {arguments.target}.")
        dataset = open_dataset(arguments.data) if arguments.data else None
        print(describe_histogram(Histogram.load(arguments.target), dataset, limit=arguments.top), end="")
        return
    dataset = open_dataset(arguments.target, generation=arguments.generation)
    scores = load_scores(arguments.scores, dataset)
    if arguments.window is not None:
        from crisp_stream.inspection.summary import describe_window

        print(describe_window(dataset, arguments.window, scores=scores).rstrip())
        return
    if arguments.cluster is not None:
        from crisp_stream.inspection.cluster import describe_cluster, node_of_path

        level, node = node_of_path(dataset, arguments.cluster, level=arguments.level)
        print(describe_cluster(dataset, level, node, limit=arguments.n, scores=scores), end="")
        return
    level = 1 if arguments.level is None else arguments.level
    dataset.tree.check_level(level)
    print(describe_dataset(dataset, level=level, limit=arguments.top, scores=scores), end="")


def add_verify(verbs: Any) -> None:
    verb = add_verb(
        verbs, "verify", _verify, "Read every byte of a dataset and compare it with its tables. Exit 1 on problems."
    )
    verb.add_argument("root", metavar="ROOT", help="dataset root")
    verb.add_argument("--generation", type=int, metavar="G", help="an older generation of a dataset that has grown")
    verb.add_argument(
        "--deep",
        action="store_true",
        help="compare the order of windows and their provenance, too; needs no more reading",
    )


def _verify(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from crisp_stream.inspection.verify import verify_dataset

    with tqdm(unit="shard", disable=not sys.stderr.isatty()) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = verify_dataset(arguments.root, deep=arguments.deep, generation=arguments.generation, progress=advance)
    for problem in report.problems:
        print(f"problem: {problem}", file=sys.stderr)
    state = f"{len(report.problems)} problems" if report.problems else "whole"
    print(f"{arguments.root}: {report.num_windows:,} windows, {report.num_bytes / 1e6:,.1f} MB read: {state}")
    return 1 if report.problems else 0
