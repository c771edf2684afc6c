"""A parser whose errors are a line or two, with the nearest known word, and a list of commands in groups."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from crisp_stream.typed import did_you_mean

_KINDS = {"int": "a whole number", "float": "a number"}
_COMMAND_COLUMN = 15


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default behind every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Says what is wrong and what to do about it, and ends with 2; the usage is left to --help."""

    groups: Mapping[str, Sequence[str]] | None = None
    """Commands by the title of their group, in the order in which they are listed."""
    _given: Sequence[str] = ()
    _verbs: Any = None

    @property
    def commands(self) -> list[str]:
        """Names of its commands."""
        return [] if self._verbs is None else list(self._verbs.choices)

    def error(self, message: str) -> NoReturn:
        """Print a message of argparse in the form of other errors, and exit with 2."""
        self.exit(2, f"error: {self._in_words(message)}\nSee: {self.prog} --help\n")

    def add_subparsers(self, **options: Any) -> Any:
        """As of argparse, and remembered."""
        self._verbs = super().add_subparsers(**options)
        return self._verbs

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Parse; what a command does not know is an error here, where its options are known."""
        self._given = list(args or ())
        found, unknown = super().parse_known_args(args, namespace)
        if unknown and self._verbs is None:
            self.exit(2, f"error: {self._unknown(unknown)}\nSee: {self.prog} --help\n")
        return found, unknown

    def format_help(self) -> str:
        """The help; commands by groups, where there are groups."""
        if self.groups is None or self._verbs is None:
            return super().format_help()
        help_of = {choice.dest: choice.help or "" for choice in self._verbs._choices_actions}
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        parts = [formatter.format_help()]
        for title, names in self.groups.items():
            lines = (_described(name, help_of[name]) for name in names)
            parts.append("\n".join([f"{title}:", *lines]))
        more = f"{self.prog} COMMAND --help says more, {self.prog} --version which one this is."
        parts.append(textwrap.fill(more, _width()))
        parts.append(textwrap.fill(self.epilog or "", _width()))
        return "\n\n".join(part.strip("\n") for part in parts) + "\n"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        near = did_you_mean(str(value), names)
        if action is self._verbs:
            raise argparse.ArgumentError(None, f"{self.prog} has no {value!r}{near}")
        raise argparse.ArgumentError(action, f"must be one of {', '.join(names)}, got {value!r}{near}")

    def _in_words(self, message: str) -> str:
        missing = re.fullmatch(r"the following arguments are required: (.*)", message)
        options = [word for word in self._given if word.startswith("--") and not self._get_option_tuples(word)]
        misspelt = [word for word in options if word.partition("=")[0] not in self._option_string_actions]
        if missing and misspelt and self._verbs is None:
            return self._unknown(misspelt)
        if missing:
            return "; ".join(self._needed(name) for name in missing[1].split(", "))
        message = re.sub(r"^argument ([^:]*): ", lambda found: f"{found[1].rpartition('/')[2]}: ", message)
        message = re.sub(r"invalid (int|float) value: ", lambda found: f"must be {_KINDS[found[1]]}, got ", message)
        share = re.search(r"got '([0-9.]+)%'$", message)
        if share and "a number" in message:
            message += f". Write {float(share[1]) / 100:g}"
        return message if message.endswith((".", "?")) else f"{message}."

    def _needed(self, name: str) -> str:
        """What an argument that is missing is."""
        if self._verbs is not None and name == self._verbs.metavar:
            return f"{name} is missing: one of {', '.join(self.commands)}"
        for action in self._actions:
            shown = action.option_strings or [action.metavar if isinstance(action.metavar, str) else action.dest]
            if name in ("/".join(shown), *shown):
                return f"{name} is missing: {re.split(r' [(]|[:;]', action.help or '')[0]}"
        return f"{name} is missing"

    def _unknown(self, words: Sequence[str]) -> str:
        options = [option for option in self._option_string_actions if option.startswith("--")]
        for word in words:
            if word.startswith("-"):
                name = word.partition("=")[0]
                return f"{self.prog} has no option {name}{did_you_mean(name, options)}"
        given = ", ".join(repr(word) for word in words)
        return f"{self.prog} takes no further argument, got {given}. Name options with -- before them."


def _described(name: str, text: str) -> str:
    """A line of the list of commands, or several where it is narrow."""
    return textwrap.fill(
        text,
        _width(),
        initial_indent=f"  {name:<{_COMMAND_COLUMN}}",
        subsequent_indent=" " * (_COMMAND_COLUMN + 2),
    )


def _width() -> int:
    return max(40, shutil.get_terminal_size().columns - 2)
