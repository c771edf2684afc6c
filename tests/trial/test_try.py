"""`crisp-stream try` at a small size on real text, and the commands that it says."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from crisp_stream.cli import main as command_line
from crisp_stream.cli.histogram import with_count
from crisp_stream.cli.main import main
from crisp_stream.cli.study import with_run
from crisp_stream.corpora.demo import prepare_corpora
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.storage.store import cache_folder
from crisp_stream.trial import own
from crisp_stream.trial.own import run_own_trial
from crisp_stream.trial.sizing import TrialPlan
from crisp_stream.trial.split import TrialInputs
from crisp_stream.trial.trial import TrialResult
from tests.support.small_trial import SMALL_TRIAL


@dataclass(frozen=True)
class OwnTrial:
    """A finished trial and where it stands."""

    inputs: TrialInputs
    folder: Path
    result: TrialResult
    said: list[str]

    def commands(self, after: str) -> list[str]:
        """The command lines behind a heading."""
        at = next(number for number, block in enumerate(self.said) if after in block)
        return [line.strip() for line in self.said[at + 1].splitlines()]


@pytest.fixture(scope="module")
def small_plan() -> object:
    plan = TrialPlan(
        size=SMALL_TRIAL, characters=250_000, windows=1_000, batches=4, seconds={"all": 1.0}, whole="small"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "plan_trial", lambda inputs, minutes: plan)
        yield plan


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and the examples of a task, under a user's names."""
    folder = tmp_path_factory.mktemp("own")
    found = prepare_corpora(
        folder / "made",
        cache=cache_folder() / "demo",
        generalist_characters=300_000,
        specialist_documents=30,
        test_documents=20,
    )
    (folder / "corpus.jsonl").write_bytes(found.generalist.read_bytes() + found.generalist_test.read_bytes())
    (folder / "law cases.jsonl").write_bytes(found.specialist.read_bytes() + found.specialist_test.read_bytes())
    return folder


@pytest.fixture(scope="module")
def trial(texts: Path, small_plan: object, tmp_path_factory: pytest.TempPathFactory) -> OwnTrial:
    inputs = TrialInputs(corpus=str(texts / "corpus.jsonl"), task=str(texts / "law cases.jsonl"))
    folder, said = tmp_path_factory.mktemp("trial") / "out", []
    result = run_own_trial(inputs, minutes=5, folder=folder, log=said.append)
    return OwnTrial(inputs, folder, result, said)


def test_a_verdict_on_text_that_was_held_out(trial: OwnTrial) -> None:
    said = "\n".join(trial.said)
    assert [f"[{number}/6]" in said for number in range(1, 7)] == [True] * 6
    names = {(row.results.model_name, row.judged.name) for row in trial.result.evaluation.rows}
    assert names == {(model, name) for model in ("base", "crisp") for name in ("law cases", "the corpus")}
    assert trial.result.text().splitlines()[-1] in said
    assert trial.result.page == trial.folder / "report.html"
    judged = {row.judged.name: row.results.num_examples for row in trial.result.evaluation.rows}
    assert judged["law cases"] == 16
    dataset = open_dataset(str(trial.folder / "data"))
    assert dataset.manifest.provenance["ngram"] == 13


def test_a_second_run_keeps_everything_and_another_trial_is_refused(trial: OwnTrial) -> None:
    said: list[str] = []
    again = run_own_trial(trial.inputs, minutes=5, folder=trial.folder, log=said.append)
    assert again.kept == ("texts", "dataset", "histogram", "base", "crisp")
    assert again.text() == trial.result.text()
    with pytest.raises(InputError, match=r"holds another trial: minutes was 5, is 6\. Choose another --out"):
        run_own_trial(trial.inputs, minutes=6, folder=trial.folder)
    record = trial.folder / "trial.json"
    content = record.read_text()
    record.write_text(content[:40])
    with pytest.raises(InputError, match=r"trial\.json: damaged"):
        run_own_trial(trial.inputs, minutes=5, folder=trial.folder)
    record.write_text(content)


def test_the_commands_do_what_the_trial_did(trial: OwnTrial, tmp_path: Path) -> None:
    commands = trial.commands("These commands do the same")
    assert len(commands) == 7
    for line in commands:
        moved = line.replace(str(trial.folder / "text"), "TEXTS").replace(str(trial.folder), str(tmp_path / "again"))
        words = shlex.split(moved.replace("TEXTS", str(trial.folder / "text")))
        assert words[0] == "crisp-stream"
        assert main(words[1:]) == 0
    again = tmp_path / "again"
    assert (
        open_dataset(str(again / "data")).manifest.fingerprint
        == open_dataset(str(trial.folder / "data")).manifest.fingerprint
    )
    for name in ("counted", "task"):
        paths = [folder / f"{name}.parquet" for folder in (again, trial.folder)]
        assert Histogram.load(paths[0]).fingerprint == Histogram.load(paths[1]).fingerprint
    for model in ("base", "crisp"):
        assert (again / model / "losses.csv").read_text() == (trial.folder / model / "losses.csv").read_text()
    assert (again / "report.html").is_file()


def test_what_comes_next_are_commands(trial: OwnTrial) -> None:
    commands = trial.commands("next: the whole corpus")
    assert [shlex.split(line)[1] for line in commands] == [
        "write",
        "write",
        "histogram",
        "histogram",
        "forecast",
        "train",
    ]
    for line in commands:
        words = shlex.split(line)[1:]
        command_line._parser().parse_args(with_run(with_count(words)))
    assert trial.inputs.corpus in shlex.split(commands[0])
    assert str(next((trial.folder / "text").glob("specialist_test-*"))) in shlex.split(commands[1])


def test_questions_are_judged_by_text_and_by_choice(
    texts: Path, small_plan: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [json.loads(line)["text"] for line in (texts / "law cases.jsonl").read_text().splitlines()]
    rows = [
        {"question": text[:120], "choices": [text[120:180], text[180:240]], "answer": number % 2}
        for number, text in enumerate(documents[:40])
    ]
    exam = tmp_path / "exam.jsonl"
    exam.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["try", str(texts / "corpus.jsonl"), str(exam), "--questions", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "base: judged on 13 examples of exam, choice of answers" in said
    assert "--mcq-text" in said
    kept = {path.name for path in (tmp_path / "out" / "judged").iterdir()}
    assert kept == {
        f"{model}.{name}.results.parquet" for model in ("base", "crisp") for name in ("answers", "corpus", "task")
    }


def test_wrong_arguments_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.jsonl").write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(30)))
    assert main(["try", "no.jsonl", "task.jsonl", "--minutes", "5"]) == 2
    assert "no.jsonl" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["task.jsonl"]
