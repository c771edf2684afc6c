from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream.errors import InputError, StorageError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.loading.reader import read_windows
from crisp_stream.writers.documents.documents import read_documents
from crisp_stream.writers.documents.drops import EMPTY_TEXT, DropCounts
from crisp_stream.writers.embedding.embed import EncoderChoice
from crisp_stream.writers.embedding.encoder_files import DEFAULT_ENCODER
from crisp_stream.writers.engine import engine
from crisp_stream.writers.engine.tasks import Record, Task, execute
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing import publish
from crisp_stream.writers.windows import LAST_PARTIAL_WINDOW
from crisp_stream.writers.write import WriteReport, write
from tests.support.seaweed import S3Server
from tests.support.written_dataset import WordEncoder, files_below, small_options


def quiet(line: str) -> None:
    """Takes log lines."""


def test_two_processes_write_the_bytes_of_one(
    written: tuple[Path, WriteReport], text_file: Path, tmp_path: Path
) -> None:
    write(small_options(text_file, tmp_path / "two", processes=2), log=quiet)
    assert files_below(tmp_path / "two") == files_below(written[0])
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


@pytest.mark.usefixtures("names_in_shared_memory")
def test_plain_streaming_reads_every_window_back(written: tuple[Path, WriteReport], tmp_path: Path) -> None:
    from streaming import StreamingDataset

    root, report = written
    dataset = open_dataset(root)
    expected = read_windows(dataset, np.arange(report.windows))
    streamed = StreamingDataset(remote=str(root / "shards"), local=str(tmp_path / "cache"), batch_size=1, shuffle=False)
    assert len(streamed) == report.windows
    for window in range(report.windows):
        sample = streamed[window]
        np.testing.assert_array_equal(sample["tokens"], expected["tokens"][window])
        assert sample["cluster"] == expected["cluster"][window]


def test_the_windows_are_the_documents_and_the_report_adds_up(
    written: tuple[Path, WriteReport], text_file: Path
) -> None:
    root, report = written
    manifest = open_dataset(root).manifest
    samples = read_windows(open_dataset(root), np.arange(report.windows))
    assert report.documents == 79
    assert report.dropped_documents == {EMPTY_TEXT: 2}
    assert report.tokens == report.windows * 64
    tokenizer = DocumentTokenizer(root / "tokenizer")
    texts = list(read_documents([str(text_file)], counts=DropCounts()))
    encoded = tokenizer.encode(texts)
    total = sum(len(ids) + 1 for ids in encoded)
    assert report.tokens + sum(report.dropped_tokens.values()) == total
    assert set(report.dropped_tokens) == {LAST_PARTIAL_WINDOW}
    first = np.concatenate([[*ids, tokenizer.eot_id] for ids in encoded])[:64]
    assert (samples["tokens"] == first).all(axis=1).sum() == 1
    assert manifest.provenance["dropped_documents"] == {EMPTY_TEXT: 2}
    assert manifest.provenance["inputs"] == ["topics.jsonl"]
    assert str(root) not in json.dumps(manifest.provenance)
    table = report.table()
    assert re.search(rf"windows out +{report.windows}\n", table)
    assert re.search(r"dropped: empty text +2\n", table)
    assert report.dataset_bytes == sum(map(len, files_below(root).values()))


def test_the_leaf_of_every_window_is_the_one_its_text_is_assigned_to(written: tuple[Path, WriteReport]) -> None:
    from crisp_stream.writers.embedding.embed import Encoder
    from crisp_stream.writers.windows import window_texts

    dataset = open_dataset(written[0])
    ids = np.arange(0, dataset.manifest.num_windows, 17)
    samples = read_windows(dataset, ids)
    tokenizer = DocumentTokenizer(dataset.tokenizer_path())
    texts = window_texts(samples["tokens"], tokenizer, tokenizer.eot_id)
    leaves = dataset.tree.assign(Encoder(max_length=32, device="cpu").embed(texts))
    assert (leaves == samples["cluster"]).mean() > 0.95  # other batches round otherwise


