"""Writes that were interrupted: what is done again, and that the bytes come out the same."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from crisp_stream.errors import InputError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.writers.engine import engine
from crisp_stream.writers.engine.tasks import Record, Task, execute
from crisp_stream.writers.publishing import publish
from crisp_stream.writers.write import plan, write
from tests.support.seaweed import S3Server
from tests.support.written_dataset import WordEncoder, files_below, small_options


def quiet(line: str) -> None:
    """Takes log lines."""


TREE_STAGES = ["tree-draws", "tree-counts", "tree-nodes", "tree-levels", "tree"]
RANGE_STAGES = ["range-samples", "range-cuts", "range-counts", "ranges"]
STAGES = ["documents", "tokenizer", "windows", "embeddings", *TREE_STAGES, "runs", *RANGE_STAGES, "shards"]


def _killed_in(stage: str) -> Callable[[Task], Record]:
    """Runs tasks, but is killed at the third of a stage, or at the only one."""
    run = 0

    def execute_or_die(task: Task) -> Record:
        nonlocal run
        if task.stage == stage:
            run += 1
            if run > 2 or stage in ("documents", "tokenizer", "tree", "runs", *RANGE_STAGES, "texts", "provenance"):
                raise KeyboardInterrupt
        return execute(task)

    return execute_or_die


@pytest.mark.parametrize("stage", [*STAGES, "texts", "provenance", "publish"])
def test_a_killed_run_goes_on_and_publishes_the_same_bytes(
    stage: str, text_file: Path, tmp_path: Path, word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(small_options(text_file, tmp_path / "whole"), log=quiet)
    num_parts = word_encoder.num_calls
    options = small_options(text_file, tmp_path / "out")
    word_encoder.num_calls = 0

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if stage == "publish":
            patch.setattr(publish, "open_store", _open_store_that_is_killed_at_put(killed))
        else:
            patch.setattr(engine, "execute", _killed_in(stage))
        with pytest.raises(KeyboardInterrupt):
            write(options, log=quiet)
    assert not (tmp_path / "out" / "manifest.json").exists()
    finished = word_encoder.num_calls
    lines: list[str] = []
    write(options, log=lines.append)
    made_again = word_encoder.num_calls - finished
    already = {"documents": 0, "tokenizer": 0, "windows": 0, "embeddings": 2}.get(stage, num_parts)
    assert made_again == num_parts - already
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_ranges_of_one_folder_are_written_once_each_by_several_processes(
    text_file: Path, tmp_path: Path, word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(small_options(text_file, tmp_path / "whole"), log=quiet)
    small = {"run_bytes": 3000, "range_bytes": 2000}
    with monkeypatch.context() as patch:
        patch.setattr(engine, "execute", _killed_in("shards"))
        with pytest.raises(KeyboardInterrupt):
            write(small_options(text_file, tmp_path / "out", **small), log=quiet)
    # Encoders of two processes are tried in one of their own, which would not have the stand-in.
    monkeypatch.setattr(engine.LocalEngine, "keeps_encoders_out", property(lambda engine: False))
    lines: list[str] = []
    write(small_options(text_file, tmp_path / "out", processes=2, **small), log=lines.append)
    tasks = re.search(r"shards: 2 of (\d+) tasks were done by an earlier run", "\n".join(lines))
    assert tasks is not None
    assert int(tasks[1]) > 4, "more than one for a level-1 node"
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")


def _open_store_that_is_killed_at_put(killed: object) -> object:
    from crisp_stream.storage.store import open_store

    def opened(url: str) -> object:
        store = open_store(url)
        store.put = killed  # type: ignore[method-assign]
        return store

    return opened


def test_changed_options_use_of_unfinished_work_what_they_can(
    text_file: Path, tmp_path: Path, word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(small_options(text_file, tmp_path / "whole", depth=2), log=quiet)
    num_parts = word_encoder.num_calls
    with monkeypatch.context() as patch:
        patch.setattr(engine, "execute", _killed_in("tree-nodes"))
        with pytest.raises(KeyboardInterrupt):
            write(small_options(text_file, tmp_path / "out"), log=quiet)
    lines: list[str] = []
    write(small_options(text_file, tmp_path / "out", depth=2), log=lines.append)
    assert word_encoder.num_calls == 2 * num_parts, "another depth embeds nothing again"
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")
    assert f"embeddings: {num_parts} of {num_parts} tasks were done by an earlier run" in lines


def test_shards_of_an_interrupted_write_with_other_options_are_not_published(
    text_file: Path, tmp_path: Path, word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(small_options(text_file, tmp_path / "whole"), log=quiet)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "execute", _killed_in("provenance"))
        with pytest.raises(KeyboardInterrupt):
            write(small_options(text_file, tmp_path / "out", shard_bytes=2_000), log=quiet)
    staged = list((tmp_path / ".out.write").glob("staged-*/shards/*/shard.00003.mds"))
    assert staged, "smaller shards, so more of them"
    write(small_options(text_file, tmp_path / "out"), log=quiet)
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")


def test_a_changed_input_file_is_read_again(text_file: Path, tmp_path: Path, word_encoder: WordEncoder) -> None:
    own = tmp_path / "own.jsonl"
    shutil.copy(text_file, own)
    work = str(tmp_path / "work")
    write(small_options(own, tmp_path / "one", work=work, keep_work=True), log=quiet)
    own.write_text(own.read_text() + json.dumps({"text": "one more document, " * 100}) + "\n")
    report = write(small_options(own, tmp_path / "two", work=work), log=quiet)
    write(small_options(own, tmp_path / "fresh"), log=quiet)
    assert report.documents == 80
    assert files_below(tmp_path / "two") == files_below(tmp_path / "fresh")


def test_a_file_of_the_work_folder_that_is_lost_is_made_again(
    text_file: Path, tmp_path: Path, word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(small_options(text_file, tmp_path / "whole"), log=quiet)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "execute", _killed_in("runs"))
        with pytest.raises(KeyboardInterrupt):
            write(small_options(text_file, tmp_path / "out"), log=quiet)
    work = tmp_path / ".out.write"
    lost = sorted(work.glob("embeddings/*.npy"))[3]
    lost.unlink()
    cut_short = sorted(work.glob("windows/*.tokens.npy"))[2]
    cut_short.write_bytes(cut_short.read_bytes()[:-1])
    write(small_options(text_file, tmp_path / "out"), log=quiet)
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")


def test_the_plan_says_what_would_run_and_runs_nothing(
    text_file: Path, tmp_path: Path, word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = small_options(text_file, tmp_path / "out")
    first = plan(options)
    assert re.search(r"documents +1 +0 +1\nthen tokenizer, windows, embeddings, tree-draws", first)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr(engine, "execute", _killed_in("embeddings"))
        with pytest.raises(KeyboardInterrupt):
            write(options, log=quiet)
    calls = word_encoder.num_calls
    second = plan(options)
    assert re.search(r"embeddings +\d+ +2 +\d+\nthen tree-draws", second)
    assert word_encoder.num_calls == calls


def test_a_write_to_s3_can_be_stopped_and_gives_the_same_bytes(
    s3: S3Server, text_file: Path, tmp_path: Path, word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crisp_stream.storage.store import open_store

    monkeypatch.setenv("CRISP_STREAM_CACHE", str(tmp_path / "cache"))
    root = s3.fresh_prefix("written")
    write(small_options(text_file, tmp_path / "local"), log=quiet)
    options = small_options(text_file, root)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "execute", _killed_in("shards"))
        with pytest.raises(KeyboardInterrupt):
            write(options, log=quiet)
    assert open_store(root).list("shards")
    with pytest.raises(InputError, match=r"must be written by one request at a time, .* shard_bytes is 5000, was 6000"):
        write(small_options(text_file, root, shard_bytes=5_000), log=quiet)
    write(options, log=quiet)
    store = open_store(root)
    assert {path: store.get(path) for path, _ in store.list()} == files_below(tmp_path / "local")
    assert list((tmp_path / "cache" / "work").iterdir()) == []
    lines: list[str] = []
    write(options, log=lines.append)
    assert lines == [f"already done: {root} holds the dataset of this request; nothing was done"]
    with pytest.raises(InputError, match=r"must not hold a dataset, but it has a manifest.json of another request"):
        write(small_options(text_file, root, shard_bytes=5_000), log=quiet)
    shutil.rmtree(tmp_path / "cache")


def test_a_run_killed_while_it_tidies_up_has_published_its_dataset(
    text_file: Path, tmp_path: Path, word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = small_options(text_file, tmp_path / "out")
    original = shutil.rmtree

    def killed(path: Path, **named: object) -> None:
        if Path(path).name == "runs":
            raise KeyboardInterrupt
        original(path, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            write(options, log=quiet)
    published, calls = files_below(tmp_path / "out"), word_encoder.num_calls
    with pytest.raises(InputError, match="must not hold a dataset"):
        write(small_options(text_file, tmp_path / "out", seed=1), log=quiet)
    lines: list[str] = []
    report = write(options, log=lines.append)
    assert any(line.startswith("already done: ") for line in lines)
    assert (report.windows, word_encoder.num_calls) == (open_dataset(tmp_path / "out").manifest.num_windows, calls)
    assert files_below(tmp_path / "out") == published
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
