"""What the process that runs a write holds of each part, over the stages of millions of tasks.

The tasks are those of a write; an engine gives made-up records in place of running them.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream.examples.sketch import MAX_DOCUMENTS, MAX_NGRAMS, SketchBuilder, TextSketch
from crisp_stream.format.ledger import Ledger
from crisp_stream.format.text_sketch import text_sketch_parquet
from crisp_stream.writers.documents.bad_records import Budget
from crisp_stream.writers.documents.inputs import DocumentSettings, InputFile
from crisp_stream.writers.embedding.probe import ENCODER_NAME
from crisp_stream.writers.engine.tasks import Kind, Record, Runner, Task, finished
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.stages import documents, runs
from crisp_stream.writers.stages.batches import DocumentsTask, Selection
from crisp_stream.writers.stages.dataset import Sorted, document_table_tasks, sort_in_stages
from crisp_stream.writers.stages.documents import ReadDocuments
from crisp_stream.writers.stages.models import EmbeddedParts, Tokenizer, parts_in_stages
from crisp_stream.writers.stages.runs import RunTask, identity_of
from crisp_stream.writers.stages.texts import sketch_in_stages
from crisp_stream.writers.stages.tree import FittedTree
from crisp_stream.writers.stages.whole_corpus import BatchNames, TokenizerTask
from crisp_stream.writers.stages.windows import EncoderSettings, EncoderTask, Part, Parts, WindowSettings, chosen_parts

PARTS, PARTS_PER_GROUP, WINDOWS_PER_PART = 5_000, 100, 480
BOUND = 700
"""Bytes per part that may be held at any time."""


class Instead:
    """An engine that runs nothing."""

    has_gpus = False

    def __init__(self) -> None:
        sketch = SketchBuilder(MAX_DOCUMENTS).finish(), SketchBuilder(MAX_NGRAMS).finish()
        self._sketch = text_sketch_parquet(TextSketch(documents=sketch[0], ngrams=sketch[1]))

    def workers(self, kind: Kind) -> int:
        return 1

    def work_bytes(self) -> int | None:
        return None

    def run(self, tasks: Iterable[Task], *, kind: Kind, num_tasks: int | None = None) -> Iterator[tuple[int, Record]]:
        for task in tasks:
            if task.stage in ("texts", "sketch"):
                task.workspace.write(task.file("texts.parquet"), self._sketch)
            yield task.number, record_of(task)


def record_of(task: Task) -> Record:
    """A record like that of a write."""
    if isinstance(task, RunTask):
        quality = {"num_windows": 500, "squared_distances": [0.5, 0.5, 0.5], "cosines": [0.5, 0.5, 0.5]}
        return {
            "num_units": 1,
            "offsets": list(range(65)),
            "quality": [dict(quality) for _ in task.parts],
            "digests": [f"{part.number:032x}" for part in task.parts],
            "files": {task.file(f"{kind}.npy"): 10**6 for kind in ("tokens", "places", "keys")},
        }
    return {
        "num_units": WINDOWS_PER_PART,
        "num_windows": WINDOWS_PER_PART + task.number % 7,
        "num_documents": 900,
        "num_characters": 2_100_000,
        "num_tokens": 490_000,
        "dropped_tokens": {"last partial window of a part": 300},
        "repeats": 0,
        "encoder": {"name": "static", "dim": 256, "max_length": 512, "weights_sha256": "0" * 64, "pooling": "mean"},
        "files": {task.file(kind): 10**6 for kind in ("tokens.npy", "places.npy", "spans.arrow", "pieces.npz")},
    }


def documents_read(workspace: Workspace) -> ReadDocuments:
    """Groups of batches, as the first stage leaves them."""
    file = InputFile(url="/texts/a.jsonl", name="a.jsonl", kind="lines", num_bytes=10**9, version="1")
    tasks = [
        DocumentsTask(
            workspace=workspace,
            number=number,
            inputs=(),
            files=(file,),
            first_file=number,
            documents=DocumentSettings(),
            selection=Selection(),
            batch_characters=1 << 21,
            max_bad=Budget.parse(0),
        )
        for number in range(PARTS // PARTS_PER_GROUP)
    ]
    records = [
        {
            "documents_per_batch": [900 + number] * PARTS_PER_GROUP,
            "characters_per_batch": [2_100_000 + number] * PARTS_PER_GROUP,
            "longest_per_batch": [30_000] * PARTS_PER_GROUP,
            "files": {task.batch_file(batch): 10**6 for batch in range(PARTS_PER_GROUP)},
            "dropped": {},
        }
        for number, task in enumerate(tasks)
    ]
    return ReadDocuments(
        files=[file] * len(tasks),
        tasks=tasks,
        records=[documents._without_batches(record) for record in records],
        batches=BatchNames(tasks, records, None),
        duplicates=None,
        unchecked_examples=0,
        ledger=Ledger(),
    )


def parts_of(runner: Runner, read: ReadDocuments, *, both_at_once: bool) -> EmbeddedParts:
    workspace = runner.workspace
    task = TokenizerTask(
        workspace=workspace, number=0, inputs=(), given=None, vocab_size=32_000, window_tokens=1024, batches=()
    )
    settings = WindowSettings(tokenizer=task.key, fast_tokenizer=True, window_tokens=1024, packing="joined")
    encoder = EncoderSettings(name="/encoder", static=True, weights_sha256="0" * 64)
    of_encoder = EncoderTask(workspace=workspace, number=0, inputs=(), encoder=encoder)
    workspace.write(f"{of_encoder.key}/{ENCODER_NAME}", b"{}")
    tokenizer = Tokenizer(task=task, token_dtype="uint16", settings=settings)
    options = WriteOptions(inputs=("a",), out="out")
    return parts_in_stages(runner, options, read, tokenizer, encoder, None, both_at_once=both_at_once)


def sorted_of(runner: Runner, embedded: EmbeddedParts) -> Sorted:
    fitted = FittedTree(
        key="tree/0",
        fingerprint="0" * 16,
        num_windows=1,
        sample="",
        num_sampled=1,
        levels=[],
        fit_seconds=[],
        devices=[],
    )
    options = WriteOptions(inputs=("a",), out="out")
    return sort_in_stages(runner, options, embedded, fitted, work_bytes=None)


def quiet(line: str) -> None:
    """Takes log lines."""


def held_and_peak(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What `work` returns; and the bytes per part that it holds afterwards, and that it held at most."""
    gc.collect()
    tracemalloc.start()
    try:
        result = work()
        gc.collect()
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return result, held / PARTS, peak / PARTS