def test_another_packing_keeps_every_document_apart(text_file: Path, tmp_path: Path, word_encoder: WordEncoder) -> None:
    report = write(small_options(text_file, tmp_path / "out", packing="document"), log=quiet)
    dataset = open_dataset(tmp_path / "out")
    tokens = read_windows(dataset, np.arange(report.windows))["tokens"]
    eot_id = dataset.manifest.tokenizer.eot_id
    assert dataset.manifest.packing == "document"
    first_end = np.where((tokens == eot_id).any(axis=1), (tokens == eot_id).argmax(axis=1), 64)
    assert (first_end > 0).all()
    assert all((row[end:] == eot_id).all() for row, end in zip(tokens, first_end, strict=True))
    assert report.tokens == int(np.minimum(first_end + 1, 64).sum())
    assert LAST_PARTIAL_WINDOW not in report.dropped_tokens


def test_a_shard_level_moves_the_ends_of_shards_and_nothing_else(
    text_file: Path, tmp_path: Path, word_encoder: WordEncoder
) -> None:
    plain, aligned = (tmp_path / "plain", tmp_path / "aligned")
    write(small_options(text_file, plain), log=quiet)
    write(small_options(text_file, aligned, shard_level=2), log=quiet)
    one, two = open_dataset(plain), open_dataset(aligned)
    everything = np.arange(one.manifest.num_windows)
    for column in ("tokens", "cluster"):  # checksums tell the place, too
        assert (read_windows(one, everything)[column] == read_windows(two, everything)[column]).all()
    assert one.manifest.clusters_fingerprint == two.manifest.clusters_fingerprint
    nodes = two.leaf_of_windows(everything) // 4
    borders = np.flatnonzero(np.diff(nodes.astype(int))) + 1
    assert set(borders) <= set(two.first_window_per_shard)
    assert not set(borders) <= set(one.first_window_per_shard)


def test_a_write_like_another_shares_tokenizer_tree_and_windows(
    text_file: Path, tmp_path: Path, word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "crisp_stream.writers.stages.models.matching_encoder",
        lambda record, name, root: EncoderChoice(name=DEFAULT_ENCODER),
    )
    write(small_options(text_file, tmp_path / "a"), log=quiet)
    options = small_options(text_file, tmp_path / "b", like=str(tmp_path / "a"), window_tokens=99, limit=40)
    report = write(options, log=quiet)
    one, other = open_dataset(tmp_path / "a"), open_dataset(tmp_path / "b")
    assert other.manifest.window_tokens == 64
    assert other.manifest.tokenizer == one.manifest.tokenizer
    assert other.manifest.tree_fingerprint == one.manifest.tree_fingerprint
    assert other.manifest.provenance["tree"] == {"like": one.manifest.fingerprint}
    assert 0 < report.windows < one.manifest.num_windows


def test_a_large_vocabulary_is_stored_in_four_bytes(text_file: Path, tmp_path: Path, word_encoder: WordEncoder) -> None:
    tokenizer = tmp_path / "tokenizer"
    from crisp_stream.writers.windows import train_tokenizer

    train_tokenizer(read_documents([str(text_file)], counts=DropCounts()), tokenizer, vocab_size=400)
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 70_000, "content": "<|far|>"})
    content["model"]["vocab"]["<|far|>"] = 70_000
    (tokenizer / "tokenizer.json").write_text(json.dumps(content))
    report = write(small_options(text_file, tmp_path / "out", tokenizer=str(tokenizer)), log=quiet)
    dataset = open_dataset(tmp_path / "out")
    assert dataset.manifest.token_dtype == "uint32"
    assert read_windows(dataset, np.arange(report.windows))["tokens"].dtype == np.uint32


