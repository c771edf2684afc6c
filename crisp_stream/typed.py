"""Build dataclasses from plain data (YAML, JSON), with an error that names the wrong key; and plain data from them."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from crisp_stream.errors import CrispError, InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Built = TypeVar("Built", bound="DataclassInstance")

_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
    types.NoneType: "nothing",
}


@dataclass(frozen=True, kw_only=True)
class Builder:
    """Make dataclasses of mappings whose keys are their fields, values checked by the annotations of the fields.

    A field may be left out where it has a default, unless its metadata say `required`.
    """

    error: type[CrispError]
    """Error about an unknown or missing key, or a value of the wrong type."""
    key_noun: str = "key"
    """Name of a key in messages, such as "recipe key"."""
    place: str = ""
    """File that the data stands in, for messages."""
    remedy: str = ""
    """Last sentence of every message."""
    missing_remedies: Mapping[str, str] = field(default_factory=dict)
    """Last sentences about missing keys, by key."""
    lenient: bool = False
    """For what people write: text counts as a number, and a number as text (YAML 1.1 reads `1e-4` as text and `7` as a
    number), and infinities and NaN are refused."""

    def build(
        self, kind: type[Built], tree: Any, *, prefix: str = "", others: Mapping[str, Any] | None = None
    ) -> Built:
        """Make one dataclass, and those within it, of plain data. Raises `error`.

        `prefix` is the dotted path of the mapping, for messages; `others` are values of fields that it does not hold.
        """
        if not isinstance(tree, Mapping):
            raise self._wrong(prefix.rstrip("."), f"must be a mapping of keys; got {kind_of(tree)}.")
        values = dict(others or {})
        hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if name not in values}
        for key in tree:
            if key not in hints:
                raise self._wrong(
                    f"{prefix}{key}", f"is not a {self.key_noun}{did_you_mean(str(key), list(hints), prefix)}"
                )
        for entry in dataclasses.fields(kind):
            name, key = entry.name, f"{prefix}{entry.name}"
            has_default = entry.default is not dataclasses.MISSING or entry.default_factory is not dataclasses.MISSING
            if name in tree:
                values[name] = self._convert(hints[name], tree[name], key)
            elif name not in values and (not has_default or entry.metadata.get("required")):
                raise self._wrong(key, "is missing; it has no default.", self.missing_remedies.get(name, self.remedy))
        return kind(**values)

    def _wrong(self, key: str, rule: str, remedy: str | None = None) -> CrispError:
        place, subject = f"{self.place}: " if self.place else "", f"`{key}` " if key else ""
        return self.error(f"{place}{subject}{rule} {self.remedy if remedy is None else remedy}".rstrip())

    def _convert(self, hint: Any, value: Any, key: str) -> Any:
        """The value as its annotation wants it, or an error that names the key."""
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return value
        if origin in (typing.Union, types.UnionType):
            return self._convert_union(args, value, key)
        if origin is Literal:
            if value not in args:
                raise self._wrong(key, f"must be one of {', '.join(map(str, args))}; got {value!r}.")
            return value
        if origin is tuple:
            return self._convert_tuple(args, value, key)
        if origin is dict:
            if not isinstance(value, Mapping):
                raise self._wrong(key, f"must be a mapping of keys; got {kind_of(value)}.")
            return {str(name): self._convert(args[1], item, f"{key}.{name}") for name, item in value.items()}
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return self.build(hint, value, prefix=f"{key}.")
        return self._convert_scalar(hint, value, key)

    def _convert_union(self, args: tuple[Any, ...], value: Any, key: str) -> Any:
        if value is None and type(None) in args:
            return None
        choices = [arg for arg in args if arg is not type(None)]
        for choice in choices:
            wants_list = typing.get_origin(choice) is tuple
            if len(choices) == 1 or wants_list == isinstance(value, list):
                try:
                    return self._convert(choice, value, key)
                except self.error:
                    if len(choices) == 1 or wants_list:
                        raise
        names = " or ".join(str(_NAMES.get(typing.get_origin(choice) or choice, choice)) for choice in choices)
        raise self._wrong(key, f"must be {names}; got {kind_of(value)} ({value!r}).")

    def _convert_tuple(self, args: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise self._wrong(key, f"must be a list; got {kind_of(value)}.")
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(value) != len(kinds):
            raise self._wrong(key, f"must be a list of {len(kinds)} values; got {len(value)}.")
        pairs = enumerate(zip(kinds, value, strict=True))
        return tuple(self._convert(kind, item, f"{key}.{index}") for index, (kind, item) in pairs)

    def _convert_scalar(self, hint: Any, value: Any, key: str) -> Any:
        if hint is float and isinstance(value, str | int if self.lenient else int) and not isinstance(value, bool):
            with contextlib.suppress(ValueError, OverflowError):
                value = float(value)
        if self.lenient and hint is str and isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
            raise self._wrong(key, f"must be {_NAMES.get(hint, hint)}; got {kind_of(value)} ({value!r}).")
        if self.lenient and isinstance(value, float) and not math.isfinite(value):
            raise self._wrong(key, f"must be a finite number; got {value}.")
        return value


def plain(value: Any) -> Any:
    """Turn dataclasses, mappings and tuples within a value into dictionaries and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def did_you_mean(word: str, names: Sequence[str], prefix: str = "") -> str:
    """End a message about an unknown word with the nearest known one, if one is near."""
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean `{prefix}{close[0]}`?" if close else "."


def kind_of(value: Any) -> str:
    """Say what a value of YAML or JSON is."""
    return _NAMES.get(type(value), type(value).__name__)


def whole_number(value: Any, name: str, *, least: int | None = None, most: int | None = None) -> int:
    """Make an int of a whole number of any kind: an int, a numpy or torch integer.

    Raises:
        InputError: it is none, or out of range.
    """
    try:
        number = operator.index(value)
    except TypeError as error:
        raise InputError(f"{name} must be a whole number, got {value!r}.") from error
    if isinstance(value, bool) or (least is not None and number < least) or (most is not None and number > most):
        limits = f" from {least:,} to {most:,}" if most is not None else f" of at least {least:,}"
        raise InputError(f"{name} must be a whole number{'' if least is None else limits}, got {value!r}.")
    return number
