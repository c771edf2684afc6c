"""Recipes as files: packaged ones and the user's, laid over one another into one tree of keys.

A recipe may leave keys out: sizes say nothing of the data, methods nothing of the model. `gpt-1.3b crisp` is the size
with the method laid over it; `extends: [gpt-1.3b, crisp]` at the top of a file is the same with the keys of the file
last. Mappings are merged key by key, everything else is replaced. The alternative, a file for each size and method, is
eighteen copies of which seventeen are forgotten when a key changes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from crisp_stream.errors import InputError, RecipeError
from crisp_stream.typed import did_you_mean, kind_of

EXTENDS = "extends"
"""Key of a recipe file: the recipes that it is laid over, first to last."""

_SUFFIXES = (".yaml", ".yml")


def compose(names: str | Path | Sequence[str | Path]) -> tuple[dict[str, Any], str]:
    """Lay recipes over one another, the last on top.

    Args:
        names: YAML files, or names of packaged recipes.

    Returns:
        The merged keys, with `run_name` made of the names where no recipe says it; and the names, for messages.

    Raises:
        RecipeError: no such recipe, not YAML, no mapping, or a recipe that extends itself.
    """
    listed = [names] if isinstance(names, str | Path) else list(names)
    if not listed:
        raise RecipeError(f"no recipe is named. There are: {', '.join(list_recipes())}.")
    merged = functools.reduce(_merged, (_tree(name, ()) for name in listed), {})
    merged.setdefault("run_name", "-".join(_stem(name) for name in listed))
    return merged, " + ".join(str(name) if _is_path(name) else f"recipe {name}" for name in listed)


def list_recipes() -> dict[str, str]:
    """Packaged recipes: name and the first line of the header, sorted by name."""
    return {name: read_recipe(name).partition("\n")[0].lstrip("# ").strip() for name in _packaged()}


def read_recipe(name: str) -> str:
    """Text of a packaged recipe, comments included. Raises RecipeError: there is none of that name."""
    if name not in (names := _packaged()):
        raise RecipeError(
            f"{name!r} is not a packaged recipe{did_you_mean(name, names)} There are: {', '.join(names)}."
        )
    return resources.files("crisp_stream").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8")


def copy_recipe(name: str, destination: str | Path | None = None) -> Path:
    """Write a packaged recipe where the user can edit it: in a file or a folder; as `NAME.yaml` here by default.

    Raises:
        RecipeError: no such recipe.
        InputError: the file exists already.
    """
    text = read_recipe(name)
    path = Path(f"{name}.yaml") if destination is None else Path(destination)
    if path.is_dir():
        path = path / f"{name}.yaml"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise InputError(f"{path} exists already and is not overwritten. Name another file, or remove it.") from error
    return path


def _packaged() -> list[str]:
    folder = resources.files("crisp_stream").joinpath("recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _is_path(name: str | Path) -> bool:
    path = Path(name)
    return path.is_file() or path.suffix in _SUFFIXES or len(path.parts) > 1


def _stem(name: str | Path) -> str:
    path = Path(name)
    return path.stem if path.suffix in _SUFFIXES else path.name  # the 1.3b of gpt-1.3b is no suffix


def _tree(name: str | Path, above: tuple[str, ...], folder: Path | None = None) -> dict[str, Any]:
    """The keys of a recipe, laid over what it extends; `above` names the recipes that extend it."""
    text, origin, folder_of_text = _text(name, folder)
    if origin in above:
        raise RecipeError(f"{origin} extends itself, by {' -> '.join((*above, origin))}.")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{origin} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{origin} must be a mapping of recipe keys, not {kind_of(tree)}.")
    extended = tree.pop(EXTENDS, [])
    extended = [extended] if isinstance(extended, str) else extended
    if not isinstance(extended, list) or not all(isinstance(item, str) for item in extended):
        raise RecipeError(f"{origin}: `{EXTENDS}` must be a recipe or a list of recipes; got {extended!r}.")
    below = [_tree(item, (*above, origin), folder_of_text) for item in extended]
    return functools.reduce(_merged, [*below, tree], {})


def _text(name: str | Path, folder: Path | None) -> tuple[str, str, Path | None]:
    """Text of a recipe, its name for messages, and its folder, in which the files that it extends are looked for."""
    path = Path(name)
    if folder is not None and (folder / path).is_file():
        path = folder / path
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), str(path), path.parent
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path} is not UTF-8 text.") from error
    if _is_path(path):
        raise RecipeError(
            f"{path} does not exist. Name a YAML file, or a packaged recipe: {', '.join(list_recipes())}."
        )
    return read_recipe(str(name)), f"recipe {name}", None


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Two trees of keys, the second on top; neither is changed."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, dict):
            value = _merged(below if isinstance(below, dict) else {}, value)
        merged[key] = value
    return merged


def recipes_and_overrides(items: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the names of recipes from their keys; a file may have `=` in its name, too."""
    overrides = [item for item in items if "=" in item and not Path(item).exists()]
    return [item for item in items if item not in overrides], overrides
