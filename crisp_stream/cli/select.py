"""The commands `embed` and `select`: window embeddings, and selections of windows by the rivals of histograms."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from crisp_stream.cli.select_doge import add_select_doge
from crisp_stream.cli.select_dsir import add_select_dsir
from crisp_stream.cli.verbs import add_inputs, add_verb, print_line
from crisp_stream.config.sections import SELECTION_SUFFIX
from crisp_stream.errors import InputError

if TYPE_CHECKING:
    from crisp_stream.counting.task_embeddings import TaskEmbeddings
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.format.embeddings import WindowEmbeddings
    from crisp_stream.histograms.window_selection import WindowSelection


def add_select(verbs: Any) -> None:
    """Declare `select` with a command for each method, and `embed`, which two of them need."""
    text = (
        "Choose what of a dataset a task is trained on by a rival of its histogram: windows, one by one, or weights of "
        "clusters (doge). Train on windows with mixture.phases.0.windows=FILE, on weights as on any histogram."
    )
    verb = verbs.add_parser("select", help="Choose what to train on by a rival method", description=text)
    methods = verb.add_subparsers(title="methods", metavar="METHOD", required=True)
    _add_classifier(methods)
    _add_nearest(methods)
    add_select_dsir(methods)
    add_select_doge(methods)
    _add_embed(verbs)


def check_out(out: str) -> None:
    """Raises InputError: the file would not be taken for a selection."""
    if not out.endswith(SELECTION_SUFFIX):
        raise InputError(f"--out: the file of a selection must end in {SELECTION_SUFFIX}, got {out}.")


def add_task_arguments(verb: argparse.ArgumentParser) -> None:
    """A task's examples, the dataset that is selected from, and the selection to write."""
    add_inputs(verb, "task", "examples of the task, or .npy files of their embeddings")
    verb.add_argument("--data", required=True, metavar="ROOT", help="dataset that is selected from")
    verb.add_argument("--generation", type=int, metavar="G", help="an older generation of a dataset that has grown")
    verb.add_argument("--out", required=True, metavar="FILE", help=f"selection to write, *{SELECTION_SUFFIX}")
    verb.add_argument(
        "--questions",
        choices=["right", "all"],
        metavar="right|all",
        help="the task is multiple-choice questions, each with its right answer or with all, as for histogram count",
    )
    verb.add_argument("--packing", choices=["joined", "document"], default="document", help="as for histogram count")
    verb.add_argument("--processes", type=int, metavar="N", help="one per core when absent")


def _add_embedding_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--embeddings", required=True, metavar="DIR", help="folder of crisp-stream embed")
    verb.add_argument(
        "--encoder", metavar="NAME", help="where the dataset's encoder is, if not under its recorded name"
    )
    verb.add_argument(
        "--quantile",
        type=float,
        default=0.975,
        metavar="Q",
        help="windows whose score is above this quantile of all scores are selected",
    )


def _add_classifier(methods: Any) -> None:
    verb = add_verb(
        methods,
        "classifier",
        _classifier,
        "Select by a logistic regression on window embeddings (paper, Section 3.2). It learns the task's examples from "
        "random windows; its regularisation is chosen on held-out examples.",
    )
    add_task_arguments(verb)
    _add_embedding_arguments(verb)
    verb.add_argument(
        "--quantile-of",
        choices=["corpus", "task"],
        default="corpus",
        help="whose scores the quantile is of: all windows', or those of the task's own examples",
    )
    verb.add_argument(
        "--regularisation",
        nargs="+",
        metavar="C",
        help="inverse strengths to choose from, none for no penalty; those of the paper's Table 5 when absent",
    )
    verb.add_argument("--negatives", type=int, metavar="N", help="random windows; as many as positives when absent")
    verb.add_argument("--seed", type=int, default=0, metavar="S", help="of the negatives and of what is held out")


