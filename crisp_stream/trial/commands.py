"""The commands that a trial stands for, and those for the whole corpus."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crisp_stream.trial.trial import Trial

_LARGER = "gpt-350m"


def command(*words: str | Path) -> str:
    """A command line of `crisp-stream` that can be pasted into a shell."""
    return shlex.join(["crisp-stream", *map(str, words)])


def same_commands(trial: Trial) -> list[str]:
    """The commands that do what the trial does, step by step."""
    texts, folder = trial.texts, trial.folder
    counted, tuned = folder / "counted.parquet", folder / "task.parquet"
    data: Sequence[str] = ("--data", trial.root)
    questions: Sequence[str] = ("--questions", "right") if trial.questions else ()
    asked = ["--mcq-text", texts.specialist_test, "--mcq", texts.specialist_test]
    judged = asked if trial.questions else ["--text", texts.specialist_test]
    return [
        command("write", texts.generalist, "--out", trial.root, *write_options(trial)),
        command("histogram", texts.specialist, *data, *questions, "--out", counted),
        command("histogram", "tune", counted, *data, "--out", tuned),
        *(command("train", "demo", name, *trial.overrides(name)) for name in ("base", "crisp")),
        command(
            *("eval", folder / "base", folder / "crisp", "--name", "base", "crisp", *judged),
            *("--text", texts.generalist_test, "--out", folder / "judged"),
        ),
        command("report", trial.root, tuned, folder / "base", folder / "crisp", folder / "judged", "--out", trial.page),
    ]


def write_options(trial: Trial) -> list[str]:
    """Options of `write`."""
    size, texts = trial.size, trial.texts
    return [
        *("--window-tokens", str(size.window_tokens), "--vocab-size", str(size.vocab_size)),
        *("--max-length", str(size.encoder_pieces), "--part-characters", str(trial.part_characters)),
        *("--arity", str(size.arity), "--depth", str(size.depth), "--min-split", str(size.min_examples_to_split)),
        *("--decontaminate", str(texts.specialist_test), str(texts.generalist_test)),
    ]


def whole_commands(corpus: str, task: str, held_out: Path, *, text_column: str, questions: bool) -> list[str]:
    """What comes next: the same on the whole corpus, with windows of 1,024 tokens and a larger model."""
    column = [] if text_column == "text" else ["--text-column", text_column]
    kind: Sequence[str] = ["--questions", "right"] if questions else column
    write = ("write", corpus, *column, "--out", "data", "--decontaminate", held_out)
    return [
        command(*write, "--plan"),
        command(*write),
        command("histogram", task, *kind, "--data", "data", "--out", "counted.parquet"),
        command("histogram", "tune", "counted.parquet", "--data", "data", "--out", "task.parquet"),
        command("forecast", "--mixture", _LARGER, "crisp", "data.remote=data"),
        command("train", _LARGER, "crisp", "data.remote=data"),
    ]
