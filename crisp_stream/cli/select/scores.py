"""The commands `score`, `select where` and `select tiers`: scores of windows, and selections by them."""

from __future__ import annotations

import argparse
import time
from typing import Any

from crisp_stream.cli.next_step import say_next, size_for, train_on
from crisp_stream.cli.select.dsir import check_selection_name, print_lengths
from crisp_stream.cli.verbs import GO_ON, add_dataset_options, add_verb, print_line
from crisp_stream.errors import InputError
from crisp_stream.writers.flags import add_flags, values_of

_SCORE_FILES = "score files, *.scores.parquet; NAME=FILE calls a score otherwise"


def add_score(verbs: Any) -> None:
    """Declare `score`."""
    verb = add_verb(
        verbs,
        "score",
        _score,
        "Give every window of a dataset a number, in a score file. Prints quantiles of all windows and of the level-1 "
        "clusters. For select where and select tiers, inspect and report; run again, it goes on where it stopped.",
    )
    verb.add_argument("root", metavar="ROOT", help="dataset root")
    verb.add_argument(
        "--by",
        required=True,
        metavar="SCORE",
        help="length: tokens without padding; symbols: share of characters that are no letters, digits or blanks; "
        "repeats: share of words in repeated n-grams; types: distinct words / words; centroid: cosine of the embedding "
        "to the centroid of its leaf; column:NAME: a column of the documents in --records; array:FILE.npy: numbers "
        "made elsewhere; MODULE:FUNCTION or FILE.py:FUNCTION: a function of yours, from a list of texts to numbers",
    )
    verb.add_argument("--out", required=True, metavar="FILE", help="score file to write, *.scores.parquet")
    verb.add_argument("--name", metavar="NAME", help="name of the score; what FILE begins with when absent")
    verb.add_argument("--plot", metavar="FILE", help="draw the distribution as .svg, .png or .pdf")
    verb.add_argument("--ngram", type=int, default=5, metavar="N", help="for repeats: words of an n-gram")
    verb.add_argument(
        "--embeddings", metavar="DIR", help="for centroid: folder of crisp-stream embed; made again when absent"
    )
    verb.add_argument(
        "--records",
        nargs="+",
        default=[],
        metavar="FILE",
        help="for column: inputs that the dataset was written from",
    )
    add_flags(verb, ("layout",))
    verb.add_argument(
        "--missing", type=float, metavar="X", help="for column: number of documents without one; an error when absent"
    )
    add_dataset_options(verb, "--generation", "--encoder", "--processes")
    verb.add_argument("--engine", choices=["local", "ray"], default="local", help="processes of this machine, or Ray")
    verb.add_argument("--address", metavar="HOST:PORT", help="running Ray cluster; one is started when absent")


def _score(arguments: argparse.Namespace) -> None:
    from crisp_stream.figure import check_picture
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.inspection.node_scores import level_table
    from crisp_stream.processes import stopped_in_order
    from crisp_stream.selection.scoring.plot import draw_scores
    from crisp_stream.selection.scoring.score import ScoreOptions, score_windows

    if arguments.plot:
        check_picture(arguments.plot)
    options = ScoreOptions(
        by=arguments.by,
        out=arguments.out,
        name=arguments.name,
        ngram=arguments.ngram,
        embeddings=arguments.embeddings,
        encoder=arguments.encoder,
        records=tuple(arguments.records),
        missing=arguments.missing,
        **values_of(arguments, ("layout",)),
    )
    started = time.monotonic()
    with stopped_in_order(GO_ON):
        scores = score_windows(
            arguments.root,
            options,
            generation=arguments.generation,
            engine=arguments.engine,
            address=arguments.address,
            processes=arguments.processes,
            log=print_line,
        )
    dataset = open_dataset(arguments.root, generation=arguments.generation)
    print(f"{arguments.out}: {scores.name} of {len(scores.scores):,} windows")
    print(level_table(scores, dataset).text())
    if arguments.plot:
        print(f"drawn in {draw_scores(scores, dataset, arguments.plot)}")
    print(f"{time.monotonic() - started:.1f} s")
    selected = ("--data", arguments.root, "--scores", arguments.out, "--out", "top.windows.parquet")
    say_next("select", "where", f"{scores.name} >= q0.5", *selected)


