"""Where windows came from: every window's tokens are those of the documents that are named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.keys import window_keys
from crisp_stream.format.manifest import SOURCES, TABLES, places_path
from crisp_stream.format.provenance import PLACES_HEADER_BYTES, document_spans, documents_tables
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.inspection.summary import describe_window
from crisp_stream.loading.reader import read_windows
from crisp_stream.storage.store import open_store
from tests.format.test_format import GOLDEN
from tests.support.seaweed import S3Server
from tests.support.synthetic import upload
from tests.support.words import append_words, write_texts, write_words


def texts_of(paths: list[str]) -> dict[str, list[dict[str, str]]]:
    """Documents of each file, by its name."""
    return {Path(path).name: [json.loads(line) for line in Path(path).read_text().splitlines()] for path in paths}


def assert_tokens_are_those_of_the_documents(dataset: Dataset, paths: list[str], *, with_ids: bool) -> list[int]:
    """Tokenise every document again and compare with every window; returns how many documents each window holds."""
    tokenizer = DocumentTokenizer(dataset.tokenizer_path())
    documents = texts_of(paths)
    encoded = {name: tokenizer.encode([row["text"] for row in rows]) for name, rows in documents.items()}
    window_ids = np.arange(dataset.manifest.num_windows)
    tokens = read_windows(dataset, window_ids)["tokens"]
    sources = document_spans(dataset, window_ids)
    assert [source.window for source in sources] == window_ids.tolist()
    assert len({(source.part, source.place) for source in sources}) == len(window_ids)
    for row, source in zip(tokens, sources, strict=True):
        rebuilt = np.full(len(row), tokenizer.eot_id)
        for span in source.documents:
            own = encoded[span.source][span.row][span.first_token : span.first_token + span.num_tokens]
            assert span.num_tokens == len(own) > 0
            rebuilt[span.at : span.at + span.num_tokens] = own
            assert span.id == (documents[span.source][span.row]["id"] if with_ids else None)
        np.testing.assert_array_equal(row, rebuilt)
    return [len(source.documents) for source in sources]


@pytest.mark.parametrize("packing", ["joined", "document"])
@pytest.mark.parametrize("window_tokens", [16, 300])
def test_every_window_holds_the_tokens_of_its_documents(packing: str, window_tokens: int, tmp_path: Path) -> None:
    paths = write_texts(tmp_path / "in", characters=4000)
    with Path(paths[1]).open("a") as file:
        for number in range(40):  # many documents in a window
            file.write(json.dumps({"id": f"short{number}", "text": "a few words"}) + "\n")
    dataset = write_words(
        paths, tmp_path / "root", packing=packing, window_tokens=window_tokens, id_column="id", group_bytes=1
    )
    assert len(documents_tables(dataset)) == 3
    counts = assert_tokens_are_those_of_the_documents(dataset, paths, with_ids=True)
    spans = [span for source in document_spans(dataset, np.arange(len(counts))) for span in source.documents]
    if packing == "document":
        assert set(counts) == {1}
        assert max(span.first_token for span in spans) > 2 * window_tokens, "documents of many windows"
    elif window_tokens == 300:
        assert max(counts) > 10
    else:
        assert max(span.first_token for span in spans) > 20 * window_tokens


def test_documents_are_found_where_files_share_a_task_and_duplicates_are_dropped(tmp_path: Path) -> None:
    paths = write_texts(tmp_path / "in")
    first = Path(paths[0]).read_text().splitlines()
    twice = Path(paths[1]).read_text().splitlines()
    Path(paths[1]).write_text("\n".join([first[3], twice[0], twice[0], *twice[1:], first[0]]) + "\n")
    dataset = write_words(paths, tmp_path / "root", dedup="exact")
    texts = [row["text"] for rows in texts_of(paths).values() for row in rows]
    repeats = len(texts) - len(set(texts))
    assert repeats >= 3
    assert dataset.manifest.provenance["dropped_documents"] == {"exact duplicate": repeats}
    assert len(documents_tables(dataset)) == 1
    assert_tokens_are_those_of_the_documents(dataset, paths, with_ids=False)


def test_documents_of_a_grown_dataset_are_found(tmp_path: Path) -> None:
    paths = write_texts(tmp_path / "in")
    write_words(paths[:1], tmp_path / "root", id_column="id")
    dataset = append_words(paths[1:], tmp_path / "root", id_column="id")
    assert_tokens_are_those_of_the_documents(dataset, paths, with_ids=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("provenance")
    return write_words(write_texts(folder / "in"), folder / "root", id_column="id", group_bytes=1)


def test_must_13_keys_from_places_give_the_order_of_the_windows(written: Dataset) -> None:
    keys = []
    for row, first in zip(written.shards, written.first_window_per_shard, strict=True):
        content = (Path(written.root) / places_path(row.path)).read_bytes()
        assert len(content) == PLACES_HEADER_BYTES + 8 * row.num_windows
        places = np.load(Path(written.root) / places_path(row.path))
        assert (places.dtype, places.shape) == (np.uint32, (row.num_windows, 2))
        leaves = written.leaf_of_windows(np.arange(first, first + row.num_windows))
        keys.append(window_keys(leaves, places, written.manifest.sort_seed))
    assert (np.diff(np.concatenate(keys).astype(object)) > 0).all()


def test_a_window_on_s3_costs_one_small_range_and_a_row_group(
    written: Dataset, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = open_dataset(upload(written, s3.fresh_prefix()))
    ranges: list[tuple[str, int, int]] = []
    original = type(remote.store).get_range

    def counted(self: Any, path: str, start: int, length: int) -> bytes:
        ranges.append((path, start, length))
        return original(self, path, start, length)

    monkeypatch.setattr(type(remote.store), "get_range", counted)
    asked = np.array([17, 3, 90, 17])
    assert document_spans(remote, asked) == document_spans(written, asked)
    places = [(path, length) for path, _, length in ranges if path.startswith("provenance/")]
    assert len(places) == 4
    assert {length for _, length in places} == {8}


def test_a_window_is_described_with_text_path_place_and_documents(written: Dataset) -> None:
    window = 40
    page = describe_window(written, window)
    [source] = document_spans(written, np.array([window]))
    leaf = int(written.leaf_of_windows(np.array([window]))[0])
    assert f"window 40 of {written.manifest.num_windows} in " in page
    assert f"{leaf // 16} (level 1)" in page
    assert f"leaf id {leaf}" in page
    shard = int(np.searchsorted(written.first_window_per_shard, window, side="right")) - 1
    row = written.shards[shard]
    match = next(line for line in page.splitlines() if "stored in" in line)
    start = int(match.partition("bytes ")[2].partition(" to")[0])
    stored = (Path(written.root) / row.path).read_bytes()[start : start + written.manifest.sample_bytes]
    assert stored == read_windows(written, np.array([window])).tobytes()
    for span in source.documents:
        assert f"{span.source}, document {span.row} (id {span.id})" in page
    assert page.splitlines()[-1].strip()


def test_a_dataset_without_provenance_says_so() -> None:
    golden = open_dataset(GOLDEN)
    assert "not known: this dataset was written without provenance" in describe_window(golden, 5)
    with pytest.raises(InputError, match=r"where windows came from is not known, because provenance/tables.parquet"):
        document_spans(golden, np.array([5]))


def test_window_ids_outside_the_dataset_are_refused(written: Dataset) -> None:
    with pytest.raises(InputError, match="window ids must be 0 to"):
        document_spans(written, np.array([written.manifest.num_windows]))
    with pytest.raises(InputError, match="window ids must be 0 to"):
        describe_window(written, -1)


@pytest.mark.parametrize(
    ("path", "columns", "message"),
    [
        (TABLES, {"table": ["../secret.parquet"], "first_part": [0]}, "table must look like provenance/documents"),
        (TABLES, {"table": ["provenance/documents/000000.parquet"]}, "not a readable table"),
        (SOURCES, {"file": [1], "name": ["x"]}, "file must count from 0"),
        (SOURCES, None, "not a readable table"),
    ],
)
def test_damaged_tables_of_provenance_are_format_errors(
    path: str, columns: dict[str, list[Any]] | None, message: str, written: Dataset, tmp_path: Path
) -> None:
    import pyarrow as pa

    root = tmp_path / "copy"
    store = open_store(str(root))
    for name, _ in written.store.list():
        store.put(name, written.store.get(name))
    if columns is None:
        (root / path).write_bytes(b"PAR1 nothing")
    else:
        pq.write_table(pa.table(columns), root / path)
    with pytest.raises(FormatError, match=message):
        document_spans(open_dataset(root), np.array([0]))


def test_spans_are_plain_values(written: Dataset) -> None:
    [source] = document_spans(written, np.array([0]))
    assert json.loads(json.dumps(dataclasses.asdict(source)))["window"] == 0
