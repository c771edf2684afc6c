"""What a write leaves out: filters, duplicates, contamination, corrupt files; counted, and listed where it matters."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream.errors import InputError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.ledger import read_ledger
from crisp_stream.format.manifest import DROPPED
from crisp_stream.writers.cleaning.dropped import Dropped, read_dropped
from crisp_stream.writers.write import write
from tests.support.written_dataset import TOPICS, WordEncoder, files_below, small_options

# Different also in their first 1,200 characters.
DIFFERENT = [
    text for number, text in enumerate(TOPICS) if text[:1200] not in {other[:1200] for other in TOPICS[:number]}
]


def quiet(line: str) -> None:
    """Takes log lines."""


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def records(texts: list[str]) -> list[dict[str, Any]]:
    return [
        {"id": f"topic-{number}", "body": {"text": text}, "quality": {"words": len(text.split())}}
        for number, text in enumerate(texts)
    ]


def dropped_of(root: Path) -> list[Dropped]:
    return list(read_dropped(root / DROPPED))


def source_rows(root: Path) -> dict[str, set[int]]:
    """File name to the rows of the documents that are in the dataset, from its tables of documents."""
    import pyarrow.parquet as pq

    sources = pq.ParquetFile(root / "provenance/sources.parquet", pre_buffer=False).read().to_pydict()
    names = dict(zip(sources["file"], sources["name"], strict=True))
    rows: dict[str, set[int]] = {}
    for path in sorted((root / "provenance/documents").glob("*.parquet")):
        table = pq.ParquetFile(path, pre_buffer=False).read().to_pydict()
        for file, row in zip(table["file"], table["row"], strict=True):
            rows.setdefault(names[file], set()).add(row)
    return rows


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two files: 60 topics of at most 1,200 characters, and 30 more of which some repeat the first file."""
    texts = [text[:1200] for text in DIFFERENT]
    similar = texts[7].replace(" the ", " this ", 1)
    write_lines(tmp_path / "corpus" / "a.jsonl", records(texts[:60]))
    write_lines(tmp_path / "corpus" / "b.jsonl", records([*texts[60:75], texts[3], texts[3], similar, *texts[75:]]))
    return tmp_path / "corpus"


def test_filters_keep_what_holds_and_count_the_rest(corpus: Path, tmp_path: Path, word_encoder: WordEncoder) -> None:
    options = small_options(
        corpus, tmp_path / "out", text_column="body.text", id_column="id", filters=("quality.words >= 150",)
    )
    report = write(options, log=quiet)
    long_enough = sum(len(text[:1200].split()) >= 150 for text in [*DIFFERENT[:60], *DIFFERENT[60:75], *DIFFERENT[75:]])
    added = sum(len(text[:1200].split()) >= 150 for text in (DIFFERENT[3], DIFFERENT[3], DIFFERENT[7]))
    assert 0 < long_enough < len(DIFFERENT)
    assert report.documents == long_enough + added
    assert report.dropped_documents == {"filter: quality.words >= 150": len(DIFFERENT) + 3 - long_enough - added}


@pytest.mark.parametrize("processes", [1, 2])
def test_of_equal_texts_the_first_is_kept_whatever_the_grouping(
    processes: int, corpus: Path, tmp_path: Path, word_encoder: WordEncoder
) -> None:
    options = small_options(
        corpus,
        tmp_path / "out",
        text_column="body.text",
        id_column="id",
        dedup="exact",
        encoder="lsi",
        max_length=None,
        group_bytes=1 if processes == 2 else 1 << 20,
        processes=processes,
    )
    report = write(options, log=quiet)
    assert report.dropped_documents == {"exact duplicate": 2}
    assert dropped_of(tmp_path / "out") == [
        Dropped(file="b.jsonl", row=15, id="topic-15", reason="exact duplicate", detail="row 3 of a.jsonl"),
        Dropped(file="b.jsonl", row=16, id="topic-16", reason="exact duplicate", detail="row 3 of a.jsonl"),
    ]
    rows = source_rows(tmp_path / "out")
    assert rows["a.jsonl"] == set(range(60))
    assert rows["b.jsonl"] == set(range(len(DIFFERENT) - 60 + 3)) - {15, 16}


def test_near_duplicates_go_too_and_say_how_similar_they_are(
    corpus: Path, tmp_path: Path, word_encoder: WordEncoder
) -> None:
    options = small_options(corpus, tmp_path / "out", text_column="body.text", id_column="id", dedup="near")
    report = write(options, log=quiet)
    by_row = {(row.file, row.row): row for row in dropped_of(tmp_path / "out")}
    assert by_row["b.jsonl", 15].reason == "exact duplicate"
    similar = by_row["b.jsonl", 17]
    assert similar.reason == "near duplicate"
    assert similar.detail.startswith("row 7 of a.jsonl, similarity 0.")
    assert report.dropped_documents["near duplicate"] == sum(row.reason == "near duplicate" for row in by_row.values())
    assert report.documents + sum(report.dropped_documents.values()) == len(DIFFERENT) + 3