@pytest.mark.parametrize("both_at_once", [False, True])
def test_a_few_hundred_bytes_are_held_of_a_part_over_all_stages(tmp_path: Path, both_at_once: bool) -> None:
    runner = Runner(Instead(), Workspace(tmp_path), log=quiet)
    documents_read(runner.workspace).batches[0]  # imports

    def stages() -> list[Any]:
        read = documents_read(runner.workspace)
        embedded = parts_of(runner, read, both_at_once=both_at_once)
        ordered = sorted_of(runner, embedded)
        texts = sketch_in_stages(runner, read.batches, None)
        tables = document_table_tasks(runner, embedded, read.batches, "root")
        assert sum(len(table.spans) for table in tables) == PARTS
        return [read, embedded, ordered, texts, tables]

    (_, embedded, *_), held, peak = held_and_peak(stages)
    assert embedded.summary.num_documents == 900 * PARTS
    assert held < BOUND / 2
    assert peak < BOUND


def test_what_is_done_is_found_with_a_few_hundred_bytes_per_part(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    read = documents_read(workspace)
    runner = Runner(Instead(), workspace, log=quiet)
    windows = parts_of(runner, read, both_at_once=False).windows
    folder = tmp_path / windows[0].stage
    folder.mkdir()
    for task in windows[: PARTS - 1]:
        record = record_of(task) | {"files": {task.file("tokens.npy"): 2}}
        (tmp_path / task.record_name).write_text(str(record).replace("'", '"').replace("None", "null"))
        (tmp_path / task.file("tokens.npy")).write_bytes(b"ab")
    (tmp_path / windows[3].file("tokens.npy")).write_bytes(b"a")
    (tmp_path / windows[4].file("tokens.npy")).unlink()
    taken = np.zeros(PARTS, np.int64)

    def take(number: int, record: Record) -> None:
        taken[number] = record["num_windows"]

    done, _, peak = held_and_peak(lambda: runner._finished(windows, take))
    assert [at for at, is_done in enumerate(done) if not is_done] == [3, 4, PARTS - 1]
    assert runner.plan[-1] == ("windows", PARTS, PARTS - 3)
    assert taken.tolist() == [0 if at in (3, 4, PARTS - 1) else WINDOWS_PER_PART + at % 7 for at in range(PARTS)]
    assert peak < BOUND
    assert finished(workspace, windows[2:5]).keys() == {2}


def test_parts_are_made_again_from_columns_as_they_were(tmp_path: Path) -> None:
    runner = Runner(Instead(), Workspace(tmp_path), log=quiet)
    embedded = parts_of(runner, documents_read(runner.workspace), both_at_once=False)
    parts = embedded.parts
    assert isinstance(parts, Parts)
    task, part = embedded.windows[17], parts[17]
    assert (part.number, part.num_windows, part.windows_key) == (17, WINDOWS_PER_PART + 3, task.key)
    assert part.embeddings_key == f"embeddings/000017-{part.fingerprint}"
    assert parts[-1] == parts[PARTS - 1]
    assert list(parts[10:12]) == [parts[10], parts[11]]
    with pytest.raises(IndexError):
        parts[PARTS]
    with pytest.raises(IndexError):
        embedded.windows[PARTS]
    odd = chosen_parts(parts, lambda part: part.number % 2 == 1)
    assert isinstance(odd, Parts)
    assert [part.number for part in odd[:2]] == [1, 3]
    plain = tuple(parts[:4])
    assert chosen_parts(plain, lambda part: part.number % 2 == 1) == (plain[1], plain[3])
    assert isinstance(plain[0], Part)


def test_rows_are_brought_in_order_in_pieces_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_ROWS_PER_WRITE", 4)
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 100, (number, 3)).astype(np.uint16) for number in (5, 0, 1, 9)]
    order = rng.permutation(15)
    pieces = list(runs._rows_in_order(arrays, order))
    assert [len(piece) for piece in pieces] == [4, 4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(pieces), np.concatenate(arrays)[order])


def test_the_identity_is_that_of_the_list_of_all_digests() -> None:
    import hashlib
    import json

    records = [{"digests": ["a", "b"]}, {"digests": []}, {"digests": ["c"]}]
    for grown in (None, "f" * 64):
        content = json.dumps([grown, ["a", "b", "c"]]).encode()
        assert identity_of(iter(records), grown) == int(hashlib.sha256(content).hexdigest()[:16], 16)
