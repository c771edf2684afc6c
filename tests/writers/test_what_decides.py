"""FORMAT.md's table of what decides the bytes, walked: each option is changed, and the files are compared."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.manifest import Manifest
from crisp_stream.writers.embedding.embed import EncoderChoice
from crisp_stream.writers.embedding.encoder_files import DEFAULT_ENCODER
from crisp_stream.writers.engine.engine import LocalEngine
from crisp_stream.writers.options import NEUTRAL, WriteOptions
from crisp_stream.writers.tree_command import fit
from crisp_stream.writers.write import write
from tests.support.written_dataset import TOPICS, WordEncoder, files_below, small_options

FORMAT = Path(__file__).parents[2] / "FORMAT.md"
ROW = re.compile(r"\| (`[a-z_`, ]+`) \| (yes|no) \| ?(.*?) ?\|")
ELSEWHERE = {
    "txt_documents": "tests/records/test_txt_documents.py",
    "skip_corrupt": "tests/writers/cleaning/test_cleaning.py",
    "eot_token": "tests/writers/test_given_tokenizer.py",
    "max_length": "tests/writers/embedding/test_embed.py",
    "reads": "tests/writers/embedding/test_embed.py",
    "teacher": "tests/writers/test_distilled.py",
    "teacher_windows": "tests/writers/test_distilled.py",
    "engine": "tests/writers/engine/test_engine.py",
    "address": "tests/writers/engine/test_engine.py",
    "processes": "tests/writers/test_write.py",
}
"""Options that another test changes: they need a damaged file, a real encoder, Ray or a second process."""


TELL_VERSIONS = {"manifest.json", "provenance/sources.parquet", "provenance/files.parquet"}
"""Files that tell versions of input files apart (`requests`, `listed`), and the list of their hashes."""


def table() -> dict[str, bool]:
    """Option to whether it decides the bytes."""
    section = FORMAT.read_text().partition("## What decides the bytes")[2].partition("\n## ")[0]
    rows = [ROW.fullmatch(line) for line in section.splitlines()]
    return {name.strip("` "): row[2] == "yes" for row in rows if row for name in row[1].split(",")}


def test_the_table_has_every_option() -> None:
    names = {one.name for one in dataclasses.fields(WriteOptions)}
    assert table().keys() == names
    assert {name for name, decides in table().items() if not decides} == set(NEUTRAL)
    assert ELSEWHERE.keys() <= names
    for name, path in ELSEWHERE.items():
        assert name in (FORMAT.parent / path).read_text(), path


def corpus(folder: Path) -> Path:
    """Two files in the layout of RedPajama-v2, whose documents have each text twice and one field at times only."""
    texts = [text[:700] for text in TOPICS[:24]]
    for number, name in enumerate(("en_head", "en_middle")):
        rows = [{"text": text, "raw_content": text, "title": text[::-1], "id": at} for at, text in enumerate(texts)]
        rows[5 + number].pop("id")
        rows[9]["text"] += " and a few words more, so that it is only similar"
        rows[10]["text"] = rows[10]["text"].replace("a", "e", 3)
        path = folder / "documents" / "x" / "0000" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def changes(tmp_path: Path, word_encoder: WordEncoder) -> dict[str, tuple[dict[str, Any], Any]]:
    """Option to another value, and what is to be chosen beside it."""
    folder, root = corpus(tmp_path / "in"), tmp_path / "like"
    write(small_options(folder, root, part_characters=6000), log=lambda line: None)
    fit(small_options(folder, tmp_path / "tree", part_characters=6000), log=lambda line: None)
    (tmp_path / "eval.txt").write_text(TOPICS[3][:700])
    (tmp_path / "ids.txt").write_text("3\n")
    with_id: dict[str, Any] = {"id_column": "id", "max_bad": "2"}
    return {
        "inputs": ({}, [str(folder / "documents/x/0000/en_head.jsonl")]),
        "out": ({}, str(tmp_path / "another folder")),
        "text_column": ({}, "title"),
        "text_template": ({}, "{title}: {text}"),
        "id_column": ({"missing": "drop"}, "id"),
        "filters": ({"missing": "drop"}, ("id > 3",)),
        "missing": (with_id, "drop"),
        "max_bad": (with_id, "50%"),
        "layout": ({}, "redpajama-v2"),
        "limit": ({}, 20),
        "sample": ({}, 0.7),
        "exclude_ids": ({"id_column": "id", "missing": "drop"}, (str(tmp_path / "ids.txt"),)),
        "dedup": ({}, "exact"),
        "near_threshold": ({"dedup": "near"}, 0.99),
        "decontaminate": ({}, (str(tmp_path / "eval.txt"),)),
        "ngram": ({"decontaminate": (str(tmp_path / "eval.txt"),)}, 9),
        "question_keys": ({"decontaminate": (str(tmp_path / "eval.txt"),)}, "question=q,choices=c"),
        "window_tokens": ({}, 32),
        "packing": ({}, "document"),
        "part_characters": ({}, 9000),
        "group_bytes": ({}, 1),
        "tokenizer": ({}, str(root / "tokenizer")),
        "vocab_size": ({}, 500),
        "like": ({}, str(root)),
        "tree": ({}, str(tmp_path / "tree")),
        "encoder": ({}, "lsi"),
        "encoder_prompt": ({}, "passage: "),
        "arity": ({}, 5),
        "depth": ({}, 2),
        "min_examples_to_split": ({}, 8),
        "fit_windows": ({}, 40),
        "seed": ({}, 1),
        "shard_bytes": ({}, 3000),
        "shard_level": ({}, 2),
        "embeddings": ({}, str(tmp_path / "embeddings")),
        "memory_bytes": ({}, 8 << 30),
        "run_bytes": ({}, 5000),
        "range_bytes": ({}, 2000),
        "sort_memory_bytes": ({}, 5000),
        "work": ({}, str(tmp_path / "work")),
        "keep_work": ({}, True),
        "take_over": ({}, True),
    }


def test_each_option_decides_the_bytes_or_not_as_the_table_says(
    tmp_path: Path, changes: dict[str, tuple[dict[str, Any], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "crisp_stream.writers.stages.models.matching_encoder",
        lambda record, name, root: EncoderChoice(name=DEFAULT_ENCODER),
    )
    # With a limit the encoder is tried in a process of its own, which would not have the stand-in for it.
    monkeypatch.setattr(LocalEngine, "keeps_encoders_out", property(lambda engine: False))
    decides = table()
    assert changes.keys() | ELSEWHERE.keys() == decides.keys()
    base: dict[str, dict[str, bytes]] = {}

    def written(**chosen: Any) -> dict[str, bytes]:
        options = small_options(tmp_path / "in", chosen.pop("out", str(tmp_path / "out")), part_characters=6000)
        options = dataclasses.replace(options, **{"shard_bytes": 5000, **chosen})
        write(options, log=lambda line: None)
        files = files_below(Path(options.out))
        shutil.rmtree(options.out)
        return files

    for name, (beside, value) in changes.items():
        key = repr(beside)
        if key not in base:
            base[key] = written(**beside)
        changed = written(**{**beside, name: value})
        differing = {path for path in base[key].keys() | changed.keys() if base[key].get(path) != changed.get(path)}
        assert bool(differing) is decides[name], f"{name}: {sorted(differing)}"


def test_neither_times_nor_folders_of_the_input_files_decide_and_their_compression_may(
    tmp_path: Path, word_encoder: WordEncoder
) -> None:
    def written(folder: Path, **chosen: Any) -> dict[str, bytes]:
        out = tmp_path / f"out of {folder.name}"
        write(small_options(folder, out, part_characters=6000, **chosen), log=lambda line: None)
        return files_below(out)

    first, second = corpus(tmp_path / "a" / "in"), corpus(tmp_path / "b" / "in")
    whole = written(first)
    shutil.rmtree(tmp_path / "out of in")
    later = written(second)  # of another folder, at another time
    assert {name for name in whole.keys() | later.keys() if whole.get(name) != later.get(name)} <= TELL_VERSIONS
    assert (
        open_dataset(tmp_path / "out of in").manifest.fingerprint
        == Manifest.from_json(whole["manifest.json"]).fingerprint
    )
    for path in second.rglob("*.jsonl"):
        path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    shards = {name: content for name, content in whole.items() if name.endswith(".mds")}
    compressed = written(second.rename(second.with_name("packed")))
    assert {name: content for name, content in compressed.items() if name.endswith(".mds")} == shards
    size = max(path.stat().st_size for path in first.rglob("*.jsonl")) * 3 // 2
    cut = written(first.rename(first.with_name("cut")), group_bytes=size)
    assert {name: content for name, content in cut.items() if name.endswith(".mds")} != shards