def test_documents_that_share_words_with_an_evaluation_set_are_left_out_and_listed(
    corpus: Path, tmp_path: Path, word_encoder: WordEncoder
) -> None:
    words = DIFFERENT[20].split()
    write_lines(tmp_path / "test.jsonl", [{"text": "too short"}, {"text": "Quoted: " + " ".join(words[20:50]) + "!"}])
    plain = write(small_options(corpus, tmp_path / "plain", text_column="body.text"), log=quiet)
    lines: list[str] = []
    options = small_options(
        corpus, tmp_path / "out", text_column="body.text", decontaminate=(str(tmp_path / "test.jsonl"),)
    )
    report = write(options, log=lines.append)
    [found] = dropped_of(tmp_path / "out")
    assert (found.file, found.row, found.reason) == ("a.jsonl", 20, "contaminated")
    assert found.detail.startswith("row 2 of test.jsonl: ")
    assert len(found.detail.partition(": ")[2].split()) == 13
    assert report.dropped_documents == {"shares an n-gram with an evaluation set": 1}
    assert report.documents == plain.documents - 1
    provenance = open_dataset(tmp_path / "out").manifest.provenance
    assert (provenance["decontaminated"], provenance["ngram"]) == (["test.jsonl"], 13)
    assert any("1 examples of test.jsonl are too short to be looked for" in line for line in lines)


def test_a_corpus_that_is_all_contaminated_is_an_error(tmp_path: Path, word_encoder: WordEncoder) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": text[:1200]} for text in DIFFERENT[:5]])
    options = small_options(path, tmp_path / "out", decontaminate=(str(path),))
    with pytest.raises(InputError, match="at least one document with text is needed, got 5 documents without any"):
        write(options, log=quiet)


def test_a_corrupt_file_is_named_and_skipped_only_on_request(
    corpus: Path, tmp_path: Path, word_encoder: WordEncoder
) -> None:
    whole = gzip.compress((corpus / "a.jsonl").read_bytes())
    (corpus / "c.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"c\.jsonl\.gz.*(Restore|leave)"):
        write(small_options(corpus, tmp_path / "out", text_column="body.text"), log=quiet)
    lines: list[str] = []
    options = small_options(corpus, tmp_path / "out", text_column="body.text", skip_corrupt=True)
    report = write(options, log=lines.append)
    assert (report.dropped_documents, report.skipped_paths) == ({}, {"file that cannot be read to its end": 1})
    assert any(line.startswith("documents: left out c.jsonl.gz: ") for line in lines)
    [row] = read_ledger(open_dataset(tmp_path / "out"))
    assert (row.reason, row.file, row.line) == ("file that cannot be read to its end", "c.jsonl.gz", None)
    assert row.text.startswith("must be readable to its end, got: Truncated")
    (corpus / "c.jsonl.gz").unlink()
    write(small_options(corpus, tmp_path / "without", text_column="body.text"), log=quiet)
    shards = {name: content for name, content in files_below(tmp_path / "out").items() if name.endswith(".mds")}
    assert shards == {k: v for k, v in files_below(tmp_path / "without").items() if k.endswith(".mds")}


def test_a_limit_counts_documents_that_are_dropped(corpus: Path, tmp_path: Path, word_encoder: WordEncoder) -> None:
    options = small_options(corpus, tmp_path / "out", text_column="body.text", limit=65, group_bytes=1)
    report = write(options, log=quiet)
    assert report.documents == 65
    assert {name: len(rows) for name, rows in source_rows(tmp_path / "out").items()} == {"a.jsonl": 60, "b.jsonl": 5}


def test_a_sample_does_not_depend_on_how_files_are_grouped(
    corpus: Path, tmp_path: Path, word_encoder: WordEncoder
) -> None:
    taken = []
    for number, group_bytes in enumerate((1, 1 << 20)):
        root = tmp_path / f"out{number}"
        report = write(
            small_options(corpus, root, text_column="body.text", sample=0.5, group_bytes=group_bytes), log=quiet
        )
        assert 25 < report.documents < 60
        taken.append(source_rows(root))
    assert taken[0] == taken[1]


def test_every_window_number_is_used_once(corpus: Path, tmp_path: Path, word_encoder: WordEncoder) -> None:
    report = write(small_options(corpus, tmp_path / "out", text_column="body.text", group_bytes=1), log=quiet)
    places = np.concatenate([np.load(path) for path in sorted((tmp_path / "out/provenance").glob("0*/*.npy"))])
    assert len(np.unique(places, axis=0)) == len(places) == report.windows
