"""A whole study from its file to its tables: every kind of method, trained, fine-tuned, judged and compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from crisp_stream.cli.main import main
from crisp_stream.evaluation.perplexity import perplexity
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.study.record.record import StudyResults
from tests.support.written_study import METHODS, write_study, write_texts

FEWER = {
    "methods": METHODS | {name: {**METHODS[name], "num_seeds": 1} for name in ("multitask", "classifier")},
    "finetune": {"methods": ["base", "crisp"], "fractions": [0.5]},
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that has run."""
    folder = tmp_path_factory.mktemp("study")
    file, texts = write_study(folder / "study.yaml", **FEWER), write_texts(folder / "texts")
    assert main(["study", str(file), "--text", str(texts), "--out", str(folder / "out"), "--jobs", "1"]) == 0
    return folder


def command(ran: Path, *more: str) -> list[str]:
    return ["study", str(ran / "study.yaml"), "--text", str(ran / "texts"), "--out", str(ran / "out"), *more]


def test_every_method_is_in_the_record_at_equal_tokens(ran: Path) -> None:
    record = StudyResults.load(ran / "out" / "record")
    assert [method.name for method in record.methods] == list(METHODS)
    assert record.tokens == 10 * 4 * 32
    assert {model.tokens for model in record.models} == {record.tokens}, "fine-tuned and continued models included"
    judged = {(own.method, own.specialist, own.seed) for own in record.judgements if own.fraction == 0}
    assert {("base", "", 1), ("base", "", 2), ("multitask", "", 1), ("classifier", "exam", 1)} <= judged
    assert {(name, "statements", 1) for name in ("nearest", "dsir", "doge", "only-specialist", "continued")} <= judged
    assert any(model.fraction for model in record.models)
    assert {own.kind for own in record.judgements if own.set_name == "exam.test"} == {"questions"}


def test_one_candidate_of_each_is_chosen_by_validation(ran: Path) -> None:
    record = StudyResults.load(ran / "out" / "record")
    for specialist in ("statements", "exam"):
        own = [each for each in record.models if (each.method, each.specialist) == ("crisp", specialist)]
        tried = [each for each in own if each.fraction == 0 and each.seed == 1]
        assert len(tried) == 2
        best = min(tried, key=lambda each: each.validation_of[specialist])
        assert [each for each in tried if each.chosen] == [best]
        assert [each.candidate for each in own if each.fraction == 0 and each.seed == 2] == [best.candidate]


def test_what_is_done_once_for_all_counts_for_the_methods_that_need_it(ran: Path) -> None:
    shared = {own.method: set(own.shared) for own in StudyResults.load(ran / "out" / "record").selections}
    assert shared["crisp"] == shared["doge"] == {"dataset/all"}
    assert shared["classifier"] == {"dataset/all", "embeddings/all"}
    assert shared["third"] == {"dataset/third"}
    assert shared["dsir"] == set()


def test_judged_perplexities_are_those_of_the_checkpoints(ran: Path) -> None:
    record = StudyResults.load(ran / "out" / "record")
    (train,) = (ran / "out" / "train").glob("base.seed-1-*")
    (held_out,) = (ran / "out" / "held-out").glob("statements-*")
    texts = [json.loads(line)["text"] for line in (held_out / "statements.test.jsonl").read_text().splitlines()]
    alone = perplexity(str(train / "run" / "latest-rank0.pt"), texts).perplexity
    found = record.judged("base", "statements", "statements.test")[0]
    assert math.exp(found.values.mean()) == pytest.approx(alone, rel=1e-5)


def test_multitask_weights_are_the_mean_of_the_tasks(ran: Path) -> None:
    (both,) = (ran / "out" / "select").glob("multitask-*/selection.parquet")
    found = Histogram.load(both)
    assert found.level == 1
    assert found.proportions.sum() == pytest.approx(1.0)
    assert {row["method"] for row in json.loads((ran / "out/record/study.json").read_text())["weights"]} == {"doge"}


def test_asking_again_runs_nothing_and_gives_the_same_tables(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = ran / "out" / "record"
    before = {path.name: path.read_bytes() for path in record.iterdir()}
    (record / "of-a-method-that-is-gone.csv").touch()
    times = {path: path.stat().st_mtime_ns for path in (ran / "out").rglob("done.json")}
    assert main(command(ran)) == 0
    assert "jobs are finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (ran / "out").rglob("done.json")} == times
    assert {path.name: path.read_bytes() for path in record.iterdir()} == before
    assert main(["study", "report", str(record), "--out", str(ran / "again")]) == 0
    again = {path.name: path.read_bytes() for path in (ran / "again").iterdir()}
    assert again == {name: content for name, content in before.items() if name in again}
    assert {"tables.md", "main.svg"} <= again.keys()


def test_a_study_that_is_not_finished_shows_what_is(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(ran / "more.yaml", seeds=[1, 2, 3], **FEWER)
    more = ["study", str(ran / "more.yaml"), "--text", str(ran / "texts"), "--out", str(ran / "out")]
    assert main([*more, "--plan"]) == 0
    planned = capsys.readouterr().out
    assert "to run    train/base.seed-3" in planned
    assert "finished  train/base.seed-2" in planned
    assert main([*more, "--finished"]) == 0
    assert "every model: 1,280 tokens" in capsys.readouterr().out
    assert main([*command(ran, "--finished")]) == 0


def test_a_study_without_a_judged_base_model_has_no_record_yet(
    ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["study", str(ran / "study.yaml"), "--text", str(ran / "texts"), "--out", str(tmp_path / "new")]
    assert main([*asked, "--finished"]) == 2
    assert "no model of base was judged yet" in capsys.readouterr().err
