"""Documents for which there is no room are found before they are cut; with more room their files are the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crisp_stream.errors import InputError
from crisp_stream.format.ledger import Ledger
from crisp_stream.writers.documents.bad_records import Budget
from crisp_stream.writers.documents.inputs import DocumentSettings
from crisp_stream.writers.documents.listing import list_input_files
from crisp_stream.writers.engine.tasks import Runner, execute
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.stages import models
from crisp_stream.writers.stages.batches import DocumentsTask, Selection, read_batch
from crisp_stream.writers.stages.documents import ReadDocuments
from crisp_stream.writers.stages.models import Tokenizer
from crisp_stream.writers.stages.whole_corpus import BatchNames, TokenizerTask
from crisp_stream.writers.stages.windows import WindowSettings

TEXTS = ["some words", "many words " * 2000, "other words", "few words " * 300]


def documents_task(folder: Path, **changes: Any) -> DocumentsTask:
    source = folder / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    settings = DocumentSettings()
    options: dict[str, Any] = {
        "workspace": Workspace(folder / "work"),
        "number": 0,
        "inputs": (),
        "files": tuple(list_input_files([str(source)], settings)),
        "first_file": 0,
        "documents": settings,
        "selection": Selection(),
        "batch_characters": 1000,
        "max_bad": Budget.parse(0),
    }
    return DocumentsTask(**{**options, **changes})


def test_room_is_no_part_of_what_names_the_files(tmp_path: Path) -> None:
    task = documents_task(tmp_path)
    assert replace(task, room_bytes=1 << 30).fingerprint == task.fingerprint


def test_a_document_that_takes_more_than_there_is_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crisp_stream.records.readers._FIRST_BYTES", 4)
    task = documents_task(tmp_path, room_bytes=60_000)
    with pytest.raises(InputError, match=r"memory: the document at .*a\.jsonl:2 has 1 MB and takes 1 MB of memory"):
        execute(task)
    assert execute(replace(task, room_bytes=100_000)) == execute(replace(task, room_bytes=None))


class Engine:
    def __init__(self, room_bytes: int | None) -> None:
        self.room_bytes = room_bytes

    def work_bytes(self) -> int | None:
        return self.room_bytes


def test_a_document_that_is_too_large_for_tokenizers_is_refused_before_documents_are_cut(tmp_path: Path) -> None:
    task = documents_task(tmp_path)
    record = execute(task)
    batches = BatchNames([task], [record], None)
    assert batches.num_characters == sum(map(len, TEXTS))
    assert [len(read_batch(task.workspace, batch.name).texts) for batch in batches] == [2, 2]
    read = ReadDocuments(
        files=list(task.files),
        tasks=[task],
        records=[record],
        batches=batches,
        duplicates=None,
        unchecked_examples=0,
        ledger=Ledger(),
    )
    maker = TokenizerTask(
        workspace=task.workspace, number=0, inputs=(), given=None, vocab_size=300, window_tokens=64, batches=()
    )

    def require(*, fast: bool, room_bytes: int | None) -> None:
        settings = WindowSettings(tokenizer="", fast_tokenizer=fast, window_tokens=64, packing="joined")
        runner: Any = Runner(Engine(room_bytes), task.workspace, log=lambda line: None)  # type: ignore[arg-type]
        models._require_room(runner, read, Tokenizer(task=maker, token_dtype="uint16", settings=settings))

    needed = 112 * len(TEXTS[1])
    for fast, room_bytes in ((True, 1), (False, None), (False, needed)):
        require(fast=fast, room_bytes=room_bytes)
    with pytest.raises(InputError, match=r"memory: document 1 of a\.jsonl has 22,000 characters and takes 2 MB of mem"):
        require(fast=False, room_bytes=needed - 1)
