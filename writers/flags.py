"""The fields of WriteOptions as arguments of a command line, and back."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection
from typing import Any

from crisp_stream.errors import InputError
from crisp_stream.writers.options import Flag, Kind, WriteOptions, flags

_MEGABYTE = 1 << 20
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DECLARED: dict[Kind, dict[str, Any]] = {
    "integer": {"type": int},
    "number": {"type": float},
    "megabytes": {"type": float},
    "switch": {"action": "store_true"},
    "list": {"nargs": "+"},
    "repeated": {"action": "append"},
}
_SHOWN: dict[Kind, Callable[[Any], Any]] = {
    "megabytes": lambda num_bytes: num_bytes / _MEGABYTE,
    "list": list,
    "repeated": list,
}


def add_flags(target: Any, names: Collection[str]) -> None:
    """Declare fields of WriteOptions on a parser, or on a group of its arguments."""
    for name in names:
        flag = flags()[name]
        default = getattr(WriteOptions, name)
        settings: dict[str, Any] = {"default": _SHOWN.get(flag.kind, lambda value: value)(default), "help": flag.help}
        settings |= _DECLARED.get(flag.kind, {})
        if flag.choices:
            settings["choices"] = list(flag.choices)
        elif flag.kind != "switch":
            settings["metavar"] = flag.metavar
        target.add_argument(f"--{_dashed(name, flag)}", **settings)


def add_flag_groups(verb: argparse.ArgumentParser, titles: Collection[str]) -> None:
    """Declare all fields of these groups under their titles."""
    for title in titles:
        add_flags(verb.add_argument_group(title), names_in((title,)))


def names_in(titles: Collection[str]) -> list[str]:
    """The fields of these groups."""
    return [name for name, flag in flags().items() if flag.group in titles]


def values_of(arguments: argparse.Namespace, names: Collection[str]) -> dict[str, Any]:
    """The values of fields of WriteOptions that were declared by `add_flags`. Raises InputError."""
    values = {}
    for name in names:
        flag = flags()[name]
        value = getattr(arguments, _dashed(name, flag).replace("-", "_"))
        if flag.kind == "megabytes":
            value = int(value * _MEGABYTE)
        elif flag.kind == "size":
            value = None if value is None else _num_bytes(value, _dashed(name, flag))
        elif flag.kind in ("list", "repeated"):
            value = tuple(value)
        values[name] = value
    return values


def _dashed(name: str, flag: Flag) -> str:
    return flag.name or name.replace("_", "-")


def _num_bytes(text: str, flag: str) -> int:
    """4G, 800M and the like as bytes. Raises InputError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise InputError(f"--{flag}: must be a size such as 4G or 800M, got {text!r}.")
    return int(float(match[1]) * _UNITS[match[2].upper()])
