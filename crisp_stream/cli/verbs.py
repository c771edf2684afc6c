"""Helpers that the commands of `crisp-stream` share: declare a verb and its inputs, and print progress."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from crisp_stream.cli.parser import Formatter
from crisp_stream.storage.inputs import printable
from crisp_stream.writers.flags import add_flags, values_of

GO_ON = "What is finished is kept: run the same command again to go on."
"""What to do after a signal ended a command that restarts where it stopped."""
_DATASET_OPTIONS: dict[str, dict[str, Any]] = {
    "--generation": {"type": int, "metavar": "G", "help": "an older generation of a dataset that has grown"},
    "--encoder": {"metavar": "NAME", "help": "folder or name of the dataset's encoder, if not its recorded name"},
    "--processes": {"type": int, "metavar": "N", "help": "worker processes; one per core when absent"},
}

SELECTION_FLAGS = ("filters", "text_template", "txt_documents", "layout")


def add_verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], int | None], text: str
) -> argparse.ArgumentParser:
    """Declare a command; the first sentence of `text` stands in the list of commands."""
    verb = verbs.add_parser(name, help=text.partition(". ")[0].rstrip("."), description=text, formatter_class=Formatter)
    verb.set_defaults(run=run)
    return verb


def add_inputs(verb: argparse.ArgumentParser, name: str, what: str) -> None:
    """Files of documents, the column of their text, and a limit."""
    verb.add_argument(
        name,
        nargs="+",
        help=f"{what}: .jsonl, .json, .csv, .tsv, .txt, .wet (also .gz, .bz2, .xz, .zst), .parquet, .arrow; file, "
        "folder, prefix or glob",
    )
    add_flags(verb, ("text_column", "limit"))


def add_selection(group: Any) -> None:
    """How documents are taken out of the inputs, and which: SELECTION_FLAGS."""
    add_flags(group, SELECTION_FLAGS)


def selection_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of `add_selection`, by the names of parameters."""
    return values_of(arguments, SELECTION_FLAGS)


def add_dataset_options(verb: argparse.ArgumentParser, *names: str) -> None:
    """Declare options of commands that read a dataset: --generation, --encoder, --processes."""
    for name in names:
        verb.add_argument(name, **_DATASET_OPTIONS[name])


def add_question_keys(verb: argparse.ArgumentParser) -> None:
    """Declare --question-keys, for questions in a layout that is not known; see `QuestionKeys.parse`."""
    verb.add_argument(
        "--question-keys",
        metavar="KEYS",
        help="keys of questions in no known layout: question=KEY,choices=KEY,answer=KEY, also topic=KEY; choices=A+B+C "
        "where each choice has a key; base=0 or base=1: from where answers count choices",
    )


def add_recipe_arguments(verb: argparse.ArgumentParser) -> None:
    """Declare recipes laid over one another, and keys of them; see `recipes_and_overrides`."""
    verb.add_argument(
        "recipe",
        nargs="+",
        metavar="RECIPE|key=value",
        help="YAML files or packaged recipes, later ones laid over earlier ones: a size, then a method, such as "
        "gpt-1.3b crisp; and recipe keys, such as data.remote=ROOT seed=1",
    )


def print_line(line: str) -> None:
    """Print a line of progress to standard output at once; bytes of file names that are not UTF-8 as `\xe9`."""
    print(printable(line), flush=True)


def add_wide(verb: argparse.ArgumentParser) -> None:
    """Declare the option of the table of results."""
    verb.add_argument(
        "--wide",
        action="store_true",
        help="show all columns, also of nothing but zeros; lines of at most 100 characters when absent, with a note of "
        "what is left out",
    )
