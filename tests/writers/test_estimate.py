"""`write --plan`: what it foretells is near to what the write then does."""

from __future__ import annotations

import gzip
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.errors import InputError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.writers import estimate
from crisp_stream.writers.estimate import estimate_write
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing.publish import published_bytes
from crisp_stream.writers.write import models_of, write
from tests.support.written_dataset import TOPICS

WORDS = sorted({word for text in TOPICS for word in text.split()})


def quiet(line: str) -> None:
    """Takes log lines."""


def corpus(folder: Path, kind: str, num_files: int) -> Path:
    """Files of documents of many lengths, about 150 kB of text each."""
    folder.mkdir()
    rng = random.Random(1)
    for file in range(num_files):
        texts = [" ".join(rng.choices(WORDS, k=rng.randrange(20, 400))) for _ in range(100)]
        lines = "".join(json.dumps({"id": at, "text": text}) + "\n" for at, text in enumerate(texts)).encode()
        if kind == "parquet":
            other = [rng.randbytes(40).hex() for _ in texts]  # a column that is not read
            pq.write_table(pa.table({"other": other, "text": texts}), folder / f"{file}.parquet", row_group_size=16)
        elif kind == "gz":
            (folder / f"{file}.jsonl.gz").write_bytes(gzip.compress(lines))
        else:
            (folder / f"{file}.jsonl").write_bytes(lines)
    return folder


def options_for(source: Path, out: Path, **changes: Any) -> WriteOptions:
    chosen: dict[str, Any] = {
        **{"inputs": [str(source)], "out": str(out), "encoder": "lsi", "processes": 1, "window_tokens": 128},
        **{"vocab_size": 2000, "arity": 4, "depth": 2, "part_characters": 200_000},
    }
    return WriteOptions(**{**chosen, **changes})


@pytest.mark.parametrize("kind", ["jsonl", "gz", "parquet"])
def test_documents_tokens_windows_and_bytes_are_near_to_those_of_the_write(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "SAMPLE_FILES", 3)
    monkeypatch.setattr(estimate, "SAMPLE_CHARACTERS", 3 * 60_000)
    monkeypatch.setattr(estimate, "_LEAST_CHARACTERS", 60_000)  # less than half of a file
    options = options_for(corpus(tmp_path / "in", kind, 7), tmp_path / "out")
    foretold = estimate_write(options)
    report = write(options, log=quiet)
    assert foretold.documents == pytest.approx(report.documents, rel=0.2)
    assert foretold.windows == pytest.approx(report.windows, rel=0.2)
    assert foretold.tokens == pytest.approx(report.tokens, rel=0.2)
    shards = sum(row.shard_bytes for row in open_dataset(options.out).shards)
    assert shards * 0.8 < foretold.dataset_bytes < published_bytes(options.out) * 1.2
    assert "documents of 3 of 7 files" in foretold.text()


def test_the_levels_of_the_tree_are_foretold_and_what_is_missing_is_said(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", "jsonl", 2)
    text = estimate_write(options_for(source, tmp_path / "out", arity=16)).text()
    windows = int(re.search(r"on ([\d,]+) examples each", text)[1].replace(",", ""))  # type: ignore[index]
    assert windows == pytest.approx(estimate_write(options_for(source, tmp_path / "out")).windows, rel=0.05)
    assert "tree, level 1: 1 of 1 node to split" in text
    assert "tree, level 2: none of 16 nodes to split" in text
    assert "tree: warning: it has 1 level, not 2: the largest of 16 nodes of level 1 has" in text
    assert "fitting the tree" in text
    limited = estimate_write(options_for(source, tmp_path / "out", arity=16, fit_windows=50)).text()
    assert "on 50 examples each" in limited
    assert "times the --fit-windows" in limited


def test_a_limit_a_share_and_packing_by_document_are_counted(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", "jsonl", 2)
    whole = estimate_write(options_for(source, tmp_path / "out"))
    assert whole.documents == 200
    assert estimate_write(options_for(source, tmp_path / "out", limit=50)).windows == pytest.approx(whole.windows / 4)
    assert estimate_write(options_for(source, tmp_path / "out", sample=0.5)).documents == 100
    by_document = options_for(source, tmp_path / "out", packing="document")
    report = write(by_document, log=quiet)
    assert estimate_write(by_document).windows == pytest.approx(report.windows, rel=0.15)


def test_given_models_are_those_that_are_measured(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", "jsonl", 1)
    write(options_for(source, tmp_path / "first"), log=quiet)
    options = options_for(source, tmp_path / "out", like=str(tmp_path / "first"), encoder=None)
    foretold = estimate_write(options, models_of(options))
    report = write(options, log=quiet)
    assert foretold.windows == pytest.approx(report.windows, rel=0.05)


def test_a_sample_without_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(InputError, match="the sample must hold a document with text, got none in 1 files"):
        estimate_write(options_for(tmp_path / "in.jsonl", tmp_path / "out"))


def test_plan_prints_the_estimate_and_how_it_was_measured_and_writes_nothing(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", "jsonl", 1)
    command = [sys.executable, "-m", "crisp_stream", "write", str(source), "--out", str(tmp_path / "out"), "--plan"]
    more = ["--window-tokens", "128", "--max-length", "32", "--processes", "1", "--vocab-size", "1000"]
    printed = subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout
    assert "estimate, from 100 documents of 1 of 1 files" in printed
    for word in (
        "tokens",
        "windows",
        "dataset",
        "intermediate files",
        "memory",
        "time",
        "measured",
        "windows/s a process",
    ):
        assert word in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
