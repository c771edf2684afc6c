"""What makes a run the run that it is: the keys of its recipe that stay the same when it is resumed.

The other keys say how a run is carried out (processes, microbatches, workers, caches, loggers, measurements,
checkpoints), or how long it lasts, and may change whenever it is resumed. Of files only the names count: they may have
moved, and what they hold is compared by fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from crisp_stream.config.recipe import Recipe
from crisp_stream.storage.store import file_name
from crisp_stream.typed import plain

_KEPT = (
    "global_train_batch_size",
    "mixture",
    "model",
    "optimizer",
    "scheduler",
    "gradient_clipping",
    "precision",
    "seed",
)
_FREE = ("model.activation_checkpointing",)
_FILES = ("histogram", "windows")
_ONLY_WHERE_GIVEN = ("components", "schedule")
"""Keys of a phase that stand here only where the recipe has them: a phase of one component is told as ever."""


def kept_keys(recipe: Recipe) -> dict[str, Any]:
    """The keys that a run keeps, dotted, and their values as plain data."""
    values = plain(recipe)
    found = dict(_flat({key: values[key] for key in _KEPT}, ""))
    found["load_path"] = None if recipe.load_path is None else file_name(recipe.load_path)
    found["load_restart"] = sorted(recipe.restarts)
    return {key: value for key, value in found.items() if key not in _FREE}


def changed_keys(saved: Mapping[str, Any], recipe: Recipe) -> dict[str, str]:
    """The keys in which a recipe differs from `kept_keys` of another, each with a text that says how."""
    now = kept_keys(recipe)
    known = [key for key in now if key in saved or key.startswith("mixture.")]
    return {
        key: f"`{key}` was {_text(saved.get(key))}, is {_text(now.get(key))}"
        for key in [*known, *(saved.keys() - now.keys())]
        if saved.get(key) != now.get(key)
    }


def _flat(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, and of lists of mappings, with dotted keys."""
    if isinstance(node, list) and any(isinstance(item, dict) for item in node):
        node = dict(enumerate(node))
    if isinstance(node, dict):
        for name, value in node.items():
            if value is None and name in _ONLY_WHERE_GIVEN:
                continue
            yield from _flat(value, f"{key}.{name}" if key else name)
    elif key.rpartition(".")[2] in _FILES:
        yield key, file_name(node) if isinstance(node, str) else node and [file_name(path) for path in node]
    else:
        yield key, node


def _text(value: Any) -> str:
    if value is None:
        return "nothing"
    return ", ".join(map(str, value)) or "nothing" if isinstance(value, list) else str(value)
