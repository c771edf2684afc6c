"""Standard input as an input: `-` becomes a file of the work folder.

Several processes read the inputs, and a write that is stopped reads them again; a pipe can do neither. So its bytes are
kept for as long as the work is. The name is made of their hash and the modification time is fixed: the same bytes,
piped once more, are the same file to a write that goes on. The price is their size on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from crisp_stream.errors import InputError
from crisp_stream.storage.store import is_remote, local_path

STANDARD_INPUT = "-"
_PIECE_BYTES = 1 << 20
_KEPT = re.compile(r"stdin-[0-9a-f]{16}\.jsonl|lock")


def keep_standard_input(inputs: Sequence[str], work: str, stream: IO[bytes]) -> list[str]:
    """The inputs, with the file that now holds the bytes of `stream` in place of `-`.

    Raises:
        InputError: `-` twice, nothing to read, a terminal, or a work folder that is not of this machine.
    """
    if STANDARD_INPUT not in inputs:
        return list(inputs)
    if inputs.count(STANDARD_INPUT) > 1:
        raise InputError("-: standard input can be read once, got it twice. Leave one out.")
    if is_remote(work):
        raise InputError(
            f"-: standard input is kept in the work folder, which must be of this machine, got {work}. Name a folder "
            "with --work, or put the documents into a file."
        )
    if stream.isatty():
        raise InputError("-: standard input is a terminal. Pipe documents into the command, or name files.")
    kept = str(_kept(local_path(work), stream))
    return [kept if source == STANDARD_INPUT else source for source in inputs]


def delete_without_work(work: str) -> None:
    """Delete what is kept in a work folder that holds nothing else: the write was refused, or only planned."""
    folder = None if is_remote(work) else local_path(work)
    if folder is None or not folder.is_dir():
        return
    names = {path.name for path in folder.iterdir()}
    if all(_KEPT.fullmatch(name) for name in names):
        for name in names:
            (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a mount point stays
            folder.rmdir()


def _kept(folder: Path, stream: IO[bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix="stdin-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
                file.write(piece)
            num_bytes = file.tell()
        if not num_bytes:
            raise InputError("-: standard input must hold one JSON object per line, got nothing. Check the pipe.")
        target = folder / f"stdin-{digest.hexdigest()[:16]}.jsonl"
        os.utime(temporary, ns=(0, 0))
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target
