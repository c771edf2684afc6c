"""The commands `eval`, `contamination` and `split`: judging models, and the sets that they are judged on."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from crisp_stream.cli.next_step import say_next
from crisp_stream.cli.ranks import add_launch_arguments, as_a_rank, handed_over, is_first_rank
from crisp_stream.cli.verbs import (
    add_dataset_options,
    add_question_keys,
    add_selection,
    add_verb,
    add_wide,
    print_line,
    selection_of,
)
from crisp_stream.errors import InputError
from crisp_stream.writers.flags import add_flags

if TYPE_CHECKING:
    from crisp_stream.evaluation.contamination import Contamination

_SHOWN = 5
_SHOWN_CHARACTERS = 160


def add_eval(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "eval",
        _eval,
        "Judge checkpoints: perplexity on held-out text (paper, Section 3.1), multiple choice (Appendix D). Prints a "
        "table; with --out, keeps the result of every example for `crisp-stream results`.",
    )
    verb.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CKPT",
        help="Composer checkpoint, exported folder, or save_folder of a run (its newest checkpoint); others are "
        "compared with the first",
    )
    verb.add_argument(
        "--text",
        nargs="+",
        action="append",
        default=[],
        metavar="INPUT",
        help="a set of held-out documents; may be repeated",
    )
    add_flags(verb, ("text_column",))
    add_selection(verb)
    verb.add_argument(
        "--mcq",
        nargs="+",
        default=[],
        metavar="FILE",
        help='your question sets: {"question", "choices", "answer": index, "topic"}, or another known layout (docs); '
        ".jsonl, .json, .csv, .tsv, .parquet, also .gz or .zst",
    )
    add_question_keys(verb)
    verb.add_argument(
        "--mcq-text",
        nargs="+",
        default=[],
        metavar="FILE",
        help="perplexity of questions with their right answers, each a text (paper, Figure 8)",
    )
    verb.add_argument(
        "--metric",
        choices=["acc", "acc_norm"],
        default="acc_norm",
        help="for --mcq: choose answers by log probability, or by log probability per character",
    )
    verb.add_argument(
        "--task",
        nargs="+",
        default=[],
        metavar="TASK[=FILE]",
        help="arc_easy, arc_challenge, mmlu, rewardbench_reasoning: from the hub, or a local file of its schema",
    )
    verb.add_argument(
        "--limit", type=int, metavar="N", help="use the first N documents and N random questions of each set"
    )
    verb.add_argument("--every", action="store_true", help="CKPT are save_folders: judge every checkpoint of each")
    verb.add_argument(
        "--name", nargs="+", default=[], metavar="NAME", help="names of the models in tables; RUN-baN when absent"
    )
    verb.add_argument("--out", metavar="DIR", help="folder or prefix for the results of every example")
    verb.add_argument(
        "--contamination",
        metavar="FILE",
        help="file of `crisp-stream contamination`: figures also without the examples that stand in the training data",
    )
    verb.add_argument(
        "--allow-seen",
        action="store_true",
        help="judge also on text that the model was trained on, and on examples that the mixture's histogram was "
        "counted from",
    )
    verb.add_argument(
        "--long",
        choices=["cut", "drop", "error"],
        default="cut",
        help="examples longer than the model's context. cut: prompts of questions lose their beginning, texts are read "
        "in windows; drop: they are left out; error: they are refused. All are counted in the table",
    )
    verb.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="full contexts per forward pass; no effect on results"
    )
    add_wide(verb)
    add_launch_arguments(verb, alone="this process judges")


def _eval(arguments: argparse.Namespace) -> int:
    if not (arguments.text or arguments.mcq or arguments.mcq_text or arguments.task):
        raise InputError(
            "eval needs --text INPUT…, --mcq FILE… or --task TASK…, got none of them. Name a set to judge on."
        )
    if (code := handed_over(arguments)) is not None:
        return code
    from crisp_stream.evaluation.contamination import Contamination
    from crisp_stream.evaluation.judge import JudgedSets, TextSet, each_checkpoint, judge
    from crisp_stream.evaluation.question_sets import open_question_set
    from crisp_stream.examples.question_layouts import QuestionKeys
    from crisp_stream.results.tables import result_rows, result_tables

    with as_a_rank(arguments):
        log = print_line if is_first_rank() else lambda line: None
        keys = QuestionKeys.parse(arguments.question_keys)
        questions = [open_question_set(file, metric=arguments.metric, keys=keys) for file in arguments.mcq]
        questions += [open_question_set(task, keys=keys) for task in arguments.task]
        sets = JudgedSets(
            texts=[
                TextSet(
                    inputs=tuple(inputs),
                    text_column=arguments.text_column,
                    limit=arguments.limit,
                    **selection_of(arguments),
                )
                for inputs in arguments.text
            ]
            + [
                TextSet(inputs=(file,), limit=arguments.limit, questions=True, question_keys=keys)
                for file in arguments.mcq_text
            ],
            questions=[whole.sample(arguments.limit) for whole in questions],
            contamination=Contamination.load(arguments.contamination) if arguments.contamination else None,
            allow_seen=arguments.allow_seen,
            long=arguments.long,
        )
        results = judge(
            each_checkpoint(arguments.checkpoints) if arguments.every else arguments.checkpoints,
            sets,
            names=arguments.name,
            batch_size=arguments.batch_size,
            out=arguments.out,
            log=log,
            progress=_progress,
        )
        models = list(dict.fromkeys(judged.model_name for judged in results))
        rows = result_rows(results, baseline=models[0] if len(models) > 1 else None)
        log(result_tables(rows, wide=arguments.wide).text())
        if arguments.out:
            log(f"\nresults of every example in {arguments.out}; tables and figures of them: crisp-stream results")
            compared = ("better", arguments.out, "--than", models[0])
            if is_first_rank():
                say_next("results", *(compared if len(models) > 1 else ("table", arguments.out)))
    return 0


def _progress(judged: str, total: int) -> Callable[[int], None]:
    from tqdm import tqdm

    bar = tqdm(total=total, desc=judged, unit="example", disable=not (is_first_rank() and sys.stderr.isatty()))

    def advance(more: int) -> None:
        bar.update(more)
        if bar.n >= total:
            bar.close()

    return advance


def add_contamination(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "contamination",
        _contamination,
        "Find the examples of evaluation files that have a part in a dataset. An example is contaminated when any 13 "
        "consecutive words of it stand in a window; give the result to eval as --contamination.",
    )
    verb.add_argument("root", metavar="ROOT", help="dataset root")
    verb.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="documents, or questions of any layout that eval reads: .jsonl, .json, .ndjson, .csv, .tsv, .txt or "
        ".parquet, also .gz or .zst; or a task of the paper, TASK or TASK=FILE, as for eval",
    )
    add_question_keys(verb)
    verb.add_argument("--out", required=True, metavar="FILE", help="result, FILE.parquet, to write")
    add_flags(verb, ("text_column",))
    verb.add_argument("--ngram", type=int, default=13, metavar="N", help="words of a match, 2 to 64")
    add_dataset_options(verb, "--processes", "--generation")


def _contamination(arguments: argparse.Namespace) -> None:
    from crisp_stream.evaluation.contamination import check_contamination, check_path
    from crisp_stream.examples.question_layouts import QuestionKeys
    from crisp_stream.processes import num_processes

    check_path(arguments.out)
    started = time.monotonic()
    contamination = check_contamination(
        arguments.root,
        arguments.files,
        text_column=arguments.text_column,
        keys=QuestionKeys.parse(arguments.question_keys),
        ngram=arguments.ngram,
        generation=arguments.generation,
        processes=arguments.processes,
        log=print_line,
    )
    contamination.save(arguments.out)
    _print_contamination(contamination, arguments.out, time.monotonic() - started, num_processes(arguments.processes))


def _print_contamination(contamination: Contamination, out: str, seconds: float, processes: int) -> None:
    contaminated, megabytes = contamination.contaminated, contamination.text_bytes / 1e6
    print(f"{'examples':>9} {'contaminated':>12} {'too short':>9}  file")
    for number, name in enumerate(contamination.files):
        of_file = contamination.file == number
        too_short = (~contamination.checked[of_file]).sum()
        print(f"{of_file.sum():>9,} {contaminated[of_file].sum():>12,} {too_short:>9,}  {name}")
    for at in contaminated.nonzero()[0][:_SHOWN].tolist():
        words = contamination.words[at] or ""
        shown = words if len(words) <= _SHOWN_CHARACTERS else f"{words[:_SHOWN_CHARACTERS]}…"
        print(
            f"row {contamination.row[at]} of {contamination.files[contamination.file[at]]}: "
            f"{contamination.shares[at]:.1%} of its n-grams; window {contamination.windows[at]}: {shown}"
        )
    if not contamination.num_borders:
        print("borders of windows were not searched: words that two windows share are missed")
    print(
        f"{out}: {int(contaminated.sum()):,} of {contamination.num_examples:,} examples contaminated; "
        f"{contamination.num_windows:,} windows, {megabytes:,.1f} MB of text in {seconds:.1f} s, "
        f"{megabytes / seconds / processes:,.1f} MB/s per process ({processes})"
    )


def add_split(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "split",
        _split,
        "Cut a question set at random into a specialist half, for its histogram, and a test half, to judge by. "
        "Duplicates and near-duplicates fall into one half. Writes PREFIX.specialist.jsonl, PREFIX.test.jsonl and "
        "PREFIX.split.json.",
    )
    verb.add_argument(
        "questions",
        metavar="QUESTIONS|TASK",
        help="questions of any layout that eval reads; a task of the paper (arc_easy, arc_challenge, mmlu, "
        "rewardbench_reasoning), fetched from the hub; or TASK=FILE",
    )
    add_question_keys(verb)
    verb.add_argument("--out", required=True, metavar="PREFIX", help="beginning of the names of the files")
    verb.add_argument(
        "--seed", type=int, default=0, metavar="S", help="seed of the draw; equal seeds give equal halves"
    )


def _split(arguments: argparse.Namespace) -> None:
    from crisp_stream.evaluation.halves import cut_in_halves, write_halves
    from crisp_stream.evaluation.question_sets import open_question_set
    from crisp_stream.examples.question_layouts import QuestionKeys

    if arguments.seed < 0:
        raise InputError(f"--seed: must be 0 or more, got {arguments.seed}. Choose another.")
    questions = open_question_set(arguments.questions, keys=QuestionKeys.parse(arguments.question_keys))
    for note in questions.read_as:
        print(note)
    for warning in questions.warnings:
        print(f"warning: {warning}")
    halves = cut_in_halves(questions.questions, seed=arguments.seed)
    written = write_halves(questions, halves, arguments.out, seed=arguments.seed, source=arguments.questions)
    sizes = halves.group_sizes
    alike = f"{sum(sizes):,} in {len(sizes):,} groups of alike ones, of up to {sizes[0]:,}" if sizes else "none alike"
    print(f"{'questions':<10}  {len(questions.questions):>8,}  {alike}")
    print(f"{'specialist':<10}  {len(halves.specialist):>8,}  {written[0]}")
    print(f"{'test':<10}  {len(halves.test):>8,}  {written[1]}")
