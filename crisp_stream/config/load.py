"""Recipes: YAML says everything about a training run; this file turns it into checked, typed values.

A recipe is plain data (safe YAML), keys are spelled as Composer and llm-foundry spell them, and every mistake is found
before torch is imported: a misspelt key, a value of the wrong type, values that contradict each other. The alternative,
a dictionary handed through to the trainer, finds a misspelt `max_duratoin` after the dataset and the model are built.

YAML 1.1 reads `1e-4` as text; a number key accepts it anyway.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from crisp_stream.config.files import compose
from crisp_stream.config.recipe import Recipe
from crisp_stream.config.sections import SELECTION_SUFFIX
from crisp_stream.errors import RecipeError
from crisp_stream.typed import Builder, kind_of, plain

_BUILDER = Builder(
    error=RecipeError,
    key_noun="recipe key",
    missing_remedies={  # of keys that only some of the packaged recipes have
        "mixture": "Add a method behind the size, such as base or crisp: crisp-stream train gpt-1.3b crisp",
        "model": "Name a size before the method, such as demo or gpt-350m: crisp-stream train gpt-350m crisp",
    },
    lenient=True,
)


def load_recipe(names: str | Path | Sequence[str | Path], overrides: Sequence[str] = ()) -> Recipe:
    """Read recipes, lay them over one another, and check everything that can be checked without the dataset.

    Args:
        names: a YAML file or the name of a packaged recipe, or several, the last on top: `["demo", "crisp"]`.
        overrides: `key=value` or `key.sub=value`; the value is YAML. List items are addressed by number
            (`mixture.phases.0.histogram=h.parquet`). Later ones win.

    Raises:
        RecipeError: no such recipe, not YAML, an unknown or missing key, a wrong type, or a contradiction.
    """
    tree, origin = compose(names)
    for override in overrides:
        _apply_override(tree, override)
    try:
        return _BUILDER.build(Recipe, tree)
    except RecipeError as error:
        raise RecipeError(f"{origin}: {error}") from error


def load_each(
    names: str | Path | Sequence[str | Path], overrides: Sequence[str], histograms: Sequence[str]
) -> list[Recipe]:
    """Load a recipe for each histogram or window selection, which replaces that of the last phase; the recipe alone
    where there are none.

    Of a phase of components it replaces the one file of its kind that they name, at the end of a schedule, too.

    Raises:
        RecipeError: as load_recipe; two runs would be one, or have one folder; the last phase names no such file, or
            several.
    """
    recipe = load_recipe(names, overrides)
    if not histograms:
        return [recipe]
    stems = [Path(histogram).stem.removesuffix(Path(SELECTION_SUFFIX).stem) for histogram in histograms]
    if len(set(stems)) < len(stems):
        raise RecipeError(f"--each: the runs are named after the files, so these must differ; got {', '.join(stems)}.")
    if recipe.save_folder is not None and "{run_name}" not in recipe.save_folder:
        raise RecipeError(
            "--each: `save_folder` must hold {run_name}, or all runs would have one folder; "
            f"got {recipe.save_folder}."
        )
    recipes = []
    for stem, path in zip(stems, histograms, strict=True):
        values = {"run_name": f"{recipe.run_name}-{stem}", **_drawn_by(recipe, path)}
        drawn_by = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        recipes.append(load_recipe(names, [*overrides, *drawn_by]))
    return recipes


def _drawn_by(recipe: Recipe, path: str) -> dict[str, str | None]:
    """The keys with which the last phase of a recipe is drawn by another histogram or selection, and their values."""
    phase, last = recipe.mixture.phases[-1], f"mixture.phases.{len(recipe.mixture.phases) - 1}"
    kind, other = ("windows", "histogram") if path.endswith(SELECTION_SUFFIX) else ("histogram", "windows")
    if phase.components is None:
        keeps_both = phase.histogram is not None and phase.windows is not None
        return {f"{last}.{kind}": path} if keeps_both else {f"{last}.{kind}": path, f"{last}.{other}": None}
    listed = {f"{last}.components.{number}": part for number, part in enumerate(phase.components)}
    if phase.schedule is not None:
        listed |= {f"{last}.schedule.to.{number}": part for number, part in enumerate(phase.schedule.to)}
    named = {key: getattr(part, kind) for key, part in listed.items() if getattr(part, kind) not in (None, "base")}
    if len(set(named.values())) != 1:
        found = ", ".join(str(file) for file in dict.fromkeys(named.values())) or "none"
        raise RecipeError(
            f"--each: {path} takes the place of the one file that components of `{last}` name as `{kind}`; got {found}."
            " Write a recipe for each run."
        )
    return {f"{key}.{kind}": path for key in named}


def recipe_of(tree: Any) -> Recipe:
    """Make a recipe of all its keys as plain data, such as `run.json` holds. Raises RecipeError."""
    return _BUILDER.build(Recipe, tree)


def dump_recipe(recipe: Recipe) -> str:
    """Write all keys of a recipe as YAML, defaults included; `load_recipe` reads it back."""
    return yaml.safe_dump(plain(recipe), sort_keys=False)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise RecipeError(f"an override is key=value or key.sub=value, not {override!r}.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"the value of {override!r} is not YAML: {' '.join(str(error).split())}") from error
    node: Any = tree
    keys = dotted.split(".")
    for depth, key in enumerate(keys):
        last, above = depth == len(keys) - 1, ".".join(keys[:depth])
        position: Any = key
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise RecipeError(f"`{above}` has items 0 to {len(node) - 1}; {override!r} names {key!r}.")
            position = int(key)
        elif not isinstance(node, dict):
            raise RecipeError(f"`{above}` is {kind_of(node)} and has no key {key!r} ({override!r}).")
        elif not last and node.get(key) is None:
            node[key] = {}
        if last:
            node[position] = value
        else:
            node = node[position]
