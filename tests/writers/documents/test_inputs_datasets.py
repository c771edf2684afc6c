from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.errors import CorruptInputError, InputError, StorageError
from crisp_stream.format.ledger import Ledger
from crisp_stream.storage.store import open_store
from crisp_stream.writers.documents.documents import Document, read_documents, read_input
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.documents.inputs import DocumentSettings, InputFile
from crisp_stream.writers.documents.listing import DATASET_RECORD, OTHER_FILE, list_input_files
from tests.support.seaweed import S3Server

SETTINGS = DocumentSettings(id_field="meta.id", filters=("meta.id != 4",))


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def rows(count: int = 10, text: str = "t") -> dict[str, list[object]]:
    return {
        "text": [f"{text}{n}" for n in range(count)],
        "meta": [{"id": n, "lang": "en"} for n in range(count)],
        "other": list(range(count)),
    }


def listed(source: str | Path, ledger: Ledger | None = None) -> list[InputFile]:
    return list_input_files([str(source)], SETTINGS, ledger)


def read(source: str | Path) -> list[Document]:
    return [found for file in listed(source) for found in read_input(file, SETTINGS, DropCounts())]


def kept(count: int = 10, text: str = "t", first: int = 0) -> list[Document]:
    return [Document(text=f"{text}{n}", row=n - first, id=str(n)) for n in range(first, count) if n != 4]


def test_a_dataset_on_disk_is_read_by_its_files(tmp_path: Path, s3: S3Server) -> None:
    datasets.Dataset.from_dict(rows()).save_to_disk(tmp_path / "saved", num_shards=2)
    prefix = s3.fresh_prefix()
    for file in (tmp_path / "saved").iterdir():
        open_store(prefix).put_file(file.name, file)
    for source in (tmp_path / "saved", prefix):
        ledger = Ledger()
        assert [(file.name, file.kind) for file in listed(source, ledger)] == [
            ("data-00000-of-00002.arrow", "arrow"),
            ("data-00001-of-00002.arrow", "arrow"),
        ]
        assert dict(ledger.paths) == {DATASET_RECORD: 2}
        assert read(source) == [*kept(5), *kept(10, first=5)]


def test_files_left_from_an_earlier_save_are_not_read(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    datasets.Dataset.from_dict(rows()).save_to_disk(saved, num_shards=2)
    shutil.copy(saved / "data-00001-of-00002.arrow", saved / "data-00002-of-00003.arrow")
    assert [file.name for file in listed(saved)] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    (saved / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(
        CorruptInputError, match=r"every file of the dataset must be there, data-00001-of-00002.arrow is"
    ):
        listed(saved)
    for content, message in ((b"{", r"state.json: must be the JSON object"), (b"{}", r"got no '_data_files'")):
        (saved / "state.json").write_bytes(content)
        with pytest.raises(CorruptInputError, match=message):
            listed(saved)


def test_a_dataset_of_several_splits_asks_for_one(tmp_path: Path) -> None:
    train, test = datasets.Dataset.from_dict(rows()), datasets.Dataset.from_dict(rows(3, "x"))
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "both")
    datasets.DatasetDict({"train": train}).save_to_disk(tmp_path / "one")
    with pytest.raises(InputError, match=r"must have one split to be read whole, got train, test. .*both/train"):
        listed(tmp_path / "both")
    assert read(tmp_path / "both" / "test") == kept(3, "x")
    assert read(tmp_path / "one") == kept()
    assert [file.name for file in listed(tmp_path / "one")] == ["train/data-00000-of-00001.arrow"]


def test_json_files_of_such_names_are_documents_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"text": "a", "meta": {"id": 1}}))
    assert read(tmp_path) == [Document(text="a", row=0, id="1")]


@pytest.fixture
def by_name(tmp_path: Path) -> Path:
    """A dataset as a hub repository holds it: two Parquet files of a train split, one of a test split."""
    folder = tmp_path / "named"
    (folder / "data").mkdir(parents=True)
    table = pa.table(rows())
    pq.write_table(table.slice(0, 5), folder / "data" / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(5), folder / "data" / "train-00001-of-00002.parquet")
    pq.write_table(pa.table(rows(3, "x")), folder / "data" / "test-00000-of-00001.parquet")
    return folder


def test_a_dataset_by_name_is_read_shard_by_shard(by_name: Path) -> None:
    files = listed(f"hf://{by_name}@train")
    assert [file.name for file in files] == ["named@train/00000-of-00002", "named@train/00001-of-00002"]
    assert read(f"hf://{by_name}@train") == [*kept(5), *kept(10, first=5)]
    assert list(read_input(files[1], SETTINGS, DropCounts())) == kept(10, first=5)
    assert read(f"hf://{by_name}:default@test") == kept(3, "x")


def test_a_name_that_does_not_say_enough_is_refused(by_name: Path) -> None:
    for source, message in (
        (f"hf://{by_name}", r"one split must be named, got train, test. Write for example hf://.*named@train"),
        (f"hf://{by_name}@dev", r"the split must be one of train, test, got dev"),
        (f"hf://{by_name}:german@train", r"must be a dataset that datasets can load, .*german"),
        ("hf://", r"must be hf://NAME\[:CONFIG\]\[@SPLIT\]"),
        ("hf://a/b@", r"must be hf://NAME"),
        ("hf://a/b:@train", r"must be hf://NAME"),
    ):
        with pytest.raises(InputError, match=message):
            listed(source)
    [file, _] = listed(f"hf://{by_name}@train")
    with pytest.raises(InputError, match=r"shard 0: row 1: the text column 'body' must exist, got: text, meta.id"):
        list(read_input(file, DocumentSettings(text_field="body"), DropCounts()))


def test_a_dataset_by_name_that_changed_or_is_damaged_is_refused(by_name: Path) -> None:
    [_, second] = listed(f"hf://{by_name}@train")
    path = by_name / "data" / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"must stay as it was listed"):
        list(read_input(second, SETTINGS, DropCounts()))
    [_, second] = listed(f"hf://{by_name}@train")
    with pytest.raises(CorruptInputError, match=r"named@train, shard 1: row 1: must be readable through datasets"):
        list(read_input(second, SETTINGS, DropCounts()))


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(StorageError, match=r"hf://nobody/nothing@train: .*cannot be reached"):
            listed("hf://nobody/nothing@train")


def test_a_folder_of_datasets_counts_what_it_passes_over(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(rows()).save_to_disk(tmp_path / "saved")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "dataset_infos.json").write_text('{\n"default": {}}')
    ledger = Ledger()
    assert [file.name for file in listed(tmp_path, ledger)] == ["saved/data-00000-of-00001.arrow"]
    assert dict(ledger.paths) == {OTHER_FILE: 1, DATASET_RECORD: 3}
    assert {row.file for row in ledger.rows if row.reason == DATASET_RECORD} == {
        "dataset_infos.json",
        "saved/dataset_info.json",
        "saved/state.json",
    }


def test_records_of_datasets_beside_parquet_and_lines_do_not_end_a_run(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text('{"text": "a"}\n')
    for name in ("dataset_infos.json", "dataset_info.json"):
        (tmp_path / name).write_text('{\n  "default": {}\n}')
    assert list(read_documents([str(tmp_path)], counts=DropCounts())) == ["a"]
    with pytest.raises(InputError, match=r"dataset_infos\.json"):  # named, it is read
        list(read_documents([str(tmp_path / "dataset_infos.json")], counts=DropCounts()))
