"""`verify --deep` reads every file of a dataset: a changed byte, an empty table, a missing file are each found."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.errors import CrispError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.listed_files import FILES, digests_of, files_parquet
from crisp_stream.inspection.verify import verify_dataset
from crisp_stream.writers.append import append
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.write import write
from tests.support.written_dataset import TOPICS


def quiet(line: str) -> None:
    """Takes log lines."""


def options_for(folder: Path, name: str, texts: list[str], **changes: object) -> WriteOptions:
    source = folder / f"{name}.jsonl"
    source.write_text("".join(json.dumps({"id": f"{name}-{at}", "text": text}) + "\n" for at, text in enumerate(texts)))
    chosen: dict[str, object] = {
        **{"inputs": [str(source)], "out": str(folder / "root"), "processes": 1, "id_column": "id", "dedup": "exact"},
        **{"window_tokens": 64, "vocab_size": 600, "arity": 4, "depth": 2, "min_examples_to_split": 32},
        **{"encoder": "lsi", "part_characters": 12_000},
    }
    return WriteOptions(**{**chosen, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of an LSI, with dropped documents, and a second generation beside the first."""
    folder = tmp_path_factory.mktemp("every")
    texts = [text[:1500] for text in TOPICS[:30]]
    write(options_for(folder, "first", [*texts, texts[0]]), log=quiet)
    shutil.copytree(folder / "root", folder / "alone")
    more = [text[:1500] for text in TOPICS[30:50]]
    append(options_for(folder, "second", [*more, more[3]], window_tokens=1024, encoder=None), log=quiet)
    return folder


def files_of(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def problems_of(root: Path, generation: int | None = None) -> list[str]:
    """What a deep verification says; an error that keeps the dataset from being opened is found, too."""
    try:
        return verify_dataset(str(root), deep=True, generation=generation).problems
    except CrispError as error:
        return [str(error)]


@contextmanager
def restored(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    try:
        yield content
    finally:
        path.write_bytes(content)


def test_the_files_are_all_kinds_that_the_format_has(written: Path) -> None:
    files = files_of(written / "alone")
    for name in (
        *("manifest.json", "clusters.parquet", "shards.parquet", FILES, "provenance/dropped.parquet"),
        *("provenance/sources.parquet", "provenance/tables.parquet", "provenance/documents/000000.parquet"),
        "provenance/texts.parquet",
        *("tree/tree.json", "tree/level1.nodes.npy", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
        *("encoder/vocabulary.json", "encoder/components.npy", "encoder/weight_per_term.npy", "shards/index.json"),
    ):
        assert name in files
    assert any(name.startswith("provenance/0") and name.endswith(".npy") for name in files)


def test_a_changed_byte_of_any_file_is_found(written: Path) -> None:
    root = written / "alone"
    assert problems_of(root) == []
    rng = random.Random(0)
    for name in files_of(root):
        path = root / name
        with restored(path) as content:
            for at in {0, len(content) - 1, *(rng.randrange(len(content)) for _ in range(2))}:
                changed = bytearray(content)
                changed[at] ^= 1 << rng.randrange(8)
                path.write_bytes(changed)
                assert problems_of(root), f"{name}, byte {at}"
    assert problems_of(root) == []


def test_a_missing_file_and_an_empty_one_are_named(written: Path) -> None:
    root = written / "alone"
    for name in files_of(root):
        path = root / name
        with restored(path) as content:
            path.write_bytes(b"")
            assert any(Path(name).name in problem for problem in problems_of(root)), name
            path.unlink()
            problems = problems_of(root)
            assert any(Path(name).name in problem for problem in problems), name
            path.write_bytes(content)


def test_a_table_without_its_rows_is_found(written: Path) -> None:
    root = written / "alone"
    tables = [name for name in files_of(root) if name.endswith(".parquet")]
    assert len(tables) >= 7
    for name in tables:
        path = root / name
        with restored(path):
            schema = pq.read_schema(path)
            pq.write_table(schema.empty_table(), path, write_page_checksum=True)
            assert any(Path(name).name in problem for problem in problems_of(root)), name


def test_every_generation_lists_its_own_files(written: Path) -> None:
    root = written / "root"
    assert problems_of(root) == problems_of(root, generation=0) == []
    newest = open_dataset(root)
    for table in (newest.own_path(FILES), newest.own_path("provenance/sources.parquet"), "manifest.g0.json"):
        path = root / table
        with restored(path) as content:
            path.write_bytes(content[:-1] + b"X")
            assert any(Path(table).name in problem for problem in problems_of(root)), table
    for shared in ("encoder/components.npy", "tokenizer/tokenizer_config.json"):
        path = root / shared
        with restored(path) as content:
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            assert problems_of(root)
            assert problems_of(root, generation=0)


def test_a_zeroed_encoder_and_renamed_sources_are_named(written: Path) -> None:
    root = written / "alone"
    damages = {
        "encoder/components.npy": lambda content: content[:128] + bytes(len(content) - 128),
        "tokenizer/tokenizer_config.json": lambda content: content.replace(b"eos_token", b"eos_tokem"),
    }
    for name, damage in damages.items():
        with restored(root / name) as content:
            (root / name).write_bytes(damage(content))
            [problem] = problems_of(root)
            assert problem.startswith(f"{name}: has sha256")
    sources = root / "provenance/sources.parquet"
    with restored(sources):
        table = pq.ParquetFile(sources, pre_buffer=False).read(use_threads=False)
        renamed = table.set_column(1, "name", pa.array(["another.jsonl"] * len(table)))
        pq.write_table(renamed, sources, write_page_checksum=True)
        assert [problem.partition(":")[0] for problem in problems_of(root)] == ["provenance/sources.parquet"]


def test_the_list_is_of_all_files_but_shards_places_and_indexes(written: Path) -> None:
    root = written / "alone"
    expected = {
        name: (root / name).read_bytes()
        for name in files_of(root)
        if not name.startswith(("shards/", "provenance/0")) and name not in ("manifest.json", FILES)
    }
    content = files_parquet(digests_of(expected))
    assert (root / FILES).read_bytes() == content
    assert open_dataset(root).manifest.files_sha256 == hashlib.sha256(content).hexdigest()


def test_a_changed_manifest_is_not_opened(written: Path) -> None:
    path = written / "alone" / "manifest.json"
    with restored(path) as content:
        path.write_bytes(content.replace(b"first.jsonl", b"other.jsonl"))
        with pytest.raises(CrispError, match=r"manifest.json: does not match its checksum"):
            open_dataset(written / "alone")
