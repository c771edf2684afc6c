"""The commands around histograms: counting, arithmetic, smoothing, choosing level and strength."""

from __future__ import annotations

import argparse
import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crisp_stream.cli.next_step import say_next, size_for, tokens_for, with_ending
from crisp_stream.cli.verbs import (
    add_dataset_options,
    add_inputs,
    add_question_keys,
    add_selection,
    add_verb,
    print_line,
    selection_of,
)
from crisp_stream.errors import InputError
from crisp_stream.table import csv_text, write_csv
from crisp_stream.typed import plain

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.histograms.histogram import Histogram


def add_histogram_commands(verbs: Any) -> None:
    """Declare `histogram` with its commands, and `average`."""
    verb = verbs.add_parser(
        "histogram",
        help="Count a task's clusters; arithmetic, smoothing, tuning",
        description="Make histograms: count, average, interpolate, cut, smooth; weigh and compare them; tune level and "
        "smoothing; carry to another tree. `histogram TASK…` is short for `histogram count TASK…`.",
    )
    commands = verb.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_count(commands)
    _add_average(commands)
    _add_interpolate(commands)
    _add_cut(commands)
    _add_smooth(commands)
    _add_weights(commands)
    _add_compare(commands)
    _add_tune(commands)
    _add_carry(commands)
    _add_average(verbs)


HISTOGRAM_VERBS = ("count", "average", "interpolate", "cut", "smooth", "weights", "compare", "tune", "carry")


def with_count(arguments: list[str]) -> list[str]:
    """`histogram TASK…` as `histogram count TASK…`; a word that is nearly a command is left to be refused."""
    first = arguments[1] if arguments[:1] == ["histogram"] and len(arguments) > 1 else None
    if first is None or first in (*HISTOGRAM_VERBS, "-h", "--help"):
        return arguments
    if difflib.get_close_matches(first, HISTOGRAM_VERBS, cutoff=0.75) and not Path(first).exists():
        return arguments
    return ["histogram", "count", *arguments[1:]]


def _add_count(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "count",
        _count,
        "Count in which clusters a task's examples fall. Every window counts as one, the short last window of an "
        "example, too.",
    )
    add_inputs(verb, "task", "examples of the task, or .npy files of their embeddings")
    add_selection(verb)
    verb.add_argument("--data", required=True, metavar="ROOT", help="dataset whose tree is meant")
    verb.add_argument("--level", type=int, metavar="L", help="level of the tree, 1 to its depth; its depth when absent")
    verb.add_argument("--out", required=True, metavar="FILE", help="histogram to write, a small .parquet file")
    verb.add_argument(
        "--packing",
        choices=["joined", "document"],
        default="document",
        help="document: every example has separate windows; joined: as the paper cuts corpora",
    )
    verb.add_argument(
        "--questions",
        choices=["right", "all"],
        metavar="right|all",
        help="the task is multiple-choice questions, of any layout that eval reads: count each with its right answer, "
        "or once with all choices",
    )
    add_question_keys(verb)
    verb.add_argument(
        "--encoder", metavar="NAME", help="where the dataset's encoder is, if not under its recorded name"
    )
    verb.add_argument("--processes", type=int, metavar="N", help="one per core when absent")
    _add_keep_embeddings(verb)


def _add_keep_embeddings(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--keep-embeddings",
        action="store_true",
        help="keep the examples' embeddings beside it, as NAME.examples.parquet, for `histogram carry`",
    )


def _count(arguments: argparse.Namespace) -> None:
    from crisp_stream.counting.count_examples import count_examples
    from crisp_stream.counting.task_vectors import beside
    from crisp_stream.examples.question_layouts import QuestionKeys
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.inspection.summary import describe_histogram

    dataset = open_dataset(arguments.data)
    histogram = count_examples(
        arguments.task,
        data=dataset,
        level=arguments.level,
        text_column=arguments.text_column,
        limit=arguments.limit,
        packing=arguments.packing,
        answers=arguments.questions,
        **selection_of(arguments),
        question_keys=QuestionKeys.parse(arguments.question_keys),
        encoder=arguments.encoder,
        processes=arguments.processes,
        keep_embeddings=beside(arguments.out) if arguments.keep_embeddings else None,
        log=print_line,
    )
    histogram.save(arguments.out)
    print(describe_histogram(histogram, dataset, limit=5), end="")
    print(f"written to {arguments.out}")
    if arguments.keep_embeddings:
        print(f"embeddings of its examples written to {beside(arguments.out)}")
    tuned = with_ending(arguments.out, ".tuned.parquet")
    say_next("histogram", "tune", arguments.out, "--data", arguments.data, "--out", tuned)


