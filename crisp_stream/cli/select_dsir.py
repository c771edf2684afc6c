"""The command `select dsir`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from crisp_stream.cli.verbs import add_inputs, add_selection, add_verb, print_line
from crisp_stream.errors import InputError

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.histograms.window_selection import WindowSelection


def add_select_dsir(verbs: Any) -> None:
    """Declare the command."""
    verb = add_verb(
        verbs,
        "dsir",
        _dsir,
        "Select windows by importance resampling on hashed n-grams (DSIR, Xie et al. 2023). Needs no encoder and no "
        "training: two passes over the text of the dataset.",
    )
    add_inputs(verb, "task", "examples of the task")
    add_selection(verb)
    verb.add_argument(
        "--questions",
        choices=["right", "all"],
        metavar="right|all",
        help='the task is multiple-choice questions, JSONL of {"question", "choices", "answer": index}: count each '
        "with its right answer, or once with all choices",
    )
    verb.add_argument("--data", required=True, metavar="ROOT", help="dataset to select from")
    verb.add_argument("--generation", type=int, metavar="G", help="an older generation of a dataset that has grown")
    wanted = verb.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--windows", type=int, metavar="N", help="windows to select")
    wanted.add_argument("--share", type=float, metavar="F", help="share of the dataset's windows to select, up to 1")
    verb.add_argument("--seed", type=int, default=0, metavar="S", help="of the draw")
    verb.add_argument(
        "--fitted-windows",
        type=int,
        metavar="N",
        help="windows that the corpus's distribution is fitted on; about a billion n-grams when absent",
    )
    verb.add_argument("--out", required=True, metavar="FILE", help="selection to write, FILE.windows.parquet")
    verb.add_argument("--weights", metavar="FILE", help="write the log importance weight of every window there, too")
    verb.add_argument("--processes", type=int, metavar="N", help="one per core when absent")


def _dsir(asked: argparse.Namespace) -> None:
    from crisp_stream.config.sections import SELECTION_SUFFIX
    from crisp_stream.counting.embedded_examples import ExampleSources
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.selection.dsir import select_dsir
    from crisp_stream.selection.window_scores import WindowScores

    if not asked.out.endswith(SELECTION_SUFFIX):
        raise InputError(f"--out: must end in {SELECTION_SUFFIX}, by which mixtures know it, got {asked.out}.")
    dataset = open_dataset(asked.data, generation=asked.generation)
    found = select_dsir(
        ExampleSources(
            tuple(asked.task), asked.text_column, asked.limit, asked.questions, tuple(asked.filter), asked.layout
        ),
        data=asked.data,
        num_windows=_num_windows(asked, dataset),
        seed=asked.seed,
        fitted_windows=asked.fitted_windows,
        generation=asked.generation,
        processes=asked.processes,
        log=print_line,
    )
    found.selection.save(asked.out)
    if asked.weights:
        WindowScores(
            dataset_fingerprint=dataset.manifest.fingerprint,
            scores=found.log_weights.astype("float32"),
            provenance=found.selection.provenance,
        ).save(asked.weights)
    _print(found.selection, dataset)
    print(f"written to {asked.out}" + (f", log weights to {asked.weights}" if asked.weights else ""))


def _num_windows(asked: argparse.Namespace, dataset: Dataset) -> int:
    if asked.windows is not None:
        return asked.windows
    if not 0 < asked.share <= 1:
        raise InputError(f"--share: must be above 0 and at most 1, got {asked.share}.")
    return max(1, round(asked.share * dataset.manifest.num_windows))


def _print(selection: WindowSelection, dataset: Dataset) -> None:
    from crisp_stream.selection.selected_nodes import selected_nodes_table
    from crisp_stream.table import aligned

    facts = selection.provenance
    megabytes, seconds, processes = facts["text_bytes"] / 1e6, max(facts["seconds"], 0.1), facts["processes"]
    print(selected_nodes_table(selection, dataset).text())
    rows = [
        ("examples", f"{facts['examples']:,}, {facts['task_ngrams']:,} n-grams"),
        ("corpus fitted", f"on {facts['fitted_windows']:,} windows, {facts['corpus_ngrams']:,} n-grams"),
        ("selected", f"{selection.num_selected:,} of {selection.num_windows:,} windows ({selection.share:.2%})"),
        ("among the heaviest", f"{facts['heaviest_share']:.1%} of them are among as many windows of largest weight"),
        ("cost", f"{megabytes:,.1f} MB of text in {seconds:,.1f} s, {processes} processes, no GPU"),
    ]
    print(aligned(rows))
