"""Commands end with what comes next: a command with the user's own paths, which is typed here as it stands."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from crisp_stream.cli import main as command_line
from crisp_stream.cli.histogram import with_count
from crisp_stream.cli.main import main
from crisp_stream.cli.study import with_run


def next_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    """The words of the commands that a command names as next."""
    assert main(list(arguments)) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    found = [shlex.split(line.removeprefix("next: ")) for line in lines]
    for words in found:
        assert words[0] == "crisp-stream"
        command_line._parser().parse_args(with_run(with_count(words[1:])))
    return [words[1:] for words in found]


def test_from_documents_to_training_each_command_names_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydoc_data.topics import topics

    monkeypatch.chdir(tmp_path)
    texts = [part for article in topics.values() for part in article.split("\n\n") if len(part) > 200][:200]
    for name, own in (("my corpus", texts), ("TASK", texts[:30]), ("more", texts[150:160])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in own))
    small = ["--window-tokens", "32", "--vocab-size", "300", "--encoder", "lsi", "--arity", "4", "--depth", "2"]
    [histogram] = next_of(capsys, "write", "my corpus.jsonl", "--out", "my data", *small)
    assert histogram == ["histogram", "TASK.jsonl", "--data", "my data", "--out", "task.parquet"]
    [tune] = next_of(capsys, *histogram)
    assert tune[:3] == ["histogram", "tune", "task.parquet"]
    forecast, train = next_of(capsys, *tune)
    assert Path("task.tuned.parquet").is_file()
    assert next_of(capsys, *forecast) == []
    assert train == [
        *("train", "demo", "crisp", "data.remote=my data"),
        "mixture.phases.0.histogram=task.tuned.parquet",
    ]
    [same] = next_of(capsys, "histogram", "tune", "task.parquet", "--data", "my data")
    assert same == tune
    [verify] = next_of(capsys, "append", "my data", "more.jsonl")
    assert verify == ["verify", "my data"]
    assert next_of(capsys, *verify) == []
