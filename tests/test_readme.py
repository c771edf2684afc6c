"""Every command and Python line of the README and of docs/reference.md is run, on small text."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.cli.main import main
from crisp_stream.config.files import list_recipes, recipes_and_overrides
from crisp_stream.config.load import load_recipe
from crisp_stream.storage.store import open_store
from tests.support.hub import hub
from tests.support.seaweed import S3Server

__all__ = ["hub"]  # a fixture

ROOT = Path(__file__).parent.parent
README, REFERENCE = (ROOT / "README.md").read_text(), (ROOT / "docs" / "reference.md").read_text()
RUN_ELSEWHERE = (
    *("make demo", "make test", "make install && source .venv/bin/activate", "crisp-stream study small"),
    "crisp-stream try my-text my-task.jsonl --minutes 10",
)
"""By tests/test_demo.py, this suite itself, whoever runs the suite, tests of studies and of trials."""
SMALL = [
    *("max_duration=10ba", "scheduler.t_warmup=1ba", "save_interval=1ba", "global_train_batch_size=2"),
    *("model.n_embd=32", "model.n_layer=1", "model.n_head=2"),
]
"""What makes 400 batches 10, and the 360th the 9th; and a model that is trained in a second."""
VERBS = {
    *("write", "append", "tree", "inspect", "verify", "histogram", "split", "forecast", "recipes", "train"),
    *("score", "select", "finetune", "export", "contamination", "eval", "report", "results", "publish"),
}


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[str]:
    """Commands of the shell blocks, one a line, without comments."""
    joined = "\n".join(blocks(text, "bash")).replace("\\\n", "")
    lines = [re.split(r"(?:^|\s\s+)#", line)[0].strip() for line in joined.splitlines()]
    return [" ".join(line.split()) for line in lines if line]


def sections(text: str) -> dict[str, str]:
    """Parts of a page by their headings of the second level, those with commands."""
    parts = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    return {title: part for title, part in parts.items() if commands(part)}


def articles() -> list[str]:
    """Real English: the language reference that CPython ships, a paragraph a document."""
    from pydoc_data.topics import topics

    return [part for article in topics.values() for part in article.split("\n\n") if len(part) > 200]


@pytest.fixture
def reference_folder(tmp_path: Path) -> Path:
    """A folder with the inputs that docs/reference.md names."""
    path = tmp_path
    texts = articles()[:280]
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (path / "corpus.jsonl.zst").write_bytes(pa.compress("".join(lines).encode(), "zstd", asbytes=True))
    (path / "medicine.jsonl.zst").write_bytes(pa.compress("".join(lines[:30]).encode(), "zstd", asbytes=True))
    (path / "law.jsonl").write_text("".join(lines[-8:]))
    of_no_model = [json.dumps({"text": text}) + "\n" for text in articles()[300:304]]
    (path / "medicine.test.jsonl").write_text("".join(of_no_model))
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


@pytest.fixture
def readme_folder(tmp_path: Path) -> Path:
    """A folder with the reader's text that the README names: documents in files of all three kinds, and a task."""
    texts = articles()[:120]
    (tmp_path / "my-text").mkdir()
    (tmp_path / "my-text" / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:60]))
    pq.write_table(pa.table({"text": texts[60:110]}), tmp_path / "my-text" / "b.parquet")
    for number, text in enumerate(texts[110:]):
        (tmp_path / "my-text" / f"{number}.txt").write_text(text)
    task = articles()[120:324]
    (tmp_path / "my-task.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in task))
    return tmp_path


def run(line: str, prefix: str) -> None:
    """Run a command of a page."""
    words = shlex.split(line.replace("s3://bucket", prefix).replace("-ba360-", "-ba9-"))
    if words[0] in ("head", "tail"):
        subprocess.run(line, shell=True, check=True)
        return
    assert words[0] == "crisp-stream", line
    if "--nproc" in words:  # eight GPUs: the recipes and their overrides are read
        assert words[:4] == ["crisp-stream", "train", "--nproc", "8"]
        load_recipe(*recipes_and_overrides(words[4:]))
        return
    if words[1] in ("train", "finetune"):
        words[3:3] = SMALL
    assert main(words[1:]) == 0, line


def run_all(text: str, prefix: str) -> None:
    """Run the commands of a text in the order in which they stand there."""
    for line in commands(text):
        if line not in RUN_ELSEWHERE:
            run(line, prefix)


def test_the_path_for_the_readers_text_works(readme_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(readme_folder)
    monkeypatch.setenv("CRISP_STREAM_CACHE", str(readme_folder / "cache"))
    run_all(README, "")
    assert "demo-crisp" in Path("report.html").read_text()
    (block,) = blocks(README, "python")
    names: dict[str, Any] = {}
    exec(block.replace("num_workers=2", "num_workers=0"), names)
    assert next(iter(names["loader"]))["labels"].shape == (16, 128)


@pytest.mark.parametrize("section", sections(REFERENCE))
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw:DeprecationWarning")  # of huggingface_hub
def test_the_commands_of_the_reference_work(
    reference_folder: Path,
    s3: S3Server,
    section: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if section == "The Hugging Face hub":
        request.getfixturevalue("hub")
        monkeypatch.setenv("HF_TOKEN", "write-token")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", os.environ["HF_ENDPOINT"])
    monkeypatch.chdir(reference_folder)
    monkeypatch.setenv("CRISP_STREAM_CACHE", str(reference_folder / "cache"))
    prefix = s3.fresh_prefix()
    open_store(f"{prefix}/corpus").put_file("0.jsonl.zst", reference_folder / "corpus.jsonl.zst")
    run_all(sections(REFERENCE)[section], prefix)
    if section == "Commands":
        assert Path("gpt-medicine", "model.safetensors").exists()
        (block,) = blocks(REFERENCE, "python")
        names: dict[str, Any] = {}
        exec(block, names)
        assert names["batch"]["input_ids"].shape == (16, 1024)
        assert names["state"]["position"] == 16


def test_every_command_of_the_reference_stands_in_a_section_and_every_verb_is_run() -> None:
    assert [line for part in sections(REFERENCE).values() for line in commands(part)] == commands(REFERENCE)
    assert {line.split()[1] for line in commands(REFERENCE) if line not in RUN_ELSEWHERE} == VERBS


def test_comments_and_continued_lines_are_no_commands() -> None:
    page = "```bash\n# first\na b   # second\nc 'd # e' \\\n    f\n```\n"
    assert commands(page) == ["a b", "c 'd # e' f"]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.stem)
def test_python_examples_of_the_docs_are_python(page: Path) -> None:
    for block in blocks(page.read_text(), "python"):
        ast.parse(block)


def test_the_table_of_recipes_is_complete() -> None:
    page = (ROOT / "docs" / "train" / "recipes.md").read_text()
    assert [name for name in list_recipes() if f"| `{name}` |" not in page] == []


def test_the_list_of_packages_is_complete() -> None:
    packages = {path.parent.name for path in (ROOT / "crisp_stream").glob("*/__init__.py")} - {"writers"}
    for page in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        assert {name for name in packages if f"crisp_stream/{name}/" not in page} == set()


def test_the_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 130
    assert "crisp-stream report" in "\n".join(lines[:40])
