"""Texts of a corpus and of a task in four files, chosen and held out by the hash of each text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crisp_stream.storage.store import open_store


@dataclass(frozen=True, kw_only=True)
class Corpora:
    """Four files of text, named by their content: a corpus, examples of a task, and held-out documents of both."""

    generalist: Path
    """Documents that the dataset is written from."""
    generalist_test: Path
    """Held-out documents of the same sources."""
    specialist: Path
    """Examples of the task, counted into its histogram."""
    specialist_test: Path
    """Held-out documents of the task."""

    @property
    def paths(self) -> tuple[Path, Path, Path, Path]:
        """The files in the order of the fields."""
        return self.generalist, self.generalist_test, self.specialist, self.specialist_test


def up_to(characters: int, texts: Iterable[str]) -> set[str]:
    """Take documents until they reach a length, the smallest digests first; all where they are shorter."""
    kept: set[str] = set()
    total = 0
    for text in sorted(texts, key=text_digest):
        if total >= characters:
            break
        kept.add(text)
        total += len(text)
    return kept


def smallest_digests(texts: Iterable[str], count: int) -> set[str]:
    """Take at most `count` documents, those with the smallest digests."""
    return set(sorted(texts, key=text_digest)[:count])


def write_corpora(folder: Path, contents: Mapping[str, Iterable[Mapping[str, Any]]]) -> Corpora:
    """Write files named by their content, so that whatever is made from one records what it was made from.

    Args:
        folder: local folder of the files.
        contents: rows of each file, by the fields of `Corpora`.
    """
    paths: dict[str, Path] = {}
    for name, rows in contents.items():
        content = json_lines(rows)
        paths[name] = folder / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}.jsonl"
        if not paths[name].is_file() or paths[name].read_bytes() != content:
            open_store(str(folder)).put(paths[name].name, content)
    return Corpora(**paths)


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Encode rows as JSON lines in UTF-8."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def text_digest(text: str) -> str:
    """Hash a text by sha256: the digest decides which documents are taken, and which are held out."""
    return hashlib.sha256(text.encode()).hexdigest()


def uniform_of_text(text: str) -> float:
    """Hash a text to a number in [0, 1)."""
    return int(text_digest(text)[:8], 16) / 2**32
