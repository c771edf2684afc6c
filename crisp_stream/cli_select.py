"""The commands `select METHOD`: what of a corpus a task should be trained on, by other methods than its histogram."""

from __future__ import annotations

from typing import Any

from crisp_stream.cli_select_doge import add_select_doge
from crisp_stream.cli_select_dsir import add_select_dsir


def add_select(verbs: Any) -> None:
    """Declare `select` with a command per method."""
    text = "Choose what of a corpus to train on by a rival of the task's histogram, whose result a mixture can name."
    verb = verbs.add_parser("select", help="Choose what to train on: rivals of the histogram", description=text)
    methods = verb.add_subparsers(title="methods", metavar="METHOD", required=True)
    add_select_doge(methods)
    add_select_dsir(methods)
