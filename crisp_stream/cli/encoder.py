"""The commands `encoder fit` and `encoder inspect`."""

from __future__ import annotations

import argparse
from typing import Any

from crisp_stream.cli.verbs import GO_ON, add_inputs, add_verb, print_line
from crisp_stream.cli.write import DOCUMENTS, given_options
from crisp_stream.errors import InputError
from crisp_stream.writers.flags import add_flag_groups, add_flags, names_in
from crisp_stream.writers.options import WORK

_OF_STUDENT = ("teacher", "teacher_windows", "max_length", "encoder_prompt", "seed")
_GROUPS = ("documents", "windows", WORK)


def add_encoder(verbs: Any) -> None:
    """Declare the commands."""
    verb = add_verb(
        verbs, "encoder", _help, "Distil an encoder on documents without writing a dataset, or look at one."
    )
    actions = verb.add_subparsers(title="actions", metavar="ACTION", required=True)
    fit = add_verb(
        actions,
        "fit",
        _fit,
        "Fit a fast student of an encoder on documents; `write --encoder DIR` takes it. Restarts where it stopped.",
    )
    add_inputs(fit, "inputs", DOCUMENTS)
    fit.add_argument("--out", required=True, metavar="DIR", help="folder to create: the student and its tokenizer")
    add_flags(fit, _OF_STUDENT)
    add_flag_groups(fit, _GROUPS)
    inspect = add_verb(
        actions, "inspect", _inspect, "Teacher, sample and quality of a student, on windows that it was not fitted on."
    )
    inspect.add_argument("encoder", metavar="DIR|ROOT", help="folder of `encoder fit`, or root of a dataset")


def _help(arguments: argparse.Namespace) -> None:
    raise InputError("encoder: an action is needed, fit or inspect. See crisp-stream encoder --help")


def _fit(arguments: argparse.Namespace) -> None:
    from crisp_stream.processes import stopped_in_order
    from crisp_stream.writers.encoder_command import fit

    names = [*_OF_STUDENT, *names_in(_GROUPS)]
    with stopped_in_order(GO_ON), given_options(arguments, arguments.out, names, encoder="distilled") as options:
        fit(options, log=print_line)


def _inspect(arguments: argparse.Namespace) -> None:
    from crisp_stream.writers.encoder_command import inspect

    print(inspect(arguments.encoder))
