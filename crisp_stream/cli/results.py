"""The command `results`: tables, figures and CSV files of saved results. None of it needs a model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from crisp_stream.cli.parser import Formatter
from crisp_stream.cli.verbs import add_verb, add_wide, print_line
from crisp_stream.errors import InputError

if TYPE_CHECKING:
    from crisp_stream.results.distances import Distances
    from crisp_stream.results.pairing import AnyResults
    from crisp_stream.table import TableGroup


_Shown = tuple["TableGroup", "Callable[[str], object] | None"]
"""Tables of a verb, and what draws its figure into a file, if it has one."""


def add_results(verbs: Any) -> None:
    """Declare the command and its verbs."""
    about = (
        "Tables and figures of the results that eval saved. Models are compared on the same examples only, and models "
        "of different tokenizers by bits per byte only."
    )
    command = verbs.add_parser("results", help=about.partition(". ")[0], description=about, formatter_class=Formatter)
    results_verbs = command.add_subparsers(title="what of them", metavar="VERB", required=True)
    added = {name: _add(results_verbs, name, *declared) for name, declared in _VERBS.items()}
    add_wide(added["table"])
    added["curve"].add_argument("--x", choices=["batch", "tokens"], default="batch", help="what the plot is over")
    _add_cost_options(added["cost"])
    _add_distance_options(added["distance"])


def _add(verbs: Any, name: str, show: Any, plot: bool, than: bool | None, text: str) -> argparse.ArgumentParser:
    """Declare a verb with the options that all of them take. `than`: whether a baseline must be named; None: no such
    option."""
    verb = add_verb(verbs, name, _run, text)
    verb.set_defaults(show=show, plot=None)
    verb.add_argument("results", nargs="+", metavar="RESULTS", help="folders or files of results (eval --out)")
    if than is not None:
        verb.add_argument("--than", required=than, metavar="MODEL", help="compare with this model, by its name")
    verb.add_argument("--csv", metavar="FILE", help="write the figures there, too")
    if plot:
        verb.add_argument("--plot", metavar="FILE", help="draw them: .svg, .png or .pdf")
    return verb


def _run(arguments: argparse.Namespace) -> None:
    from crisp_stream.results.results import load_all
    from crisp_stream.table import write_csv

    tables, draw = arguments.show(load_all(arguments.results), arguments)
    print(tables.text())
    if arguments.csv:
        print(f"written to {write_csv(arguments.csv, tables.records)}")
    if arguments.plot and draw:
        print(f"written to {draw(arguments.plot)}")


def _table(results: Sequence[AnyResults], arguments: argparse.Namespace) -> _Shown:
    from crisp_stream.results.tables import result_rows, result_tables

    return result_tables(result_rows(results, baseline=arguments.than), wide=arguments.wide), None


def _better(results: Sequence[AnyResults], arguments: argparse.Namespace) -> _Shown:
    from crisp_stream.results.better import better_rows, better_table, plot_better

    rows = better_rows(results, baseline=arguments.than)
    return better_table(rows), partial(plot_better, rows)


def _transfer(results: Sequence[AnyResults], _: argparse.Namespace) -> _Shown:
    from crisp_stream.results.transfer import transfer, transfer_table

    return transfer_table(transfer(results)), None


def _curve(results: Sequence[AnyResults], arguments: argparse.Namespace) -> _Shown:
    from crisp_stream.results.curves import curves, curves_table, plot_curves

    drawn = curves(results)
    return curves_table(drawn), partial(plot_curves, drawn, x=arguments.x)


def _add_cost_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--cost",
        choices=["device-hours", "flops", "tokens"],
        default="device-hours",
        help="what it is counted in; device-hours are those inside the training loop, over all processes",
    )
    verb.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAME=PATTERN",
        help="models whose names match, such as base='gpt-*-base-*', are of this method; may be repeated. Others are "
        "named after their histograms",
    )


def _cost(results: Sequence[AnyResults], arguments: argparse.Namespace) -> _Shown:
    from crisp_stream.results.costs import costs, costs_table, plot_costs

    methods = {}
    for text in arguments.method:
        name, equals, pattern = text.partition("=")
        if not (name and equals and pattern):
            raise InputError(f"--method: must be NAME=PATTERN, got {text!r}.")
        methods[pattern] = name
    compared = costs(results, axis=arguments.cost, methods=methods)
    return costs_table(compared), partial(plot_costs, compared)


def _add_distance_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--distances", metavar="FILE", help="small .parquet file of distances, to write or to read")
    verb.add_argument("--specialist", nargs="+", default=[], metavar="INPUT", help="the specialist set")
    verb.add_argument("--specialist-test", nargs="+", default=[], metavar="INPUT", help="those kept for testing")
    verb.add_argument("--texts", nargs="+", default=[], metavar="INPUT", help="generalist text that was judged")
    verb.add_argument("--mcq", action="store_true", help="the specialist files are multiple-choice questions")
    verb.add_argument("--text-column", default="text", metavar="NAME", help="key or column of the text")
    verb.add_argument("--limit", type=int, metavar="N", help="read at most N texts, as they were judged")
    verb.add_argument("--data", metavar="ROOT", help="dataset whose encoder, tokenizer and windows are meant")
    verb.add_argument("--encoder", metavar="NAME", help="folder or hub name of its encoder, where it is elsewhere now")
    verb.add_argument("--processes", type=int, metavar="N", help="one per core when absent")
    verb.add_argument("--bins", type=int, default=10, metavar="N", help="groups of equal size by distance")


def _distance(results: Sequence[AnyResults], arguments: argparse.Namespace) -> _Shown:
    from crisp_stream.results.distances import distance_bins, distances_table, plot_distances

    distances = _distances(arguments)
    bins = distance_bins(results, distances, baseline=arguments.than, bins=arguments.bins)
    table = distances_table(bins, distances, baseline=arguments.than)
    return table, partial(plot_distances, bins, distances, baseline=arguments.than)


def _distances(arguments: argparse.Namespace) -> Distances:
    from crisp_stream.evaluation.embedded_sets import DistanceInputs, measure_distances
    from crisp_stream.results.distances import Distances

    if not arguments.specialist:
        if not arguments.distances:
            raise InputError("distance needs --distances FILE, or --specialist, --texts and --data to compute them.")
        return Distances.load(arguments.distances)
    if not (arguments.texts and arguments.data):
        raise InputError("--specialist: distances need --texts INPUT… and --data ROOT, too.")
    inputs = DistanceInputs(
        texts=arguments.texts,
        specialist=arguments.specialist,
        specialist_test=arguments.specialist_test,
        questions=arguments.mcq,
        text_column=arguments.text_column,
        limit=arguments.limit,
    )
    distances = measure_distances(
        inputs, data=arguments.data, encoder=arguments.encoder, processes=arguments.processes, log=print_line
    )
    if arguments.distances:
        print(f"written to {distances.save(arguments.distances)}")
    return distances


_VERBS = {
    "table": (
        _table,
        False,
        False,
        "All models on all sets: perplexity, bits per byte, accuracy, with intervals. With --than also the ratio of "
        "perplexities or the difference of accuracies, paired by example.",
    ),
    "better": (
        _better,
        True,
        True,
        "On which share of the examples each model is better than another (paper, Table 8). A tie counts as half.",
    ),
    "transfer": (
        _transfer,
        False,
        None,
        "Models as rows and sets as columns, the best of each marked (paper, Tables 1 and 12). Multi is the mean "
        "accuracy over tasks, the sets of ARC averaged first.",
    ),
    "curve": (
        _curve,
        True,
        None,
        "Perplexity or accuracy over training, from results of several checkpoints of each run (paper, Figure 8). "
        "Beside it the perplexity of the loss that was optimised.",
    ),
    "cost": (
        _cost,
        True,
        None,
        "What each method reaches for what training costs, over checkpoints of all sizes (paper, Figure 10). The cost "
        "of what a run began from is added.",
    ),
    "distance": (
        _distance,
        True,
        True,
        "How much better each model is by how far an example is from the specialist set (paper, Figure 7). With "
        "--specialist the distances are computed, and saved with --distances; with --distances alone they are read.",
    ),
}
"""Name of a verb to its function, whether it draws, whether it needs a baseline (None: it takes none), and its text."""
