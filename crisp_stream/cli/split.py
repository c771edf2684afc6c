"""The command `split`: a question set in two halves."""

from __future__ import annotations

import argparse
from typing import Any

from crisp_stream.cli.verbs import add_verb


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
    from crisp_stream.errors import InputError
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
