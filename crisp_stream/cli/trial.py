"""The commands `try` and `demo`."""

from __future__ import annotations

import argparse
from typing import Any

from crisp_stream.cli.verbs import add_verb, print_line


def add_try(verbs: Any) -> None:
    """Declare the command."""
    verb = add_verb(
        verbs,
        "try",
        _try,
        "From your own corpus and task to a verdict, in minutes. Takes a sample, holds text out, writes, counts and "
        "tunes, trains base and CRISP, judges both, writes one HTML page, and says the commands that it stands for and "
        "those for the whole corpus. Sizes follow from the minutes and from what this machine does in some seconds. "
        "Run again, it goes on.",
    )
    verb.add_argument("corpus", metavar="CORPUS", help="documents: file, folder, prefix or glob, as for write")
    verb.add_argument("task", metavar="TASK", help="examples of the task, 24 or more; a third at most is held out")
    verb.add_argument("--questions", action="store_true", help="TASK holds multiple-choice questions")
    verb.add_argument("--minutes", type=float, default=10.0, metavar="M", help="that it may take, about, 3 to 240")
    verb.add_argument("--text-column", default="text", metavar="NAME", help="key or column of the text, of both")
    verb.add_argument("--out", default="trial", metavar="DIR", help="folder of everything that is made")
    verb.add_argument("--fresh", action="store_true", help="train again even where runs are finished")
    verb.add_argument("--plan", action="store_true", help="say sizes and minutes; write nothing")


def _try(arguments: argparse.Namespace) -> None:
    from crisp_stream.trial.split import TrialInputs

    inputs = TrialInputs(
        corpus=arguments.corpus,
        task=arguments.task,
        text_column=arguments.text_column,
        questions=arguments.questions,
    )
    if arguments.plan:
        from crisp_stream.trial.sizing import plan_trial

        print(plan_trial(inputs, arguments.minutes).text())
        return
    from crisp_stream.trial.own import run_own_trial

    run_own_trial(inputs, minutes=arguments.minutes, folder=arguments.out, fresh=arguments.fresh, log=print_line)


def add_demo(verbs: Any) -> None:
    """Declare the command."""
    verb = add_verb(
        verbs,
        "demo",
        _demo,
        "The whole method on real text, in minutes on two cores, from text to two judged models. Writes one HTML page, "
        "which begins with the verdict. Fetches two public packages; run again, it resumes.",
    )
    verb.add_argument("--out", default="demo-out/data", metavar="ROOT", help="dataset root to create")
    verb.add_argument(
        "--run-folder",
        default="demo-out",
        metavar="DIR",
        help="folder for checkpoints, histogram, results and the page, report.html",
    )
    verb.add_argument("--fresh", action="store_true", help="train again even where runs are finished")


def _demo(arguments: argparse.Namespace) -> None:
    from crisp_stream.demo import run_demo

    run_demo(arguments.out, run_folder=arguments.run_folder, fresh=arguments.fresh, log=print_line)