def _classifier(asked: argparse.Namespace) -> None:
    from crisp_stream.selection.classifier import REGULARISATIONS, select_by_classifier

    strengths = REGULARISATIONS
    if asked.regularisation is not None:
        strengths = tuple(_strength(text) for text in asked.regularisation)
    dataset, embeddings, task, seconds = _opened(asked)
    found = select_by_classifier(
        task,
        embeddings.rows,
        dataset,
        quantile=asked.quantile,
        quantile_of=asked.quantile_of,
        regularisations=strengths,
        num_negatives=asked.negatives,
        seed=asked.seed,
    )
    found.selection.save(asked.out)
    classifier = found.classifier
    print(f"{'C':>8} {'log loss':>9} {'AUC':>7}   on held-out examples")
    for trial in classifier.trials:
        strength = "none" if trial.regularisation is None else f"{trial.regularisation:g}"
        mark = "   chosen" if trial is classifier.chosen else ""
        print(f"{strength:>8} {trial.log_loss:>9.4f} {trial.auc:>7.4f}{mark}")
    print(f"fitted on {classifier.positives:,} windows of the task and {classifier.negatives:,} of the corpus")
    _print(found.selection, asked.out)
    print(f"accepts {found.task_accepted:.1%} of the task's own windows")
    print(
        f"seconds: {seconds:.1f} embedding the task, {found.fit_seconds:.1f} fitting, {found.score_seconds:.1f} scoring"
    )


def _strength(text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"--regularisation: must be numbers or none, got {text!r}.") from error


def _add_nearest(methods: Any) -> None:
    verb = add_verb(
        methods,
        "nearest",
        _nearest,
        "Select the windows that are nearest to the task's examples. By the cosine of a window's embedding to the "
        "nearest example, or the mean of the nearest ones.",
    )
    add_task_arguments(verb)
    _add_embedding_arguments(verb)
    verb.add_argument("--neighbours", type=int, default=1, metavar="K", help="nearest examples that are averaged")


def _nearest(asked: argparse.Namespace) -> None:
    from crisp_stream.selection.nearest import select_nearest

    dataset, embeddings, task, seconds = _opened(asked)
    found = select_nearest(task, embeddings.rows, dataset, quantile=asked.quantile, neighbours=asked.neighbours)
    found.selection.save(asked.out)
    print(f"cosine above {found.threshold:.4f} to {len(task.embeddings):,} windows of the task")
    _print(found.selection, asked.out)
    print(f"seconds: {seconds:.1f} embedding the task, {found.score_seconds:.1f} scoring")


def _opened(asked: argparse.Namespace) -> tuple[Dataset, WindowEmbeddings, TaskEmbeddings, float]:
    """Dataset, embeddings of its windows and of the task, and seconds that the last took."""
    from crisp_stream.counting.task_embeddings import embed_task
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.format.embeddings import WindowEmbeddings

    check_out(asked.out)
    dataset = open_dataset(asked.data, generation=asked.generation)
    embeddings = WindowEmbeddings.load(asked.embeddings, dataset)
    started = time.perf_counter()
    task = embed_task(
        asked.task,
        dataset,
        text_column=asked.text_column,
        limit=asked.limit,
        packing=asked.packing,
        answers=asked.questions,
        encoder=asked.encoder,
        processes=asked.processes,
        log=print_line,
    )
    return dataset, embeddings, task, time.perf_counter() - started


def _print(selection: WindowSelection, out: str) -> None:
    print(f"{out}: {selection.num_selected:,} of {selection.num_windows:,} windows ({selection.share:.2%})")


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
    verb.add_argument("--generation", type=int, metavar="G", help="an older generation of a dataset that has grown")
    verb.add_argument(
        "--encoder", metavar="NAME", help="where the dataset's encoder is, if not under its recorded name"
    )
    verb.add_argument("--engine", choices=["local", "ray"], default="local", help="processes of this machine, or Ray")
    verb.add_argument("--address", metavar="HOST:PORT", help="of a running Ray cluster; one is started when absent")
    verb.add_argument("--processes", type=int, metavar="N", help="one per core when absent")


def _embed(asked: argparse.Namespace) -> None:
    from crisp_stream.selection.embed_windows import embed_windows

    started = time.monotonic()
    found = embed_windows(
        asked.root,
        asked.out,
        generation=asked.generation,
        encoder=asked.encoder,
        engine=asked.engine,
        address=asked.address,
        processes=asked.processes,
        log=print_line,
    )
    windows, dim = found.rows.shape
    print(f"{asked.out}: {windows:,} windows of {dim} numbers, {found.rows.nbytes / 1e6:,.1f} MB")
    print(f"{time.monotonic() - started:.1f} s")
