"""The command `select dsir`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from crisp_stream.cli.next_step import train_on
from crisp_stream.cli.verbs import (
    add_dataset_options,
    add_inputs,
    add_selection,
    add_verb,
    print_line,
    selection_of,
)
from crisp_stream.config.sections import SELECTION_SUFFIX
from crisp_stream.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from crisp_stream.format.dataset import Dataset
    from crisp_stream.histograms.window_selection import WindowSelection


def add_task_arguments(verb: argparse.ArgumentParser, what: str) -> None:
    """Declare the examples of a task, the dataset to select from, and the selection to write."""
    add_inputs(verb, "task", what)
    verb.add_argument(
        "--questions",
        choices=["right", "all"],
        metavar="right|all",
        help='the task is multiple-choice questions, JSONL of {"question", "choices", "answer": index}: count each '
        "with its right answer, or once with all choices",
    )
    verb.add_argument("--data", required=True, metavar="ROOT", help="dataset to select from")
    verb.add_argument("--out", required=True, metavar="FILE", help=f"selection to write, *{SELECTION_SUFFIX}")
    add_dataset_options(verb, "--generation", "--processes")


def add_min_tokens(verb: argparse.ArgumentParser, default: str) -> None:
    """Declare the floor of a selection."""
    text = f"select windows with at least so many tokens of text, for datasets of packing document; {default}"
    verb.add_argument("--min-tokens", type=int, metavar="N", help=text)


def print_lengths(selection: WindowSelection, dataset: Dataset) -> None:
    """Print the lengths of the selected windows, where they are not all full."""
    from crisp_stream.selection.lengths import length_lines

    for line in length_lines(selection, dataset):
        print(line)


def add_select_dsir(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "dsir",
        _dsir,
        "Select windows by importance resampling on hashed n-grams (DSIR, Xie et al. 2023). Needs no encoder and no "
        "training: two passes over the text of the dataset.",
    )
    add_task_arguments(verb, "examples of the task")
    add_selection(verb)
    amount = verb.add_mutually_exclusive_group(required=True)
    amount.add_argument("--windows", type=int, metavar="N", help="number of windows to select")
    amount.add_argument("--share", type=float, metavar="F", help="share of the dataset's windows to select, up to 1")
    verb.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the draw")
    verb.add_argument(
        "--fitted-windows",
        type=int,
        metavar="N",
        help="windows that the distribution of the corpus is fitted on; about a billion n-grams when absent",
    )
    add_min_tokens(verb, "a quarter of a window when absent, 0 where all windows are full")
    add_scores_out(verb, "--weights")


def _dsir(arguments: argparse.Namespace) -> None:
    from crisp_stream.counting.embedded_examples import ExampleSources
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.selection.dsir import select_dsir

    check_selection_name(arguments.out)
    dataset = open_dataset(arguments.data, generation=arguments.generation)
    drawn = select_dsir(
        ExampleSources(
            inputs=tuple(arguments.task),
            text_column=arguments.text_column,
            limit=arguments.limit,
            answers=arguments.questions,
            **selection_of(arguments),
        ),
        data=arguments.data,
        num_windows=_num_windows(arguments, dataset),
        seed=arguments.seed,
        fitted_windows=arguments.fitted_windows,
        min_tokens=arguments.min_tokens,
        generation=arguments.generation,
        processes=arguments.processes,
        log=print_line,
    )
    drawn.selection.save(arguments.out)
    save_scores(arguments.scores, "dsir", drawn.log_weights.astype("float32"), drawn.selection)
    _print(drawn.selection, dataset)
    print(f"written to {arguments.out}" + (f", log weights to {arguments.scores}" if arguments.scores else ""))
    train_on(arguments.out, arguments.data, dataset.manifest.window_tokens)


def add_scores_out(verb: argparse.ArgumentParser, *others: str) -> None:
    """Declare the score file that a method writes beside its selection, and other names of the option."""
    text = "score file to write, too, *.scores.parquet: the score of every window that the selection was made by"
    verb.add_argument("--scores", *others, metavar="FILE", help=text)


def save_scores(path: str | None, method: str, scores: NDArray[np.float32], selection: WindowSelection) -> None:
    """Write the scores that a selection was made by, where a file is asked for; the method is their name."""
    from crisp_stream.histograms.window_scores import WindowScores

    if path:
        WindowScores(
            name=method,
            dataset_fingerprint=selection.dataset_fingerprint,
            scores=scores,
            provenance=selection.provenance,
        ).save(path)


def check_selection_name(out: str) -> None:
    """Raises InputError: the name is not that of a selection."""
    if not out.endswith(SELECTION_SUFFIX):
        raise InputError(f"--out: must end in {SELECTION_SUFFIX}, by which mixtures know a selection, got {out}.")


def _num_windows(arguments: argparse.Namespace, dataset: Dataset) -> int:
    if arguments.windows is not None:
        return arguments.windows
    if not 0 < arguments.share <= 1:
        raise InputError(f"--share: must be above 0 and at most 1, got {arguments.share}. 0.025 selects 2.5 %.")
    return max(1, round(arguments.share * dataset.manifest.num_windows))


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
    if facts["min_tokens"]:
        rows.insert(2, ("shortest window", f"{facts['min_tokens']:,} tokens (--min-tokens)"))
    print(aligned(rows))
    print_lengths(selection, dataset)
