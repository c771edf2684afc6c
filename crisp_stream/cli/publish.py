"""crisp-stream publish."""

from __future__ import annotations

import argparse
from typing import Any

from crisp_stream.cli.verbs import add_verb, print_line


def add_publish(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "publish",
        _publish,
        "Put a dataset on the Hugging Face hub, with a dataset card. Sends the newest generation; the last commit "
        "makes it readable, all of it in one step, and then every file is compared. Run again, it sends what is not "
        "there. The token is HF_TOKEN, or that of `hf auth login`.",
    )
    verb.add_argument("root", metavar="ROOT", help="dataset root")
    verb.add_argument(
        "url",
        metavar="URL",
        help="hf://datasets/OWNER/NAME[@BRANCH][/PATH]; repository and branch are made where they are not there",
    )
    verb.add_argument("--private", action="store_true", help="make a new repository private")
    verb.add_argument(
        "--license", metavar="ID", help="licence of the texts for the card, as the hub names it, such as cc-by-4.0"
    )
    verb.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="seconds after which a failing request is given up"
    )


def _publish(arguments: argparse.Namespace) -> None:
    from crisp_stream.errors import InputError
    from crisp_stream.hub.publish import publish
    from crisp_stream.table import aligned, format_bytes

    if not arguments.timeout > 0:
        raise InputError(f"--timeout: must be above 0, got {arguments.timeout}.")
    done = publish(
        arguments.root,
        arguments.url,
        private=arguments.private,
        licence=arguments.license,
        timeout=arguments.timeout,
        log=print_line,
    )
    rows = [
        ["dataset", done.url],
        ["files there, compared", f"{done.num_files:,}, {format_bytes(done.num_bytes)}"],
        ["files sent", f"{done.sent_files:,}, {format_bytes(done.sent_bytes)}"],
        ["commit", done.commit or "it was there already"],
    ]
    print(aligned(rows, words=(0, 1)))