def _add_average(verbs: Any) -> None:
    verb = add_verb(verbs, "average", _average, "Average histograms of one tree and level: a multitask mixture.")
    verb.add_argument("histograms", nargs="+", metavar="H", help="histogram files")
    verb.add_argument("--weights", nargs="+", type=float, metavar="W", help="one per histogram; equal when absent")
    _add_out(verb)


def _average(arguments: argparse.Namespace) -> None:
    from crisp_stream.histograms.histogram import Histogram

    _save(Histogram.average([Histogram.load(path) for path in arguments.histograms], arguments.weights), arguments.out)


def _add_interpolate(verbs: Any) -> None:
    verb = add_verb(verbs, "interpolate", _interpolate, "Mix a histogram with the corpus's proportions.")
    _add_source(verb)
    verb.add_argument(
        "--base-share", type=float, required=True, metavar="λ", help="share of the corpus's proportions, 0 to 1"
    )
    _add_out(verb)


def _interpolate(arguments: argparse.Namespace) -> None:
    from crisp_stream.histograms.arithmetic import interpolate

    _save(interpolate(*_histogram_and_dataset(arguments), arguments.base_share), arguments.out)


def _add_cut(verbs: Any) -> None:
    verb = add_verb(verbs, "cut", _cut, "Add a histogram up to a coarser level of the tree.")
    verb.add_argument("histogram", metavar="H", help="histogram file")
    verb.add_argument("--level", type=int, required=True, metavar="L", help="level, at most the histogram's")
    _add_out(verb)


def _cut(arguments: argparse.Namespace) -> None:
    from crisp_stream.histograms.arithmetic import cut
    from crisp_stream.histograms.histogram import Histogram

    _save(cut(Histogram.load(arguments.histogram), arguments.level), arguments.out)


def _add_smooth(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "smooth",
        _smooth,
        "Back a counted histogram off along the tree towards the corpus. `histogram tune` finds level and strength.",
    )
    _add_source(verb)
    verb.add_argument(
        "--strength",
        type=float,
        nargs="+",
        required=True,
        metavar="N",
        help="windows that the corpus counts as below each node: one number, or one per level from 1 on",
    )
    verb.add_argument("--level", type=int, metavar="L", help="of the result; the histogram's when absent")
    _add_out(verb)


def _smooth(arguments: argparse.Namespace) -> None:
    from crisp_stream.histograms.smoothing import smooth

    histogram, dataset = _histogram_and_dataset(arguments)
    strength = arguments.strength[0] if len(arguments.strength) == 1 else arguments.strength
    _save(smooth(histogram, dataset, strength=strength, level=arguments.level), arguments.out)


def _add_weights(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "weights",
        _weights,
        "Write the importance weight w(c) = P(c | task) / P(c | corpus) of every cluster as CSV: node, share of the "
        "task, share of the corpus, w(c); heaviest first. Clusters without windows in the corpus have w(c) inf.",
    )
    _add_source(verb)
    verb.add_argument("--out", metavar="FILE", help="CSV file to write; standard output when absent")


def _weights(arguments: argparse.Namespace) -> None:
    from crisp_stream.histograms.arithmetic import importance_weights

    histogram, dataset = _histogram_and_dataset(arguments)
    weights = importance_weights(histogram, dataset)
    records = []
    for at in (-histogram.proportions).argsort(kind="stable"):
        share, weight = float(histogram.proportions[at]), float(weights[at])
        node = int(histogram.nodes[at])
        records.append({"node": node, "share": share, "corpus_share": share / weight, "weight": weight})
    if arguments.out is None:
        print(csv_text(records), end="")
    else:
        target = write_csv(arguments.out, records)
        print(f"{len(records):,} clusters of level {histogram.level}, written to {target}")


