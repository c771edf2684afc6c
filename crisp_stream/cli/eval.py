"""The commands `eval`, `contamination` and `split`: judging models, and the sets that they are judged by."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from crisp_stream.cli.ranks import add_launch_arguments, as_a_rank, handed_over, is_first_rank
from crisp_stream.cli.verbs import add_selection, add_verb, print_line
from crisp_stream.errors import InputError

if TYPE_CHECKING:
    from crisp_stream.evaluation.contamination import Contamination

_SHOWN = 5
_SHOWN_CHARACTERS = 160


def add_eval(verbs: Any) -> None:
    """Declare the command."""
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
    verb.add_argument("--text-column", default="text", metavar="NAME", help="key or column of the text")
    add_selection(verb)
    verb.add_argument(
        "--mcq",
        nargs="+",
        default=[],
        metavar="FILE",
        help='sets of questions of your own: JSONL or Parquet of {"question", "choices", "answer": index, "topic"}',
    )
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
        help="for --mcq: by log probability, or that per character",
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
        "--name", nargs="+", default=[], metavar="NAME", help="of the models in tables; RUN-baN when absent"
    )
    verb.add_argument("--out", metavar="DIR", help="folder or prefix for the results of every example")
    verb.add_argument(
        "--contamination",
        metavar="FILE",
        help="of `crisp-stream contamination`: warn of examples that stand in the training data",
    )
    verb.add_argument(
        "--allow-seen", action="store_true", help="judge also on examples that the mixture's histogram was counted on"
    )
    verb.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="full contexts per forward pass; no effect on results"
    )
    add_launch_arguments(verb, alone="this process judges")


def _eval(asked: argparse.Namespace) -> int:
    if not (asked.text or asked.mcq or asked.mcq_text or asked.task):
        raise InputError("eval needs --text INPUT…, --mcq FILE… or --task TASK…, got neither.")
    if (code := handed_over(asked)) is not None:
        return code
    from crisp_stream.evaluation.contamination import Contamination
    from crisp_stream.evaluation.judge import TextSet, each_checkpoint, judge
    from crisp_stream.evaluation.question_sets import open_question_set
    from crisp_stream.results.tables import results_table

    with as_a_rank(asked):
        log = print_line if is_first_rank() else lambda line: None
        own = [open_question_set(file, metric=asked.metric) for file in asked.mcq]
        results = judge(
            each_checkpoint(asked.checkpoints) if asked.every else asked.checkpoints,
            names=asked.name,
            text_sets=[
                TextSet(
                    inputs=tuple(inputs),
                    text_column=asked.text_column,
                    limit=asked.limit,
                    filters=tuple(asked.filter),
                    layout=asked.layout,
                )
                for inputs in asked.text
            ]
            + [TextSet(inputs=(file,), limit=asked.limit, questions=True) for file in asked.mcq_text],
            question_sets=[each.sample(asked.limit) for each in (*own, *map(open_question_set, asked.task))],
            contamination=Contamination.load(asked.contamination) if asked.contamination else None,
            allow_seen=asked.allow_seen,
            batch_size=asked.batch_size,
            out=asked.out,
            log=log,
            progress=_progress,
        )
        models = list(dict.fromkeys(each.model_name for each in results))
        log(results_table(results, baseline=models[0] if len(models) > 1 else None))
        if asked.out:
            log(f"\nresults of every example in {asked.out}; tables and figures of them: crisp-stream results")
    return 0


def _progress(what: str, total: int) -> Callable[[int], None]:
    from tqdm import tqdm

    bar = tqdm(total=total, desc=what, unit="example", disable=not (is_first_rank() and sys.stderr.isatty()))

    def advance(more: int) -> None:
        bar.update(more)
        if bar.n >= total:
            bar.close()

    return advance


def add_contamination(verbs: Any) -> None:
    """Declare the command."""
    verb = add_verb(
        verbs,
        "contamination",
        _contamination,
        "Find the examples of evaluation files that have a part in a dataset. An example is contaminated when any 13 "
        "consecutive words of it stand in a window; give the file it writes to eval as --contamination.",
    )
    verb.add_argument("root", metavar="ROOT", help="dataset root")
    verb.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="documents or questions: .jsonl, .json, .ndjson, .txt or .parquet, also .gz or .zst; or a task of the "
        "paper, TASK or TASK=FILE, as for eval",
    )
    verb.add_argument("--out", required=True, metavar="FILE", help="result, FILE.parquet, to write")
    verb.add_argument("--text-column", default="text", metavar="NAME", help="key or column of documents")
    verb.add_argument("--ngram", type=int, default=13, metavar="N", help="words of a match, 2 to 64")
    verb.add_argument("--processes", type=int, metavar="N", help="worker processes; one per core when absent")
    verb.add_argument("--generation", type=int, metavar="G", help="an older generation of a dataset that has grown")


def _contamination(asked: argparse.Namespace) -> None:
    from crisp_stream.evaluation.contamination import check_contamination, check_path
    from crisp_stream.processes import num_processes

    check_path(asked.out)
    started = time.monotonic()
    found = check_contamination(
        asked.root,
        asked.files,
        text_column=asked.text_column,
        ngram=asked.ngram,
        generation=asked.generation,
        processes=asked.processes,
        log=print_line,
    )
    found.save(asked.out)
    _print_contamination(found, asked.out, time.monotonic() - started, num_processes(asked.processes))


def _print_contamination(found: Contamination, out: str, seconds: float, processes: int) -> None:
    megabytes = found.text_bytes / 1e6
    print(f"{'examples':>9} {'contaminated':>12} {'too short':>9}  file")
    for number, name in enumerate(found.files):
        own = found.file == number
        print(f"{own.sum():>9,} {found.contaminated[own].sum():>12,} {(~found.checked[own]).sum():>9,}  {name}")
    for at in found.contaminated.nonzero()[0][:_SHOWN].tolist():
        words = found.words[at] or ""
        shown = words if len(words) <= _SHOWN_CHARACTERS else f"{words[:_SHOWN_CHARACTERS]}…"
        print(
            f"row {found.row[at]} of {found.files[found.file[at]]}: {found.shares[at]:.1%} of its n-grams; window "
            f"{found.windows[at]}: {shown}"
        )
    if not found.num_borders:
        print("borders of windows were not looked across: words that two windows share are not seen")
    print(
        f"{out}: {int(found.contaminated.sum()):,} of {found.num_examples:,} examples contaminated; "
        f"{found.num_windows:,} windows, {megabytes:,.1f} MB of text in {seconds:.1f} s, "
        f"{megabytes / seconds / processes:,.1f} MB/s per process ({processes})"
    )


def add_split(verbs: Any) -> None:
    """Declare the command."""
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
        help="questions as JSON lines or Parquet; a task of the paper (arc_easy, arc_challenge, mmlu, "
        "rewardbench_reasoning), fetched from the hub; or TASK=FILE",
    )
    verb.add_argument("--out", required=True, metavar="PREFIX", help="beginning of the names of the files")
    verb.add_argument("--seed", type=int, default=0, metavar="S", help="of the draw; equal seeds give equal halves")


def _split(asked: argparse.Namespace) -> None:
    from crisp_stream.evaluation.halves import cut_in_halves, write_halves
    from crisp_stream.evaluation.question_sets import open_question_set

    if asked.seed < 0:
        raise InputError(f"--seed: must be 0 or more, got {asked.seed}.")
    questions = open_question_set(asked.questions)
    for warning in questions.warnings:
        print(f"warning: {warning}")
    halves = cut_in_halves(questions.questions, seed=asked.seed)
    written = write_halves(questions, halves, asked.out, seed=asked.seed, source=asked.questions)
    sizes = halves.group_sizes
    alike = f"{sum(sizes):,} in {len(sizes):,} groups of alike ones, of up to {sizes[0]:,}" if sizes else "none alike"
    print(f"{'questions':<10}  {len(questions.questions):>8,}  {alike}")
    for half, path in zip(("specialist", "test"), written, strict=False):
        print(f"{half:<10}  {len(halves.of(half)):>8,}  {path}")
