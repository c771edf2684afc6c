"""The command `contamination`."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from crisp_stream.cli.verbs import add_verb, print_line

if TYPE_CHECKING:
    from crisp_stream.evaluation.contamination import Contamination

_SHOWN = 5
_SHOWN_CHARACTERS = 160


def add_contamination(verbs: Any) -> None:
    """Declare the command."""
    verb = add_verb(
        verbs,
        "contamination",
        _contamination,
        "Find the examples of evaluation files that have a part in a dataset. An example is contaminated when any 13 "
        "consecutive words of it stand in a window; give the file it writes to eval as --contamination.",
    )
    verb.add_argument("root", metavar="ROOT", help="dataset root")
    verb.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="documents or questions: .jsonl, .json, .ndjson, .txt or .parquet, also .gz or .zst; or a task of the "
        "paper, TASK or TASK=FILE, as for eval",
    )
    verb.add_argument("--out", required=True, metavar="FILE", help="result, FILE.parquet, to write")
    verb.add_argument("--text-column", default="text", metavar="NAME", help="key or column of documents")
    verb.add_argument("--ngram", type=int, default=13, metavar="N", help="words of a match, 2 to 64")
    verb.add_argument("--processes", type=int, metavar="N", help="worker processes; one per core when absent")
    verb.add_argument("--generation", type=int, metavar="G", help="an older generation of a dataset that has grown")


def _contamination(asked: argparse.Namespace) -> None:
    from crisp_stream.evaluation.contamination import check_contamination, check_path
    from crisp_stream.processes import num_processes

    check_path(asked.out)
    started = time.monotonic()
    found = check_contamination(
        asked.root,
        asked.files,
        text_column=asked.text_column,
        ngram=asked.ngram,
        generation=asked.generation,
        processes=asked.processes,
        log=print_line,
    )
    found.save(asked.out)
    _print(found, asked.out, time.monotonic() - started, num_processes(asked.processes))


def _print(found: Contamination, out: str, seconds: float, processes: int) -> None:
    megabytes = found.text_bytes / 1e6
    print(f"{'examples':>9} {'contaminated':>12} {'too short':>9}  file")
    for number, name in enumerate(found.files):
        own = found.file == number
        print(f"{own.sum():>9,} {found.contaminated[own].sum():>12,} {(~found.checked[own]).sum():>9,}  {name}")
    for at in found.contaminated.nonzero()[0][:_SHOWN].tolist():
        words = found.words[at] or ""
        shown = words if len(words) <= _SHOWN_CHARACTERS else f"{words[:_SHOWN_CHARACTERS]}…"
        print(
            f"row {found.row[at]} of {found.files[found.file[at]]}: {found.shares[at]:.1%} of its n-grams; window "
            f"{found.windows[at]}: {shown}"
        )
    if not found.num_borders:
        print("borders of windows were not looked across: words that two windows share are not seen")
    print(
        f"{out}: {int(found.contaminated.sum()):,} of {found.num_examples:,} examples contaminated; "
        f"{found.num_windows:,} windows, {megabytes:,.1f} MB of text in {seconds:.1f} s, "
        f"{megabytes / seconds / processes:,.1f} MB/s per process ({processes})"
    )
