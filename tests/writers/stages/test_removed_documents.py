"""Writes that remove documents: killed in any stage of it, with other bundles, memory or processes, the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from crisp_stream.writers.append import append
from crisp_stream.writers.cleaning.dropped import read_dropped
from crisp_stream.writers.engine import engine
from crisp_stream.writers.engine.tasks import Record, Task, execute
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.stages.removal import duplicates
from crisp_stream.writers.stages.removal.dropped import DroppedTask
from crisp_stream.writers.stages.removal.duplicates import EXACT_STAGES, NEAR_STAGES, OutcomeTask
from crisp_stream.writers.write import plan, write
from tests.support.seaweed import S3Server
from tests.support.written_dataset import TOPICS, WordEncoder, files_below, small_options

STAGES = [*EXACT_STAGES, *NEAR_STAGES, OutcomeTask.stage, DroppedTask.stage]


def quiet(line: str) -> None:
    """Takes log lines."""


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., WriteOptions]:
    """Four files that repeat one another, and an evaluation set that shares words with them."""
    texts = [text[:1200] for text in TOPICS[:40]]
    similar = [text.replace(" the ", " this ", 1) for text in texts[5:15]]
    files = [texts[:15], [*texts[15:30], *texts[3:9]], similar, [*texts[30:], *similar[:3], texts[0]]]
    (tmp_path / "corpus").mkdir()
    for number, some in enumerate(files):
        lines = [json.dumps({"id": f"{number}.{row}", "text": text}) + "\n" for row, text in enumerate(some)]
        (tmp_path / "corpus" / f"{number}.jsonl").write_text("".join(lines))
    (tmp_path / "questions.txt").write_text(" ".join(texts[20].split()[20:60]))

    def make(out: Path | str, **changes: object) -> WriteOptions:
        chosen: dict[str, object] = {
            "id_column": "id",
            "dedup": "near",
            "decontaminate": (str(tmp_path / "questions.txt"),),
            "group_bytes": 1,
            **changes,
        }
        return small_options(tmp_path / "corpus", out, **chosen)

    return make


def _killed_at(stage: str) -> Callable[[Task], Record]:
    """Runs tasks, but is killed at the second of a stage, or at the only one."""
    run = 0

    def execute_or_die(task: Task) -> Record:
        nonlocal run
        if task.stage == stage:
            run += 1
            if run == 2 or stage in (DroppedTask.stage, "duplicates-joined"):
                raise KeyboardInterrupt
        return execute(task)

    return execute_or_die


def test_what_is_removed_is_the_same_after_kills_and_with_other_bundles(
    options: Callable[..., WriteOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word_encoder: WordEncoder
) -> None:
    report = write(options(tmp_path / "whole"), log=quiet)
    whole = files_below(tmp_path / "whole")
    rows = list(read_dropped(tmp_path / "whole/provenance/dropped.parquet"))
    assert {row.reason for row in rows} == {"exact duplicate", "near duplicate", "contaminated"}
    assert len(rows) == sum(report.dropped_documents.values())
    assert [(row.file, row.row) for row in rows] == sorted((row.file, row.row) for row in rows)
    assert all(row.id == f"{row.file[0]}.{row.row}" for row in rows)
    monkeypatch.setattr(duplicates, "BUNDLE_DOCUMENTS", 16)
    monkeypatch.setattr(duplicates, "BYTES_PER_HASH", {1: 9 << 20, 2: 12 << 20})  # several ranges
    killed = options(tmp_path / "killed")
    for stage in STAGES:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "execute", _killed_at(stage))
            with pytest.raises(KeyboardInterrupt):
                write(killed, log=quiet)
    lines: list[str] = []
    write(killed, log=lines.append)
    assert not any(line.startswith("finding") for line in lines)  # all of it was done by the killed runs
    assert files_below(tmp_path / "killed") == whole


def test_records_count_removed_documents_and_name_none(
    options: Callable[..., WriteOptions], tmp_path: Path, word_encoder: WordEncoder
) -> None:
    work = tmp_path / "work"
    report = write(options(tmp_path / "out", work=str(work), keep_work=True), log=quiet)
    records = {path: json.loads(path.read_text()) for path in work.glob(f"*/{'?' * 6}-{'?' * 16}.json")}
    contaminated = sum(record.get("num_contaminated", 0) for record in records.values())
    repeats = sum(record.get("repeats", 0) for record in records.values())
    assert contaminated == report.dropped_documents["shares an n-gram with an evaluation set"]
    assert contaminated + repeats == sum(report.dropped_documents.values()) > 15
    lists = {path: rows for path, record in records.items() for rows in record.values() if isinstance(rows, list)}
    assert not {path.parent.name for path in lists} & {*STAGES, "windows"}


def test_two_processes_remove_what_one_does(
    options: Callable[..., WriteOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(options(tmp_path / "one", encoder="lsi", max_length=None), log=quiet)
    monkeypatch.setattr(duplicates, "BUNDLE_DOCUMENTS", 16)
    two = options(tmp_path / "two", encoder="lsi", max_length=None, processes=2, memory_bytes=2 << 30)
    write(two, log=quiet)
    assert files_below(tmp_path / "two") == files_below(tmp_path / "one")


def test_other_memory_lets_windows_stand_that_are_cut(
    options: Callable[..., WriteOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word_encoder: WordEncoder
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine, "execute", _killed_at("tree-nodes"))
        with pytest.raises(KeyboardInterrupt):
            write(options(tmp_path / "out"), log=quiet)
    embedded = word_encoder.num_calls
    monkeypatch.setattr(duplicates, "BUNDLE_DOCUMENTS", 16)
    write(options(tmp_path / "out"), log=quiet)
    assert word_encoder.num_calls == embedded


def test_removed_documents_of_a_remote_work_folder_are_read_by_ranges(
    options: Callable[..., WriteOptions], s3: S3Server, tmp_path: Path, word_encoder: WordEncoder
) -> None:
    write(options(tmp_path / "local"), log=quiet)
    write(options(tmp_path / "remote", work=s3.fresh_prefix("work")), log=quiet)
    assert files_below(tmp_path / "remote") == files_below(tmp_path / "local")


def test_an_append_puts_its_removed_documents_behind_those_before(
    options: Callable[..., WriteOptions], tmp_path: Path
) -> None:
    write(options(tmp_path / "out", encoder="lsi", max_length=None), log=quiet)
    before = list(read_dropped(tmp_path / "out/provenance/dropped.parquet"))
    text = " ".join(TOPICS[50].split()[:150])
    lines = [json.dumps({"id": str(row), "text": text}) + "\n" for row in range(3)]
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "0.jsonl").write_text("".join(lines))
    append(options(tmp_path / "out", inputs=[str(tmp_path / "new")], max_length=None), log=quiet)
    [path] = (tmp_path / "out/provenance").glob("dropped.g1.*.parquet")
    after = list(read_dropped(path))
    assert after[: len(before)] == before
    assert [(row.file, row.row, row.detail) for row in after[len(before) :]] == [
        ("0.jsonl~2", row, "row 0 of 0.jsonl~2") for row in (1, 2)
    ]


def test_the_plan_names_the_stages_of_the_search(
    options: Callable[..., WriteOptions], tmp_path: Path, word_encoder: WordEncoder
) -> None:
    [later] = [line for line in plan(options(tmp_path / "out")).splitlines() if line.startswith("then")]
    names = later.removeprefix("then ").partition(":")[0].split(", ")
    assert [name for name in names if name in STAGES] == STAGES