def add_where(methods: Any) -> None:
    """Declare `select where`."""
    verb = add_verb(
        methods,
        "where",
        _where,
        "Select the windows that a condition on scores holds for. Such as 'quality >= q0.8 and length >= 200': names "
        "of scores, numbers, q0.8 for the quantile of what it is compared with; < <= > >= == !=, + - * /, and, or, "
        "not, parentheses.",
    )
    verb.add_argument("condition", metavar="CONDITION", help="what holds for the windows that are selected")
    verb.add_argument("--scores", nargs="+", required=True, metavar="FILE", help=_SCORE_FILES)
    verb.add_argument("--data", required=True, metavar="ROOT", help="dataset to select from")
    verb.add_argument("--out", required=True, metavar="FILE", help="selection to write, *.windows.parquet")
    add_dataset_options(verb, "--generation")


def _where(arguments: argparse.Namespace) -> None:
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.histograms.window_scores import load_scores
    from crisp_stream.inspection.node_scores import quantile_table, score_digits
    from crisp_stream.selection.selected_nodes import selected_nodes_table
    from crisp_stream.selection.where import select_where

    check_selection_name(arguments.out)
    dataset = open_dataset(arguments.data, generation=arguments.generation)
    scores = load_scores(arguments.scores, dataset)
    selection = select_where(arguments.condition, scores, dataset)
    selection.save(arguments.out)
    for quantile, value in selection.provenance["thresholds"].items():
        print(f"{quantile}: {score_digits(value)}")
    print(f"{arguments.out}: {selection.num_selected:,} of {selection.num_windows:,} windows ({selection.share:.2%})")
    chosen = selection.windows
    print(quantile_table({f"{name}, selected": one.scores[chosen] for name, one in scores.items()}).text())
    print(selected_nodes_table(selection, dataset).text())
    print_lengths(selection, dataset)
    train_on(arguments.out, arguments.data, dataset.manifest.window_tokens)


def add_tiers(methods: Any) -> None:
    """Declare `select tiers`."""
    verb = add_verb(
        methods,
        "tiers",
        _tiers,
        "Cut the windows of every cluster into tiers by a score, and write a selection for each tier. And "
        "components.yaml, which draws from them at the shares of --tiers and can be laid over a recipe.",
    )
    verb.add_argument("--scores", required=True, metavar="FILE", help="score file, *.scores.parquet")
    verb.add_argument("--data", required=True, metavar="ROOT", help="dataset to select from")
    verb.add_argument("--out", required=True, metavar="DIR", help="folder for the selections and components.yaml")
    verb.add_argument(
        "--tiers",
        nargs="+",
        type=float,
        required=True,
        metavar="SHARE",
        help="share of the samples of each tier, that of the highest scores first, such as 0.5 0.3 0.2",
    )
    verb.add_argument(
        "--sizes", nargs="+", type=float, metavar="SHARE", help="share of the windows of each tier; equal when absent"
    )
    verb.add_argument(
        "--within",
        default="leaf",
        metavar="LEVEL",
        help="clusters that are cut: leaf, or a level such as 1",
    )
    verb.add_argument("--histogram", default="base", metavar="H", help="histogram of the components, or base")
    add_dataset_options(verb, "--generation")


def _tiers(arguments: argparse.Namespace) -> None:
    from crisp_stream.config.sections import SELECTION_SUFFIX
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.histograms.histogram import Histogram
    from crisp_stream.histograms.window_scores import WindowScores
    from crisp_stream.selection.tiers import components_yaml, make_tiers, tiers_table
    from crisp_stream.storage.store import open_store

    level = None
    if arguments.within != "leaf":
        if not arguments.within.isdigit():
            raise InputError(f"--within: must be leaf or a level such as 1, got {arguments.within}.")
        level = int(arguments.within)
    dataset = open_dataset(arguments.data, generation=arguments.generation)
    scores = WindowScores.load(arguments.scores)
    scores.check_dataset(dataset, what=arguments.scores)
    histogram = None if arguments.histogram == "base" else Histogram.load(arguments.histogram)
    tiers = make_tiers(scores, dataset, shares=arguments.tiers, sizes=arguments.sizes, level=level, histogram=histogram)
    folder = arguments.out.rstrip("/")
    files = [f"{folder}/tier-{tier.number}{SELECTION_SUFFIX}" for tier in tiers]
    for tier, file in zip(tiers, files, strict=True):
        tier.selection.save(file)
    within = "leaf" if level is None else f"level-{level} cluster"
    text = components_yaml(
        tiers, files, histogram=arguments.histogram, what=f"Tiers of {scores.name}, cut within every {within}"
    )
    open_store(folder).put("components.yaml", text.encode())
    print(tiers_table(tiers, scores).text())
    print(f"written to {folder}: {len(tiers)} selections and components.yaml")
    size = size_for(dataset.manifest.window_tokens)
    say_next("train", size, "base", f"{folder}/components.yaml", f"data.remote={arguments.data}")