def _add_compare(verbs: Any) -> None:
    verb = add_verb(verbs, "compare", _compare, "Compare two histograms at the coarser one's level.")
    verb.add_argument("first", metavar="H", help="histogram file")
    verb.add_argument("second", nargs="?", metavar="H", help="another one, of the same tree; or --data")
    verb.add_argument("--data", metavar="ROOT", help="compare with the dataset's proportions")
    verb.add_argument("--top", type=int, default=10, metavar="N", help="clusters shown")
    verb.add_argument("--json", metavar="FILE", help="write the numbers there, too")


def _compare(arguments: argparse.Namespace) -> None:
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.histograms.arithmetic import compare, effective_clusters, generalist_histogram
    from crisp_stream.histograms.histogram import Histogram

    if arguments.top < 1:
        raise InputError(f"--top: must be at least 1, got {arguments.top}.")
    if (arguments.second is None) == (arguments.data is None):
        raise InputError("compare: needs a second histogram or --data ROOT, one of the two.")
    first = Histogram.load(arguments.first)
    if arguments.data is None:
        second = Histogram.load(arguments.second)
    else:
        second = generalist_histogram(open_dataset(arguments.data), first.level)
    comparison = compare(first, second, limit=arguments.top)
    if arguments.json:
        _write_json(arguments.json, comparison.to_json())
    for name, histogram in (("first", first), ("second", second)):
        print(f"{name:<6} {effective_clusters(histogram):>10,.1f} effective clusters of level {histogram.level}")
    print(comparison.table())


def _add_tune(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "tune",
        _tune,
        "Choose level and smoothing by held-out likelihood, and see what more examples would bring. "
        "Prints a table over set sizes; writes the smoothed histogram, or the base mixture where no level is better. "
        "Examples that are alike are held out together.",
    )
    _add_source(verb, "counted at the finest level that may be chosen")
    verb.add_argument("--strengths", type=float, nargs="+", metavar="N", help="candidates; 0.1 to 1,000 when absent")
    verb.add_argument("--folds", type=int, default=5, metavar="K", help="of the cross-validation over examples")
    verb.add_argument("--draws", type=int, default=10, metavar="N", help="example sets drawn of each size")
    verb.add_argument("--seed", type=int, default=0, metavar="S", help="of folds and sets")
    verb.add_argument("--plot", metavar="FILE", help="draw the curves: .svg, .png or .pdf")
    verb.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    verb.add_argument("--out", metavar="FILE", help="histogram of the chosen level and strength to write")


def _tune(arguments: argparse.Namespace) -> None:
    from crisp_stream.histograms.tuning import STRENGTHS, tune, tuned

    histogram, dataset = _histogram_and_dataset(arguments)
    tuning = tune(
        histogram,
        dataset,
        strengths=arguments.strengths or STRENGTHS,
        folds=arguments.folds,
        draws=arguments.draws,
        seed=arguments.seed,
    )
    print(tuning.table())
    if arguments.json:
        _write_json(arguments.json, plain(tuning))
    if arguments.plot:
        from crisp_stream.histograms.tuning_plot import plot_tuning

        print(f"written to {plot_tuning(tuning, arguments.plot, title=Path(arguments.histogram).stem)}")
    if arguments.out:
        _save(tuned(histogram, dataset, tuning.chosen), arguments.out)
        window_tokens = dataset.manifest.window_tokens
        tokens = ("--tokens", tokens_for(window_tokens))
        say_next("forecast", "--data", arguments.data, "--mixture", arguments.out, *tokens)
        chosen = f"mixture.phases.0.histogram={arguments.out}"
        say_next("train", size_for(window_tokens), "crisp", f"data.remote={arguments.data}", chosen)
    else:
        out = with_ending(arguments.histogram, ".tuned.parquet")
        say_next("histogram", "tune", arguments.histogram, "--data", arguments.data, "--out", out)


