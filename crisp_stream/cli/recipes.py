"""crisp-stream recipes."""

from __future__ import annotations

import argparse
from typing import Any

from crisp_stream.cli.verbs import add_verb
from crisp_stream.config.files import recipes_and_overrides
from crisp_stream.errors import InputError


def add_recipes(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "recipes",
        _recipes,
        "List the packaged recipes, show one, resolve some laid over one another into all their keys, or copy one to "
        "edit it.",
    )
    verb.add_argument(
        "action", nargs="?", choices=["list", "show", "resolve", "copy"], default="list", help="what to do"
    )
    verb.add_argument(
        "names", nargs="*", metavar="RECIPE", help="for show and copy one; for resolve as for train, with key=value"
    )
    verb.add_argument("--out", metavar="FILE", help="for copy; RECIPE.yaml here when absent")


def _recipes(arguments: argparse.Namespace) -> None:
    from crisp_stream.config.files import copy_recipe, list_recipes, read_recipe
    from crisp_stream.config.load import dump_recipe, load_recipe

    if arguments.action == "list":
        recipes = list_recipes()
        width = max(map(len, recipes))
        for name, title in recipes.items():
            print(f"{name:<{width}}  {title}")
        return
    if arguments.action == "resolve":
        print(dump_recipe(load_recipe(*recipes_and_overrides(arguments.names))), end="")
        return
    if len(arguments.names) != 1:
        raise InputError(
            f"recipes {arguments.action} needs the name of one recipe, got {len(arguments.names)}. "
            "`crisp-stream recipes` lists them."
        )
    if arguments.action == "show":
        print(read_recipe(arguments.names[0]), end="")
    else:
        print(f"written to {copy_recipe(arguments.names[0], arguments.out)}")
