"""The offline commands: write, append and tree."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from crisp_stream.cli.next_step import TASK, say_next
from crisp_stream.cli.verbs import GO_ON, add_inputs, add_verb, print_line
from crisp_stream.errors import InputError
from crisp_stream.writers.documents.standard_input import (
    STANDARD_INPUT,
    delete_without_work,
    keep_standard_input,
)
from crisp_stream.writers.flags import add_flag_groups, add_flags, names_in, values_of
from crisp_stream.writers.options import WORK, WriteOptions

_INPUTS = ("text_column", "limit")
"""Declared by `add_inputs`."""
DOCUMENTS = "documents (- for JSON lines from standard input)"
_DATASET = ("like", "tree", "embeddings", "take_over")
_OF_WRITE = ("documents", "windows", "clustering", "shards", WORK)
_OF_APPEND = ("documents", WORK)
_OF_FIT = ("documents", "windows", "clustering", WORK)


def add_write_commands(verbs: Any) -> None:
    """Declare the commands."""
    _add_write(verbs)
    _add_append(verbs)
    _add_tree(verbs)


def _add_write(verbs: Any) -> None:
    verb = add_verb(
        verbs, "write", _write, "Write documents as a cluster-partitioned dataset. Restarts where it stopped."
    )
    add_inputs(verb, "inputs", DOCUMENTS)
    verb.add_argument("--out", required=True, metavar="ROOT", help="dataset root to create")
    add_flags(verb, _DATASET)
    verb.add_argument(
        "--plan",
        action="store_true",
        help="say what would run, and estimate windows, time, disk and memory from a sample; write nothing",
    )
    add_flag_groups(verb, _OF_WRITE)


@contextlib.contextmanager
def given_options(arguments: argparse.Namespace, out: str, names: list[str], **others: Any) -> Iterator[WriteOptions]:
    """The options, and `others`; documents that are piped in are kept in the work folder, and read from there."""
    options = WriteOptions(inputs=arguments.inputs, out=out, **values_of(arguments, [*_INPUTS, *names]), **others)
    if STANDARD_INPUT not in options.inputs:
        yield options
        return
    from crisp_stream.writers.publishing.work import work_url

    work = work_url(options)
    try:
        yield replace(options, inputs=keep_standard_input(options.inputs, work, sys.stdin.buffer))
    finally:
        delete_without_work(work)


def _write(arguments: argparse.Namespace) -> None:
    from crisp_stream.processes import stopped_in_order
    from crisp_stream.writers.estimate import estimate_write
    from crisp_stream.writers.write import models_of, plan, write

    with (
        stopped_in_order(GO_ON),
        given_options(arguments, arguments.out, [*_DATASET, *names_in(_OF_WRITE)]) as options,
    ):
        if arguments.plan:
            print_line(plan(options))
            print(estimate_write(options, models_of(options)).text())
            return
        write(options, log=print_line)
    say_next("histogram", TASK, "--data", arguments.out, "--out", "task.parquet")


def _add_append(verbs: Any) -> None:
    verb = add_verb(
        verbs, "append", _append, "Add documents to a dataset, with its tokenizer and tree. Restarts where it stopped."
    )
    verb.add_argument("root", metavar="ROOT", help="dataset to grow")
    add_inputs(verb, "inputs", DOCUMENTS)
    verb.add_argument(
        "--encoder", metavar="NAME", help="where the dataset's encoder is, if not under its recorded name"
    )
    add_flags(verb, ("shard_bytes", "take_over"))
    verb.add_argument("--prune", action="store_true", help="delete the files that only earlier generations use")
    add_flag_groups(verb, _OF_APPEND)


def _append(arguments: argparse.Namespace) -> None:
    from crisp_stream.processes import stopped_in_order
    from crisp_stream.writers.append import append

    names = ["encoder", "shard_bytes", "take_over", *names_in(_OF_APPEND)]
    with stopped_in_order(GO_ON), given_options(arguments, arguments.root, names) as options:
        append(options, prune=arguments.prune, log=print_line)
    say_next("verify", arguments.root)


def _add_tree(verbs: Any) -> None:
    verb = add_verb(verbs, "tree", _tree_help, "Fit a clustering tree without writing a dataset, or judge one.")
    actions = verb.add_subparsers(title="actions", metavar="ACTION", required=True)
    fit = add_verb(actions, "fit", _tree_fit, "Fit a tree on documents. Restarts where it stopped.")
    add_inputs(fit, "inputs", DOCUMENTS)
    fit.add_argument(
        "--out", required=True, metavar="DIR", help="folder to create: tree, tokenizer, embeddings, report"
    )
    add_flag_groups(fit, _OF_FIT)
    inspect = add_verb(
        actions,
        "inspect",
        _tree_inspect,
        "Balance, quantisation error, leaf sizes and empty leaves of a tree, by level.",
    )
    inspect.add_argument("tree", metavar="DIR|ROOT", help="folder of `tree fit`, or dataset root")
    inspect.add_argument("--against", metavar="DIR|ROOT", help="another tree, such as of another seed: their agreement")
    inspect.add_argument(
        "--embeddings", metavar="FILE", help=".npy [windows, dim] to judge it on; those of `tree fit` when absent"
    )
    inspect.add_argument("--plot", metavar="FILE", help=".png or .svg to draw")
    inspect.add_argument("--json", dest="out", metavar="FILE", help="the same figures as JSON")


def _tree_help(arguments: argparse.Namespace) -> None:
    raise InputError("tree: an action is needed, fit or inspect. See crisp-stream tree --help")


def _tree_fit(arguments: argparse.Namespace) -> None:
    from crisp_stream.processes import stopped_in_order
    from crisp_stream.writers.tree_command import fit

    with stopped_in_order(GO_ON), given_options(arguments, arguments.out, names_in(_OF_FIT)) as options:
        fit(options, log=print_line)
    say_next("tree", "inspect", arguments.out)


def _tree_inspect(arguments: argparse.Namespace) -> None:
    from crisp_stream.writers.tree_command import inspect

    names = ("against", "embeddings", "plot", "out")
    print(inspect(arguments.tree, **{name: getattr(arguments, name) for name in names}))
