"""The command `results`: tables, figures and CSV files of saved results. None of it needs a model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from crisp_stream.verbs import Formatter, add_verb


def add_results(verbs: Any) -> None:
    """Declare the command and its verbs."""
    about = (
        "Tables and figures of the results that eval saved. Models are compared on the same examples only, and models "
        "of different tokenizers by bits per byte only."
    )
    command = verbs.add_parser("results", help=about.partition(". ")[0], description=about, formatter_class=Formatter)
    own = command.add_subparsers(title="what of them", metavar="VERB", required=True)
    _add_table(own)
    _add_better(own)
    _add_transfer(own)


def _add(verbs: Any, name: str, run: Any, text: str, *, plot: bool, than: bool | None) -> argparse.ArgumentParser:
    """A verb with what all of them take. `than`: whether a baseline must be named; None: there is none."""
    verb = add_verb(verbs, name, run, text)
    verb.add_argument("results", nargs="+", metavar="RESULTS", help="folders or files of results (eval --out)")
    if than is not None:
        verb.add_argument("--than", required=than, metavar="MODEL", help="compare with this model, by its name")
    verb.add_argument("--csv", metavar="FILE", help="write the figures there, too")
    if plot:
        verb.add_argument("--plot", metavar="FILE", help="draw them: .svg, .png or .pdf")
    return verb


def _finish(text: str, rows: Sequence[Mapping[str, Any]], asked: argparse.Namespace) -> None:
    from crisp_stream.evaluation.cells import write_csv

    print(text)
    if asked.csv:
        print(f"written to {write_csv(asked.csv, rows)}")


def _add_table(verbs: Any) -> None:
    _add(
        verbs,
        "table",
        _table,
        "All models on all sets: perplexity, bits per byte, accuracy, with intervals. With --than also the ratio of "
        "perplexities or the difference of accuracies, paired by example.",
        plot=False,
        than=False,
    )


def _table(asked: argparse.Namespace) -> None:
    from crisp_stream.evaluation.results import load_all
    from crisp_stream.evaluation.tables import csv_rows, result_rows, rows_text

    rows = result_rows(load_all(asked.results), baseline=asked.than)
    _finish(rows_text(rows), csv_rows(rows), asked)


def _add_better(verbs: Any) -> None:
    _add(
        verbs,
        "better",
        _better,
        "On which share of the examples each model is better than another (paper, Table 8). A tie counts as half.",
        plot=True,
        than=True,
    )


def _better(asked: argparse.Namespace) -> None:
    from crisp_stream.evaluation.better import better_csv, better_rows, better_text, plot_better
    from crisp_stream.evaluation.results import load_all

    rows = better_rows(load_all(asked.results), baseline=asked.than)
    _finish(better_text(rows), better_csv(rows), asked)
    if asked.plot:
        print(f"written to {plot_better(rows, asked.plot)}")


def _add_transfer(verbs: Any) -> None:
    _add(
        verbs,
        "transfer",
        _transfer,
        "Models as rows and sets as columns, the best of each marked (paper, Tables 1 and 12). Multi is the mean "
        "accuracy over tasks, the sets of ARC averaged first.",
        plot=False,
        than=None,
    )


def _transfer(asked: argparse.Namespace) -> None:
    from crisp_stream.evaluation.results import load_all
    from crisp_stream.evaluation.transfer import transfer, transfer_csv, transfer_text

    found = transfer(load_all(asked.results))
    _finish(transfer_text(found), transfer_csv(found), asked)
