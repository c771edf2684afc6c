"""What is sent to a task and what comes back of it: small, and no longer for more parts but where a task lists its own.

Ray keeps in its object store what is larger than 100 kB, in a store of 128 MB where a command starts it.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from crisp_stream.format.dataset import open_dataset
from crisp_stream.writers.engine.engine import LocalEngine
from crisp_stream.writers.engine.tasks import Kind, Record, Task
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.write import write
from tests.support.written_dataset import TOPICS, small_options

LISTING = {"tokenizer", "tree-draws", "runs", "texts", "provenance", "run-embeddings"}
"""Stages whose tasks list parts: as many as make 20 MB of text (tokenizer), 128 MB of vectors (tree-draws), 64 MB of
tokens (runs), 64 parts (texts), or those of one group of input files."""
RECORDING = {"documents", "runs"}
"""Stages whose records tell of each of their parts: those of one group of files, or of one run."""
BYTES_PER_PART = 150
DIGITS = 64
"""What longer numbers add, and files that there are one more of."""
PASSED_INLINE = 100_000


@dataclass
class Largest:
    """Bytes of the largest task and record of a stage."""

    task: int = 0
    record: int = 0


class WeighingEngine(LocalEngine):
    """Weighs what another process would be sent, and what it would send back."""

    def __init__(self, largest: dict[str, Largest]) -> None:
        super().__init__(processes=1)
        self._largest = largest

    def run(self, tasks: Iterable[Task], *, kind: Kind, num_tasks: int | None = None) -> Iterator[tuple[int, Record]]:
        for task in tasks:
            sent = pickle.dumps(task)
            [(number, record)] = super().run([pickle.loads(sent)], kind=kind, num_tasks=1)
            largest = self._largest.setdefault(task.stage, Largest())
            largest.task = max(largest.task, len(sent))
            largest.record = max(largest.record, len(pickle.dumps(record)))
            yield number, record


@pytest.fixture
def largest(monkeypatch: pytest.MonkeyPatch) -> dict[str, Largest]:
    """Filled by every write."""
    largest: dict[str, Largest] = {}
    monkeypatch.setattr("crisp_stream.writers.write.open_engine", lambda name, **options: WeighingEngine(largest))
    return largest


def test_descriptions_and_records_are_small_however_many_parts_there_are(
    tmp_path: Path, largest: dict[str, Largest]
) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"id": f"d{n}", "text": topic[:1200]}) + "\n" for n, topic in enumerate(TOPICS)))
    ids = tmp_path / "ids.txt"
    ids.write_text("another\n")
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": "What stood in the corner of the old house? " * 3, "answer": "It."}))
    options = small_options(
        text,
        tmp_path / "out",
        encoder="lsi",
        max_length=None,
        dedup="near",
        id_column="id",
        exclude_ids=[str(ids)],
        decontaminate=[str(questions)],
        embeddings=str(tmp_path / "kept"),
        part_characters=4_000,
    )
    few, of_few = written(options, largest)
    changed = {"out": str(tmp_path / "many"), "embeddings": str(tmp_path / "kept-many")}
    many, of_many = written(replace(options, **changed, part_characters=300), largest)
    assert many > 3 * few > 30
    for stage, largest_of_many in of_many.items():
        assert max(largest_of_many.task, largest_of_many.record) < PASSED_INLINE, stage
        before = of_few.get(stage, largest_of_many)
        grown_by = (largest_of_many.task - before.task, largest_of_many.record - before.record)
        listed = (stage in LISTING, stage in RECORDING)
        for kind, more, lists in zip(("task", "record"), grown_by, listed, strict=True):
            assert more <= (BYTES_PER_PART * (many - few) if lists else DIGITS), (stage, kind)


def written(options: WriteOptions, largest: dict[str, Largest]) -> tuple[int, dict[str, Largest]]:
    """Number of parts, and the largest task and record of each stage."""
    largest.clear()
    write(options, log=lambda line: None)
    return open_dataset(options.out).manifest.provenance["parts"], dict(largest)


def test_a_tree_and_an_lsi_that_are_given_are_not_sent_to_machines(
    text_file: Path, tmp_path: Path, largest: dict[str, Largest]
) -> None:
    options = small_options(text_file, tmp_path / "first", encoder="lsi", max_length=None)
    written(options, largest)
    assert {"tree", "lsi"} < largest.keys()
    like = small_options(text_file, tmp_path / "second", like=str(tmp_path / "first"), max_length=None)
    _, of_like = written(like, largest)
    assert "embeddings" in of_like
    assert not {"tree", "lsi"} & of_like.keys()
