"""Every command and Python line of the README is run, on small text."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from crisp_stream.cli.main import main
from crisp_stream.config.files import list_recipes, recipes_and_overrides
from crisp_stream.config.load import load_recipe
from crisp_stream.storage.store import open_store
from tests.support.seaweed import S3Server

README = (Path(__file__).parent.parent / "README.md").read_text()
RUN_ELSEWHERE = ("make demo", "make test", "crisp-stream study small")
"""By tests/test_demo.py, this suite itself, tests/study/test_study.py."""
SMALL = ["max_duration=10ba", "scheduler.t_warmup=1ba", "save_interval=1ba", "global_train_batch_size=2"]
"""What makes 400 batches 10, and the 360th the 9th."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [line.partition("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


def articles() -> list[str]:
    """Real English: the language reference that CPython ships, a paragraph a document."""
    from pydoc_data.topics import topics

    return [part for article in topics.values() for part in article.split("\n\n") if len(part) > 200]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("readme")
    texts = articles()[:280]
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (path / "corpus.jsonl.zst").write_bytes(pa.compress("".join(lines).encode(), "zstd", asbytes=True))
    (path / "medicine.jsonl.zst").write_bytes(pa.compress("".join(lines[:30]).encode(), "zstd", asbytes=True))
    (path / "law.jsonl").write_text("".join(lines[-8:]))
    (path / "medicine.test.jsonl").write_text("".join(lines[30:34]))
    (path / "corpus").mkdir()
    records = [
        {"id": f"doc-{number}", "body": {"text": text}, "quality": {"score": 0.9 if number % 9 else 0.1}}
        for number, text in enumerate(texts)
    ]
    for part in range(2):
        lines_of_part = [json.dumps(record) + "\n" for record in records[part::2]]
        (path / "corpus" / f"{part}.jsonl").write_text("".join(lines_of_part))
    (path / "test.jsonl").write_text(lines[11])
    (path / "more.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in articles()[280:300]))
    questions = [
        {
            "question": f"Which of the two {what}, as the language reference says?",
            "choices": [right, wrong],
            "answer": 0,
        }
        for what, right, wrong in (
            ("raises an exception", "the raise statement", "a comment"),
            ("binds a name", "an assignment", "an expression"),
            ("leaves a loop", "the break statement", "the pass statement"),
            ("defines a function", "the def statement", "the class statement"),
        )
    ]
    (path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    return path


def test_the_commands_run_in_the_order_they_stand_in(
    folder: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CRISP_STREAM_CACHE", str(folder / "cache"))
    prefix, verbs = s3.fresh_prefix(), set()
    open_store(f"{prefix}/corpus").put_file("0.jsonl.zst", folder / "corpus.jsonl.zst")
    for line in commands():
        if line in RUN_ELSEWHERE:
            continue
        words = shlex.split(line.replace("s3://bucket", prefix).replace("-ba360-", "-ba9-"))
        if "--nproc" in words:  # eight GPUs: the recipes and their overrides are read
            assert words[:4] == ["crisp-stream", "train", "--nproc", "8"]
            load_recipe(*recipes_and_overrides(words[4:]))
            continue
        assert words[0] == "crisp-stream", line
        verbs.add(words[1])
        if words[1] in ("train", "finetune"):
            words[3:3] = SMALL
        assert main(words[1:]) == 0, (line, capsys.readouterr().err)
    assert verbs == {
        "write",
        "forecast",
        "histogram",
        "report",
        "train",
        "finetune",
        "inspect",
        "verify",
        "recipes",
        "eval",
        "results",
        "contamination",
        "split",
        "export",
        "append",
        "tree",
    }
    assert (folder / "gpt-medicine" / "model.safetensors").exists()
    _run_python()


def _run_python() -> None:
    """The Python blocks, in the folder that the commands filled."""
    first, second = blocks("python")
    names: dict[str, Any] = {}
    exec(second, names)
    assert names["batch"]["input_ids"].shape == (16, 1024)
    assert names["state"]["position"] == 16
    exec(first.replace("num_workers=2", "num_workers=0"), names)
    assert next(iter(names["loader"]))["labels"].shape == (16, 1024)


def test_the_table_of_recipes_is_complete() -> None:
    for name in list_recipes():
        assert f"| `{name}` |" in README


def test_links_and_named_tests_exist() -> None:
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\(([A-Z]+(?:\.md)?)\)", README) + re.findall(
        r"`((?:tests|benchmarks)/[\w/.]+)`", README
    ):
        assert (root / target).exists(), target