def test_fitting_on_a_sample_of_the_windows_still_places_all_of_them(
    text_file: Path, tmp_path: Path, word_encoder: WordEncoder
) -> None:
    lines: list[str] = []
    report = write(small_options(text_file, tmp_path / "out", fit_windows=100), log=lines.append)
    fitted = next(int(match[1]) for line in lines if (match := re.search(r"fitted on (\d+) windows", line)))
    assert 60 < fitted < 140 < report.windows
    assert int(open_dataset(tmp_path / "out").windows_per_leaf.sum()) == report.windows


def test_a_depth_that_the_corpus_does_not_bear_is_said_and_too_few_windows_are_refused_before_embedding(
    text_file: Path, tmp_path: Path, word_encoder: WordEncoder
) -> None:
    lines: list[str] = []
    options = small_options(text_file, tmp_path / "out", arity=16, depth=2, min_examples_to_split=None)
    assert write(options, log=lines.append).leaves <= 16
    [warning] = [line for line in lines if line.startswith("tree: warning")]
    assert "it has 1 level, not 2" in warning
    assert "a split needs 256 (--min-split)" in warning
    calls = word_encoder.num_calls
    with pytest.raises(InputError, match=r"must give at least 64 windows to split the root in 64, got \d+\. Give more"):
        write(small_options(text_file, tmp_path / "few", arity=64, limit=5), log=quiet)
    assert word_encoder.num_calls == calls


