"""The command `report`."""

from __future__ import annotations

import argparse
from typing import Any

from crisp_stream.cli.verbs import add_verb, print_line
from crisp_stream.errors import InputError

_MIN_WINDOWS = 100


def add_report(verbs: Any) -> None:
    """Declare the command."""
    verb = add_verb(
        verbs,
        "report",
        _report,
        "Make one self-contained HTML page about a dataset, histograms, runs and results. The verdict in words and the "
        "perplexities; the heaviest clusters of the task; training curves; the tree as a map coloured by task, with "
        "terms, sample text and search; histograms side by side; which data helps which task; all judged figures.",
    )
    verb.add_argument("root", metavar="ROOT", help="dataset root")
    verb.add_argument(
        "shown",
        nargs="*",
        metavar="H|RUN|RESULTS|SCORES",
        help="histogram files, folders that runs saved to (save_folder), folders or files of results (eval --out), and "
        "score files (*.scores.parquet), which colour the map",
    )
    verb.add_argument("--out", default="report.html", metavar="FILE", help="page to write")
    verb.add_argument(
        "--than",
        metavar="MODEL",
        help="compare results with this model's; one called base when absent, if there is one",
    )
    verb.add_argument("--generation", type=int, metavar="G", help="an older generation of a dataset that has grown")
    verb.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="forecast a run of N samples of each histogram, none for 0; as many as there are windows when absent",
    )
    verb.add_argument(
        "--windows", type=int, default=50_000, metavar="N", help="read about N windows per level for terms and text"
    )


def _report(arguments: argparse.Namespace) -> None:
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.histograms.histogram import Histogram
    from crisp_stream.histograms.window_scores import SCORES_SUFFIX, load_scores
    from crisp_stream.report.evaluation import Evaluation, holds_results
    from crisp_stream.report.forecast import forecast_each
    from crisp_stream.report.page import page_html, write_page
    from crisp_stream.report.runs import read_run
    from crisp_stream.results.results import load_all
    from crisp_stream.storage.store import is_remote, local_path

    if arguments.windows < _MIN_WINDOWS:
        raise InputError(f"--windows: must be at least {_MIN_WINDOWS}, got {arguments.windows}.")
    if arguments.samples is not None and arguments.samples < 0:
        raise InputError(f"--samples: must be at least 0, got {arguments.samples}.")
    dataset = open_dataset(arguments.root, generation=arguments.generation)
    histograms, runs, judged = {}, [], []
    scores = load_scores([shown for shown in arguments.shown if shown.endswith(SCORES_SUFFIX)], dataset)
    for shown in arguments.shown:
        if shown.endswith(SCORES_SUFFIX):
            continue
        if holds_results(shown):
            judged.append(shown)
        elif is_remote(shown) or local_path(shown).is_dir():
            runs.append(read_run(shown, dataset))
        else:
            histograms[_unused(local_path(shown).stem, histograms)] = Histogram.load(shown)
    if arguments.than and not judged:
        raise InputError(f"--than {arguments.than}: there are no results to compare. Name a folder of results, too.")
    samples = dataset.manifest.num_windows if arguments.samples is None else arguments.samples
    forecasts = forecast_each(dataset, histograms, samples) if samples else {}
    evaluation = Evaluation(results=load_all(judged), baseline=arguments.than) if judged else None
    html = page_html(
        dataset,
        histograms,
        runs,
        forecasts=forecasts,
        evaluation=evaluation,
        scores=scores,
        max_windows=arguments.windows,
        log=print_line,
    )
    path = write_page(arguments.out, html)
    print(f"written to {path}, {path.stat().st_size / 1e6:.1f} MB")
    print(f"next: open {path.absolute()} in a browser")


def _unused(name: str, taken: dict[str, Any]) -> str:
    """Number the name if another file has it already."""
    number, unused = 1, name
    while unused in taken:
        number += 1
        unused = f"{name} {number}"
    return unused
