"""The commands `crisp-stream train` and `crisp-stream finetune`: in this process, or handed over to the launcher."""

from __future__ import annotations

import argparse
import json
from typing import Any

from crisp_stream.cli.next_step import HELD_OUT, say_next
from crisp_stream.cli.ranks import add_launch_arguments, as_a_rank, handed_over, is_first_rank
from crisp_stream.cli.verbs import add_recipe_arguments, add_verb, print_line
from crisp_stream.config.files import recipes_and_overrides
from crisp_stream.errors import RunInterruptedError

_STOPPING = "SIGTERM or Ctrl-C ends the run after the batch in progress, with a checkpoint (exit 143 or 130)."


def add_train(verbs: Any) -> None:
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
    add_launch_arguments(verb, alone="this process trains")


def add_finetune(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "finetune",
        _finetune,
        "Fine-tune a trained model on the specialist text itself, with the fraction of steps validated. Each fraction "
        f"starts from the pretraining checkpoint that leaves it, so the effort is equal. {_STOPPING}",
    )
    add_recipe_arguments(verb)
    verb.add_argument(
        "--method",
        choices=["finetune", "replay"],
        default="finetune",
        help="recipe of these steps: the specialist text alone, or with a share of the corpus (default: %(default)s)",
    )
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
    verb.add_argument(
        "--allow-seen", action="store_true", help="go on where validation documents stand in text that is trained on"
    )
    add_launch_arguments(verb, alone="this process trains")


def _train(arguments: argparse.Namespace) -> int:
    from crisp_stream.config.load import load_each

    recipes = load_each(*recipes_and_overrides(arguments.recipe), arguments.each)
    if (code := handed_over(arguments)) is not None:
        return code
    with as_a_rank(arguments):
        from crisp_stream.training.train import train

        for recipe in recipes:
            report = train(recipe)
            if is_first_rank():
                print(report.table(), flush=True)
            if report.interrupted_by is not None:
                raise RunInterruptedError(
                    f"{recipe.run_name} was stopped by {report.interrupted_by} after batch {report.interrupted_at:,}.",
                    signal_name=report.interrupted_by,
                )
        folders = [recipe.checkpoint_folder for recipe in recipes if recipe.checkpoint_folder]
        if folders and is_first_rank():
            say_next("eval", *folders, "--text", HELD_OUT, "--out", "judged")
    return 0


def _finetune(arguments: argparse.Namespace) -> int:
    from crisp_stream.config.load import load_recipe

    names, overrides = recipes_and_overrides(arguments.recipe)
    recipe = load_recipe([*names, arguments.method], [f"eval.inputs={json.dumps(arguments.text)}", *overrides])
    if (code := handed_over(arguments)) is not None:
        return code
    with as_a_rank(arguments):
        from crisp_stream.training.finetune import finetune, table

        models = finetune(
            recipe,
            pretrained=arguments.pretrained,
            fractions=arguments.fractions,
            log=print_line if is_first_rank() else lambda line: None,
            allow_seen=arguments.allow_seen,
        )
        if is_first_rank():
            print(table(models).text())
            print(f"\nwritten to {recipe.checkpoint_folder}/finetune.csv", flush=True)
    return 0
