"""The command `eval`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from crisp_stream.cli.ranks import add_launch_arguments, as_a_rank, handed_over, is_first_rank
from crisp_stream.cli.verbs import add_selection, add_verb, print_line
from crisp_stream.errors import InputError


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
    from crisp_stream.results.tables import result_rows, result_tables

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
        rows = result_rows(results, baseline=models[0] if len(models) > 1 else None)
        log(result_tables(rows).text())
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
