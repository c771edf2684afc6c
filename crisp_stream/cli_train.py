"""The commands `crisp-stream train` and `crisp-stream finetune`: in this process, or handed over to the launcher."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from crisp_stream.errors import InputError, RunInterruptedError
from crisp_stream.launch import launch, processes
from crisp_stream.verbs import add_recipe_arguments, add_verb, print_line, recipes_and_overrides

_STOPPING = "SIGTERM or Ctrl-C ends the run after the batch in progress, with a checkpoint (exit 143 or 130)."


def add_train(verbs: Any) -> None:
    """Declare the command."""
    verb = add_verb(verbs, "train", _train, f"Train a GPT by a recipe. {_STOPPING}")
    add_recipe_arguments(verb)
    verb.add_argument(
        "--each",
        nargs="+",
        metavar="H",
        default=[],
        help="train once for each of these histograms, which take the place of that of the last phase; the runs are "
        "named after their files",
    )
    _add_launch_arguments(verb)


def add_finetune(verbs: Any) -> None:
    """Declare the command."""
    verb = add_verb(
        verbs,
        "finetune",
        _finetune,
        "Fine-tune a trained model on the specialist text itself, with the fraction of steps validated. Each fraction "
        f"starts from the pretraining checkpoint that leaves it, so the effort is equal. {_STOPPING}",
    )
    add_recipe_arguments(verb)
    verb.add_argument("--pretrained", required=True, metavar="DIR", help="save_folder of the pretraining run")
    verb.add_argument("--text", nargs="+", required=True, metavar="INPUT", help="validation documents")
    verb.add_argument(
        "--fractions",
        nargs="+",
        type=float,
        default=[0.03, 0.1, 0.3, 1.0],
        metavar="F",
        help="of the steps of the whole run; 1 is the specialist text alone, from random weights",
    )
    _add_launch_arguments(verb)


def _add_launch_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--nproc",
        type=processes,
        default=argparse.SUPPRESS,
        metavar="N|auto",
        help="start N processes on this node with Composer's launcher; auto: one per GPU. Further nodes: WORLD_SIZE, "
        "NODE_RANK, MASTER_ADDR and MASTER_PORT in the environment. Absent: this process trains",
    )
    verb.add_argument(
        "--rank-logs",
        metavar="DIR",
        help="with --nproc: folder for what the ranks of this node but its first print; else shown if they fail",
    )


def _train(asked: argparse.Namespace) -> int:
    from crisp_stream.config import load_each

    recipes = load_each(*recipes_and_overrides(asked.recipe), asked.each)
    if "nproc" in asked:
        return _handed_over(asked, ["train", *asked.recipe, *_option("--each", asked.each)])
    with _as_a_rank(asked):
        from crisp_stream.train import train

        for recipe in recipes:
            report = train(recipe)
            if _is_first_rank():
                print(report.table(), flush=True)
            if report.interrupted_by is not None:
                raise RunInterruptedError(
                    f"{recipe.run_name} was stopped by {report.interrupted_by} after batch {report.interrupted_at:,}.",
                    signal_name=report.interrupted_by,
                )
    return 0


def _finetune(asked: argparse.Namespace) -> int:
    from crisp_stream.config import load_recipe

    names, overrides = recipes_and_overrides(asked.recipe)
    recipe = load_recipe([*names, "finetune"], [f"eval.inputs={json.dumps(asked.text)}", *overrides])
    if "nproc" in asked:
        options = ["--pretrained", asked.pretrained, *_option("--text", asked.text)]
        fractions = _option("--fractions", [str(fraction) for fraction in asked.fractions])
        return _handed_over(asked, ["finetune", *asked.recipe, *options, *fractions])
    with _as_a_rank(asked):
        from crisp_stream.finetune import finetune, table

        models = finetune(
            recipe,
            pretrained=asked.pretrained,
            fractions=asked.fractions,
            log=print_line if _is_first_rank() else lambda line: None,
        )
        if _is_first_rank():
            print(table(models))
            print(f"\nwritten to {recipe.checkpoint_folder}/finetune.csv", flush=True)
    return 0


def _option(name: str, values: Sequence[str]) -> list[str]:
    return [name, *values] if values else []


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _handed_over(asked: argparse.Namespace, arguments: Sequence[str]) -> int:
    """The exit code of the same command as ranks of Composer's launcher."""
    return launch(arguments, nproc=asked.nproc, rank_logs=asked.rank_logs)


@contextlib.contextmanager
def _as_a_rank(asked: argparse.Namespace) -> Iterator[None]:
    """Train in this process, which may be one of several. Raises InputError: options for the launcher alone."""
    if asked.rank_logs is not None:
        raise InputError("--rank-logs is for the processes that --nproc starts; there is no --nproc.")
    try:
        yield
    finally:
        if "RANK" in os.environ:  # a launcher ends the ranks that end last, and hands on their exit codes
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
