"""Build dataclasses from plain data (YAML, JSON), with an error that names the wrong key."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from crisp_stream.errors import RecipeError

_MISSING = {
    "mixture": " Add a method behind the size, such as base or crisp: crisp-stream train gpt-1.3b crisp",
    "model": " Name a size before the method, such as demo or gpt-350m: crisp-stream train gpt-350m crisp",
}
"""What to do about a key that only some of the packaged recipes have."""


def build(kind: type, tree: Mapping[Any, Any], prefix: str = "") -> Any:
    """Make a dataclass of a mapping whose keys are its fields, values checked by their annotations.

    Args:
        kind: the dataclass.
        tree: plain data, as YAML has it.
        prefix: dotted path of the mapping, for messages.

    Raises:
        RecipeError: an unknown or missing key, or a wrong type.
    """
    hints = typing.get_type_hints(kind)
    for key in tree:
        if key not in hints:
            close = did_you_mean(str(key), list(hints), prefix)
            raise RecipeError(f"`{prefix}{key}` is not a recipe key{close}")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.name in tree:
            values[field.name] = _convert(hints[field.name], tree[field.name], f"{prefix}{field.name}")
        elif required:
            raise RecipeError(f"`{prefix}{field.name}` is missing; it has no default.{_MISSING.get(field.name, '')}")
    return kind(**values)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """The value as its annotation wants it, or a RecipeError that names the key."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, key)
    if origin is Literal:
        if value not in args:
            raise RecipeError(f"`{key}` must be one of {', '.join(map(str, args))}; got {value!r}.")
        return value
    if origin is tuple:
        return _convert_tuple(args, value, key)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise RecipeError(f"`{key}` must be a mapping of keys; got {kind_of(value)}.")
        return {str(name): _convert(args[1], item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise RecipeError(f"`{key}` must be a mapping of keys; got {kind_of(value)}.")
        return build(hint, value, f"{key}.")
    return _convert_scalar(hint, value, key)


def _convert_union(args: tuple[Any, ...], value: Any, key: str) -> Any:
    if value is None and type(None) in args:
        return None
    choices = [arg for arg in args if arg is not type(None)]
    for choice in choices:
        wants_list = typing.get_origin(choice) is tuple
        if len(choices) == 1 or wants_list == isinstance(value, list):
            try:
                return _convert(choice, value, key)
            except RecipeError:
                if len(choices) == 1 or wants_list:
                    raise
    names = " or ".join("a list" if typing.get_origin(choice) is tuple else _name(choice) for choice in choices)
    raise RecipeError(f"`{key}` must be {names}; got {kind_of(value)} ({value!r}).")


def _convert_tuple(args: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise RecipeError(f"`{key}` must be a list; got {kind_of(value)}.")
    if args[-1] is Ellipsis:
        return tuple(_convert(args[0], item, f"{key}.{index}") for index, item in enumerate(value))
    if len(value) != len(args):
        raise RecipeError(f"`{key}` must be a list of {len(args)} values; got {len(value)}.")
    return tuple(
        _convert(arg, item, f"{key}.{index}") for index, (arg, item) in enumerate(zip(args, value, strict=True))
    )


def _convert_scalar(hint: Any, value: Any, key: str) -> Any:
    if hint is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise RecipeError(f"`{key}` must be {_name(hint)}; got {kind_of(value)} ({value!r}).")
    return value


def _name(hint: Any) -> str:
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, str(hint))


def did_you_mean(word: str, names: Sequence[str], prefix: str = "") -> str:
    """The end of a message about an unknown word: the nearest known one, if one is near."""
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean `{prefix}{close[0]}`?" if close else "."


def kind_of(value: Any) -> str:
    """What a YAML value is, in words."""
    if value is None:
        return "nothing"
    names = {
        bool: "true/false",
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "a mapping",
    }
    return names.get(type(value), type(value).__name__)