def _add_carry(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "carry",
        _carry,
        "Move a histogram to the tree of another dataset of the same encoder. Counts the examples' embeddings there, "
        "where `histogram count --keep-embeddings` kept them; else the centroids of its leaves. Says what this costs, "
        "by examples that are held out. In a dataset that has grown the tree is the same: its histograms are valid as "
        "they are.",
    )
    verb.add_argument("histogram", metavar="H", help="histogram file")
    verb.add_argument("--from", dest="source", required=True, metavar="ROOT", help="dataset that H was counted with")
    verb.add_argument("--to", dest="target", required=True, metavar="ROOT2", help="dataset whose tree is meant")
    verb.add_argument(
        "--level", type=int, metavar="L", help="of the result; the leaves for a histogram of leaves, else that of H"
    )
    verb.add_argument("--embeddings", metavar="FILE", help="embeddings of its examples; NAME.examples.parquet beside H")
    verb.add_argument(
        "--by", choices=["embeddings", "centroids"], help="embeddings where there are any, else centroids, when absent"
    )
    verb.add_argument(
        "--examples",
        nargs="+",
        metavar="FILE",
        help="other examples of the task, or .npy files of their embeddings, to measure the error by; half of the kept "
        "ones in turn when absent",
    )
    verb.add_argument("--text-column", default="text", metavar="NAME", help="of --examples: key or column of the text")
    verb.add_argument("--questions", choices=["right", "all"], help="--examples are questions; as for `count`")
    add_dataset_options(verb, "--encoder", "--processes")
    verb.add_argument("--seed", type=int, default=0, metavar="S", help="of the halves")
    _add_keep_embeddings(verb)
    verb.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    _add_out(verb)


def _carry(arguments: argparse.Namespace) -> None:
    from crisp_stream.counting.carry import carry, describe
    from crisp_stream.counting.task_embeddings import embed_task
    from crisp_stream.counting.task_vectors import beside, embeddings_beside
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.histograms.histogram import Histogram

    histogram = Histogram.load(arguments.histogram)
    source, target = open_dataset(arguments.source), open_dataset(arguments.target)
    embeddings = embeddings_beside(arguments.histogram, arguments.embeddings)
    if arguments.keep_embeddings and embeddings is None:
        raise InputError("--keep-embeddings: H must have embeddings to keep, got none beside it. Leave it out.")
    held_out = None
    if arguments.examples:
        held_out = embed_task(
            arguments.examples,
            target,
            text_column=arguments.text_column,
            answers=arguments.questions,
            encoder=arguments.encoder,
            processes=arguments.processes,
            log=print_line,
        )
    carried = carry(
        histogram,
        source,
        target,
        level=arguments.level,
        embeddings=embeddings,
        held_out=held_out,
        way=arguments.by,
        seed=arguments.seed,
        log=print_line,
    )
    print(describe(carried, histogram, {"source": source.root, "target": target.root}))
    if arguments.keep_embeddings and embeddings is not None:
        embeddings.of(carried.histogram).save(beside(arguments.out))
    if arguments.json:
        error = None if carried.error is None else carried.error.to_json()
        _write_json(arguments.json, {"way": carried.way, "missing": carried.missing, "error": error})
    _save(carried.histogram, arguments.out)


def _add_source(verb: argparse.ArgumentParser, what: str = "histogram file") -> None:
    verb.add_argument("histogram", metavar="H", help=what)
    verb.add_argument("--data", required=True, metavar="ROOT", help="dataset of its tree")


def _histogram_and_dataset(arguments: argparse.Namespace) -> tuple[Histogram, Dataset]:
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.histograms.histogram import Histogram

    return Histogram.load(arguments.histogram), open_dataset(arguments.data)


def _add_out(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--out", required=True, metavar="FILE", help="histogram to write")


def _save(histogram: Histogram, path: str) -> None:
    histogram.save(path)
    print(f"{len(histogram.nodes):,} clusters of level {histogram.level}, written to {path}")


def _write_json(path: str, content: dict[str, Any]) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