@pytest.mark.parametrize("name", ["manifest.json", "shards/index.json", "clusters.parquet", "tokenizer/tokenizer.json"])
def test_an_output_root_that_is_taken_is_refused_before_any_work(
    name: str, text_file: Path, tmp_path: Path, word_encoder: WordEncoder
) -> None:
    taken = tmp_path / "out" / name
    taken.parent.mkdir(parents=True)
    taken.write_text("{}")
    with pytest.raises(InputError, match=r"the output root must not hold .* Choose another --out"):
        write(small_options(text_file, tmp_path / "out"), log=quiet)
    assert word_encoder.num_calls == 0
    assert taken.read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_writers_manifest_is_never_replaced(
    text_file: Path, tmp_path: Path, word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = publish._move_files

    def other_writer_wins(staged: Path, root: Path, *arguments: Any) -> None:
        original(staged, root, *arguments)
        (root / "manifest.json").write_text("theirs")

    monkeypatch.setattr(publish, "_move_files", other_writer_wins)
    with pytest.raises(StorageError, match="already exists and is not overwritten"):
        write(small_options(text_file, tmp_path / "out"), log=quiet)
    assert (tmp_path / "out" / "manifest.json").read_text() == "theirs"


def test_a_work_folder_on_another_file_system_is_copied_over(
    text_file: Path, tmp_path: Path, word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def cross_device(self: Path, target: Path) -> Path:
        if any(name.startswith("staged-") for name in self.parts) and "root" in Path(target).parts:
            raise OSError(errno.EXDEV, "cross-device link")
        return original(self, target)

    write(small_options(text_file, tmp_path / "whole"), log=quiet)
    original = Path.replace
    monkeypatch.setattr(Path, "replace", cross_device)
    write(small_options(text_file, tmp_path / "root", work=str(tmp_path / "work")), log=quiet)
    assert files_below(tmp_path / "root") == files_below(tmp_path / "whole")
    assert not (tmp_path / "work").exists()


def test_the_same_write_does_not_run_twice_at_once(
    text_file: Path, tmp_path: Path, word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = small_options(text_file, tmp_path / "out")

    def second_writer(task: Task) -> Record:
        if task.stage == "tree":
            with pytest.raises(InputError, match="must be written by one process at a time"):
                write(options, log=quiet)
        return execute(task)

    monkeypatch.setattr(engine, "execute", second_writer)
    write(options, log=quiet)
    assert open_dataset(tmp_path / "out").manifest.num_windows > 0


def test_too_little_text_is_refused_with_a_remedy(tmp_path: Path, word_encoder: WordEncoder) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text('{"text": "only a few words"}\n')
    with pytest.raises(InputError, match=r"must fill at least one window of 64 tokens, got \d+ tokens in 1 documents"):
        write(small_options(few, tmp_path / "out"), log=quiet)
    with pytest.raises(InputError, match=r"must give at least 4 windows to split the root in 4, got 1"):
        write(small_options(few, tmp_path / "out", packing="document"), log=quiet)
    with pytest.raises(InputError, match=r"few.jsonl:1: the text column 'body' must exist, got: text"):
        write(small_options(few, tmp_path / "out", text_column="body"), log=quiet)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_tokens": 1}, "window_tokens: must be 2 to 1,048,576, got 1"),
        ({"packing": "padded"}, "packing: must be joined or document, got 'padded'"),
        ({"arity": 1}, "arity: must be 2 to 64, got 1"),
        ({"arity": 64, "depth": 5}, r"depth: must be at least 1 with arity \*\* depth <= 16,777,216, got 5"),
        ({"shard_bytes": 1 << 32}, r"shard_bytes: must be 1 to 2\^32 - 1"),
        ({"shard_level": 0}, "shard_level: must be 1 to 4, the depth of the tree, got 0"),
        ({"shard_level": 3, "depth": 2}, "shard_level: must be 1 to 2, the depth of the tree, got 3"),
        ({"seed": -1}, "seed: must be 0"),
        ({"question_keys": "question=q"}, "--question-keys: must be question=KEY,choices=KEY"),
        ({"like": "x", "tokenizer": "y"}, "tokenizer: must be left out when like gives one"),
        ({"like": "out", "out": "./out"}, "out: must be another root than like"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WriteOptions(**{"inputs": ["a"], "out": "b", **changes})


def test_a_worker_that_is_killed_gives_an_error_not_a_hang() -> None:
    from crisp_stream.errors import CrispError
    from crisp_stream.processes import map_unordered

    with pytest.raises(CrispError, match="a worker process was killed"):
        list(map_unordered(_die, range(4), processes=2))


def _die(task: int) -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_a_work_folder_on_s3_gives_the_same_bytes(
    s3: S3Server, text_file: Path, tmp_path: Path, word_encoder: WordEncoder
) -> None:
    from crisp_stream.storage.store import open_store

    write(small_options(text_file, tmp_path / "local"), log=quiet)
    root, work = s3.fresh_prefix("out"), s3.fresh_prefix("work")
    write(small_options(text_file, root, work=work, keep_work=True), log=quiet)
    store = open_store(root)
    assert {path: store.get(path) for path, _ in store.list()} == files_below(tmp_path / "local")
    assert {name.split("/")[0] for name, _ in open_store(work).list()} >= {"documents", "windows", "runs"}


def test_only_equal_windows_have_equal_seeds(text_file: Path, tmp_path: Path, word_encoder: WordEncoder) -> None:
    other_text = tmp_path / "other.jsonl"
    *lines, last = text_file.read_text().splitlines()
    other_text.write_text("\n".join([*lines, last.replace(" the ", " our ")]) + "\n")
    assert other_text.read_text() != text_file.read_text()
    seeds = {}
    for name, text, changes in (
        ("one", text_file, {}),
        ("again", text_file, {"shard_bytes": 4_000}),
        ("other text", other_text, {}),
        ("other order", text_file, {"seed": 1}),
    ):
        write(small_options(text, tmp_path / name, **changes), log=quiet)
        seeds[name] = {row.path: row.checksum_seed for row in open_dataset(tmp_path / name).shards}
    assert seeds["one"].items() <= seeds["again"].items()
    for name in ("other text", "other order"):
        assert not set(seeds["one"].values()) & set(seeds[name].values())


def test_the_size_of_runs_has_no_effect_on_the_bytes(
    text_file: Path, tmp_path: Path, word_encoder: WordEncoder
) -> None:
    write(small_options(text_file, tmp_path / "one"), log=quiet)
    write(small_options(text_file, tmp_path / "many", run_bytes=1, sort_memory_bytes=1, range_bytes=1), log=quiet)
    assert files_below(tmp_path / "one") == files_below(tmp_path / "many")
