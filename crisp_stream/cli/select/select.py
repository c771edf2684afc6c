"""The commands `embed` and `select`: window embeddings, and selections of windows by the rivals of histograms."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from crisp_stream.cli.next_step import train_on
from crisp_stream.cli.select.doge import add_select_doge
from crisp_stream.cli.select.dsir import (
    add_min_tokens,
    add_scores_out,
    add_select_dsir,
    add_task_arguments,
    check_selection_name,
    print_lengths,
    save_scores,
)
from crisp_stream.cli.select.scores import add_tiers, add_where
from crisp_stream.cli.verbs import GO_ON, add_dataset_options, add_verb, print_line
from crisp_stream.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from crisp_stream.counting.task_embeddings import TaskEmbeddings
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.format.embeddings import WindowEmbeddings
    from crisp_stream.histograms.window_selection import WindowSelection


def add_select(verbs: Any) -> None:
    """Declare `select` with a command for each method, and `embed`, which two of them need."""
    text = (
        "Choose what of a dataset to train on: by a rival of the task's histogram, windows one by one or weights of "
        "clusters (doge); or by scores of windows (where, tiers). Train on windows with mixture.phases.0.windows=FILE, "
        "on weights as on any histogram."
    )
    verb = verbs.add_parser("select", help="Choose what to train on by a rival method or by scores", description=text)
    methods = verb.add_subparsers(title="methods", metavar="METHOD", required=True)
    _add_classifier(methods)
    _add_nearest(methods)
    add_select_dsir(methods)
    add_select_doge(methods)
    add_where(methods)
    add_tiers(methods)
    _add_embed(verbs)


def _add_embedding_arguments(verb: argparse.ArgumentParser) -> None:
    add_task_arguments(verb, "examples of the task, or .npy files of their embeddings")
    verb.add_argument("--packing", choices=["joined", "document"], default="document", help="as for histogram count")
    add_dataset_options(verb, "--encoder")
    add_min_tokens(verb, "all are selected from when absent")
    verb.add_argument("--embeddings", required=True, metavar="DIR", help="folder that crisp-stream embed wrote")
    verb.add_argument(
        "--quantile",
        type=float,
        default=0.975,
        metavar="Q",
        help="windows whose score is above this quantile of all scores are selected",
    )
    add_scores_out(verb)


def _add_classifier(methods: Any) -> None:
    verb = add_verb(
        methods,
        "classifier",
        _classifier,
        "Select by a logistic regression on window embeddings (paper, Section 3.2). It learns the task's examples from "
        "random windows; its regularisation is chosen by 5-fold cross-validation.",
    )
    _add_embedding_arguments(verb)
    verb.add_argument(
        "--quantile-of",
        choices=["corpus", "task"],
        default="corpus",
        help="scores that the quantile is taken of: those of all windows, or those of the task's examples",
    )
    verb.add_argument(
        "--regularisation",
        nargs="+",
        metavar="C",
        help="inverse strengths to choose from, none for no penalty; those of the paper's Table 5 when absent",
    )
    verb.add_argument(
        "--negatives", type=int, metavar="N", help="random windows; as many as positives when absent, 10,000 at least"
    )
    verb.add_argument("--seed", type=int, default=0, metavar="S", help="seed of negatives and folds")


def _classifier(arguments: argparse.Namespace) -> None:
    from crisp_stream.selection.classifier import REGULARISATIONS, select_by_classifier

    strengths = REGULARISATIONS
    if arguments.regularisation is not None:
        strengths = tuple(_strength(text) for text in arguments.regularisation)
    dataset, embeddings, task, seconds = _opened(arguments)
    selected = select_by_classifier(
        task,
        embeddings.rows,
        dataset,
        quantile=arguments.quantile,
        quantile_of=arguments.quantile_of,
        regularisations=strengths,
        num_negatives=arguments.negatives,
        seed=arguments.seed,
        allowed=_allowed(arguments, dataset),
    )
    selected.selection.save(arguments.out)
    save_scores(arguments.scores, "classifier", selected.scores, selected.selection)
    classifier = selected.classifier
    print(f"{'C':>8} {'log loss':>9} {'AUC':>7}   each example held out once")
    for trial in classifier.trials:
        strength = "none" if trial.regularisation is None else f"{trial.regularisation:g}"
        mark = "   chosen" if trial is classifier.chosen else ""
        print(f"{strength:>8} {trial.log_loss:>9.4f} {trial.auc:>7.4f}{mark}")
    print(f"fitted on {classifier.positives:,} windows of the task and {classifier.negatives:,} of the corpus")
    _print(selected.selection, arguments.out, dataset)
    print(
        f"accepts {selected.task_accepted:.1%} of windows of the task that it was not fitted on (cross-validated), "
        f"{selected.task_accepted_in_sample:.1%} of those that it was"
    )
    print(
        f"seconds: {seconds:.1f} embedding the task, {selected.fit_seconds:.1f} fitting, "
        f"{selected.score_seconds:.1f} scoring"
    )
    train_on(arguments.out, arguments.data, dataset.manifest.window_tokens)


def _strength(text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise InputError(
            f"--regularisation: must be numbers or none, got {text!r}. Leave it out for those of Table 5."
        ) from error


def _add_nearest(methods: Any) -> None:
    verb = add_verb(
        methods,
        "nearest",
        _nearest,
        "Select the windows that are nearest to the task's examples. By the cosine of a window's embedding to the "
        "nearest example, or the mean of the nearest ones.",
    )
    _add_embedding_arguments(verb)
    verb.add_argument("--neighbours", type=int, default=1, metavar="K", help="number of nearest examples to average")


def _nearest(arguments: argparse.Namespace) -> None:
    from crisp_stream.selection.nearest import select_nearest

    dataset, embeddings, task, seconds = _opened(arguments)
    nearest = select_nearest(
        task,
        embeddings.rows,
        dataset,
        quantile=arguments.quantile,
        neighbours=arguments.neighbours,
        allowed=_allowed(arguments, dataset),
    )
    nearest.selection.save(arguments.out)
    save_scores(arguments.scores, "nearest", nearest.scores, nearest.selection)
    print(f"cosine above {nearest.threshold:.4f} to {len(task.embeddings):,} windows of the task")
    _print(nearest.selection, arguments.out, dataset)
    print(f"seconds: {seconds:.1f} embedding the task, {nearest.score_seconds:.1f} scoring")
    train_on(arguments.out, arguments.data, dataset.manifest.window_tokens)


def _opened(arguments: argparse.Namespace) -> tuple[Dataset, WindowEmbeddings, TaskEmbeddings, float]:
    """Open the dataset and its window embeddings, embed the task, and measure the seconds of that."""
    from crisp_stream.counting.task_embeddings import embed_task
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.format.embeddings import WindowEmbeddings

    check_selection_name(arguments.out)
    dataset = open_dataset(arguments.data, generation=arguments.generation)
    embeddings = WindowEmbeddings.load(arguments.embeddings, dataset)
    started = time.perf_counter()
    task = embed_task(
        arguments.task,
        dataset,
        text_column=arguments.text_column,
        limit=arguments.limit,
        packing=arguments.packing,
        answers=arguments.questions,
        encoder=arguments.encoder,
        processes=arguments.processes,
        log=print_line,
    )
    return dataset, embeddings, task, time.perf_counter() - started


def _allowed(arguments: argparse.Namespace, dataset: Dataset) -> NDArray[np.bool_] | None:
    """Which windows are long enough; None where all are."""
    from crisp_stream.processes import num_processes
    from crisp_stream.selection.lengths import at_least, window_lengths

    if not arguments.min_tokens:
        return None
    lengths = window_lengths(dataset, processes=num_processes(arguments.processes), log=print_line)
    allowed = at_least(lengths, arguments.min_tokens, dataset)
    print(f"{allowed.sum():,} of {len(allowed):,} windows have {arguments.min_tokens} tokens or more")
    return allowed


def _print(selection: WindowSelection, out: str, dataset: Dataset) -> None:
    print(f"{out}: {selection.num_selected:,} of {selection.num_windows:,} windows ({selection.share:.2%})")
    print_lengths(selection, dataset)


def _add_embed(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "embed",
        _embed,
        "Embed every window of a dataset by its encoder. For the methods of select that score single windows; run "
        "again, it goes on where it stopped.",
    )
    verb.add_argument("root", metavar="ROOT", help="dataset root")
    verb.add_argument(
        "--out", required=True, metavar="DIR", help="folder to write, 768 bytes per window at 384 numbers"
    )
    add_dataset_options(verb, "--generation", "--encoder", "--processes")
    verb.add_argument("--engine", choices=["local", "ray"], default="local", help="processes of this machine, or Ray")
    verb.add_argument("--address", metavar="HOST:PORT", help="running Ray cluster; one is started when absent")


def _embed(arguments: argparse.Namespace) -> None:
    from crisp_stream.processes import stopped_in_order
    from crisp_stream.selection.embed_windows import embed_windows

    started = time.monotonic()
    with stopped_in_order(GO_ON):
        embeddings = embed_windows(
            arguments.root,
            arguments.out,
            generation=arguments.generation,
            encoder=arguments.encoder,
            engine=arguments.engine,
            address=arguments.address,
            processes=arguments.processes,
            log=print_line,
        )
    windows, dim = embeddings.rows.shape
    print(f"{arguments.out}: {windows:,} windows of {dim} numbers, {embeddings.rows.nbytes / 1e6:,.1f} MB")
    print(f"{time.monotonic() - started:.1f} s")
