"""The command `crisp-stream finetune`."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from crisp_stream.verbs import add_recipe_arguments, add_verb, print_line, recipes_and_overrides


def add_finetune(verbs: Any) -> None:
    """Declare the command."""
    verb = add_verb(
        verbs,
        "finetune",
        _finetune,
        "Fine-tune a trained model on the specialist text itself, with the fraction of steps validated. Each fraction "
        "starts from the pretraining checkpoint that leaves it, so the effort is equal; the best one is named.",
    )
    add_recipe_arguments(verb)
    verb.add_argument("--pretrained", required=True, metavar="DIR", help="save_folder of the pretraining run")
    verb.add_argument(
        "--text", nargs="+", required=True, metavar="INPUT", help="validation documents of the specialist"
    )
    verb.add_argument(
        "--fractions",
        nargs="+",
        type=float,
        default=[0.03, 0.1, 0.3, 1.0],
        metavar="F",
        help="of the steps of the whole run; 1 is the specialist text alone, from random weights",
    )


def _finetune(asked: argparse.Namespace) -> None:
    from crisp_stream.config import load_recipe
    from crisp_stream.finetune import finetune, table

    names, overrides = recipes_and_overrides(asked.recipe)
    recipe = load_recipe([*names, "finetune"], [f"eval.inputs={json.dumps(asked.text)}", *overrides])
    first = os.environ.get("RANK", "0") == "0"
    models = finetune(
        recipe, pretrained=asked.pretrained, fractions=asked.fractions, log=print_line if first else lambda line: None
    )
    if first:
        print(table(models))
        print(f"\nwritten to {recipe.checkpoint_folder}/finetune.csv")
