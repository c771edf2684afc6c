"""`--exclude-ids` as a stage: which documents are left out, and what is made again."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.errors import InputError
from crisp_stream.storage.store import open_store
from crisp_stream.writers.cleaning.excluded_ids import list_id_files
from crisp_stream.writers.documents.bad_records import Budget
from crisp_stream.writers.documents.inputs import DocumentSettings
from crisp_stream.writers.documents.listing import list_input_files
from crisp_stream.writers.engine.tasks import Record, execute
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.stages.batches import EXCLUDED, DocumentsTask, Selection, read_batch
from crisp_stream.writers.stages.excluded import ExcludedTask
from tests.support.seaweed import S3Server


def read(work: str, inputs: Path, lists: Path, settings: DocumentSettings) -> tuple[list[str], Record]:
    workspace = Workspace(work)
    excluded = ExcludedTask(workspace=workspace, number=0, inputs=(), files=tuple(list_id_files([str(lists)])))
    execute(excluded)
    task = DocumentsTask(
        workspace=workspace,
        number=0,
        inputs=(excluded.fingerprint,),
        files=tuple(list_input_files([str(inputs)], settings)),
        first_file=0,
        documents=settings,
        selection=Selection(excluded=excluded.key),
        batch_characters=1 << 20,
        max_bad=Budget.parse(0),
    )
    record = execute(task)
    return read_batch(workspace, task.batch_file(0)).texts, record


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": number, "text": f"t{number}"}) + "\n" for number in range(100)))
    (tmp_path / "lists").mkdir()
    pq.write_table(pa.table({"doc_id": [str(number) for number in range(0, 100, 2)]}), tmp_path / "lists/a.parquet")
    (tmp_path / "lists/b.txt").write_text("1\n99\nnone\n")
    return path


def test_documents_of_the_listed_ids_are_left_out_and_counted(tmp_path: Path, inputs: Path, s3: S3Server) -> None:
    settings = DocumentSettings(id_field="id")
    expected = [f"t{number}" for number in range(3, 99, 2)]
    for work in (str(tmp_path / "work"), s3.fresh_prefix()):
        texts, record = read(work, inputs, tmp_path / "lists", settings)
        assert texts == expected
        assert record["dropped"] == {EXCLUDED: 52}
    store = open_store(work)
    assert len([name for name, _ in store.list("excluded") if name.endswith(".npy")]) == 1


def test_documents_without_ids_are_refused(tmp_path: Path, inputs: Path) -> None:
    with pytest.raises(InputError, match=r"a.jsonl: exclude_ids needs ids of the documents, got none. .*--id-column"):
        read(str(tmp_path / "work"), inputs, tmp_path / "lists", DocumentSettings())


def test_the_ids_of_redpajama_are_those_of_its_signals(tmp_path: Path) -> None:
    folder = tmp_path / "documents/2023-06/0000"
    folder.mkdir(parents=True)
    lines = "".join(json.dumps({"raw_content": f"t{number}"}) + "\n" for number in range(4))
    (folder / "en_head.json").write_text(lines)
    (tmp_path / "duplicates").mkdir()
    ids = ["2023-06/0000/en_head.json/1", "2023-06/0000/en_head.json/3"]
    pq.write_table(pa.table({"doc_id": ids, "digest": ["x", "y"]}), tmp_path / "duplicates/en_head.parquet")
    settings = DocumentSettings(layout="redpajama-v2")
    texts, _ = read(str(tmp_path / "work"), tmp_path / "documents", tmp_path / "duplicates", settings)
    assert texts == ["t0", "t2"]


def test_another_list_makes_the_documents_again(tmp_path: Path, inputs: Path) -> None:
    settings, work = DocumentSettings(id_field="id"), str(tmp_path / "work")
    assert len(read(work, inputs, tmp_path / "lists/a.parquet", settings)[0]) == 50
    assert len(read(work, inputs, tmp_path / "lists/b.txt", settings)[0]) == 98


def test_the_option_takes_several_lists() -> None:
    assert WriteOptions(inputs=["a"], out="b", exclude_ids=("x.txt", "y")).exclude_ids == ("x.txt", "y")
